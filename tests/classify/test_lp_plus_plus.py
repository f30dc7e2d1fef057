"""Test LP++ against its equations in NumPy, step by step."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from clipkit.classify.few_shot import fit_head
from clipkit.classify.heads import CosineHead
from tests.helpers.support_sets import CLASSES, ZERO_SHOT, draw

Array = npt.NDArray[np.float64]
TEXTS = ZERO_SHOT.weight.detach().double().numpy()


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def descend(x: Array, y: npt.NDArray[np.int64], epochs: int) -> tuple[Array, Array]:
    """Return the weight (C, D) and bias (C,) of the whole head by 2404.02285."""
    members = np.eye(CLASSES)[y]  # (N, C)
    cosines = x @ TEXTS.T
    probe, bias = members.T @ x, np.zeros(CLASSES)
    present = sorted(set(y.tolist()))
    alpha = np.full(CLASSES, 250 * np.mean([cosines[y == c, c].mean() for c in present]))
    rate = 4 * len(x) / np.linalg.eigvalsh(x.T @ x).max()
    alpha_rate = len(x) / (4 * (cosines**2).sum(axis=0).max())
    probe_speed, bias_speed = np.zeros_like(probe), np.zeros_like(bias)
    for epoch in range(1, epochs + 1):
        slope = (softmax(x @ probe.T + bias + alpha * cosines) - members) / len(x)  # (N, C)
        probe_speed = 0.9 * probe_speed + slope.T @ x
        bias_speed = 0.9 * bias_speed + slope.sum(axis=0)
        probe, bias = probe - rate * probe_speed, bias - rate * bias_speed
        if epoch % 10 == 0:
            alpha = alpha - alpha_rate * (slope * cosines).sum(axis=0)
    return probe + alpha[:, None] * TEXTS, bias


@pytest.mark.parametrize("epochs", [0, 1, 9, 10, 45])
@pytest.mark.parametrize("counts", [(4,) * 6, (9, 0, 3, 1, 2, 1), (1, 1, 0, 1, 1, 1)])
def test_lp_plus_plus_against_numpy(counts: tuple[int, ...], epochs: int) -> None:
    x, y = draw(*counts)
    head, chosen = fit_head(x, y, ZERO_SHOT, "lp_plus_plus", epochs=epochs)
    weight, bias = descend(x.double().numpy(), y.numpy(), epochs)
    linear = head.to_linear()
    np.testing.assert_allclose(linear.weight.detach().numpy(), weight, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(linear.bias.detach().numpy(), bias, rtol=1e-3, atol=1e-3)
    assert chosen["epochs"] == epochs


def test_there_are_300_epochs() -> None:
    x, y = draw(*(2,) * 6)
    head, chosen = fit_head(x, y, ZERO_SHOT, "lp_plus_plus")
    same, _ = fit_head(x, y, ZERO_SHOT, "lp_plus_plus", epochs=300)
    assert chosen["epochs"] == 300
    assert torch.equal(head.to_linear().weight, same.to_linear().weight)


def test_texts_that_point_away_leave_no_scale() -> None:
    """Zero-shot logits of new classes would count backwards."""
    x, y = draw(*(3,) * 6)
    away = CosineHead(-ZERO_SHOT.weight.detach(), ZERO_SHOT.logit_scale)
    assert fit_head(x, y, ZERO_SHOT, "lp_plus_plus")[0].scale is not None
    assert fit_head(x, y, away, "lp_plus_plus", epochs=0)[0].scale is None
