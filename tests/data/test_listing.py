"""clipkit.data.pictures.list_images: what counts as an image of a folder, and in which order."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.data.labelled import read_folder
from clipkit.data.pictures import ImageSet, list_images
from clipkit.errors import ConfigError, DataError
from tests.helpers.noise import make_preprocess, noise
from tests.helpers.toy_data import color_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of twelve images in four folders, beside what only looks like an image."""
    folder = color_folders(tmp_path_factory.mktemp("colors"), each=3)
    (folder / "blue" / "00.png").rename(folder / "blue" / "00.PNG")
    (folder / "blue" / "notes.txt").write_text("not an image")
    (folder / "folder.png").mkdir()
    return folder


def test_folders_are_listed_with_the_folders_in_them_in_order(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in list_images(str(folder))]
    assert names == [
        f"{color}/{i:02}.{'PNG' if (color, i) == ('blue', 0) else 'png'}"
        for color in ("blue", "dark_red", "green", "white")
        for i in range(3)
    ]


HIDDEN = (
    ".hidden.png",
    "._00.png",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    ".ipynb_checkpoints/00-checkpoint.png",
    ".thumbnails/large/00.png",
    "__MACOSX/._00.png",
    "System Volume Information/00.png",
    "lost+found/00.png",
    "@Recycle/00.png",
    "__MACOSX/blue/00.png",
    "@eaDir/00.png/SYNOPHOTO_THUMB_M.jpg",
    "white/.ipynb_checkpoints/00-checkpoint.png",
    "white/@eaDir/00.png",
    "white/._00.png",
)


def add_hidden(folder: Path) -> None:
    """Add what notebooks, file managers, archives and servers leave beside images."""
    for name in HIDDEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8).save(folder / name, "png")


@pytest.mark.parametrize("root", ["images", ".cache/images", "__MACOSX"])
def test_hidden_files_and_folders_are_left_out(tmp_path: Path, root: str) -> None:
    """They are told by the names below the root: the root itself may be hidden."""
    folder = color_folders(tmp_path / root, each=2)
    before = list_images(folder)
    add_hidden(folder)
    assert len(before) == 8
    assert list_images(folder) == before
    assert read_folder(folder).files == before
    assert read_folder(folder).class_names == ["blue", "dark_red", "green", "white"]
    assert list_images(folder / ".ipynb_checkpoints") != []


def test_every_kind_of_hidden_name_counts_by_itself(tmp_path: Path) -> None:
    folder = color_folders(tmp_path / "images", each=1)
    before = list_images(folder)
    for name in HIDDEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8).save(folder / name, "png")
        assert list_images(folder) == before, name
        assert read_folder(folder).files == before, name
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "an empty text names no folder. '.' is the working directory"),
        ("{}/nowhere", "there is no folder or file '{}/nowhere': check its spelling"),
        ("{}/one.png", "{}/one.png is no folder. A single file goes in a list"),
    ],
)
@pytest.mark.parametrize(
    "read", [list_images, read_folder, lambda name: ImageSet(name, make_preprocess())]
)
def test_what_is_no_folder_is_said(
    tmp_path: Path, name: str, message: str, read: Callable[[str], object]
) -> None:
    noise(8, 8).save(tmp_path / "one.png")
    with pytest.raises(DataError, match=re.escape(message.format(tmp_path))):
        read(name.format(tmp_path))


def test_links_to_folders_are_followed_and_no_folder_comes_twice(
    tmp_path: Path, folder: Path
) -> None:
    photos = tmp_path / "photos"
    (photos / "own").mkdir(parents=True)
    noise(8, 8).save(photos / "own" / "one.png")
    targets = {"a": photos / "own", "b": folder / "blue", "c": photos, "d": folder}
    for name, target in {**targets, "own/up": photos, ".hidden": folder}.items():
        (photos / name).symlink_to(target, target_is_directory=True)
    (photos / "lost.png").symlink_to(tmp_path / "nowhere.png")
    found = [str(path.relative_to(photos)) for path in list_images(photos)]
    # A folder comes by its own path rather than by a link, and else by the first of its links.
    colors = [f"d/{color}/{i:02}.png" for color in ("dark_red", "green", "white") for i in range(3)]
    assert found == ["b/00.PNG", "b/01.png", "b/02.png", *colors, "own/one.png"]


def test_a_single_text_is_no_list_of_patterns(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"exclude must be a list of patterns, such as \['\*\.gif"
    ):
        list_images(folder, exclude="*.gif")
