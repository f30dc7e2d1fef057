"""The method "projection": against what defines it, in float64 by scipy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from clipkit import CosineHead, fit_head
from clipkit.classify.projection import STRENGTHS

Array = NDArray[np.float64]


def support(each: int, seed: int = 0, width: int = 6) -> tuple[Tensor, Tensor, CosineHead]:
    """Return features and labels of three classes, and a head of texts that are somewhat off."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(3, width, generator=random)
    labels = torch.arange(3).repeat_interleave(each)
    noise = torch.randn(len(labels), width, generator=random)
    texts = centers + torch.randn(3, width, generator=random)
    head = CosineHead(F.normalize(texts, dim=-1), torch.tensor(math.log(10)))
    return F.normalize(centers[labels] + 0.7 * noise, dim=-1), labels, head


def oracle(features: Tensor, labels: Tensor, head: CosineHead, strength: float) -> Array:
    """Return the weights (C, D) that minimize the loss over all of the matrix B, by scipy."""
    x, w = features.double().numpy(), head.weight.detach().double().numpy()
    width, rows = x.shape[1], np.arange(len(x))

    def loss(flat: Array) -> tuple[float, Array]:
        change = flat.reshape(width, width)
        logits = 10 * x @ (np.eye(width) + change) @ w.T
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        value = -np.log(shares[rows, labels.numpy()]).mean() + strength * (change**2).sum()
        shares[rows, labels.numpy()] -= 1
        slope = 10 * x.T @ shares @ w / len(x) + 2 * strength * change
        return float(value), slope.ravel()

    start = np.zeros(width * width)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-10})
    return 10 * w @ (np.eye(width) + found.x.reshape(width, width)).T


@pytest.mark.parametrize("strength", [1.0, 0.03])
@pytest.mark.parametrize("each", [1, 5])
def test_it_is_the_minimum_over_all_matrices(strength: float, each: int) -> None:
    features, labels, texts = support(each)
    head, chosen = fit_head(features, labels, texts, "projection", strength=strength)
    expected = oracle(features, labels, texts, strength)
    found = head.to_linear().weight.detach().double().numpy()
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()
    assert np.abs(found - 10 * texts.weight.detach().numpy()).max() > 0.05  # it has moved
    assert chosen["strength"] == strength


def test_an_infinite_strength_is_zero_shot() -> None:
    features, labels, texts = support(4)
    head, _ = fit_head(features, labels, texts, "projection", strength=math.inf)
    with torch.no_grad():
        assert torch.allclose(head(features), texts(features), atol=1e-5)
    assert head.scale == pytest.approx(10)


def test_one_image_a_class_takes_the_rule() -> None:
    features, labels, texts = support(1)
    _, chosen = fit_head(features, labels, texts, "projection")
    assert chosen["strength"] == 1


def test_texts_that_know_all_are_kept() -> None:
    """Where zero-shot has the lowest loss on what is held out, nothing is moved."""
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(3).repeat(4)
    texts = F.normalize(torch.eye(3, 8) + 1e-3, dim=-1)
    # Whatever sets images apart from their texts says nothing of other images.
    features = F.normalize(texts[labels] + 0.02 * torch.randn(12, 8, generator=random), dim=-1)
    head = CosineHead(texts, torch.tensor(0.0))
    fitted, chosen = fit_head(features, labels, head, "projection")
    assert chosen["strength"] in (math.inf, *STRENGTHS)
    assert (fitted(features).argmax(dim=1) == labels).all()


def test_the_strength_has_the_lowest_loss_on_what_is_held_out() -> None:
    """Texts that point elsewhere want a weak pull, and texts that are right a strong one."""
    features, labels, texts = support(12, width=16)
    random = torch.Generator().manual_seed(3)
    wrong = F.normalize(torch.randn(texts.weight.shape, generator=random), dim=-1)
    _, of_wrong = fit_head(features, labels, CosineHead(wrong, texts.logit_scale), "projection")
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(3)])
    right = CosineHead(F.normalize(means, dim=-1), texts.logit_scale)
    _, of_right = fit_head(features, labels, right, "projection")
    assert of_wrong["strength"] < of_right["strength"]


def test_a_shift_of_all_images_is_learned_for_classes_without_any() -> None:
    """All classes share the change, which is what sets the method apart."""
    random = torch.Generator().manual_seed(2)
    texts = F.normalize(torch.randn(12, 16, generator=random), dim=-1)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=random)).Q
    turn = torch.lerp(torch.eye(16), turn, 0.7)
    labels = torch.arange(10).repeat_interleave(8)  # none of the last two classes
    noise = 0.1 * torch.randn(80, 16, generator=random)
    features = F.normalize(texts[labels] @ turn + noise, dim=-1)
    head = CosineHead(texts, torch.tensor(math.log(20)))
    fitted, _ = fit_head(features, labels, head, "projection", strength=0.003)
    unseen = F.normalize(texts @ turn, dim=-1)
    answers = torch.arange(12)
    with torch.no_grad():
        before = -F.cross_entropy(head(unseen)[10:], answers[10:])
        after = -F.cross_entropy(fitted(unseen)[10:], answers[10:])
    assert after > before
