"""A disk that is really full, and folders that really must not be written to."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest

import clipkit
from clipkit.cli import main
from clipkit.errors import OutputError
from clipkit.search import Index, UsearchStore, filling
from clipkit.search.approximate import GRAPH
from clipkit.search.manifest import MANIFEST, Manifest
from tests.helpers.figures import PHOTOS
from tests.search.conftest import ColorModel, paint

FULL = r"cannot write '.*': No space left on device\. Free some space, or choose another place"
READ_ONLY = "must not be written to. Choose a place that you may write to"


class Disk:
    """A small disk of its own, which nobody else sees, and which goes with this process.

    It is mounted in the namespace of a shell that waits for its standard input to end. Through
    `/proc` its files can be reached from here. So no mount is left behind, whatever happens.

    Attributes:
        path: of the disk, as it is reached from here.
    """

    PAGES = 64

    def __init__(self, place: Path) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._place = shlex.quote(str(place))
        private = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
        self._shell = subprocess.Popen(
            [*private, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.path = Path(f"/proc/{self._shell.pid}/root") / place.relative_to("/")
        self._ballast = self.path / "ballast"

    def mount(self) -> bool:
        """Mount the disk, and return whether that worked and it can be written to."""
        if not self.run(f"mount -t tmpfs -o size={self.PAGES * self._page} tmpfs {self._place}"):
            return False
        return os.access(self.path, os.W_OK)

    def forbid_writing(self) -> None:
        """Go on as a disk that can only be read."""
        assert self.run(f"mount -o remount,ro {self._place}")

    def run(self, command: str) -> bool:
        """Run a command of the shell, and return whether it succeeded."""
        stdin, stdout = self._shell.stdin, self._shell.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(f"{command} 2>&1 >/dev/null && echo done || echo failed\n")
            stdin.flush()
        except BrokenPipeError:  # there is no `unshare` for this user
            return False
        lines = iter(stdout.readline, "")
        return next((line for line in lines if line in ("done\n", "failed\n")), "") == "done\n"

    def fill(self, *, but: int = 0) -> None:
        """Leave so many pages of the disk, or none."""
        size = self._ballast.stat().st_size if self._ballast.exists() else 0
        with open(self._ballast, "ab", buffering=0) as file:
            while size < self.PAGES * self._page:
                try:
                    size += file.write(bytes(self._page))
                except OSError:
                    break
        self.free(but)

    def free(self, pages: int = 1) -> None:
        """Free so many pages."""
        os.truncate(self._ballast, self._ballast.stat().st_size - pages * self._page)

    def close(self) -> None:
        """Let the shell end, and the disk with it."""
        self._shell.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Generator[Disk, None, None]:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("a disk of one's own needs Linux and `unshare`")
    (tmp_path / "disk").mkdir()
    own = Disk(tmp_path / "disk")
    try:
        if not own.mount():
            pytest.skip("this user may mount no disk")
        yield own
    finally:
        own.close()
    assert not os.path.ismount(tmp_path / "disk")


def try_until_it_fits(disk: Disk, work: Callable[[], object], check: Callable[[], None]) -> str:
    """Free page by page until something can be written, and return which files lacked one.

    Args:
        disk: which is full.
        work: what writes.
        check: must hold after each failure.
    """
    lacking: list[str] = []
    for _ in range(12):
        try:
            work()
        except OutputError as error:
            assert re.fullmatch(FULL, str(error))
            place = re.findall("'(.*?)'", str(error))[0]
            lacking.append(Path(place).name.split("-")[0])
        else:
            return " ".join(dict.fromkeys(lacking))
        check()
        disk.free()
    raise AssertionError(f"there is still no space: {lacking}")


def test_a_full_disk_leaves_the_old_state_whichever_file_lacks_space(
    disk: Disk, folder: Path
) -> None:
    index = Index.build(folder, ColorModel(), disk.path / "index")
    before, features = Manifest.read(index.folder), index.features
    paint(folder / "new.png", "red", 9)
    disk.fill()

    def check() -> None:
        assert Manifest.read(index.folder) == before
        np.testing.assert_array_equal(Index.open(index.folder).features, features)

    lacking = try_until_it_fits(disk, index.update, check)
    assert lacking == f"index features entries {MANIFEST}"
    assert len(index) == 10
    expected = Index.build(folder, ColorModel(), folder.parent / "elsewhere")
    np.testing.assert_array_equal(index.features, expected.features)
    own = {MANIFEST, "model.safetensors", index.manifest.entries, *index.manifest.features}
    assert {path.name for path in index.folder.iterdir()} == own


def test_a_disk_that_was_full_from_the_first_takes_an_index_later(disk: Disk, folder: Path) -> None:
    disk.fill()
    indexes: list[Index] = []

    def build() -> None:
        indexes.append(Index.build(folder, ColorModel(), disk.path / "index"))

    lacking = try_until_it_fits(disk, build, lambda: None)
    assert lacking.startswith("index model.safetensors entries manifest.json")
    assert len(indexes[0]) == 9


def test_a_build_that_fills_the_disk_of_its_images_goes_on_later(
    disk: Disk, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "_SECONDS", 0.0)
    monkeypatch.setattr(filling, "_SHARE", 0)
    photos = Path(shutil.copytree(folder, disk.path / "photos"))
    disk.fill(but=10)
    with pytest.raises(OutputError, match=FULL):
        Index.build(photos, ColorModel(), workers=1, batch_size=1)
    kept = Index.open(photos)
    assert 2 <= len(kept) < 9
    expected = Index.build(folder, ColorModel(), folder.parent / "elsewhere")
    np.testing.assert_array_equal(kept.features, expected.features[: len(kept)])
    disk.free(20)
    model = ColorModel()
    index = Index.build(photos, model, batch_size=1)
    assert model.encoded == 4 + 9 - len(kept)
    np.testing.assert_array_equal(index.features, expected.features)


def test_a_full_disk_leaves_the_old_graph_whichever_file_lacks_space(
    disk: Disk, folder: Path
) -> None:
    Index.build(folder, ColorModel(), disk.path / "index")
    Index.open(disk.path / "index", store="usearch")
    paint(folder / "new.png", "red", 9)
    Index.build(folder, ColorModel(), disk.path / "index")
    disk.fill()
    found: list[int] = []

    def search() -> None:
        index = Index.open(disk.path / "index", ColorModel(), store="usearch")
        found.append(len(index.search(folder / "new.png", k=99)))

    def check() -> None:
        assert len(UsearchStore(disk.path / "index" / GRAPH)) == 9
        assert len(Index.open(disk.path / "index").search(folder / "new.png", k=99)) == 10

    lacking = try_until_it_fits(disk, search, check)
    assert lacking == f"{GRAPH} entries names graph store.json"
    assert found == [10]
    kinds = sorted(path.name.split("-")[0] for path in (disk.path / "index" / GRAPH).iterdir())
    assert kinds == ["entries", "graph", "names", "store.json"]


def test_an_index_can_be_searched_on_a_full_disk(disk: Disk, folder: Path) -> None:
    index = Index.build(folder, ColorModel(), disk.path / "index")
    disk.fill()
    found = index.search("red", k=3)  # the feature of the text cannot be kept
    assert {Path(path).parent.name for path in found.paths} == {"red"}
    assert index.search("red", k=3).paths == found.paths


def test_commands_tell_of_a_full_disk(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(PHOTOS / "cat.jpg", photos)
    place = str(disk.path / "index")
    assert main(["index", str(photos), "--index", place, "--device", "cpu"]) == 0
    shutil.copy(PHOTOS / "coffee.jpg", photos)
    disk.fill()
    command = ["index", str(photos), "--index", place, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "clipkit", *command],
        cwd=Path(clipkit.__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.search(FULL, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr
    capsys.readouterr()
    assert main(["search", "a cat", str(photos), "--index", place, "--device", "cpu"]) == 0
    assert "searched as it was, since cannot write" in capsys.readouterr().err
    disk.free(12)
    assert main(command) == 0
    assert len(Index.open(place)) == 2


def test_a_disk_that_can_only_be_read_is_searched_and_not_written(disk: Disk, folder: Path) -> None:
    index = Index.build(folder, ColorModel(), disk.path / "index")
    Index.open(index.folder, store="usearch")
    paint(folder / "new.png", "red", 9)
    disk.forbid_writing()
    assert len(index.search("red", k=99)) == 9
    graph = Index.open(index.folder, ColorModel(), store="usearch")
    assert len(graph.search("blue", k=99)) == 9
    for write in (index.update, graph.update):
        with pytest.raises(OutputError, match=READ_ONLY):
            write()
    with pytest.raises(OutputError, match=READ_ONLY):
        Index.build(folder, ColorModel(), disk.path / "another")
    assert len(Index.open(index.folder)) == 9


POWERLESS = """
import sys
from pathlib import Path
from clipkit.errors import OutputError
from clipkit.search import Index
from tests.search.conftest import ColorModel

folder = Path(sys.argv[1])
print(len(Index.open(folder, ColorModel()).search("red", k=99)))
for write in (
    lambda: Index.build(folder, ColorModel()),
    lambda: Index.open(folder, ColorModel()).update(),
    lambda: Index.build(folder / "red", ColorModel()),
):
    try:
        print("written by", write())
    except OutputError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs the rights of POSIX")
def test_a_folder_without_the_right_to_write_is_searched_and_not_written(folder: Path) -> None:
    index = Index.build(folder, ColorModel())
    paint(folder / "new.png", "red", 9)
    command: list[str] = [sys.executable, "-c", POWERLESS, str(folder)]
    if os.geteuid() == 0:  # root may write everywhere, unless it gives up that right
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere, and has no `setpriv` here")
        command = ["setpriv", "--bounding-set=-dac_override", *command]
    places = [folder, folder / "red", index.folder]
    files = sorted(folder.rglob("*"))
    for place in places:
        place.chmod(0o555)
    try:
        done = subprocess.run(
            command,
            cwd=Path(clipkit.__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        for place in places:
            place.chmod(0o755)
    searched, *refused = done.stdout.splitlines()
    assert searched == "9"
    assert len(refused) == 3
    assert all(READ_ONLY in line for line in refused), refused
    assert sorted(folder.rglob("*")) == files
    assert len(Index.open(folder)) == 9
