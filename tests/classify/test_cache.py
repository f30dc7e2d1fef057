"""Test Tip-Adapter against the equations of its paper, its settings, and its fine-tuned keys."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.classify.cache import ALPHAS, BETAS
from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import make_folds
from clipkit.classify.gaussian import ALPHAS as GAUSSIAN_ALPHAS
from clipkit.classify.heads import CacheHead
from tests.helpers.support_sets import CLASSES, ZERO_SHOT, assert_same_head, draw


@pytest.mark.parametrize("given", [{}, {"alpha": 2.5}, {"beta": 7.0}, {"alpha": 0.5, "beta": 3.0}])
@pytest.mark.parametrize("counts", [(4,) * 6, (9, 0, 3, 1, 2, 1), (1, 1, 0, 1, 1, 1)])
def test_cache_against_numpy(counts: tuple[int, ...], given: dict[str, float]) -> None:
    """Equations 3 to 5 of 2111.03930."""
    x, y = draw(*counts)
    others, _ = draw(*(20,) * 6, seed=1)
    features, keys = others.double().numpy(), x.double().numpy()
    zero_shot = 20 * features @ ZERO_SHOT.weight.detach().double().numpy().T
    head, chosen = fit_head(
        x, y, ZERO_SHOT, "cache", alpha=given.get("alpha"), beta=given.get("beta")
    )
    near = np.exp(-chosen["beta"] * (1 - features @ keys.T)) @ np.eye(CLASSES)[y]
    expected = zero_shot + chosen["alpha"] * near
    np.testing.assert_allclose(head(others).detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert given.items() <= chosen.items()
    if max(counts) == 1:
        assert chosen["alpha"] == given.get("alpha", 1.0)
        assert chosen["beta"] == given.get("beta", 5.5)


SETTINGS = {
    "cache": [{"alpha": alpha, "beta": beta} for alpha in ALPHAS for beta in BETAS],
    "gaussian": [{"alpha": alpha} for alpha in GAUSSIAN_ALPHAS],
}


@pytest.mark.parametrize("method", SETTINGS)
def test_choice_by_cross_validation(method: str) -> None:
    """Fit heads on the rest of each fold: no other setting is better on what was held out."""
    x, y = draw(6, 4, 3, 1, 5, 4, noise=2.0)
    _, chosen = fit_head(x, y, ZERO_SHOT, method, seed=5)
    folds = make_folds(y, torch.Generator().manual_seed(5))
    answers = torch.cat([y[out] for _, out in folds])

    def loss(settings: dict[str, float]) -> float:
        """Return the loss on held-out images, at the best of many temperatures."""
        parts: list[torch.Tensor] = []
        for rest, out in folds:
            head, _ = fit_head(
                x[rest], y[rest], ZERO_SHOT, method, alpha=settings["alpha"],
                beta=settings.get("beta"),
            )  # fmt: skip
            parts.append(head(x[out]).detach())
        logits = torch.cat(parts)
        scales = (10 ** torch.arange(-4, 2, 0.05)).tolist()
        return min(F.cross_entropy(scale * logits, answers).item() for scale in scales)

    losses = [loss(settings) for settings in SETTINGS[method]]
    taken = loss({name: chosen[name] for name in SETTINGS[method][0]})
    assert taken <= min(losses) + 5e-3
    assert max(losses) > min(losses) + 0.05


def test_the_grid_is_as_documented() -> None:
    assert ALPHAS == (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    assert BETAS == (1.0, 3.0, 5.5, 10.0, 30.0)


def test_finetuned_cache_trains_its_keys_only() -> None:
    x, y = draw(*(5,) * 6, noise=1.6)
    plain, chosen = fit_head(x, y, ZERO_SHOT, "cache")
    tuned, told = fit_head(x, y, ZERO_SHOT, "cache_finetuned")
    assert isinstance(plain, CacheHead)
    assert isinstance(tuned, CacheHead)
    assert told["alpha"] == chosen["alpha"]
    assert told["beta"] == chosen["beta"]
    before, after = plain.state_dict(), tuned.state_dict()
    assert {name for name in after if not after[name].equal(before[name])} == {"keys"}
    assert F.cross_entropy(tuned(x), y) < F.cross_entropy(plain(x), y)


def test_no_epoch_leaves_the_cache_as_it_is() -> None:
    x, y = draw(*(5,) * 6, noise=1.6)
    plain, _ = fit_head(x, y, ZERO_SHOT, "cache")
    still, _ = fit_head(x, y, ZERO_SHOT, "cache_finetuned", epochs=0)
    assert_same_head(still, plain)
