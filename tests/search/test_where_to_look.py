"""Searches by images in the folder and without a path, by z-scores, and copies in other stores."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.search import Hit, Index, MemoryStore, Term, UsearchStore, scan
from clipkit.search.store import Floats
from tests.search.conftest import ColorModel, names, paint


def test_an_image_that_is_not_here_is_looked_for_in_the_folder(
    folder: Path, model: ColorModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.build(folder, model)
    monkeypatch.chdir(tmp_path)
    encoded = model.encoded
    expected = index.feature_of(folder / "red" / "0.png")
    for query in ("red/0.png", Path("red/0.png"), [Term(Path("red/0.png"))]):
        np.testing.assert_array_equal(index.feature_of(query), expected)
    assert names(index.similar("red/0.png", k=2).paths) == ["red/1.png", "red/2.png"]
    assert model.encoded == encoded
    paint(tmp_path / "red" / "0.png", "blue")
    assert {Path(path).parent.name for path in index.similar("red/0.png", k=3).paths} == {"blue"}
    with pytest.raises(ImageError, match=r"cannot find the image at the path 'red/9\.png'"):
        index.search("red/9.png")


def test_a_file_of_the_folder_with_signs_in_its_name_is_no_difference(
    folder: Path, model: ColorModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(folder / "red - Copy.png", "blue", 7)
    index = Index.build(folder, model)
    monkeypatch.chdir(tmp_path)
    found = index.search("red - Copy.png", k=1)
    assert names(found.paths) == ["photos/red - Copy.png"]


def test_an_image_without_a_path_may_be_similar(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    with Image.open(folder / "red" / "0.png") as image:
        found = index.similar(image, k=2)
    # Nobody knows that it is of the index, where its own feature is as near as float16 lets it be.
    assert set(names(found.paths)) == {"red/0.png", "red/1.png"}


def test_a_threshold_leaves_those_above_it(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    every = index.search("red", k=9)
    middle = (every[1].z + every[2].z) / 2
    assert list(index.search("red", threshold=middle)) == list(every)[:2]
    assert list(index.search("red", threshold=every[1].z)) == list(every)[:2]
    assert list(index.search("red", k=1, threshold=middle)) == list(every)[:1]
    assert len(index.search("red", threshold=every[0].z + 1)) == 0
    image = folder / "red" / "0.png"
    others = index.similar(image, k=8)
    assert list(index.similar(image, threshold=others[2].z)) == list(others)[:3]


def test_ten_are_found_or_all_above_a_threshold(folder: Path, model: ColorModel) -> None:
    for number in range(3, 7):
        paint(folder / "red" / f"{number}.png", "red", number)
    index = Index.build(folder, model)
    assert len(index) == 13
    assert len(index.search("red")) == 10
    assert len(index.search("red", threshold=-9)) == 13
    assert len(index.similar(folder / "red" / "0.png", threshold=-9)) == 12


@pytest.mark.parametrize("threshold", ["3", True, float("nan")])
def test_what_is_no_z_score_is_a_typed_error(
    threshold: Any, folder: Path, model: ColorModel
) -> None:
    index = Index.build(folder, model)
    with pytest.raises(ConfigError, match="threshold must be a z-score, such as 3, not"):
        index.search("red", threshold=threshold)
    with pytest.raises(ConfigError, match="threshold must be a z-score, such as 3, not"):
        index.similar(folder / "red" / "0.png", threshold=threshold)


def test_images_that_need_a_plug_in_are_told_once(
    folder: Path,
    model: ColorModel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "image_suffixes", lambda: {".png"})
    (folder / "red" / "9.heic").touch()
    with caplog.at_level(logging.WARNING, "clipkit"):
        index = Index.build(folder, model, exclude=["blue"])
        index.update()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"1 image of {folder} is left out, since Pillow reads no .heic here: pip install "
        "pillow-heif"
    )
    assert len(index) == 6
    caplog.clear()
    Index.build(folder, model, exclude=["red"])
    assert caplog.records == []


def test_a_folder_of_images_that_need_a_plug_in_names_it(
    tmp_path: Path,
    model: ColorModel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "image_suffixes", lambda: {".png"})
    (tmp_path / "1.heic").touch()
    with (
        caplog.at_level(logging.WARNING, "clipkit"),
        pytest.raises(ConfigError, match="there is none in"),
    ):
        Index.build(tmp_path, model)
    assert "pip install pillow-heif" in caplog.text


@pytest.mark.parametrize("kind", ["memory", "usearch"])
def test_a_copy_may_lose_what_the_index_has_not(
    kind: str, folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    index = Index.build(folder, model)
    store = MemoryStore(8) if kind == "memory" else UsearchStore(tmp_path / "store", width=8)
    index.copy_to(store)
    (folder / "red" / "0.png").unlink()
    index.update()
    index.copy_to(store)
    assert len(store) == 9  # other programs may have put there what the index has not
    index.copy_to(store, remove_others=True)
    assert len(store) == 8
    query = index.feature_of("red")[None]
    assert {hit.name for hit in store.search(query, 9)[0]} == set(index.names)
    if isinstance(store, UsearchStore):
        store.save()


def test_a_store_that_does_not_find_all_that_it_has_is_a_typed_error(
    folder: Path, model: ColorModel
) -> None:
    class Forgetful(MemoryStore):
        def search(self, queries: Floats, k: int, where: str | None = None) -> list[list[Hit]]:
            return super().search(queries, 1, where)

    index = Index.build(folder, model)
    store = Forgetful(8)
    others: Sequence[str] = [f"other/{number}.png" for number in range(3)]
    store.add(others, np.repeat(index.feature_of("red")[None], 3, axis=0))
    with pytest.raises(DataError, match="the store still has . images beyond the index"):
        index.copy_to(store, remove_others=True)
