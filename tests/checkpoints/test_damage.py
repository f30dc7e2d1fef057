"""Refuse damaged weight files with an error that names the file and the remedy."""

import errno
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from clipkit.checkpoints.weights import read_weights
from clipkit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)
from clipkit.files import write_weights
from tests.helpers.pickles import Storage, write_archive
from tests.helpers.weight_files import Save, every_kind


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="There is no file .*nothing.pt"):
        read_weights(tmp_path / "nothing.pt")
    with pytest.raises(FileNotFoundError, match="is a folder; name the weight file in it"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"\(0 bytes\) is empty\. Delete it and download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605\n",
            "git-lfs pointer.* `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"<html>", "is a web page"),
        (
            b"just some text that somebody saved",
            "neither safetensors nor anything that torch.save writes",
        ),
        (b'{"model_type": "clip", "projection_dim": 512}', "is no index of weight shards"),
        (
            struct.pack("<Q", 2**62) + b'{"a":1}',
            r"\(15 bytes\) cannot be read as safetensors .*[Hh]eader",
        ),
        (struct.pack("<Q", 90_000_000) + b'{"a":1}', r"cannot be read as safetensors .*[Hh]eader"),
        (pickle.dumps({"a": 1}, 2), "cannot be read as a torch pickle"),
        (bytes(range(128, 256)), "cannot be read as a torch pickle"),
    ],
)
def test_no_checkpoint_at_all(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=rf"(?s)model\.safetensors .*{message}"):
        read_weights(tmp_path / "model.safetensors")


SMALL = {"w": torch.ones(2)}


def save_small_safetensors(path: Path) -> None:
    write_weights(SMALL, path)


def save_small_zip(path: Path) -> None:
    torch.save(SMALL, path)


def save_small_legacy(path: Path) -> None:
    torch.save(SMALL, path, _use_new_zipfile_serialization=False)


def save_small_archive(path: Path) -> None:
    write_archive(path, Storage(4))


@pytest.mark.parametrize(
    "save", [save_small_safetensors, save_small_zip, save_small_legacy, save_small_archive]
)
def test_truncated_at_any_byte(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save(path)
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(
            CorruptCheckpointError,
            match=rf"weights \({length:,} bytes\) .*download or copy it again",
        ):
            read_weights(path)


@every_kind
def test_random_damage_raises_our_errors_or_none(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    save(path)
    content = path.read_bytes()
    chance = random.Random(0)
    outcomes: set[object] = set()
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 3, 10])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            outcomes.add(sum(t.numel() for t in read_weights(path).values()) > 0)
        except CheckpointError as error:
            outcomes.add(type(error))
    assert CorruptCheckpointError in outcomes


def test_zip_of_something_else_and_compressed_records(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.jpg", b"cat")
    with pytest.raises(UnsupportedCheckpointError, match="a zip archive without weights of torch"):
        read_weights(path)
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CorruptCheckpointError, match="is compressed; save the weights anew"):
        read_weights(path)


def fail_to_read(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever reads weight files raise an error."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr("safetensors.torch.load_file", fail)
    monkeypatch.setattr(torch, "load", fail)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", fail)


ALLOCATION = "DefaultCPUAllocator: can't allocate memory: you tried to allocate {} bytes."


@every_kind
@pytest.mark.parametrize("error", [MemoryError("no more"), KeyboardInterrupt("no more")])
def test_lack_of_memory_and_interrupts_pass(
    save: Save, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "weights")
    fail_to_read(error, monkeypatch)
    with pytest.raises(type(error), match="no more"):
        read_weights(tmp_path / "weights")


@every_kind
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(ALLOCATION.format(8)),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_lack_of_memory_in_other_words_is_no_damage(
    save: Save, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "weights")
    fail_to_read(error, monkeypatch)
    with pytest.raises(MemoryError, match="weights needs more memory than there is: .*allocate"):
        read_weights(tmp_path / "weights")


@every_kind
def test_a_file_that_asks_for_more_than_it_can_hold_is_damaged(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "weights")
    fail_to_read(RuntimeError(ALLOCATION.format(10**15)), monkeypatch)
    with pytest.raises(CorruptCheckpointError, match="tried to allocate .*Delete it and download"):
        read_weights(tmp_path / "weights")


def test_lack_of_memory_in_a_shard_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_small_safetensors(tmp_path / "model-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "model-1.safetensors"}}')
    fail_to_read(MemoryError("no more"), monkeypatch)
    with pytest.raises(MemoryError, match="no more"):
        read_weights(index)
