"""A folder of photos with an index, and what a search of it prints."""

import shutil
from pathlib import Path

import pytest

from clipkit.cli import main
from tests.helpers.figures import PHOTOS


@pytest.fixture(scope="session")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of photos with an index made by the embedded checkpoint."""
    folder = tmp_path_factory.mktemp("indexed") / "photos"
    folder.mkdir()
    for photo in PHOTOS.glob("*.jpg"):
        shutil.copy(photo, folder)
    assert main(["index", str(folder), "--device", "cpu"]) == 0
    assert main(["search", "a photo of a cat", str(folder), "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def photos(indexed: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder, with the times of its files."""
    return Path(shutil.copytree(indexed, tmp_path / "photos"))


def found_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the names of the files that a command printed with --paths."""
    capsys.readouterr()
    assert main([*arguments, "--paths"]) == 0
    return [Path(line).name for line in capsys.readouterr().out.splitlines()]
