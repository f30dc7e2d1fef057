"""Test `anchored` where the best answer is known: noisy images, useless texts, and between."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.classify.anchored_experts import Experts
from clipkit.classify.few_shot import fit_head
from clipkit.classify.metrics import expected_calibration_error
from tests.helpers.support_sets import accuracy
from tests.helpers.worlds import World

linear_model = pytest.importorskip("sklearn.linear_model")


@pytest.mark.parametrize("shots", [1, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_not_misled_by_noisy_images(shots: int, seed: int) -> None:
    """Texts are right, and images nearly all noise: it stays where a free fit is lost."""
    world = World(10, 64, 4.0, 0, seed)
    support = world.draw((shots,) * 10)
    others = world.draw((100,) * 10)
    zero_shot = accuracy(world.zero_shot, *others)
    head, _ = fit_head(*support, world.zero_shot)
    free, _ = fit_head(*support, world.zero_shot, strength=1e-4)
    assert zero_shot > 0.45
    # Of single images nothing is held out, so nothing tells how noisy they are.
    assert accuracy(head, *others) >= zero_shot - (0.02 if shots == 1 else 0.01)
    assert accuracy(free, *others) < zero_shot - 0.03


def test_zero_shot_itself_is_a_candidate() -> None:
    world = World(10, 64, 8.0, 0, seed=2)
    support = world.draw((4,) * 10)
    others, _ = world.draw((100,) * 10)
    head, chosen = fit_head(*support, world.zero_shot)
    assert chosen["strength"] == float("inf")
    assert head(others).argmax(dim=1).equal(world.zero_shot(others).argmax(dim=1))


def test_not_misled_by_texts() -> None:
    """Texts tell nothing: it becomes a probe."""
    world = World(8, 24, 1.0, float("inf"))
    support = world.draw((16,) * 8)
    others = world.draw((100,) * 8)
    head, _ = fit_head(*support, world.zero_shot)
    probe = linear_model.LogisticRegression(C=10, max_iter=1000)
    probe.fit(*(values.numpy() for values in support))
    reached = probe.score(*(values.numpy() for values in others))
    assert accuracy(world.zero_shot, *others) < 0.3
    assert reached > 0.72
    assert accuracy(head, *others) >= reached - 0.02


def test_better_than_both() -> None:
    """Texts tell something: with each number of images it beats zero-shot and a probe."""
    world = World(10, 48, 1.5, 1)
    others = world.draw((100,) * 10)
    for shots in (1, 2, 4, 8):
        support = world.draw((shots,) * 10)
        head, _ = fit_head(*support, world.zero_shot)
        probe = linear_model.LogisticRegression(C=10, max_iter=1000)
        probe.fit(*(values.numpy() for values in support))
        reached = probe.score(*(values.numpy() for values in others))
        best = max(accuracy(world.zero_shot, *others), reached)
        assert accuracy(head, *others) > best - 0.005, shots


def calibrations(shots: int, seed: int) -> list[float]:
    """Return loss and calibration error of a head whose strength and factor are cross-validated.

    Each is followed by that of a head with the same strength and the factor of its own fit.
    """
    world = World(10, 48, 2.5, 1, seed)
    features, labels = world.draw((shots,) * 10)
    others, answers = world.draw((200,) * 10)
    head, chosen = fit_head(features, labels, world.zero_shot)
    experts = Experts(features, labels, world.zero_shot)
    if math.isfinite(chosen["strength"]):
        experts.fit(chosen["strength"], iterations=100, rounds=3)
    assert head.scale is not None
    ours = head(others).detach()
    plain = experts.logits(others, chosen["experts"])
    torch.testing.assert_close(ours / head.scale, plain / experts.scale, rtol=1e-4, atol=1e-5)
    return [
        F.cross_entropy(ours, answers).item(),
        F.cross_entropy(plain, answers).item(),
        expected_calibration_error(ours.softmax(dim=1), answers),
        expected_calibration_error(plain.softmax(dim=1), answers),
    ]


@pytest.mark.parametrize("shots", [2, 4, 8])
def test_calibration(shots: int) -> None:
    """The factor of cross-validation makes held-out probabilities no worse than the fit's own."""
    results = [calibrations(shots, seed) for seed in range(4)]
    loss, raw_loss, error, raw_error = np.mean(results, axis=0)
    if shots == 2:  # 20 images tell little of it
        assert loss < raw_loss + 0.02
        assert error < raw_error + 0.02
    else:
        assert loss < raw_loss + 1e-3
        assert error < raw_error + 1e-2
        assert error < 0.08
    if shots == 4:  # where the fit is too sure of itself
        assert loss < raw_loss - 5e-3
        assert error < raw_error - 5e-3


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("shots", [1, 2, 5])
def test_a_few_easy_images_give_no_certainty(classes: int, shots: int) -> None:
    """All are told apart, so no factor seems too high; yet later mistakes must not cost much."""
    world = World(classes, 16, 0.5, 0.4)
    features, labels = world.draw((shots,) * classes)
    others, answers = world.draw((200,) * classes)
    head, _ = fit_head(features, labels, world.zero_shot)
    assert accuracy(head, features, labels) == 1
    assert accuracy(head, others, answers) > 0.97
    assert head.scale is not None
    assert 1 < head.scale < (101 if shots == 1 else 20)
    assert F.cross_entropy(head(others), answers) < (0.35 if shots == 1 else 0.25)
    if shots == 1:
        return  # nothing is held out, so they are as sure as the model's own scale makes them
    sure = head(features).softmax(dim=1).amax(dim=1).mean()
    assert 1 - 1 / len(features) < sure < 1 - 0.02 / len(features)


@pytest.mark.parametrize("counts", [(8, 8), (1, 1), (20, 10), (30, 2)])
def test_two_classes(counts: tuple[int, int]) -> None:
    """They do not fall far below zero-shot by very noisy images, and not on average by many."""
    changes: list[float] = []
    for seed in range(5):
        world = World(2, 32, 2.5, 1, seed)
        support = world.draw(counts)
        others = world.draw((200, 200))
        head, _ = fit_head(*support, world.zero_shot)
        changes.append(accuracy(head, *others) - accuracy(world.zero_shot, *others))
    assert np.mean(changes) > (-0.03 if sum(counts) == 2 else -0.005)
    assert min(changes) > -0.06


@pytest.mark.parametrize("noise", [1.5, 3.0])
def test_long_tails(noise: float) -> None:
    """Classes of two images do not fall behind one of sixty."""
    changes: list[float] = []
    for seed in range(3):
        world = World(10, 32, noise, 1, seed)
        support = world.draw((60, 30, 15, 8, 4, 2, 2, 1, 1, 1))
        others = world.draw((100,) * 10)
        head, _ = fit_head(*support, world.zero_shot)
        changes.append(accuracy(head, *others) - accuracy(world.zero_shot, *others))
    assert min(changes) > (-0.001 if noise < 2 else -0.01)
    assert np.mean(changes) > 0.02
