"""Shards run nothing, whatever they are called; a broken file costs a sample, not the run."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from http.client import HTTPMessage
from pathlib import Path
from typing import Any
from urllib.request import OpenerDirector, Request

import pytest
from PIL import Image

from clipkit import Tokenizer, train
from clipkit.data.labelled import read_pairs
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ClipkitError, ConfigError, DataError
from clipkit.training import tars
from clipkit.training.run import RunConfig
from clipkit.training.shards import ShardBatches
from tests.helpers.run_files import write_run_file
from tests.helpers.toy_data import take, toy_config, within

pytest.importorskip("webdataset")

PREPROCESS = Preprocess((32, 32), toy_config().preprocess)
Make = Callable[..., ShardBatches]


@pytest.fixture
def stream(small_tokenizer: Tokenizer) -> Make:
    def stream(urls: str | Sequence[str], **options: Any) -> ShardBatches:
        options = {"buffer": 4} | options
        return ShardBatches(urls, 2, PREPROCESS, small_tokenizer, **options)

    return stream


def shard_of(samples: dict[str, bytes]) -> bytes:
    """Return a tar file of files by name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in samples.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "png")
    return file.getvalue()


def good_shard(count: int = 4) -> bytes:
    files: dict[str, bytes] = {}
    for i in range(count):
        files |= {f"good{i}.png": png(), f"good{i}.txt": b"fine"}
    return shard_of(files)


# Kind X3: names of data that start programs.
COMMANDS = [
    "pipe:touch {mark}; cat a.tar",
    " pipe:touch {mark} #.tar",
    "PIPE:touch {mark} #.tar",
    "{{pipe,x}}:touch {mark} #.tar",
    "{{pipe:touch {mark} #,b}}.tar",
    "http://localhost/$(touch {mark}).tar",
    "ftp://localhost/a.tar",
    "file:///etc/passwd#.tar",
    "s3://bucket/a.tar",
    "gs://bucket/a.tar",
    "hdfs://host/a.tar",
    "ais://host/a.tar",
    "htgs:a.tar",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("in_a_list", [False, True])
def test_names_of_shards_run_nothing(
    command: str, in_a_list: bool, stream: Make, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    url = command.format(mark=mark)
    with pytest.raises(DataError, match="address|braces"), within(30):
        take(stream([url] if in_a_list else url), 1)
    assert not mark.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_run_file_runs_nothing(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run file lies in the working directory, so that paths stay as they are."""
    monkeypatch.chdir(place)
    mark = tmp_path / "mark"
    write_run_file(place, {"data": command.format(mark=mark)})
    with pytest.raises(ClipkitError, match="address|braces|100 shards in a row"), within(30):
        train(RunConfig.read("train.json"), "cpu")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["data", "out", "init", "evaluate"])
def test_no_field_of_a_run_file_takes_an_address(name: str, tmp_path: Path) -> None:
    for address in ("pipe:true", "s3://bucket/x", "file:///x"):
        with pytest.raises(ConfigError, match=rf"RunConfig.{name} must be a path, not the address"):
            RunConfig.read(write_run_file(tmp_path, {name: address}))
    with pytest.raises(ConfigError, match=rf"RunConfig.{name} .* null byte"):
        RunConfig.read(write_run_file(tmp_path, {name: "a\0b"}))


def test_variables_of_the_environment_run_nothing(
    stream: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset rewrites addresses by GOPEN_REWRITE, and fills in variables called WDS_...."""
    shard = tmp_path / "a.tar"
    shard.write_bytes(good_shard())
    mark = tmp_path / "mark"
    monkeypatch.setenv("GOPEN_REWRITE", f"{tmp_path}=pipe:touch {mark}; cat {tmp_path}")
    monkeypatch.setenv("WDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WDS_X", f"pipe:touch {mark} #")
    with within(30):
        assert take(stream(str(shard)), 1)[0].names
        with pytest.raises(DataError, match="100 shards in a row"):
            take(stream("${X}.tar"), 1)
    assert not mark.exists()
    assert not (tmp_path / "cache").exists()


def test_a_path_with_a_colon_is_read_as_a_path(
    stream: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipe:true.tar").write_bytes(good_shard())
    with within(30):
        assert take(stream("./pipe:true.tar"), 1)[0].names
    assert tars.expand_shards("./a:{0..2}.tar") == ["./a:0.tar", "./a:1.tar", "./a:2.tar"]


def test_shards_come_by_https_without_a_shell(
    stream: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(self: OpenerDirector, url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(good_shard())

    monkeypatch.setattr(OpenerDirector, "open", answer)
    with within(30):
        assert take(stream("https://host/$(touch x)/{0..1}.tar"), 2)[1].names
    assert {*asked} == {"https://host/$(touch x)/0.tar", "https://host/$(touch x)/1.tar"}


def test_a_server_redirects_to_https_alone() -> None:
    redirect = tars._SecureRedirections().redirect_request
    request = Request("https://host/a.tar")
    for other in ("http://host/a.tar", "ftp://host/a.tar", "file:///etc/passwd", "pipe:true"):
        with pytest.raises(DataError, match=r"the server sends to .* not begin with https"):
            redirect(request, io.BytesIO(), 302, "Found", HTTPMessage(), other)
    found = redirect(request, io.BytesIO(), 302, "Found", HTTPMessage(), "https://other/a.tar")
    assert found is not None
    assert found.full_url == "https://other/a.tar"


@pytest.mark.parametrize("data", ["https://host/captions.csv", "s3://bucket/photos", "pipe:true"])
def test_tables_and_folders_are_no_addresses(data: str) -> None:
    with pytest.raises(DataError, match=r"is an address \(.*download the images first"):
        read_pairs(data)


# Kind X10: what is short in writing, and long when it is spelled out.
@pytest.mark.parametrize(
    "urls",
    ["{0..999999999999}.tar", "{0..9999}{0..9999}.tar", "{{0..99999999},a}.tar", "{0..9" * 3000],
)
def test_braces_stand_for_half_a_million_shards_at_most(urls: str, stream: Make) -> None:
    with pytest.raises(DataError, match=r"more than 500,000|braces"), within(10):
        take(stream(urls), 1)


@pytest.mark.parametrize("urls", ["", "  ", [], [5], None, 5, "a\0.tar", ["ok.tar", ""]])
def test_what_names_no_shard_is_refused(urls: Any, stream: Make) -> None:
    with pytest.raises(DataError, match="must be a path"):
        stream(urls)


@pytest.mark.parametrize("buffer", [0, -1, "many", None])
def test_a_buffer_is_a_count(buffer: Any, stream: Make) -> None:
    with pytest.raises(DataError, match="buffer must be an integer of at least 1"):
        stream("a.tar", buffer=buffer)


# Kind X11: one broken file in a shard that ends a run.
@pytest.mark.parametrize(
    "content",
    [
        b'{"caption":' * 100_000,
        b'{"caption": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 100_000,
        b'{"caption": ' + b"1" * 5000 + b"}",
        b"\xff\xfe\x00",
        b'{"caption": {"a": 1}}',
    ],
)
def test_broken_json_costs_one_sample(content: bytes, stream: Make, tmp_path: Path) -> None:
    files = {"bad.png": png(), "bad.json": content, "good.png": png(), "good.txt": b"fine"}
    (tmp_path / "a.tar").write_bytes(shard_of(files))
    with within(30):
        batches = take(stream(str(tmp_path / "a.tar")), 4)
    assert {name for batch in batches for name in batch.names} == {"good"}
    assert any("a.tar, bad: " in reason for batch in batches for reason in batch.skipped)


def test_names_that_come_twice_cost_one_file(stream: Make, tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in [("a.png", png()), ("a.txt", b"one"), ("a.txt", b"two")] * 2:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    (tmp_path / "a.tar").write_bytes(file.getvalue())
    with within(30):
        (batch,) = take(stream(str(tmp_path / "a.tar")), 1)
    assert list(batch.names) == ["a", "a"]
    assert any("duplicate file name" in reason for reason in batch.skipped)


def claimed(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar file that announces more bytes than it has."""
    info = tarfile.TarInfo("big.png")
    info.size = size
    info.type = kind
    return info.tobuf() + b"\0" * 1024


def sparse(size: int) -> bytes:
    """Return a tar file with a file of so many bytes, all but 512 of them a hole."""
    info = tarfile.TarInfo("big.png")
    info.size = 512
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000001000\0"  # from 0 on there are 512 bytes
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512 + b"\0" * 1024


@pytest.mark.parametrize(
    "shard", [claimed(1 << 32), claimed(1 << 40), claimed(1 << 20), sparse(1 << 32)]
)
def test_what_a_shard_only_announces_is_not_read(
    shard: bytes, stream: Make, tmp_path: Path
) -> None:
    (tmp_path / "0.tar").write_bytes(shard)
    (tmp_path / "1.tar").write_bytes(good_shard())
    with within(10):
        batches = take(stream(str(tmp_path / "{0..1}.tar")), 4)
    assert {name[:4] for batch in batches for name in batch.names} == {"good"}


def test_a_file_that_is_too_large_ends_its_shard(
    stream: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "_MOST_BYTES", 1000)
    large = shard_of({"large.png": png() + b"x" * 1000, "large.txt": b"x"})
    (tmp_path / "0.tar").write_bytes(large)
    (tmp_path / "1.tar").write_bytes(good_shard())
    with within(10):
        batches = take(stream(str(tmp_path / "{0..1}.tar")), 4)
    assert {name[:4] for batch in batches for name in batch.names} == {"good"}
    reasons = " ".join(reason for batch in batches for reason in batch.skipped)
    assert "0.tar: large.png claims" in reasons


def test_a_pipe_in_place_of_a_shard_does_not_hang(stream: Make, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"100 shards in a row .*a.tar.*no regular file"):
        with within(10):
            take(stream(str(tmp_path / "a.tar")), 1)


# Kind Y1: another run in the same folder.
def test_batches_of_other_shards_are_known_as_others(stream: Make) -> None:
    known = {
        stream("a.tar").identity,
        stream("b.tar").identity,
        stream("a.tar", seed=1).identity,
        stream("a.tar", augment=None).identity,
    }
    assert len(known) == 4
    assert stream("a.tar", workers=2).identity == stream("a.tar").identity


def test_json_captions_are_read(stream: Make, tmp_path: Path) -> None:
    about = json.dumps({"Caption": "one"}).encode()
    (tmp_path / "a.tar").write_bytes(shard_of({"a.png": png(), "a.json": about}))
    with within(30):
        assert list(take(stream(str(tmp_path / "a.tar")), 1)[0].names) == ["a", "a"]
