"""Files of features: damaged ones are named, one process writes at a time, bars tell the whole."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipkit.data import pictures
from clipkit.encode import feature_files
from clipkit.encode.features import Features
from clipkit.encode.store import extract_features, load_features
from clipkit.errors import ClipkitError, ConfigError, DataError, OutputError
from clipkit.files import lock, write_weights
from tests.helpers.toy_extraction import (
    BROKEN,
    CHUNK,
    IMAGES,
    assert_same_features,
    be_one_of_two,
    counting,
    make_images,
    toy_model,
)

Parts = dict[str, Any]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut work into chunks of a few images."""
    monkeypatch.setattr(pictures, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 14 images, one of which is broken."""
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound file of features, (13, 32), with labels."""
    out = tmp_path_factory.mktemp("features") / "x.safetensors"
    rows = [(path, i) for i, path in enumerate(sorted(folder.iterdir()))]
    extract_features(toy_model(), rows, out=out)
    return out


# Kind X5: our own files, changed.
def parts_of(file: Path) -> Parts:
    """Return the tensors in a file by name, and what its JSON says."""
    tensors = load_file(file)
    info = json.loads(tensors.pop("clipkit_features").numpy().tobytes())
    return {**tensors, "info": info}


def write_parts(parts: Parts, file: Path) -> None:
    parts = dict(parts)
    info = parts.pop("info")
    text = info if isinstance(info, bytes) else json.dumps(info).encode()
    parts["clipkit_features"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    write_weights(parts, file)


def set_part(name: str, value: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts[name] = value(parts[name]) if callable(value) else value

    return change


def set_info(name: str, value: Any) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        parts["info"][name] = value(parts["info"][name]) if callable(value) else value

    return change


def drop_info(name: str) -> Callable[[Parts], None]:
    return lambda parts: parts["info"].pop(name)


CHANGES: list[Callable[[Parts], None]] = [
    *[set_part("features", torch.zeros(count, 32)) for count in (0, 1, 12, 14, 384)],
    set_part("features", torch.zeros(13)),
    set_part("features", torch.zeros(13, 2, 16)),
    set_part("features", torch.tensor(0.0)),
    set_part("features", torch.zeros(13, 32, dtype=torch.float16)),
    set_part("features", torch.zeros(13, 32, dtype=torch.int32)),
    set_part("labels", torch.zeros(12, dtype=torch.int64)),
    set_part("labels", torch.zeros(13, 1, dtype=torch.int64)),
    set_part("labels", torch.zeros(13)),
    set_part("labels", torch.zeros(13, dtype=torch.uint8)),
    *[drop_info(name) for name in ("paths", "skipped", "made_of")],
    *[set_info(name, value) for name in ("paths", "skipped") for value in (None, 5, "x", {})],
    set_info("paths", lambda paths: paths[1:]),
    set_info("paths", lambda paths: [*paths, "more.png"]),
    set_info("paths", lambda paths: [5, *paths[1:]]),
    set_info("paths", lambda paths: [None, *paths[1:]]),
    set_info("skipped", [["one"]]),
    set_info("skipped", [["one", 2]]),
    set_info("skipped", ["one"]),
    set_info("skipped", [["one", "two", "three"]]),
    set_info("made_of", ["weights"]),
    set_info("made_of", None),
    set_part("info", b"{}"),
    set_part("info", b"[]"),
    set_part("info", b"\xff\xfe"),
    set_part("info", b'{"paths":' * 50_000),
    set_part("info", b'{"paths": ' + b"9" * 5000 + b"}"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_parts_that_do_not_match_are_found(number: int, file: Path, tmp_path: Path) -> None:
    parts = parts_of(file)
    CHANGES[number](parts)
    damaged = tmp_path / "damaged.safetensors"
    write_parts(parts, damaged)
    with pytest.raises(DataError, match=r"damaged.safetensors.*(damaged:|JSON|nests deeper)"):
        load_features(damaged)


def test_json_that_is_no_row_of_bytes_is_found(file: Path, tmp_path: Path) -> None:
    for odd in (torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(3).bfloat16()):
        tensors = load_file(file) | {"clipkit_features": odd}
        save_file(tensors, tmp_path / "damaged.safetensors")
        with pytest.raises(DataError, match="damaged: its JSON is no row of bytes"):
            load_features(tmp_path / "damaged.safetensors")


def test_changed_bytes_give_a_typed_error_or_as_many_features(file: Path, tmp_path: Path) -> None:
    """The format has no check sums, so that not every byte can be told."""
    sound = file.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    chance = random.Random(0)
    for _ in range(300):
        content = bytearray(sound)
        for place in chance.sample(range(2500), chance.randint(1, 4)):  # the header, mostly
            content[place] = chance.randrange(256)
        damaged.write_bytes(content)
        try:
            found = load_features(damaged)
        except ClipkitError:
            continue
        assert found.features.shape[0] == len(found.paths)
        assert found.features.dtype == torch.float32


@pytest.mark.parametrize("finished", [True, False])
def test_features_of_other_counts_are_found(finished: bool, folder: Path, tmp_path: Path) -> None:
    """A file whose parts match, but that holds fewer images than it is asked for."""
    out = tmp_path / "x.safetensors"
    if finished:
        extract_features(toy_model(), folder, out=out)
    else:
        with pytest.raises(MemoryError, match="no memory"):
            extract_features(counting(most=5), folder, out=out)
    written = out if finished else tmp_path / "x.safetensors.parts" / "0-4.safetensors"
    parts = parts_of(written)
    parts["features"] = parts["features"][1:]
    parts["info"]["paths"] = parts["info"]["paths"][1:]
    write_parts(parts, written)
    assert len(load_features(written).paths) == len(parts["info"]["paths"])
    images, where = (13, IMAGES) if finished else (3, CHUNK)
    with pytest.raises(DataError, match=f"damaged: it is of {images} images, where {where} belong"):
        extract_features(toy_model(), folder, out=out)


# Kind I: outputs that cannot be written are refused before the work.
@pytest.mark.parametrize("name", ["file/x.safetensors", "n" * 300, "folder", "a\0b"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    name: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        extract_features(counting(most=0), folder, out=f"{tmp_path}/{name}")


def test_a_folder_of_chunks_that_cannot_be_written_is_refused_too(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.safetensors.parts").write_text("in the way")
    with pytest.raises(OutputError, match="in the way"):
        extract_features(counting(most=0), folder, out=tmp_path / "x.safetensors")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_finished_file_needs_no_permission_to_write(folder: Path, tmp_path: Path) -> None:
    extract_features(toy_model(), folder, out=tmp_path / "x.safetensors")
    tmp_path.chmod(0o500)
    try:
        found = extract_features(counting(most=0), folder, out=tmp_path / "x.safetensors")
    finally:
        tmp_path.chmod(0o700)
    assert len(found) == IMAGES - 1


# Kind X6: a full disk.
def test_a_full_disk_keeps_the_chunks_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    out = tmp_path / "x.safetensors"
    real = feature_files.write_weights

    def fill(tensors: dict[str, Tensor], path: Path) -> None:
        if path.name == "8-12.safetensors":
            monkeypatch.setattr("safetensors.torch.save_file", full)
        real(tensors, path)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "write_weights", fill)
        with pytest.raises(OutputError, match="No space left"):
            extract_features(toy_model(), folder, out=out)
    monkeypatch.undo()
    monkeypatch.setattr(pictures, "CHUNK", CHUNK)
    model = counting()
    extract_features(model, folder, out=out)
    assert model.encoded == IMAGES - 8


# Kinds X7 and X11: several processes that write one file.
def test_one_process_writes_a_file_at_a_time(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    with lock(tmp_path / "x.safetensors.parts"):
        with pytest.raises(OutputError, match=rf"process {os.getpid()} is writing there"):
            extract_features(counting(most=0), folder, out=out)
    extract_features(toy_model(), folder, out=out)
    with lock(tmp_path / "x.safetensors.parts"):  # nothing is written for a finished file
        extract_features(counting(most=0), folder, out=out)


def test_nothing_is_left_of_what_failed_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(counting(most=0), folder, out=tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_removed(folder: Path, tmp_path: Path) -> None:
    """A file with a similar name may be another process's."""
    hex_digits = "0123456789abcdef" * 2
    ours = tmp_path / f".x.safetensors.{hex_digits}.tmp"
    others = tmp_path / f".x.safetensors.bak.{hex_digits}.tmp"
    for path in (ours, others):
        path.write_bytes(b"half")
    extract_features(toy_model(), folder, out=tmp_path / "x.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"x.safetensors", others.name}


# Features that a setting around the call changed.
def test_features_made_under_an_autocast_are_told_apart(folder: Path, tmp_path: Path) -> None:
    plain, half = tmp_path / "plain.safetensors", tmp_path / "half.safetensors"
    extract_features(toy_model(), folder, out=plain)
    assert "autocast" not in parts_of(plain)["info"]["made_of"]  # as in files written before
    with torch.autocast("cpu", torch.bfloat16):
        made = extract_features(toy_model(), folder, out=half)
        with pytest.raises(DataError, match="made with other autocast"):
            extract_features(toy_model(), folder, out=plain)
        assert_same_features(extract_features(counting(most=0), folder, out=half), made)
        # A precision of its own leaves nothing to what is around it.
        extract_features(toy_model(), folder, precision="float32", out=tmp_path / "own")
    with pytest.raises(DataError, match="made with other autocast"):
        extract_features(toy_model(), folder, out=half)
    extract_features(counting(most=0), folder, precision="float32", out=tmp_path / "own")


# Kind Y12: a bar that forgets what was done before.
def test_a_bar_counts_what_was_done_before(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.safetensors"
    with pytest.raises(MemoryError, match="no memory"):
        extract_features(counting(most=8), folder, out=out, batch_size=2)
    extract_features(toy_model(), folder, out=out, batch_size=2, progress=True)
    told = capsys.readouterr().err
    assert f" 8/{IMAGES} " in told
    assert f" {IMAGES}/{IMAGES} " in told


# Kind Y11: the file is the third thing that one gives.
def test_the_file_may_be_given_by_position(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    found = extract_features(toy_model(), folder, out)
    assert load_features(out).features.equal(found.features)


# A process that fails while others wait for it.
def share_and_fail(rank: int, images: Path, place: Path) -> None:
    """Be one of two processes, and write down the errors of calls that one of them cannot do."""
    be_one_of_two(rank, place, seconds=30)
    files = sorted(images.iterdir())
    calls: list[dict[str, Any]] = [
        {"out": place / "damaged.safetensors"},  # looked at by the first process alone
        {"out": place / "held.safetensors"},
        {"images": files if rank == 0 else []},
        {"images": files, "precision": "float32" if rank == 0 else "none"},
        {"images": files, "model": counting(most=0 if rank == 1 else IMAGES)},
    ]
    errors: list[str] = []
    for call in calls:
        given: dict[str, Any] = {"model": toy_model(), "images": images, "shared": True} | call
        try:
            extract_features(**given)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    found = extract_features(toy_model(), images, shared=True)
    torch.save((errors, len(found)), place / f"{rank}.pt")
    dist.destroy_process_group()


def test_what_fails_in_one_process_fails_in_all(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    with lock(tmp_path / "held.safetensors.parts"):
        multiprocessing.spawn(share_and_fail, (folder, tmp_path), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    expected = ["CorruptCheckpointError", "OutputError", "ConfigError", "ConfigError"]
    for rank, last in enumerate(("RuntimeError: process 1 failed", "MemoryError")):
        errors, count = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert [error.split(":")[0] for error in errors[:4]] == expected
        assert errors[4].startswith(last)
        assert count == IMAGES - 1


def test_the_broken_image_is_still_the_only_one_left_out(folder: Path) -> None:
    found: Features = extract_features(toy_model(), folder)
    assert [Path(name).stem for name, _ in found.skipped] == [f"{BROKEN:02}"]
    for out in ("", 5, b"x"):
        with pytest.raises(ConfigError, match="out must name"):
            extract_features(toy_model(), folder, out=out)  # pyright: ignore[reportArgumentType]
