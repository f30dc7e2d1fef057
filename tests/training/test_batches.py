"""clipkit.training.batches: what is read, and that batches depend on the seed and the step alone."""

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import PreprocessConfig, distributed
from clipkit.data.labelled import Pairs, read_folder
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, DataError
from clipkit.tokenizer import Tokenizer
from clipkit.training.batches import TRIES, Augment, Batch, PairBatches
from clipkit.training.shards import ShardBatches
from tests.helpers.toy_data import assert_same_batches, colour_folders, take, toy_config, within

PREPROCESS = Preprocess((32, 32), toy_config().preprocess)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_folders(tmp_path_factory.mktemp("colours"), each=5)


@pytest.fixture
def pairs(folder: Path) -> Pairs:
    """20 pictures of 4 classes; three captions each, no two alike."""
    read = read_folder(folder)
    captions = [
        [f"{file.parent.name} {file.stem} {word}" for word in ("x", "y", "z")]
        for file in read.files
    ]
    return Pairs(read.files, captions, read.labels)


@pytest.fixture
def make(pairs: Pairs, small_tokenizer: Tokenizer):
    def make(
        batch_size: int = 6, source=pairs, tokenizer: Tokenizer = small_tokenizer, **options
    ) -> PairBatches:
        return PairBatches(source, batch_size, PREPROCESS, tokenizer, **options)

    return make


# Batches of pairs


def test_batches_depend_on_seed_and_step_alone(make) -> None:
    """Not on the workers, nor on where an iterator started; three steps are an epoch."""
    plain = take(make(seed=3), 8)
    assert_same_batches(plain, take(make(seed=3, workers=2), 8))
    for start in (1, 3, 5):
        assert_same_batches(plain[start:], take(make(seed=3), 8 - start, start))
    assert_same_batches(plain[4:], take(make(seed=3, workers=2), 4, 4))
    images, tokens = plain[0].inputs
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.float32
    assert tokens.shape == (6, 16) and tokens.dtype == torch.int64
    other = take(make(seed=4), 1)[0]
    assert list(other.names) != list(plain[0].names) and not torch.equal(other.inputs[0], images)


def test_what_is_random_about_a_picture_differs_from_step_to_step(make, pairs: Pairs) -> None:
    batches = take(make(batch_size=20), 2)
    first, second = ({n: x for n, x in zip(b.names, b.inputs[0], strict=True)} for b in batches)
    assert first.keys() == second.keys() and len(first) == 20
    assert not any(torch.equal(first[name], second[name]) for name in first)
    assert len({tuple(x.flatten()[:50].tolist()) for x in first.values()}) == 20


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_the_ranks_are_the_batch_of_one_process(
    make, monkeypatch: pytest.MonkeyPatch, ranks
) -> None:
    whole = take(make(), 5, 1)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(take(make(), 5, 1))
    joined = [
        Batch(
            tuple(
                torch.cat(parts) for parts in zip(*(share.inputs for share in step), strict=True)
            ),
            [name for share in step for name in share.names],
        )
        for step in zip(*shares, strict=True)
    ]
    assert_same_batches(whole, joined)


def test_an_epoch_takes_every_picture_once_in_a_new_order(make, pairs: Pairs) -> None:
    names = [
        [name for batch in take(make(batch_size=5), 4, start) for name in batch.names]
        for start in (0, 4, 8)
    ]
    for epoch in names:
        assert sorted(epoch) == sorted(map(str, pairs.files))
    assert names[0] != names[1] != names[2]
    short = [name for batch in take(make(batch_size=6), 3) for name in batch.names]
    assert len(set(short)) == 18  # the rest of the epoch is left out


@pytest.mark.parametrize("batch_size", [2, 4])
def test_no_class_comes_twice_in_a_batch(make, batch_size: int) -> None:
    for batch in take(make(batch_size, tokenizer=None), 20 // batch_size * 3):
        assert len(set(batch.inputs[1].tolist())) == batch_size


def test_a_class_with_more_pictures_than_the_others_still_appears_whole(make, pairs: Pairs) -> None:
    source = pairs.select([0, 1, 2, 3, 4, 5, 10])
    epoch = [name for batch in take(make(1, source), 7) for name in batch.names]
    assert sorted(epoch) == sorted(map(str, source.files))


def test_without_a_tokenizer_come_the_labels(make, pairs: Pairs) -> None:
    images, labels = take(make(20, tokenizer=None), 1)[0].inputs
    assert images.shape[0] == 20 and labels.dtype == torch.int64
    assert Counter(labels.tolist()) == {0: 5, 1: 5, 2: 5, 3: 5}


def test_pictures_keep_their_captions_and_labels(
    make, pairs: Pairs, small_tokenizer: Tokenizer
) -> None:
    for tokenizer in (small_tokenizer, None):
        for batch in take(make(tokenizer=tokenizer, augment=None), 4):
            for image, target, name in zip(*batch.inputs, batch.names, strict=True):
                index = [str(file) for file in pairs.files].index(name)
                assert torch.equal(image, PREPROCESS(name))
                allowed = (
                    small_tokenizer(pairs.captions[index])
                    if tokenizer
                    else torch.tensor(pairs.labels)[index, None]
                )
                assert any(torch.equal(target, one) for one in allowed)


def test_captions_are_drawn_evenly_among_several(
    make, pairs: Pairs, small_tokenizer: Tokenizer
) -> None:
    texts = {
        tuple(row.tolist()): i % 3 for i, row in enumerate(small_tokenizer(sum(pairs.captions, [])))
    }
    drawn = Counter(
        texts[tuple(row.tolist())] for batch in take(make(20), 15) for row in batch.inputs[1]
    )
    assert sum(drawn.values()) == 300 and all(75 < drawn[i] < 125 for i in range(3)), drawn


def test_long_captions_are_cut(make, pairs: Pairs) -> None:
    source = Pairs(pairs.files, [["word " * 100]] * 20)
    assert take(make(source=source), 1)[0].inputs[1].shape == (6, 16)


def test_a_broken_picture_is_skipped_named_and_replaced(make, pairs: Pairs, tmp_path: Path) -> None:
    broken, lost = tmp_path / "broken.png", tmp_path / "lost.png"
    broken.write_bytes(pairs.files[0].read_bytes()[:90])
    source = Pairs([broken, lost, *pairs.files[2:]], pairs.captions, pairs.labels)
    for workers in (0, 2):
        (batch,) = take(make(20, source, tokenizer=None, workers=workers), 1)
        assert len(batch.inputs[0]) == len(batch.names) == 20
        assert Counter(batch.names)[str(pairs.files[2])] == 3  # for itself and for both
        assert torch.bincount(batch.inputs[1]).tolist() == [5, 5, 5, 5]
        reasons = Counter(
            next(n for n in ("broken.png", "lost.png") if n in reason) for reason in batch.skipped
        )
        assert reasons == {"broken.png": 1, "lost.png": 2}


def test_only_broken_pictures_are_an_error(make, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(6)]
    batches = make(source=Pairs(files, [["a"]] * 6))
    with (
        pytest.raises(DataError, match=f"{TRIES} pictures in a row cannot be read.*[0-5].png"),
        within(30),
    ):
        take(batches, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 21}, "batch_size 21 must be from 1 to the 20 pictures"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": -2}, "batch_size -2"),
        ({"workers": -1}, "workers .* not -1"),
        ({"workers": "2"}, "workers .* not '2'"),
    ],
)
def test_refuses_impossible_sizes(make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make(**options)


def test_refuses_a_batch_that_the_processes_cannot_share(
    make, monkeypatch: pytest.MonkeyPatch, small_tokenizer: Tokenizer
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    for size in (6, 2):
        shards = ShardBatches("x.tar", size, PREPROCESS, small_tokenizer)
        for batches in (make(batch_size=size), shards):
            with pytest.raises(
                DataError, match=f"batch_size {size} must be a multiple of the 4 process"
            ):
                batches(0)


def test_classes_are_spread_evenly(make, pairs: Pairs) -> None:
    """The largest class must not be left alone at the end of an epoch: batches are as mixed as the whole."""
    labels = [0] * 1000 + [1] * 100 + [2] * 20
    source = Pairs([pairs.files[0]] * 1120, [["a"]] * 1120, labels)
    batches = make(source=source, batch_size=56)
    order = batches._order(np.random.default_rng(0))
    assert sorted(order) == list(range(1120))
    counts = np.stack(
        [np.bincount(np.array(labels)[part], minlength=3) for part in order.reshape(-1, 56)]
    )
    assert counts[:, 0].min() >= 48 and counts[:, 1].min() >= 3 and set(counts[:, 2]) <= {0, 1, 2}


def test_identity_tells_batches_apart(make, pairs: Pairs) -> None:
    same, others = (
        make().identity,
        [make(seed=1), make(batch_size=4), make(augment=None), make(source=pairs.select([0] * 9))],
    )
    assert make(workers=2).identity == same and same not in {other.identity for other in others}


def test_refuses_labels_that_are_not_there(make, pairs: Pairs) -> None:
    with pytest.raises(DataError, match="no classes: give a tokenizer"):
        make(source=Pairs(pairs.files, pairs.captions), tokenizer=None)


# Augmentation


@dataclass(frozen=True)
class Spy(Preprocess):
    """Keeps what it is given."""

    seen = []  # of the class

    def __call__(self, image):
        self.seen.append(image)
        return super().__call__(image)


def crops(augment: Augment, count: int, size: Any = (200, 100)) -> np.ndarray:
    """(count, 5): left, top, width, height and whether mirrored, of crops of a picture whose pixels are coordinates."""
    y, x = np.mgrid[: size[1], : size[0]]
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    Spy.seen.clear()
    spy, rng = Spy((32, 32), PreprocessConfig()), random.Random(0)
    rows = []
    for _ in range(count):
        assert augment(image, spy, rng).shape == (3, 32, 32)
        part = np.asarray(Spy.seen[-1]).astype(int)
        (left, top), (right, bottom) = part[0, 0, :2], part[-1, -1, :2]
        mirrored = left > right or (left == right and part.shape[1] > 1)
        left, right = sorted((left, right))
        assert part.shape[:2] == (bottom - top + 1, right - left + 1)
        rows.append((left, top, part.shape[1], part.shape[0], mirrored))
    return np.array(rows)


@pytest.mark.parametrize("area", [0.3, 0.9])
def test_crops_keep_their_bounds(area) -> None:
    left, top, width, height, mirrored = crops(Augment(area), 400).T
    shares = width * height / (133 * 100)  # of its longest part of 4:3
    assert area - 0.01 < shares.min() < area + 0.05 and 0.95 < shares.max() <= 1
    ratios = (width / 133) / (height / 100)
    assert 0.74 < ratios.min() < 0.95 and 1.05 < ratios.max() < 1.35
    for start, length, side in ((left, width, 200), (top, height, 100)):
        assert start.min() == 0 and (start + length).max() == side
        assert len(set(start)) > 5
    assert not mirrored.any()


def test_half_of_the_pictures_are_mirrored_if_asked() -> None:
    assert 160 < crops(Augment(0.5, mirror=True), 400)[:, 4].sum() < 240


def test_an_area_of_1_keeps_all_of_the_picture() -> None:
    rows = crops(Augment(1.0), 50, (120, 100))
    assert (rows == [0, 0, 120, 100, 0]).all()
    rows = crops(Augment(1.0), 50)  # but of a long one, which would be squeezed
    assert (rows[:, 1:] == [0, 133, 100, 0]).all() and len(set(rows[:, 0])) > 20
    image = Image.effect_noise((60, 50), 90).convert("RGB")
    shortest = Preprocess((32, 32), PreprocessConfig())
    squash = Preprocess((32, 32), PreprocessConfig(resize_mode="squash"))
    assert torch.equal(Augment(1.0)(image, shortest, random.Random(0)), squash(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (60, 1), (2, 3)])
def test_tiny_pictures_are_cropped_too(size: Any) -> None:
    rows = crops(Augment(0.05, mirror=True), 40, size)
    assert rows[:, 2:4].min() >= 1


def test_augmentation_is_a_function_of_its_seed() -> None:
    image, augment = Image.effect_noise((70, 50), 90).convert("RGB"), Augment(0.5, mirror=True)
    results = [augment(image, PREPROCESS, random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(PREPROCESS(image), PREPROCESS(image.copy()))  # the picture is as it was


@pytest.mark.parametrize(
    "options", [{"area": 0}, {"area": 1.5}, {"area": "0.5"}, {"area": 0.5, "mirror": "no"}]
)
def test_refuses_impossible_augmentation(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(list(options.values())[-1]))):
        Augment(**options)
