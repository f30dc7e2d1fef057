"""Lists of paths: what is not there is told. Impossible arguments leave nothing behind."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError
from clipkit.search import Index
from clipkit.search.filling import Changes
from tests.search.conftest import ColorModel, names, paint

MISSING = "No such file or directory"


def test_a_list_of_which_nothing_is_there_is_a_typed_error_and_leaves_nothing(
    tmp_path: Path, model: ColorModel
) -> None:
    listed = [tmp_path / "none.png", tmp_path / "nor.png"]
    with pytest.raises(DataError, match=r"nothing is at 2 paths of the list.*none\.png"):
        Index.build(listed, model, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_list_is_a_typed_error(tmp_path: Path, model: ColorModel) -> None:
    with pytest.raises(ConfigError, match="at least one image, and there is none in the list"):
        Index.build([], model, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["a\0.png", "\ud800.png", ""])
def test_what_can_be_no_path_is_a_typed_error(
    path: str, folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no file can have the path"):
        Index.build([str(folder / "red" / "0.png"), path], model, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_paths_at_which_nothing_is_are_skipped_until_something_is(
    folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    late = folder / "late.png"
    index = Index.build([folder / "red" / "0.png", late], model, tmp_path / "index")
    assert len(index) == 1
    assert index.skipped == [(str(late), MISSING)]
    assert index.scan().is_clean
    assert Index.open(tmp_path / "index").skipped == [(str(late), MISSING)]
    paint(late, "blue")
    assert index.update().skipped == 0
    assert index.skipped == []
    assert names(index.paths) == ["photos/late.png", "red/0.png"]


def test_an_image_of_a_list_that_goes_away_is_removed_and_told_only_if_it_is_listed_again(
    folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    listed = [folder / "red" / "0.png", folder / "red" / "1.png"]
    index = Index.build(listed, model, tmp_path / "index")
    os.remove(listed[0])
    assert index.update() == Changes(0, 0, 0, 1, 0)
    assert index.skipped == []
    assert index.update(listed).skipped == 1
    assert index.skipped == [(str(listed[0]), MISSING)]


def test_a_list_that_lost_all_its_images_keeps_its_index(
    folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    listed = [folder / "red" / "0.png", folder / "red" / "1.png"]
    index = Index.build(listed, model, tmp_path / "index")
    folder.rename(tmp_path / "elsewhere")
    for again in (None, listed):
        with pytest.raises(DataError, match="nothing is at 2 paths of the list"):
            index.update(again)
    assert len(Index.open(tmp_path / "index")) == 2


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": 0}, "batch_size must be an integer from 1 on, not 0"),
        ({"batch_size": "4"}, "batch_size must be an integer from 1 on, not '4'"),
        ({"batch_size": True}, "batch_size must be an integer from 1 on, not True"),
        ({"workers": 0}, 'workers must be "auto" or an integer from 1 on'),
    ],
)
def test_impossible_arguments_leave_nothing(
    options: Any, problem: str, folder: Path, model: ColorModel
) -> None:
    with pytest.raises(ConfigError, match=problem):
        Index.build(folder, model, **options)
    assert not (folder / ".clipkit").exists()
    assert model.encoded == 0


def test_numbers_of_numpy_are_numbers(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model, batch_size=np.int64(4))  # type: ignore[arg-type]
    assert len(index.search("red", k=np.int64(3))) == 3
    assert len(index.similar(folder / "red" / "0.png", k=np.uint8(2))) == 2


def test_a_folder_is_listed_once_and_searched_to_its_first_image(
    folder: Path, model: ColorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    walk = os.walk

    def watched(top: str, **options: Any) -> Any:
        for parent, folders, files in walk(top, **options):
            looked.append(Path(parent).name)
            yield parent, folders, files

    monkeypatch.setattr(os, "walk", watched)
    Index.build(folder, model)
    first = looked[: looked.index("photos", 1)]
    assert len(first) == 2  # the folder itself, and the first one in it
    assert sorted(looked[len(first) :]) == ["blue", "green", "photos", "red"]
