"""Test the linear probe against scikit-learn, and the range and data of its sweep."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from clipkit.classify.few_shot import fit_head
from clipkit.classify.heads import CosineHead, LinearHead
from tests.helpers.support_sets import CLASSES, WIDTH, ZERO_SHOT, assert_same_head, draw, unit

Array = npt.NDArray[np.float64]


def centered(bias: Array) -> Array:
    """Return biases up to a constant, which changes no prediction."""
    return bias - bias.mean()


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize(
    "counts", [(8,) * 6, (12, 2, 5, 1, 7, 3), (9, 0, 4, 0, 0, 3), (9, 0, 0, 4, 0, 0)]
)
def test_probe_against_sklearn(C: float, counts: tuple[int, ...]) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = draw(*counts)
    others, _ = draw(*(40,) * 6, seed=1)
    head, chosen = fit_head(x, y, ZERO_SHOT, "linear_probe", C=C)
    assert isinstance(head, LinearHead)
    assert head.scale is None
    assert chosen["C"] == C
    model = linear_model.LogisticRegression(C=C, tol=1e-9, max_iter=10000)
    model.fit(x.double().numpy(), y.numpy())
    present, coefficients, intercepts = model.classes_, model.coef_, model.intercept_
    if len(present) == 2:  # it has one row, the difference of ours
        coefficients = np.concatenate([-model.coef_, model.coef_]) / 2
        intercepts = np.concatenate([-model.intercept_, model.intercept_]) / 2
    weight = head.weight.detach().double().numpy()
    bias = head.bias.detach().double().numpy()
    largest = np.abs(coefficients).max()
    largest_bias = max(largest, np.abs(intercepts).max())
    assert np.abs(weight[present] - coefficients).max() < 1e-3 * largest
    assert np.abs(centered(bias[present]) - centered(intercepts)).max() < 1e-3 * largest_bias
    predicted = head(others).argmax(dim=1).numpy()
    assert (predicted == model.predict(others.double().numpy())).all()
    assert set(predicted) <= set(present)


def test_the_sweep_takes_eighths_of_a_decade() -> None:
    x, y = draw(8, 6, 8, 4, 8, 3, noise=2.0)
    _, chosen = fit_head(x, y, ZERO_SHOT, "linear_probe")
    eighths = 8 * math.log10(chosen["C"])
    assert 1e-6 <= chosen["C"] <= 1e6
    assert eighths == pytest.approx(round(eighths), abs=1e-6)


def test_after_the_sweep_all_images_are_fitted() -> None:
    x, y = draw(8, 6, 8, 4, 8, 3, noise=2.0)
    head, chosen = fit_head(x, y, ZERO_SHOT, "linear_probe")
    same, _ = fit_head(x, y, ZERO_SHOT, "linear_probe", C=chosen["C"])
    assert_same_head(same, head)


def test_the_texts_do_not_matter() -> None:
    x, y = draw(8, 6, 8, 4, 8, 3, noise=2.0)
    head, _ = fit_head(x, y, ZERO_SHOT, "linear_probe")
    other = CosineHead(unit(CLASSES, WIDTH, seed=7), torch.tensor(0.0))
    same, _ = fit_head(x, y, other, "linear_probe")
    assert_same_head(same, head)


def test_the_sweep_stays_in_its_range() -> None:
    """All strengths are equally good for images that are all the same: the first one is taken."""
    alike = torch.ones(12, WIDTH) / 4
    _, chosen = fit_head(alike, torch.arange(12) % 6, ZERO_SHOT, "linear_probe")
    assert chosen["C"] == 1e-6


def test_single_images_take_the_rule() -> None:
    """There is nothing to hold out."""
    _, chosen = fit_head(*draw(1, 1, 1, 0, 1, 1), ZERO_SHOT, "linear_probe")
    assert chosen["C"] == 1.0
