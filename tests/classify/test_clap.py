"""Test CLAP against its equations in NumPy, step by step."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from clipkit.classify.few_shot import fit_head
from clipkit.classify.heads import CosineHead
from tests.helpers.support_sets import CLASSES, ZERO_SHOT, draw

Array = npt.NDArray[np.float64]
TEXTS: Array = ZERO_SHOT.weight.detach().double().numpy()
SCALE = math.exp(ZERO_SHOT.logit_scale.item())


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def holds(x: Array, y: npt.NDArray[np.int64]) -> Array:
    """Return how strongly each class is held (C,)."""
    own = softmax(SCALE * x @ TEXTS.T)[np.arange(len(x)), y]
    found = {c: own[y == c].mean() for c in set(y.tolist())}
    return np.array([found.get(c, np.mean(list(found.values()))) for c in range(CLASSES)])


def descend(x: Array, y: npt.NDArray[np.int64], epochs: int, lr: float) -> Array:
    """Return the prototypes (C, D), of unit length, by 2312.12730."""
    weight, speed, hold = TEXTS.copy(), np.zeros_like(TEXTS), holds(x, y)
    for epoch in range(epochs):
        length = np.linalg.norm(weight, axis=1, keepdims=True)
        unit = weight / length
        error = (softmax(SCALE * x @ unit.T) - np.eye(CLASSES)[y]) / len(x)
        slope = SCALE * error.T @ x  # of the loss by the unit prototypes
        slope = (slope - unit * (slope * unit).sum(axis=1, keepdims=True)) / length
        slope += 2 * hold[:, None] * (weight - TEXTS) / CLASSES
        speed = 0.9 * speed + slope
        weight = weight - lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 * speed
    return weight / np.linalg.norm(weight, axis=1, keepdims=True)


@pytest.mark.parametrize("epochs", [1, 2, 25])
@pytest.mark.parametrize("counts", [(4,) * 6, (9, 0, 3, 1, 2, 1), (1, 1, 0, 1, 1, 1)])
def test_clap_against_numpy(counts: tuple[int, ...], epochs: int) -> None:
    x, y = draw(*counts)
    head, chosen = fit_head(x, y, ZERO_SHOT, "clap", epochs=epochs, lr=0.02)
    assert isinstance(head, CosineHead)
    expected = descend(x.double().numpy(), y.numpy(), epochs, 0.02)
    np.testing.assert_allclose(head.weight.detach().numpy(), expected, rtol=2e-3, atol=2e-4)
    assert head.scale == pytest.approx(SCALE)
    assert chosen["epochs"] == epochs
    assert chosen["lr"] == 0.02


def test_no_epochs_leave_zero_shot() -> None:
    x, y = draw(*(2,) * 6)
    head, _ = fit_head(x, y, ZERO_SHOT, "clap", epochs=0)
    torch.testing.assert_close(head(x), ZERO_SHOT(x), rtol=1e-5, atol=1e-5)


def test_defaults_are_those_of_the_paper() -> None:
    x, y = draw(*(2,) * 6)
    head, chosen = fit_head(x, y, ZERO_SHOT, "clap")
    same, _ = fit_head(x, y, ZERO_SHOT, "clap", epochs=300, lr=0.1)
    assert chosen["epochs"] == 300
    assert chosen["lr"] == 0.1
    assert torch.equal(head.to_linear().weight, same.to_linear().weight)
