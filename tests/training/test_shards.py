"""clipkit.training.batches: pictures and captions as a stream of tar shards."""

import io
import json
import sys
import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clipkit import distributed
from clipkit.data.preprocess import Preprocess
from clipkit.errors import DataError
from clipkit.tokenizer import Tokenizer
from clipkit.training.batches import TRIES
from clipkit.training.shards import ShardBatches
from tests.helpers.toy_data import assert_same_batches, take, toy_config, within

# webdataset leaves it to the garbage collector to close a shard that it has not read to the end
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar'>:ResourceWarning")

PREPROCESS = Preprocess((32, 32), toy_config().preprocess)


def png(colour, size: Any = (40, 40)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "png")
    return file.getvalue()


def write_shard(path: Path, *files: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(name: str, text: str, colour=(9, 9, 9)) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return (f"{name}.png", png(colour)), (f"{name}.txt", text.encode())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of six good samples each, all different."""
    pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        files = [
            f
            for i in range(6)
            for f in sample(f"{shard}{i}", f"number {shard}{i}", (40 * i, 0, 200 * shard))
        ]
        write_shard(folder / f"{shard:02}.tar", *files)
    return str(folder / "{00..01}.tar")


@pytest.fixture
def stream(small_tokenizer: Tokenizer):
    pytest.importorskip("webdataset")

    def stream(urls, batch_size: int = 4, **options: Any) -> ShardBatches:
        options = {"buffer": 8} | options
        return ShardBatches(str(urls), batch_size, PREPROCESS, small_tokenizer, **options)

    return stream


def test_shards_give_pictures_with_their_own_captions(
    stream, shards, small_tokenizer: Tokenizer
) -> None:
    with within(60):
        batches = take(stream(shards, augment=None), 12)
    for batch in batches:
        assert batch.inputs[0].shape == (4, 3, 32, 32) and not batch.skipped
        for image, tokens, name in zip(*batch.inputs, batch.names, strict=True):
            assert torch.equal(tokens, small_tokenizer(f"number {name}")[0])
            assert torch.equal(
                image,
                PREPROCESS(Image.new("RGB", (40, 40), (40 * int(name[1]), 0, 200 * int(name[0])))),
            )
    assert len({name for batch in batches for name in batch.names}) == 12


def test_json_captions_and_types_of_pictures(
    stream, tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    jpeg = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(jpeg, "jpeg")
    write_shard(
        tmp_path / "s.tar",
        *[
            ("a.JPG", jpeg.getvalue()),
            ("a.json", json.dumps({"captions": ["one", "two"], "id": 3}).encode()),
        ],
        *[("b.json", b'{"text": "three"}'), ("b.png", png("blue"))],
    )
    with within(60):
        batches = take(stream(tmp_path / "s.tar"), 20)
    drawn = {
        (n, tuple(t.tolist())) for b in batches for n, t in zip(b.names, b.inputs[1], strict=True)
    }
    rows = [tuple(row.tolist()) for row in small_tokenizer(["one", "two", "three"])]
    assert drawn == {("a", rows[0]), ("a", rows[1]), ("b", rows[2])}


def test_unusable_samples_are_skipped_and_named(stream, tmp_path: Path) -> None:
    good = [f for i in range(8) for f in sample(f"good{i}", "fine")]
    bad = [
        *[("broken.png", png("red")[:50]), ("broken.txt", b"x")],
        *[("mute.png", png("red"))],
        *[("blind.txt", b"x")],
        *[("latin.png", png("red")), ("latin.txt", b"\xff\xfe")],
        *[("blank.png", png("red")), ("blank.txt", b"  ")],
        *[("list.png", png("red")), ("list.json", b'["x"]')],
        *[("none.png", png("red")), ("none.json", b'{"captions": []}')],
        *[("null.png", png("red")), ("null.json", b'{"caption": null}')],
        *[("torn.png", png("red")), ("torn.json", b'{"caption": ')],
    ]
    write_shard(tmp_path / "s.tar", *good, *bad)
    with within(60):
        batches = take(stream(tmp_path / "s.tar"), 25)
    assert {name[:4] for batch in batches for name in batch.names} == {"good"}
    reasons = " ".join(reason for batch in batches for reason in batch.skipped)
    for name in ("broken", "mute", "blind", "latin", "blank", "list", "none", "null", "torn"):
        assert f"s.tar, {name}: " in reasons


def test_shards_are_drawn_from_seed_and_step(stream, shards) -> None:
    with within(60):
        first = take(stream(shards, seed=1), 6)
        assert_same_batches(first, take(stream(shards, seed=1), 6))
        for other in (take(stream(shards, seed=2), 6), take(stream(shards, seed=1), 6, start=6)):
            assert [batch.names for batch in other] != [batch.names for batch in first]


def test_ranks_and_workers_draw_for_themselves(
    stream, shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    with within(60):
        batches = take(stream(shards, workers=2), 8)
        assert_same_batches(batches, take(stream(shards, workers=2), 8))
        alone = take(stream(shards), 4)
    even, odd = ([list(batch.names) for batch in batches[i::2]] for i in (0, 1))
    assert even != odd and even == [list(batch.names) for batch in alone]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    draws = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        iterator = stream(shards)(0)
        with within(60):
            draws.append([list(batch.names) for batch in islice(iterator, 6)])
    assert draws[0] != draws[1] and {len(names) for names in sum(draws, [])} == {2}


def test_a_worker_need_not_know_the_other_ranks(
    stream, shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spawned worker process has not joined them: what it needs was asked before."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    source = stream(shards)
    expected = take(source, 3)
    iterator = source(0)
    monkeypatch.undo()
    assert_same_batches(expected, list(islice(iterator, 3)))


def test_shards_without_a_usable_sample_end_in_an_error(stream, tmp_path: Path) -> None:
    write_shard(tmp_path / "mute.tar", *[(f"{i}.png", png("red")) for i in range(10)])
    write_shard(tmp_path / "empty.tar")
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    for name, message in {
        "mute": f"{TRIES} samples in a row cannot be used.*mute.tar, [0-9]: it needs a picture and a caption",
        "empty": f"{TRIES} shards in a row hold no samples.*empty.tar",
        "junk": f"{TRIES} shards in a row hold no samples.*",
        "missing": f"{TRIES} shards in a row hold no samples.*missing.tar",
    }.items():
        with pytest.raises(DataError, match=message), within(30):
            take(stream(tmp_path / f"{name}.tar"), 1)


def test_small_good_shards_among_broken_ones_suffice(stream, tmp_path: Path) -> None:
    """While the buffer fills, more shards fail than the limit allows in a row."""
    write_shard(tmp_path / "0.tar", *sample("only", "text"))
    with within(60):
        batches = take(stream(tmp_path / "{0..2}.tar", buffer=3 * TRIES), 2)
    assert {name for batch in batches for name in batch.names} == {"only"}
    assert any("1.tar" in reason for reason in batches[0].skipped)


def test_without_webdataset_the_remedy_is_named(
    small_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"pip install 'clipkit-torch\[train\]'"):
        ShardBatches("x.tar", 2, PREPROCESS, small_tokenizer)(0)


def test_refuses_impossible_shard_options(small_tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="workers .* not -1"):
        ShardBatches("x.tar", 2, PREPROCESS, small_tokenizer, workers=-1)
