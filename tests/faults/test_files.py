"""Test that output is whole or absent, that locks end with their process, that JSON is bounded."""

import errno
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.errors import CorruptCheckpointError, DataError, OutputError
from clipkit.files import (
    check_output,
    lock,
    read_json,
    replacing,
    replacing_folder,
    settle,
    write_weights,
)
from tests.helpers.processes import start


def write_version(folder: Path, version: str) -> None:
    """Write a folder with two files and a folder that all hold the same word."""
    with replacing_folder(folder, owned=["only-in-old"]) as fresh:
        (fresh / "a").write_text(version)
        (fresh / "b").write_text(version)
        (fresh / "inner").mkdir()
        (fresh / "inner" / "c").write_text(version)
        if version == "old":
            (fresh / "only-in-old").write_text(version)


def words_in(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.rglob("*") if path.is_file()}


# Kind X8: files of one thing that are replaced one by one.
def test_a_folder_is_replaced_as_one_and_foreign_files_stay(tmp_path: Path) -> None:
    write_version(tmp_path, "old")
    (tmp_path / "README.md").write_text("mine")
    write_version(tmp_path, "new")
    assert words_in(tmp_path) == {"new", "mine"}
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["README.md", "a", "b", "inner"]


@pytest.mark.parametrize("exists", [True, False])
def test_an_error_leaves_the_folder_as_it_was(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "model"
    if exists:
        write_version(folder, "old")
    with pytest.raises(ZeroDivisionError, match="division"), replacing_folder(folder) as fresh:
        (fresh / "a").write_text("new")
        print(1 / 0)
    assert folder.exists() == exists
    assert words_in(tmp_path) == ({"old"} if exists else set())


@pytest.mark.parametrize("call", range(0, 14))
def test_a_swap_that_stopped_anywhere_is_completed_or_undone(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at each call that changes the folder, as a kill would, and look at what is left."""

    class Killed(BaseException):
        pass

    write_version(tmp_path, "old")
    calls = iter(range(100))

    def stopping(real: Any) -> Any:
        def change(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= call:
                raise Killed
            return real(*arguments, **options)

        return change

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, stopping(getattr(os, name)))
        try:
            write_version(tmp_path, "new")
        except Killed:
            pass
    settle(tmp_path)
    assert len({(tmp_path / name).read_text() for name in ("a", "b", "inner/c")}) == 1
    is_old = (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "only-in-old").exists() == is_old


def test_a_killed_writer_leaves_one_version_and_its_remains_are_cleaned(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from tests.faults.test_files import write_version
print("ready", flush=True, file=sys.stderr)
while True:
    write_version(Path(sys.argv[1]), "old")
    write_version(Path(sys.argv[1]), "new")
"""
    random.seed(0)
    folder = tmp_path / "model"
    write_version(folder, "old")
    process = start(["-c", code, str(folder)])
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(random.random() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    settle(folder)
    assert len({(folder / name).read_text() for name in ("a", "b", "inner/c")}) == 1
    write_version(folder, "new")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "inner"]


def test_a_writer_that_takes_long_is_not_taken_for_an_abandoned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one writes to the same folder while it works, and again right before its rename."""
    rename = os.rename

    def late(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr("clipkit.files.folders._WAIT", 0.0)
        with pytest.raises(OutputError, match="is writing there"):  # the swap itself is held
            write_version(tmp_path, "old")
        rename(source, target)

    with replacing_folder(tmp_path) as fresh:
        for name in ("a", "b"):
            (fresh / name).write_text("new")
        os.utime(fresh, (0, 0))
        write_version(tmp_path, "old")
        assert words_in(fresh) == {"new"}
        assert (tmp_path / "a").read_text() == "old"
        monkeypatch.setattr(os, "rename", late)
    assert (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "b").read_text() == "new"
    assert not list(tmp_path.glob(".*"))


def test_what_killed_writers_left_is_removed_at_once(tmp_path: Path) -> None:
    (tmp_path / ".new-1").mkdir()
    (tmp_path / ".new-1" / "a").write_text("half")
    (tmp_path / ".new-1.lock").write_text("1")
    (tmp_path / ".new-2.lock").write_text("2")  # of one that had no time to make its folder
    write_version(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "inner"]


def test_a_folder_is_locked_before_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir
    locked: list[bool] = []

    def watched(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name.startswith(".new-"):
            locked.append(self.with_name(f"{self.name}.lock").exists())
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", watched)
    write_version(tmp_path, "new")
    assert locked == [True]


# Kinds I and X6: the file system says no.
def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_an_output_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(OutputError, match=r"notes.txt.*No space left.*Free some space") as caught:
        with replacing(path):
            full_disk()
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_errors_of_torch_and_safetensors_are_output_errors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OutputError, match="Free some space"):
        with replacing(tmp_path / "a.pt") as partial:
            partial.symlink_to("/dev/full")
            with partial.open("wb", buffering=0) as file:
                torch.save({"a": torch.zeros(100_000)}, file)
    from safetensors import SafetensorError

    def fail(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_weights({"a": torch.zeros(3)}, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_other_files_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere") as caught:
        with replacing(tmp_path / "a"):
            (tmp_path / "nowhere").read_text()
    assert not isinstance(caught.value, OutputError)


def test_what_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="a folder of that name is in the way"):
        check_output(tmp_path / "folder")
    with pytest.raises(OutputError, match="a file of that name is in the way"):
        check_output(tmp_path / "file", "folder")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        check_output(tmp_path / "file" / "x" / "y")
    with pytest.raises(OutputError, match="too long. Choose a shorter name"):
        check_output(tmp_path / "x" / ("n" * 300))
    with pytest.raises(OutputError, match="no path"):
        check_output("")
    check_output(tmp_path / "new" / "file")
    check_output(tmp_path / "folder", "folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="must not be written to"):
        check_output(tmp_path / "a")
    tmp_path.chmod(0o700)


def test_names_of_240_characters_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240)
    write_weights({"a": torch.zeros(3)}, path)
    assert list(tmp_path.iterdir()) == [path]


# Kind X7: two processes that write into one folder.
def test_a_lock_names_the_holder_and_ends_with_its_process(tmp_path: Path) -> None:
    code = """
import sys, time
from clipkit.files import lock
with lock(sys.argv[1]):
    print("locked", flush=True, file=sys.stderr)
    time.sleep(60)
"""
    process = start(["-c", code, str(tmp_path)])
    assert process.stderr is not None
    assert process.stderr.readline() == "locked\n"
    with pytest.raises(OutputError, match=f"process {process.pid} is writing there"):
        with lock(tmp_path):
            pass
    process.kill()
    process.communicate()
    with lock(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_that_outlive_their_process_hold_no_lock(tmp_path: Path) -> None:
    code = """
import os, sys, time
from clipkit.files import lock
with lock(sys.argv[1]):
    if os.fork() == 0:
        # The worker says that it runs: the lock is its process's until then.
        print(os.getpid(), flush=True, file=sys.stderr)
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""
    process = start(["-c", code, str(tmp_path)])
    assert process.stderr is not None
    child = int(process.stderr.readline())
    try:
        with pytest.raises(OutputError, match="is writing there"), lock(tmp_path):
            pass
        process.kill()
        process.wait()
        with lock(tmp_path):
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)
        process.stderr.close()


def test_a_lock_that_is_another_s_by_now_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    with lock(folder):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / ".lock").write_text("another process")
    assert (folder / ".lock").read_text() == "another process"


# Kind X1: JSON that is no JSON, or none that we write.
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe{}", "not text in UTF-8"),
        (b'{"a":' * 100_000, "nests deeper|not JSON"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nests deeper than 64"),
        (b"[" * 5000 + b"]" * 5000, "nests deeper than 64"),
        (b"[1]", "must hold a JSON object, not list"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_bad_json_is_one_typed_error_that_names_the_file(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad.json.*({reason})"):
        read_json(path)


def test_files_that_cannot_be_json_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match="no regular file"):
        read_json(tmp_path, error=CorruptCheckpointError)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_json(tmp_path / "nothing")
    (tmp_path / "large").write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="has 8 bytes, more than the 5"):
        read_json(tmp_path / "large", max_bytes=5)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="no regular file"):
            read_json(tmp_path / "pipe")


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
