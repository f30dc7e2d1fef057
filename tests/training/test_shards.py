"""Images and captions as a stream of tar shards."""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit import distributed
from clipkit.data.preprocess import Preprocess
from clipkit.errors import DataError
from clipkit.tokenizer import Tokenizer
from clipkit.training.batches import TRIES, Augment, Batch
from clipkit.training.shards import ShardBatches
from tests.helpers.toy_data import assert_same_batches, take, toy_config, within

# webdataset leaves it to the garbage collector to close a shard that it has not read to the end.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar'>:ResourceWarning")

PREPROCESS = Preprocess((32, 32), toy_config().preprocess)
File = tuple[str, bytes]
Make = Callable[..., ShardBatches]


def png(color: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), color).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, files: list[File]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(name: str, text: str, color: Any = (9, 9, 9)) -> list[File]:
    return [(f"{name}.png", png(color)), (f"{name}.txt", text.encode())]


def names_of(batches: list[Batch]) -> list[list[str]]:
    return [list(batch.names) for batch in batches]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return two shards of six good samples each, all different."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        files: list[File] = []
        for i in range(6):
            files += sample(f"{shard}{i}", f"number {shard}{i}", (40 * i, 0, 200 * shard))
        write_shard(folder / f"{shard:02}.tar", files)
    return str(folder / "{00..01}.tar")


@pytest.fixture
def stream(small_tokenizer: Tokenizer) -> Make:
    pytest.importorskip("webdataset")

    def stream(urls: Path | str, batch_size: int = 4, **options: Any) -> ShardBatches:
        options = {"buffer": 8, "preprocess": PREPROCESS} | options
        return ShardBatches(str(urls), batch_size, tokenizer=small_tokenizer, **options)

    return stream


def test_shards_give_images_with_their_own_captions(
    stream: Make, shards: str, small_tokenizer: Tokenizer
) -> None:
    with within(60):
        batches = take(stream(shards, augment=None), 12)
    for batch in batches:
        assert batch.inputs[0].shape == (4, 3, 32, 32)
        assert not batch.skipped
        for image, tokens, name in zip(*batch.inputs, batch.names, strict=True):
            color = (40 * int(name[1]), 0, 200 * int(name[0]))
            assert torch.equal(tokens, small_tokenizer(f"number {name}")[0])
            assert torch.equal(image, PREPROCESS(Image.new("RGB", (40, 40), color)))
    assert len({name for batch in batches for name in batch.names}) == 12


def test_json_captions_and_types_of_images(
    stream: Make, tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(jpeg, "jpeg")
    several = json.dumps({"captions": ["one", "two"], "id": 3}).encode()
    write_shard(
        tmp_path / "s.tar",
        [
            ("a.JPG", jpeg.getvalue()),
            ("a.json", several),
            ("b.json", b'{"text": "three"}'),
            ("b.png", png("blue")),
        ],
    )
    with within(60):
        batches = take(stream(tmp_path / "s.tar"), 20)
    drawn = {
        (name, tuple(tokens.tolist()))
        for batch in batches
        for name, tokens in zip(batch.names, batch.inputs[1], strict=True)
    }
    rows = [tuple(row.tolist()) for row in small_tokenizer(["one", "two", "three"])]
    assert drawn == {("a", rows[0]), ("a", rows[1]), ("b", rows[2])}


def test_unusable_samples_are_skipped_and_named(stream: Make, tmp_path: Path) -> None:
    good = [file for i in range(8) for file in sample(f"good{i}", "fine")]
    red = png("red")
    bad = [
        *[("broken.png", red[:50]), ("broken.txt", b"x")],
        *[("mute.png", red)],
        *[("blind.txt", b"x")],
        *[("latin.png", red), ("latin.txt", b"\xff\xfe")],
        *[("blank.png", red), ("blank.txt", b"  ")],
        *[("list.png", red), ("list.json", b'["x"]')],
        *[("none.png", red), ("none.json", b'{"captions": []}')],
        *[("null.png", red), ("null.json", b'{"caption": null}')],
        *[("torn.png", red), ("torn.json", b'{"caption": ')],
    ]
    write_shard(tmp_path / "s.tar", [*good, *bad])
    with within(60):
        batches = take(stream(tmp_path / "s.tar"), 25)
    assert {name[:4] for batch in batches for name in batch.names} == {"good"}
    reasons = " ".join(reason for batch in batches for reason in batch.skipped)
    for name in ("broken", "mute", "blind", "latin", "blank", "list", "none", "null", "torn"):
        assert f"s.tar, {name}: " in reasons


def test_shards_are_drawn_from_seed_and_step(stream: Make, shards: str) -> None:
    with within(60):
        first = take(stream(shards, seed=1), 6)
        assert_same_batches(first, take(stream(shards, seed=1), 6))
        for other in (take(stream(shards, seed=2), 6), take(stream(shards, seed=1), 6, start=6)):
            assert names_of(other) != names_of(first)


def test_workers_draw_for_themselves(stream: Make, shards: str) -> None:
    with within(60):
        batches = take(stream(shards, workers=2), 8)
        assert_same_batches(batches, take(stream(shards, workers=2), 8))
        alone = take(stream(shards), 4)
    even = names_of(batches[0::2])
    assert even != names_of(batches[1::2])
    assert even == names_of(alone)


def test_ranks_draw_for_themselves(
    stream: Make, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    draws: list[list[list[str]]] = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with within(60):
            draws.append(names_of(take(stream(shards), 6)))
    assert draws[0] != draws[1]
    assert {len(names) for draw in draws for names in draw} == {2}


def test_a_worker_need_not_know_the_other_ranks(
    stream: Make, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spawned worker process has not joined them. It gets what it needs from its parent."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    source = stream(shards)
    expected = take(source, 3)
    iterator = source(0)
    monkeypatch.undo()
    assert_same_batches(expected, list(islice(iterator, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mute", "samples in a row cannot be used.*mute.tar, [0-9]: it needs an image and a cap"),
        ("empty", "shards in a row hold no samples.*empty.tar"),
        ("junk", "shards in a row hold no samples.*"),
        ("missing", "shards in a row hold no samples.*missing.tar"),
    ],
)
def test_shards_without_a_usable_sample_end_in_an_error(
    stream: Make, tmp_path: Path, name: str, message: str
) -> None:
    write_shard(tmp_path / "mute.tar", [(f"{i}.png", png("red")) for i in range(10)])
    write_shard(tmp_path / "empty.tar", [])
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(DataError, match=f"{TRIES} {message}"), within(30):
        take(stream(tmp_path / f"{name}.tar"), 1)


def test_small_good_shards_among_broken_ones_suffice(stream: Make, tmp_path: Path) -> None:
    """While the buffer fills, more shards fail than the limit allows in a row."""
    write_shard(tmp_path / "0.tar", sample("only", "text"))
    with within(60):
        batches = take(stream(tmp_path / "{0..2}.tar", buffer=3 * TRIES), 2)
    assert {name for batch in batches for name in batch.names} == {"only"}
    assert any("1.tar" in reason for reason in batches[0].skipped)


def mean_color(image: Image.Image) -> Tensor:
    """Preprocess an image to its mean color, (3, 1, 1)."""
    return torch.from_numpy(np.array(image)).double().mean(dim=(0, 1)).view(3, 1, 1)


@pytest.mark.parametrize("augment", [Augment(0.5), None])
def test_any_function_preprocesses_images(
    stream: Make, shards: str, augment: Augment | None
) -> None:
    with within(60):
        (batch,) = take(stream(shards, preprocess=mean_color, augment=augment), 1)
    colors = [(40 * int(name[1]), 0, 200 * int(name[0])) for name in batch.names]
    assert batch.inputs[0].flatten(1).tolist() == [list(color) for color in colors]


def test_without_webdataset_the_remedy_is_named(
    small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"pip install 'clipkit-torch\[train\]'"):
        ShardBatches("x.tar", 2, PREPROCESS, small_tokenizer)(0)


@pytest.mark.parametrize(
    ("batch_size", "workers", "message"),
    [
        (2, -1, "workers .* not -1"),
        (0, 0, "batch_size must be an integer of at least 1, not 0"),
    ],
)
def test_refuses_impossible_options(
    small_tokenizer: Tokenizer, batch_size: int, workers: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        ShardBatches("x.tar", batch_size, PREPROCESS, small_tokenizer, workers=workers)
