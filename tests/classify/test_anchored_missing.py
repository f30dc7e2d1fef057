"""Test what `anchored` does for classes without images, against SciPy and in designed worlds."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.classify import anchored_missing
from clipkit.classify.anchored_experts import CHOICES, Which
from clipkit.classify.anchored_missing import offset_of_missing
from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import Folds, make_folds
from tests.helpers.anchored_oracle import Array, Pair, cross_entropy, logits, optimize
from tests.helpers.support_sets import accuracy
from tests.helpers.worlds import World


def played_offset(
    features: Tensor, labels: Tensor, world: World, folds: Folds, strength: float, which: Which
) -> float:
    """Return the best offset by hand: leave images out, and whole classes, four groups of them."""
    classes = len(world.centers)
    present = np.flatnonzero(np.bincount(labels.numpy(), minlength=classes))
    groups = [present[start::4] for start in range(4)]
    left_out = [torch.tensor(np.isin(labels.numpy(), group)) for group in groups if len(group)]
    left_out = left_out[: len(folds)]  # no more groups than there are folds
    missing_share = 1 - len(present) / classes

    def play(out: Tensor) -> tuple[Array, Array, Array]:
        pair = Pair(features[~out], labels[~out], world.zero_shot)
        rows = logits(pair.layers(strength, rounds=3)[which], features[out])
        return rows, labels[out].numpy(), pair.one.counts == 0

    kinds = [
        ([play(out) for _, out in folds], 1 - missing_share),
        ([play(out) for out in left_out], missing_share),
    ]

    def loss(offset: float) -> float:
        total = 0.0
        for played, share in kinds:
            losses = [cross_entropy(rows + offset * absent, y) for rows, y, absent in played]
            total += share * np.concatenate(losses).mean()
        return total

    options = {"xatol": 1e-9}
    found: Any = optimize.minimize_scalar(loss, bounds=(-50, 50), method="bounded", options=options)
    return float(found.x)


@pytest.mark.parametrize("which", CHOICES)
@pytest.mark.parametrize(
    "counts",
    [
        (4, 0, 3, 5, 0, 1, 2, 6),
        (8, 8, 0, 0, 0),
        (5, 0, 3, 3),
        (6, 2, 3, 2, 4, 2, 2, 3, 0),
        (2, 1, 0, 2, 1, 2, 2),  # two folds, and classes for four groups
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.03])
def test_offset_against_scipy(counts: tuple[int, ...], strength: float, which: Which) -> None:
    world = World(len(counts), 12, 1.2, 0.7, seed=1)
    features, labels = world.draw(counts)
    folds = make_folds(labels, torch.Generator().manual_seed(0))
    offset = offset_of_missing(features, labels, world.zero_shot, folds, strength, which)
    expected = played_offset(features, labels, world, folds, strength, which)
    absent = torch.tensor(counts) == 0
    assert not offset[~absent].any()
    assert offset[absent].unique().numel() == 1
    assert offset[absent][0].item() == pytest.approx(expected, rel=0.02, abs=0.02)
    assert abs(expected) > 0.03


@pytest.mark.parametrize("counts", [(4, 4, 4), (1, 1, 0), (0, 4, 0), (0, 1, 0)])
def test_no_offset_where_nothing_can_be_played(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(anchored_missing, "_play", lambda *_: pytest.fail("a fit for nothing"))
    world = World(3, 12, 1.2, 0.7)
    features, labels = world.draw(counts)
    folds = make_folds(labels, torch.Generator().manual_seed(0))
    offset = offset_of_missing(features, labels, world.zero_shot, folds, 0.1, "both")
    assert offset.equal(torch.zeros(3))


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 9])
def test_each_class_is_left_out_once(classes: int) -> None:
    labels = torch.arange(classes).repeat(3)
    present = torch.ones(classes, dtype=torch.bool)
    masks = anchored_missing._left_out(labels, present)
    assert len(masks) == min(4, classes)
    assert torch.stack(masks).sum(dim=0).equal(torch.ones(len(labels), dtype=torch.int64))
    for mask in masks:
        assert mask.reshape(3, classes).all(dim=0).equal(mask.reshape(3, classes).any(dim=0))


def test_the_offset_is_added_to_the_head() -> None:
    world = World(8, 12, 1.2, 0.7, seed=1)
    features, labels = world.draw((4, 0, 3, 5, 0, 1, 2, 6))
    folds = make_folds(labels, torch.Generator().manual_seed(0))
    head, _ = fit_head(features, labels, world.zero_shot, strength=0.03)
    offset = offset_of_missing(features, labels, world.zero_shot, folds, 0.03, "both")
    bias, _ = Pair(features, labels, world.zero_shot).layers(0.03, rounds=3)["both"][::-1]
    found = head.to_linear().bias.detach().numpy()
    np.testing.assert_allclose(found, bias + offset.numpy(), atol=0.02)
    assert offset.abs().max() > 0.1


def with_and_without(
    monkeypatch: pytest.MonkeyPatch, seed: int, shots: int
) -> tuple[Array, Array, Array]:
    """Return accuracies of zero-shot, the head, and a head without offset.

    Each is of all classes, of those without images, and of those with some: (3,).
    """
    world = World(24, 48, 2.0, 0.8, seed)
    counts = (shots,) * 18 + (0,) * 6
    features, labels = world.draw(counts)
    others, answers = world.draw((40,) * 24)
    absent = answers >= 18
    head, _ = fit_head(features, labels, world.zero_shot)
    with monkeypatch.context() as patch:
        zeros = torch.zeros(24)
        patch.setattr("clipkit.classify.anchored.offset_of_missing", lambda *_: zeros)
        plain, _ = fit_head(features, labels, world.zero_shot)
    kinds = [absent | ~absent, absent, ~absent]
    results = [
        np.array([accuracy(one, others[kind], answers[kind]) for kind in kinds])
        for one in (world.zero_shot, head, plain)
    ]
    return results[0], results[1], results[2]


@pytest.mark.parametrize("shots", [4, 16])
def test_a_quarter_of_the_classes_has_no_image(monkeypatch: pytest.MonkeyPatch, shots: int) -> None:
    """They stay near what they were, and the whole gets better."""
    results = [with_and_without(monkeypatch, seed, shots) for seed in range(3)]
    zero_shot, head, plain = np.mean(results, axis=0)
    assert head[0] > zero_shot[0]
    assert head[1] > zero_shot[1] - 0.15
    assert head[2] > zero_shot[2]
    assert plain[1] < head[1] - 0.05  # so much is at stake
    assert head[0] > plain[0]
    if shots > 4:
        assert plain[1] < zero_shot[1] - 0.4
