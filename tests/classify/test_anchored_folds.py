"""Test what `anchored` holds out of uneven and of many images, and which strengths it compares."""

import pytest
import torch

from clipkit.classify.anchored import HELD_OUT, STRENGTHS, _one_fold, _strengths, _with_singles
from clipkit.classify.few_shot import fit_head
from clipkit.classify.fitting import make_folds
from tests.helpers.support_sets import accuracy
from tests.helpers.worlds import World


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_single_images_are_held_out_once_each() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2, 3, 5])
    folds = _with_singles(make_folds(labels, generator()), labels)
    held = torch.stack([out for _, out in folds])
    assert held.sum(dim=0).equal(torch.ones(9, dtype=torch.int64))
    assert all((rest ^ out).all() for rest, out in folds)


def test_no_fold_stays_no_fold() -> None:
    assert _with_singles([], torch.tensor([0, 1, 2])) == []
    assert _one_fold([]) == []


@pytest.mark.parametrize("shots", [4, 900, 3000])
def test_of_many_images_some_of_all_classes_are_held_out(shots: int) -> None:
    labels = torch.arange(5).repeat_interleave(shots)
    folds = _one_fold(make_folds(labels, generator()))
    assert len(folds) == 1
    rest, out = folds[0]
    assert not (rest & out).any()
    assert rest.sum() == 5 * shots * 3 // 4
    counts = labels[out].bincount(minlength=5)
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == min(5 * shots // 4, -(-5 * shots // 4 // -(-5 * shots // 4 // HELD_OUT)))


def test_single_images_are_not_pulled_less_than_usual() -> None:
    assert _strengths(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4]), 0.1) == list(STRENGTHS)
    few = _strengths(torch.tensor([0, 0, 1, 1, 2, 2, 3]), 0.1)
    assert few == [strength for strength in STRENGTHS if strength > 0.1] + [0.1]


@pytest.mark.parametrize("counts", [(20, 1), (12, 1, 1, 1, 1)])
def test_uneven_classes_do_not_fall_below_zero_shot(counts: tuple[int, ...]) -> None:
    gains: list[float] = []
    for seed in range(5):
        world = World(len(counts), 32, 1.5, 1, seed)
        support = world.draw(counts)
        others = world.draw((200,) * len(counts))
        head, _ = fit_head(*support, world.zero_shot)
        gains.append(accuracy(head, *others) - accuracy(world.zero_shot, *others))
    assert sum(gains) / len(gains) > -0.02
