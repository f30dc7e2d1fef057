"""Test ProKeR against its equations in NumPy, and the choice of its settings."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import make_folds
from clipkit.classify.proker import BETAS, STRENGTHS
from tests.helpers.support_sets import CLASSES, ZERO_SHOT, draw

Array = npt.NDArray[np.float64]
TEXTS = ZERO_SHOT.weight.detach().double().numpy()


def regress(
    x: Array, y: npt.NDArray[np.int64], others: Array, strength: float, beta: float
) -> Array:
    """Return logits without a temperature: what the cosines leave of the labels, by its kernel."""
    kernel = np.exp(-beta * (1 - x @ x.T))
    left = np.eye(CLASSES)[y] - x @ TEXTS.T
    values = np.linalg.inv(kernel / strength + np.eye(len(x))) @ left
    return others @ TEXTS.T + np.exp(-beta * (1 - others @ x.T)) @ values


@pytest.mark.parametrize("given", [{}, {"strength": 0.2}, {"beta": 2.5}])
@pytest.mark.parametrize("counts", [(4,) * 6, (9, 0, 3, 1, 2, 1), (1, 1, 0, 1, 1, 1)])
def test_proker_against_numpy(counts: tuple[int, ...], given: dict[str, float]) -> None:
    x, y = draw(*counts)
    others, _ = draw(*(20,) * 6, seed=1)
    head, chosen = fit_head(
        x, y, ZERO_SHOT, "proker", strength=given.get("strength"), beta=given.get("beta")
    )
    features, rows = others.double().numpy(), x.double().numpy()
    expected = regress(rows, y.numpy(), features, chosen["strength"], chosen["beta"])
    assert head.scale is not None
    found = head(others).detach().double().numpy()
    np.testing.assert_allclose(found, head.scale * expected, rtol=1e-3, atol=1e-3)
    assert given.items() <= chosen.items()
    if max(counts) == 1:
        assert head.scale == pytest.approx(20, rel=1e-5)
        assert chosen["strength"] == given.get("strength", 0.05)
        assert chosen["beta"] == given.get("beta", 3.0)


def test_a_strong_pull_is_zero_shot() -> None:
    x, y = draw(*(1,) * 6)
    others, _ = draw(*(20,) * 6, seed=1)
    head, _ = fit_head(x, y, ZERO_SHOT, "proker", strength=1e-9)
    torch.testing.assert_close(head(others), ZERO_SHOT(others), rtol=0, atol=1e-4)


def test_settings_have_the_lowest_held_out_loss() -> None:
    """Fit heads on the rest of each fold: no other setting is better on what was held out."""
    x, y = draw(6, 4, 3, 1, 5, 4, noise=2.0)
    _, chosen = fit_head(x, y, ZERO_SHOT, "proker", seed=5)
    folds = make_folds(y, torch.Generator().manual_seed(5))
    answers = torch.cat([y[out] for _, out in folds])

    def loss(strength: float, beta: float) -> float:
        """Return the loss on held-out images, at the best of many temperatures."""
        parts = [
            regress(
                x[rest].double().numpy(),
                y[rest].numpy(),
                x[out].double().numpy(),
                strength,
                beta,
            )
            for rest, out in folds
        ]
        logits = torch.from_numpy(np.concatenate(parts))
        scales = (10 ** torch.arange(-1, 3, 0.05)).tolist()
        losses = [torch.nn.functional.cross_entropy(s * logits, answers) for s in scales]
        return min(loss.item() for loss in losses)

    best = min(loss(strength, beta) for strength in STRENGTHS for beta in BETAS)
    assert loss(chosen["strength"], chosen["beta"]) < best + 0.02
