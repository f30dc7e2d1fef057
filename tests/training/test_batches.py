"""Batches depend on the seed and the step alone, and survive what cannot be read."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipkit import distributed
from clipkit.data.labelled import Pairs, read_folder
from clipkit.data.preprocess import Preprocess
from clipkit.errors import DataError
from clipkit.tokenizer import Tokenizer
from clipkit.training.batches import TRIES, Augment, Batch, PairBatches
from clipkit.training.shards import ShardBatches
from tests.helpers.toy_data import assert_same_batches, color_folders, take, toy_config, within

PREPROCESS = Preprocess((32, 32), toy_config().preprocess)
Make = Callable[..., PairBatches]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_folders(tmp_path_factory.mktemp("colors"), each=5)


@pytest.fixture
def pairs(folder: Path) -> Pairs:
    """Return 20 images of 4 classes; three captions each, no two alike."""
    read = read_folder(folder)
    names = [f"{file.parent.name} {file.stem}" for file in read.files]
    captions = [[f"{name} {word}" for word in ("x", "y", "z")] for name in names]
    return Pairs(read.files, captions, read.labels)


@pytest.fixture
def make(pairs: Pairs, small_tokenizer: Tokenizer) -> Make:
    def make(
        batch_size: int = 6,
        source: Pairs = pairs,
        tokenizer: Tokenizer | None = small_tokenizer,
        **options: Any,
    ) -> PairBatches:
        options = {"preprocess": PREPROCESS} | options
        return PairBatches(source, batch_size, tokenizer=tokenizer, **options)

    return make


def names_of(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.names]


def test_batches_depend_on_seed_and_step_alone(make: Make) -> None:
    """Neither workers nor the step where an iterator starts decide; three steps are an epoch."""
    plain = take(make(seed=3), 8)
    assert_same_batches(plain, take(make(seed=3, workers=2), 8))
    for start in (1, 3, 5):
        assert_same_batches(plain[start:], take(make(seed=3), 8 - start, start))
    assert_same_batches(plain[4:], take(make(seed=3, workers=2), 4, 4))
    images, tokens = plain[0].inputs
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.float32
    assert tokens.shape == (6, 16)
    assert tokens.dtype == torch.int64
    other = take(make(seed=4), 1)[0]
    assert list(other.names) != list(plain[0].names)
    assert not torch.equal(other.inputs[0], images)


def test_what_is_random_about_an_image_differs_from_step_to_step(make: Make) -> None:
    batches = take(make(batch_size=20), 2)
    first, second = (dict(zip(b.names, b.inputs[0], strict=True)) for b in batches)
    assert first.keys() == second.keys()
    assert len(first) == 20
    assert not any(torch.equal(first[name], second[name]) for name in first)
    assert len({tuple(x.flatten()[:50].tolist()) for x in first.values()}) == 20


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_the_ranks_are_the_batch_of_one_process(
    make: Make, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    whole = take(make(), 5, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shares: list[list[Batch]] = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(take(make(), 5, 1))
    joined: list[Batch] = []
    for step in zip(*shares, strict=True):
        inputs = [torch.cat(parts) for parts in zip(*(b.inputs for b in step), strict=True)]
        joined.append(Batch(tuple(inputs), names_of(list(step))))
    assert_same_batches(whole, joined)


def test_an_epoch_takes_every_image_once_in_a_new_order(make: Make, pairs: Pairs) -> None:
    epochs = [names_of(take(make(batch_size=5), 4, start)) for start in (0, 4, 8)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(map(str, pairs.files))
    assert epochs[0] != epochs[1]
    assert epochs[1] != epochs[2]
    short = names_of(take(make(batch_size=6), 3))
    assert len(set(short)) == 18  # the rest of the epoch is left out


@pytest.mark.parametrize("batch_size", [2, 4])
def test_no_class_comes_twice_in_a_batch(make: Make, batch_size: int) -> None:
    for batch in take(make(batch_size, tokenizer=None), 20 // batch_size * 3):
        assert len(set(batch.inputs[1].tolist())) == batch_size


def test_a_class_with_more_images_than_the_others_still_appears_whole(
    make: Make, pairs: Pairs
) -> None:
    source = pairs.select([0, 1, 2, 3, 4, 5, 10])
    epoch = names_of(take(make(1, source), 7))
    assert sorted(epoch) == sorted(map(str, source.files))


def test_classes_are_spread_evenly(make: Make, pairs: Pairs) -> None:
    """The largest class is not left alone at the end of an epoch: batches are as mixed as all."""
    labels = [0] * 1000 + [1] * 100 + [2] * 20
    source = Pairs([pairs.files[0]] * 1120, [["a"]] * 1120, labels)
    order = make(source=source, batch_size=56)._order(np.random.default_rng(0))
    assert sorted(order) == list(range(1120))
    drawn = np.array(labels)[order].reshape(-1, 56)  # (1120,) -> (20 batches, 56)
    counts = np.stack([np.bincount(batch, minlength=3) for batch in drawn])
    assert counts[:, 0].min() >= 48
    assert counts[:, 1].min() >= 3
    assert set(counts[:, 2]) <= {0, 1, 2}


def test_without_a_tokenizer_come_the_labels(make: Make) -> None:
    images, labels = take(make(20, tokenizer=None), 1)[0].inputs
    assert images.shape[0] == 20
    assert labels.dtype == torch.int64
    assert Counter(labels.tolist()) == {0: 5, 1: 5, 2: 5, 3: 5}


@pytest.mark.parametrize("with_tokens", [True, False])
def test_images_keep_their_captions_and_labels(
    make: Make, pairs: Pairs, small_tokenizer: Tokenizer, with_tokens: bool
) -> None:
    tokenizer = small_tokenizer if with_tokens else None
    places = {str(file): index for index, file in enumerate(pairs.files)}
    for batch in take(make(tokenizer=tokenizer, augment=None), 4):
        for image, target, name in zip(*batch.inputs, batch.names, strict=True):
            index = places[name]
            assert torch.equal(image, PREPROCESS(name))
            allowed = torch.tensor(pairs.labels)[index, None]
            if with_tokens:
                allowed = small_tokenizer(pairs.captions[index])
            assert any(torch.equal(target, one) for one in allowed)


def test_captions_are_drawn_evenly_among_several(
    make: Make, pairs: Pairs, small_tokenizer: Tokenizer
) -> None:
    rows = small_tokenizer([caption for captions in pairs.captions for caption in captions])
    numbers = {tuple(row.tolist()): place % 3 for place, row in enumerate(rows)}
    batches = take(make(20), 15)
    drawn = Counter(numbers[tuple(row.tolist())] for batch in batches for row in batch.inputs[1])
    assert sum(drawn.values()) == 300
    assert all(75 < drawn[number] < 125 for number in range(3)), drawn


def test_long_captions_are_cut(make: Make, pairs: Pairs) -> None:
    source = Pairs(pairs.files, [["word " * 100]] * 20)
    assert take(make(source=source), 1)[0].inputs[1].shape == (6, 16)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_skipped_named_and_replaced(
    make: Make, pairs: Pairs, tmp_path: Path, workers: int
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(pairs.files[0].read_bytes()[:90])
    source = Pairs([broken, tmp_path / "lost.png", *pairs.files[2:]], pairs.captions, pairs.labels)
    (batch,) = take(make(20, source, tokenizer=None, workers=workers), 1)
    assert len(batch.inputs[0]) == 20
    assert len(batch.names) == 20
    assert Counter(batch.names)[str(pairs.files[2])] == 3  # for itself and for both
    assert torch.bincount(batch.inputs[1]).tolist() == [5, 5, 5, 5]
    counts = [
        sum(name in reason for reason in batch.skipped) for name in ("broken.png", "lost.png")
    ]
    assert counts == [1, 2]


def test_only_broken_images_are_an_error(make: Make, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(6)]
    batches = make(source=Pairs(files, [["a"]] * 6))
    message = f"{TRIES} images in a row cannot be read.*[0-5].png"
    with pytest.raises(DataError, match=message), within(30):
        take(batches, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 21}, "batch_size 21 must be from 1 to the 20 images"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": -2}, "batch_size -2"),
        ({"workers": -1}, "workers .* not -1"),
        ({"workers": "2"}, "workers .* not '2'"),
    ],
)
def test_refuses_impossible_sizes(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**options)


@pytest.mark.parametrize("size", [6, 2])
def test_refuses_a_batch_that_the_processes_cannot_share(
    make: Make, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Tokenizer, size: int
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    shards = ShardBatches("x.tar", size, PREPROCESS, small_tokenizer)
    for batches in (make(batch_size=size), shards):
        with pytest.raises(DataError, match=f"batch_size {size} must be a multiple of the 4 proc"):
            batches(0)


def test_identity_tells_batches_apart(make: Make, pairs: Pairs) -> None:
    same = make().identity
    others = [
        make(seed=1),
        make(batch_size=4),
        make(augment=None),
        make(source=pairs.select([0] * 9)),
    ]
    assert make(workers=2).identity == same
    assert same not in {other.identity for other in others}


def test_the_identity_is_that_of_0_1_0(small_tokenizer: Tokenizer) -> None:
    """Checkpoints hold it."""
    pairs = Pairs([Path("a.png"), Path("b.png")], [["one", "two"], ["three"]], [0, 1])
    batches = PairBatches(pairs, 2, PREPROCESS, small_tokenizer, Augment(0.5, mirror=True), seed=3)
    assert batches.identity.startswith("ee9a7e1997e8b61f")


def test_refuses_labels_that_are_not_there(make: Make, pairs: Pairs) -> None:
    with pytest.raises(DataError, match="no classes: give a tokenizer"):
        make(source=Pairs(pairs.files, pairs.captions), tokenizer=None)


class Mean(nn.Module):
    """Preprocess an image to its mean color, (3, 1, 1), by a weight that asks for gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Any) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).float()  # (H, W, 3)
        return pixels.mean(dim=(0, 1)).view(3, 1, 1) * self.weight


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment", [Augment(0.5), None])
def test_a_module_preprocesses_images(make: Make, workers: int, augment: Augment | None) -> None:
    batches = take(make(4, preprocess=Mean(), workers=workers, augment=augment), 2)
    for batch in batches:
        assert batch.inputs[0].shape == (4, 3, 1, 1)
        assert not batch.inputs[0].requires_grad
