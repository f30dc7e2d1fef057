"""Test learned prompt weights against SciPy."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from clipkit.classify.few_shot import fit_head
from clipkit.classify.heads import WeightedPromptHead
from tests.helpers.support_sets import CAPTIONS, CLASSES, PROMPTS, ZERO_SHOT, draw

Array = npt.NDArray[np.float64]


def test_prompt_weights_against_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    x, y = draw(5, 4, 1, 3, 6, 4, noise=1.6)
    head, _ = fit_head(x, y, ZERO_SHOT, "prompt_weights", captions=CAPTIONS)
    assert isinstance(head, WeightedPromptHead)
    assert head.captions.equal(CAPTIONS)
    captions, features = CAPTIONS.double().numpy(), x.double().numpy()

    def objective(flat: Array) -> tuple[float, float]:
        """Return the summed cross-entropy, and half the squared relative change of the weights."""
        weights = flat[:-1].reshape(CLASSES, PROMPTS)  # (C * K,) -> (C, K)
        mixed = np.einsum("ck,ckd->cd", weights, captions)
        directions = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        logits = np.exp(flat[-1]) * features @ directions.T
        chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        loss = -np.log(chance[np.arange(len(y)), y]).sum()
        return loss, ((PROMPTS * weights - 1) ** 2).sum() / 2

    start = np.append(np.full(CLASSES * PROMPTS, 1 / PROMPTS), math.log(20))
    weights = head.prompt_weights.detach().double().numpy().ravel()  # (C, K) -> (C * K,)
    found = np.append(weights, head.logit_scale.item())
    best = optimize.minimize(lambda flat: sum(objective(flat)), start, options={"maxiter": 60})
    assert sum(objective(found)) == pytest.approx(best.fun, rel=1e-3)
    assert objective(found)[0] < 0.98 * objective(start)[0]
    assert head.scale == pytest.approx(math.exp(found[-1]), rel=1e-6)
