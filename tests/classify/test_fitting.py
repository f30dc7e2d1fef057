"""Test what the methods share: folds, class means, and draws."""

import pytest
import torch

from clipkit.classify.fitting import FOLDS, class_means, make_folds, shuffled, shuffled_batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "counts", [(4, 4, 4), (2, 2, 2), (9, 2, 5, 1, 7, 3), (3, 0, 1, 6), (2, 1, 1)]
)
def test_folds(counts: tuple[int, ...]) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator())]
    folds = make_folds(labels, generator())
    assert len(folds) == min(FOLDS, max(counts))
    for rest, out in folds:
        assert rest.equal(~out)
        assert out.any()
    # Each image is held out once, but for those of a class of one.
    times = torch.stack([out for _, out in folds]).sum(dim=0)
    assert times.equal((torch.tensor(counts)[labels] > 1).long())
    for label, count in enumerate(counts):
        held = [int((labels[out] == label).sum()) for _, out in folds]
        assert max(held) - min(held) <= 1
        assert count == 0 or max(held) < count


def test_no_folds_of_single_images() -> None:
    assert make_folds(torch.tensor([2, 0, 1]), generator()) == []


def test_folds_follow_the_generator_alone() -> None:
    labels = torch.arange(3).repeat(20)
    first = make_folds(labels, generator(1))
    torch.rand(3)
    for one, other in zip(first, make_folds(labels, generator(1)), strict=True):
        assert one[1].equal(other[1])
    assert not first[0][1].equal(make_folds(labels, generator(2))[0][1])


def test_class_means() -> None:
    features = torch.tensor([[1.0, 0], [3, 0], [0, 5]])
    means, counts = class_means(features, torch.tensor([2, 2, 0]), classes=4)
    assert means.tolist() == [[0, 5], [0, 0], [2, 0], [0, 0]]
    assert counts.tolist() == [1, 0, 2, 0]


def test_batches_hold_all_numbers_once() -> None:
    batches = shuffled_batches(10, 4, generator(), torch.device("cpu"))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.cat(batches).sort().values.equal(torch.arange(10))
    assert torch.cat(batches).equal(shuffled(10, generator()))
