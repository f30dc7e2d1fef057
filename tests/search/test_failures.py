"""Nothing that was indexed is lost, whatever happens while an index is written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from clipkit.errors import DataError, OutputError
from clipkit.files import lock
from clipkit.search import Index, filling
from clipkit.search.manifest import MANIFEST, Manifest
from tests.search.conftest import ColorModel, paint


class FailingModel(ColorModel):
    """Fail after so many images."""

    def __init__(self, images: int, error: BaseException) -> None:
        super().__init__()
        self.images = images
        self.error = error

    def encode_image(self, image):  # type: ignore[no-untyped-def]
        if self.encoded >= self.images:
            raise self.error
        return super().encode_image(image)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the device is gone")])
def test_what_is_encoded_before_an_error_stays(error: BaseException, folder: Path) -> None:
    model = FailingModel(4 + 5, error)  # four by which the model is known again
    with pytest.raises(type(error)):
        Index.build(folder, model, batch_size=1)
    assert len(Index.open(folder)) == 5
    model = ColorModel()
    assert len(Index.build(folder, model)) == 9
    assert model.encoded == 4 + 4


def test_images_that_moved_are_not_encoded_again_after_an_error(folder: Path) -> None:
    Index.build(folder, ColorModel())
    (folder / "red").rename(folder / "zoo")  # comes last
    paint(folder / "new" / "0.png", "red", 9)
    with pytest.raises(RuntimeError, match="gone"):
        Index.build(folder, FailingModel(4, RuntimeError("gone")), batch_size=1)
    model = ColorModel()
    index = Index.open(folder, model)
    changes = index.update()
    assert model.encoded == 4 + 1
    assert (changes.added, changes.renamed, changes.removed) == (1, 3, 0)


def test_a_long_build_writes_states_on_its_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_SECONDS", 0.0)
    monkeypatch.setattr(filling, "_SHARE", 0)
    index = Index.build(folder, ColorModel(), batch_size=2)
    assert index.manifest.state > 4
    assert len(index.manifest.features) == 5
    expected = Index.build(folder, ColorModel(), folder.parent / "at_once")
    np.testing.assert_array_equal(index.features, expected.features)
    own = {MANIFEST, "model.safetensors", index.manifest.entries, *index.manifest.features}
    assert {path.name for path in index.folder.iterdir()} == own


def test_many_files_of_features_become_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "_MAX_FILES", 3)
    index = Index.build(folder, ColorModel())
    for number in range(3):
        paint(folder / f"more{number}.png", "red", number + 5)
        index.update()
    assert len(index.manifest.features) == 1
    expected = Index.build(folder, ColorModel(), folder.parent / "at_once")
    np.testing.assert_array_equal(index.features, expected.features)


def test_rows_of_images_that_are_gone_are_dropped_in_the_end(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    for color in ("red", "green"):
        for number in range(3):
            (folder / color / f"{number}.png").unlink()
    index.update()
    assert sum(map(len, index._blocks)) == 3
    expected = Index.build(folder, ColorModel(), folder.parent / "at_once")
    np.testing.assert_array_equal(index.features, expected.features)


def test_rows_are_dropped_from_several_files(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    for number in range(3):
        paint(folder / f"more{number}.png", "red", number + 5)
        index.update()
    for path in [*folder.glob("*/[12].png"), folder / "more1.png"]:
        path.unlink()
    index.update()
    assert [len(block) for block in index._blocks] == [5]
    expected = Index.build(folder, ColorModel(), folder.parent / "at_once")
    np.testing.assert_array_equal(index.features, expected.features)


@pytest.mark.parametrize("place", ["entries", "manifest"])
def test_an_interruption_while_a_state_is_written_loses_nothing(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_SECONDS", 0.0)
    monkeypatch.setattr(filling, "_SHARE", 0)
    replace = os.replace
    left = 3

    def interrupted(source: str, target: str) -> None:
        nonlocal left
        left -= Path(target).name.startswith(place)
        if left == 0:
            left = -1
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        Index.build(folder, ColorModel(), batch_size=2)
    monkeypatch.undo()
    assert len(Index.open(folder)) == 4
    expected = Index.build(folder, ColorModel(), folder.parent / "at_once")
    np.testing.assert_array_equal(Index.build(folder, ColorModel()).features, expected.features)


class OverflowingModel(ColorModel):
    """Make features of red images that cannot be compared, as half precision may."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def encode_image(self, image: Tensor) -> Tensor:
        is_red = image[:, 0].mean(dim=(1, 2)) > image[:, 1:].mean(dim=(1, 2, 3)) + 0.5  # (N,)
        return super().encode_image(image).masked_fill(is_red[:, None], self._value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_images_without_a_feature_that_can_be_compared_are_skipped(
    value: float, folder: Path
) -> None:
    index = Index.build(folder, OverflowingModel(value), batch_size=4)
    assert len(index) == 6
    assert [Path(path).parent.name for path, _ in index.skipped] == ["red"] * 3
    assert {problem for _, problem in index.skipped} == {
        "the model makes no numbers of it that can be compared"
    }
    expected = Index.build(folder, ColorModel(), folder.parent / "all", exclude=["red"])
    np.testing.assert_array_equal(index.features, expected.features)


@pytest.mark.parametrize("name", ["features", "entries", "manifest"])
def test_a_full_disk_leaves_the_old_state(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.build(folder, ColorModel())
    before = Manifest.read(index.folder)
    paint(folder / "new.png", "red", 9)
    replace = os.replace

    def fail(source: str, target: str) -> None:
        if Path(target).name.startswith(name):
            raise OSError(28, "No space left on device", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="No space left on device. Free some space"):
        index.update()
    monkeypatch.undo()
    assert Manifest.read(index.folder) == before
    assert len(Index.open(folder)) == 9
    assert index.update().added == 1
    own = {MANIFEST, "model.safetensors", index.manifest.entries, *index.manifest.features}
    assert {path.name for path in index.folder.iterdir()} == own


def test_two_writers_are_a_typed_error(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    paint(folder / "new.png", "red", 9)
    with (
        lock(index.folder),
        pytest.raises(OutputError, match=f"process {os.getpid()} is writing there"),
    ):
        index.update()
    assert index.update().added == 1


def test_where_nothing_is_to_be_written_another_writer_does_not_matter(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    with lock(index.folder):
        assert index.update() == (0, 0, 0, 0, 0)
        (folder / "red" / "0.png").unlink()
        with pytest.raises(OutputError, match="is writing there"):
            index.update()


def test_an_update_without_changes_removes_what_a_killed_process_left(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    left = index.folder / "features-1.safetensors"
    assert left.name not in index.manifest.features
    left.write_bytes(b"of an older state")
    assert index.update() == (0, 0, 0, 0, 0)
    assert not left.exists()
    assert len(Index.open(folder)) == 9


WRITER = """
import sys
from pathlib import Path
from tests.search.conftest import ColorModel
from clipkit.search import Index

class Waiting(ColorModel):
    def encode_image(self, image):
        features = super().encode_image(image)
        if self.encoded == 4 + 5:
            print("writing", flush=True)
            sys.stdin.readline()
        return features

Index.build(Path(sys.argv[1]), Waiting(), workers=1, batch_size=1)
"""


@pytest.mark.parametrize("is_killed", [False, True])
def test_another_process_that_writes_is_told_and_read_beside(is_killed: bool, folder: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        message = f"process {writer.pid} is writing there. Wait until it has ended, end it"
        reader = Index.open(folder, ColorModel())
        for write in (reader.update, lambda: Index.build(folder, ColorModel())):
            with pytest.raises(OutputError, match=message):
                write()
        if is_killed:
            writer.kill()
        writer.communicate()
    kept = len(Index.open(folder))
    assert kept < 9 if is_killed else kept == 9
    model = ColorModel()
    index = Index.build(folder, model)
    assert model.encoded == 4 + 9 - kept
    expected = Index.build(folder, ColorModel(), folder.parent / "at_once")
    np.testing.assert_array_equal(index.features, expected.features)
    assert not (index.folder / ".lock").exists()


def test_a_writer_sees_what_another_wrote(folder: Path) -> None:
    first, second = Index.build(folder, ColorModel()), Index.open(folder, ColorModel())
    paint(folder / "one.png", "red", 8)
    first.update()
    paint(folder / "two.png", "red", 9)
    changes = second.update()
    assert changes.added == 1
    assert len(second) == 11


def test_a_read_only_folder_is_a_typed_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # as for no root
    with pytest.raises(OutputError, match="must not be written to. Choose a place"):
        Index.build(folder, ColorModel())


def test_a_place_that_is_a_file_is_a_typed_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a file of that name is in the way"):
        Index.build(folder, ColorModel(), tmp_path / "file")


def test_an_image_that_goes_away_while_it_is_indexed_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.build(folder, ColorModel())
    new = paint(folder / "new.png", "red", 9)
    scan = index.scan
    monkeypatch.setattr(index, "scan", lambda images=None: (scan(images), new.unlink())[0])
    assert index.update().skipped == 1
    assert index.skipped == [(str(new), "No such file or directory")]
    monkeypatch.undo()
    assert index.update().removed == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.search.conftest import ColorModel
from clipkit.search import Index, filling
filling._SECONDS, filling._SHARE = 0.0, 0
replace, count = os.replace, int(sys.argv[2])
def killed(*paths):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = killed
Index.build(Path(sys.argv[1]), ColorModel(), batch_size=2)
"""


@pytest.mark.parametrize("times", [0, 1, 2, 3, 4, 6, 7, 11])
def test_a_process_that_is_killed_leaves_a_whole_state(times: int, folder: Path) -> None:
    """It dies before it replaces a file, as many of them later as `times` says."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(times)], timeout=120)
    assert done.returncode == -9
    try:
        kept = len(Index.open(folder))
    except DataError:  # no state was finished
        assert times < 3
        kept = 0
    model = ColorModel()
    index = Index.build(folder, model, batch_size=2)
    assert len(index) == 9
    assert model.encoded == 4 + 9 - kept
    expected = Index.build(folder, ColorModel(), folder.parent / "at_once")
    np.testing.assert_array_equal(index.features, expected.features)
    own = {MANIFEST, "model.safetensors", index.manifest.entries, *index.manifest.features}
    assert {path.name for path in index.folder.iterdir()} == own
