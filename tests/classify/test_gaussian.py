"""Test Gaussian discriminant analysis against the formulas of its paper."""

import numpy as np
import numpy.typing as npt
import pytest

from clipkit.classify.few_shot import fit_head
from clipkit.classify.gaussian import ALPHAS
from tests.helpers.support_sets import CLASSES, ZERO_SHOT, draw

Array = npt.NDArray[np.float64]


def discriminant(x: Array, y: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """Return w and b for even priors by 2402.04087, section 3.

    The precision is that of Kubokawa and Srivastava.
    """
    means = np.zeros((CLASSES, x.shape[1]))
    for label in set(y):
        means[label] = x[y == label].mean(axis=0)
    covariance = np.cov((x - means[y]).T) if len(set(y)) < len(y) else np.cov(x.T)
    width = x.shape[1]
    ridge = np.trace(covariance) * np.eye(width)
    precision = width * np.linalg.inv((len(x) - 1) * covariance + ridge)
    return means @ precision, -0.5 * np.einsum("cd,de,ce->c", means, precision, means)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 10.0])
@pytest.mark.parametrize("counts", [(8,) * 6, (12, 2, 5, 1, 7, 3), (9, 0, 4, 0, 0, 3), (1,) * 6])
def test_gaussian_against_numpy(counts: tuple[int, ...], alpha: float | None) -> None:
    x, y = draw(*counts)
    others, _ = draw(*(20,) * 6, seed=1)
    weight, bias = discriminant(x.double().numpy(), y.numpy())
    features = others.double().numpy()
    zero_shot = 20 * features @ ZERO_SHOT.weight.detach().double().numpy().T
    head, chosen = fit_head(x, y, ZERO_SHOT, "gaussian", alpha=alpha)
    expected = zero_shot + chosen["alpha"] * (features @ weight.T + bias)
    np.testing.assert_allclose(head(others).detach().numpy(), expected, rtol=1e-3, atol=1e-3)
    assert head.scale == pytest.approx(20, rel=1e-6)
    if alpha is not None:
        assert chosen["alpha"] == alpha
    elif max(counts) == 1:
        assert chosen["alpha"] == 1.0
    else:
        assert chosen["alpha"] in ALPHAS


def test_alphas_are_powers_of_ten() -> None:
    assert ALPHAS == (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
