"""Test the heads that are trained by SGD: where they start, and two steps against NumPy."""

import numpy as np
import torch
import torch.nn.functional as F

from clipkit.classify.few_shot import fit_head
from tests.helpers.support_sets import CLASSES, ZERO_SHOT, accuracy, draw


def test_zero_shot_linear_starts_at_zero_shot() -> None:
    x, y = draw(*(4,) * 6)
    others, _ = draw(*(40,) * 6, seed=1)
    start, chosen = fit_head(x, y, ZERO_SHOT, "zero_shot_linear", epochs=0)
    torch.testing.assert_close(start(others), ZERO_SHOT(others), rtol=0, atol=1e-5)
    assert start(others).argmax(dim=1).equal(ZERO_SHOT(others).argmax(dim=1))
    assert chosen["epochs"] == 0


def test_zero_shot_linear_learns() -> None:
    x, y = draw(*(4,) * 6)
    losses: list[float] = []
    for epochs in (0, 10, 100):
        head, _ = fit_head(x, y, ZERO_SHOT, "zero_shot_linear", epochs=epochs)
        losses.append(F.cross_entropy(head(x), y).item())
    assert losses[0] > losses[1] > losses[2]


def test_random_linear_starts_at_random() -> None:
    x, y = draw(*(4,) * 6)
    first, same, other = (
        fit_head(x, y, ZERO_SHOT, "random_linear", seed=seed, epochs=0)[0].to_linear()
        for seed in (2, 2, 3)
    )
    assert first.weight.equal(same.weight)
    assert not first.weight.isclose(other.weight).any()
    lengths = first.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 20.0))
    assert accuracy(first, x, y) < 0.5


def test_random_linear_learns_by_its_seed() -> None:
    x, y = draw(*(4,) * 6)
    one, other = (fit_head(x, y, ZERO_SHOT, "random_linear", seed=seed)[0] for seed in (2, 3))
    assert accuracy(one, x, y) > 0.5
    assert not one.to_linear().weight.equal(other.to_linear().weight)


def test_the_scale_is_their_own() -> None:
    """What SGD did to the weights leaves no factor that new classes could share."""
    for method in ("zero_shot_linear", "random_linear"):
        head, _ = fit_head(*draw(*(4,) * 6), ZERO_SHOT, method, epochs=1)
        assert head.scale is None


def test_settings_are_told() -> None:
    x, y = draw(*(2,) * 6)
    _, chosen = fit_head(x, y, ZERO_SHOT, "zero_shot_linear", epochs=1, sgd_batch_size=5)
    assert chosen["epochs"] == 1
    assert chosen["batch_size"] == 5
    assert chosen["lr"] == 1e-3


def test_two_steps_against_numpy() -> None:
    """Batches are whole, so that order does not matter: momentum on weight and bias, times 20."""
    x, y = draw(3, 2, 3, 1, 3, 3)
    head, _ = fit_head(x, y, ZERO_SHOT, "zero_shot_linear", epochs=2, sgd_batch_size=100, lr=0.02)
    features, onehot = x.double().numpy(), np.eye(CLASSES)[y]
    weight, bias = ZERO_SHOT.weight.detach().double().numpy(), np.zeros(CLASSES)
    speed_w, speed_b = 0 * weight, 0 * bias
    for _ in range(2):
        p = np.exp(20 * (features @ weight.T + bias))
        slope = 20 * (p / p.sum(axis=1, keepdims=True) - onehot) / len(y)
        speed_w, speed_b = 0.9 * speed_w + slope.T @ features, 0.9 * speed_b + slope.sum(axis=0)
        weight, bias = weight - 0.02 * speed_w, bias - 0.02 * speed_b
    linear = head.to_linear()
    np.testing.assert_allclose(linear.weight.detach().numpy(), 20 * weight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(linear.bias.detach().numpy(), 20 * bias, rtol=1e-4, atol=1e-4)
