"""What an index answers without a model, and without torch."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.errors import ConfigError, DataError
from clipkit.search import Collection, Index
from clipkit.search.arrays import write_arrays
from clipkit.search.manifest import MANIFEST, Manifest
from clipkit.search.store import Floats, Hit
from tests.search.conftest import ColorModel, names, paint


def test_a_text_that_was_asked_before_needs_no_model(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    expected = index.search("2 * red - blue", k=4, templates=["a {}", "the {}"])
    again = Index.open(folder).search("2 * red - blue", k=4, templates=["a {}", "the {}"])
    assert again.paths == expected.paths
    assert [one.cosine for one in again] == [one.cosine for one in expected]


def test_other_templates_are_another_text(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    index.search("red", templates=["a {}"])
    assert len(Index.open(folder).search("red", templates=["a {}"])) == 9
    for templates in (None, ["the {}"]):
        with pytest.raises(ConfigError, match="needs a model: 'red'"):
            Index.open(folder).search("red", templates=templates)


def test_an_image_of_the_index_needs_no_model(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    results = Index.open(folder).similar(folder / "red" / "0.png", k=2)
    assert names(results.paths) == ["red/1.png", "red/2.png"]


def test_an_image_that_was_changed_needs_the_model(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    changed = paint(folder / "red" / "0.png", "blue", 5)
    with pytest.raises(ConfigError, match="a query that was not asked before needs a model"):
        Index.open(folder).similar(changed)
    found = Index.open(folder, model).similar(changed, k=3)
    assert {Path(path).parent.name for path in found.paths} == {"blue"}


def test_an_image_that_was_changed_is_not_near_to_itself(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    changed = paint(folder / "red" / "0.png", "red", 5)
    assert names(index.similar(changed, k=2).paths) == ["red/2.png", "red/1.png"]


def test_an_image_of_another_time_needs_the_model(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    image = folder / "red" / "0.png"
    encoded = model.encoded
    index.feature_of(image)
    assert model.encoded == encoded
    os.utime(image, ns=(0, 0))
    index.feature_of(image)
    assert model.encoded == encoded + 1


def test_one_image_has_no_z_score(folder: Path, model: ColorModel) -> None:
    index = Index.build([folder / "red" / "0.png"], model, folder.parent / "index")
    (found,) = index.search("red")
    assert np.isnan(found.z)


def test_an_image_is_known_through_a_link(folder: Path, model: ColorModel, tmp_path: Path) -> None:
    Index.build(folder, model)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    for place, image in ((folder, tmp_path / "link"), (tmp_path / "link", folder)):
        found = Index.open(place).similar(image / "red" / "0.png", k=2)
        assert names(found.paths) == ["red/1.png", "red/2.png"]


def test_z_scores_of_another_store_follow_an_update(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    other = Index.open(folder, model, store=FewResults())
    before = other.search("red")[0].z
    for number in range(3, 9):
        paint(folder / "red" / f"{number}.png", "red", number)
    other.update()
    index.update()
    cosines = index.features @ index.feature_of("red")
    after = other.search("red")[0].z
    assert after == pytest.approx((0.25 - cosines.mean()) / cosines.std(), abs=1e-4)
    assert after != pytest.approx(before, abs=1e-2)


@pytest.mark.parametrize("k", [0, -1, True, 1.5, "2"])
def test_an_impossible_number_of_similar_images_is_a_typed_error(
    k: int, folder: Path, model: ColorModel
) -> None:
    index = Index.build(folder, model)
    with pytest.raises(ConfigError, match=f"k must be an integer from 1 on, not {k!r}"):
        index.similar(folder / "red" / "0.png", k=k)


def test_a_pattern_that_is_no_text_is_a_typed_error(folder: Path, model: ColorModel) -> None:
    pattern: str = 3  # pyright: ignore[reportAssignmentType]
    with pytest.raises(ConfigError, match="where must be a pattern of paths, not 3"):
        Index.build(folder, model).search("red", where=pattern)


def test_a_new_text_without_a_model_is_a_typed_error(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    with pytest.raises(ConfigError, match=r"needs a model: 'red'. Open the index with one"):
        Index.open(folder).search("red")


def test_new_images_without_a_model_are_a_typed_error(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    paint(folder / "new.png", "red", 8)
    index = Index.open(folder)
    with pytest.raises(ConfigError, match="there is 1 image to encode, which needs a model"):
        index.update()
    assert len(index) == 9


def test_images_that_only_went_away_need_no_model(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    (folder / "red" / "0.png").unlink()
    index = Index.open(folder)
    assert index.update().removed == 1
    assert len(index) == 8


def test_searching_what_is_known_imports_no_torch(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model).search("red")
    program = (
        "import sys\n"
        "from clipkit.search import Collection\n"
        f"collection = Collection({str(folder)!r})\n"
        "results = collection.search('red', k=1)\n"
        "print(collection.scan().is_clean, len(results), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True 1 False\n"


def test_results_print_as_a_table(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    index.search("red")
    lines = repr(index.search("red", k=2)).splitlines()
    assert lines[0].split() == ["z", "cosine", "path"]
    assert len(lines) == 3
    assert lines[1].endswith(".png")
    assert repr(index) == f"Index(9 images in '{folder / '.clipkit'}')"


@pytest.mark.parametrize("name", ["none", "photos"])
def test_no_index_is_a_typed_error(name: str, folder: Path) -> None:
    with pytest.raises(DataError, match="there is no index in .*: make one by"):
        Index.open(folder.parent / name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format": "other"}, "is not the manifest of an index"),
        ({"version": 99}, "is of version 99, and this clipkit reads 1"),
        ({"state": 0}, "a count is no positive integer"),
        ({"width": "8"}, "a count is no positive integer"),
        ({"features": "all"}, "a name is no text"),
        ({"features": [3]}, "a name is no text"),
        ({"entries": "../entries.safetensors"}, "it names files outside its folder"),
        ({"more": 1}, "is damaged"),
        ({"entries": "entries-99.safetensors"}, "entries-99.safetensors is missing"),
        ({"width": 9}, "it holds no float16 features of width 9"),
        ({"features": []}, "it has 0 features, and images of later rows"),
    ],
)
def test_a_damaged_manifest_is_a_typed_error(
    change: dict[str, Any], problem: str, folder: Path, model: ColorModel
) -> None:
    path = Index.build(folder, model).folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=problem):
        Index.open(folder)


def test_a_manifest_that_is_no_json_is_a_typed_error(folder: Path, model: ColorModel) -> None:
    path = Index.build(folder, model).folder / MANIFEST
    path.write_text(path.read_text()[:20])
    with pytest.raises(DataError, match=r"manifest\.json is not JSON"):
        Index.open(folder)


@pytest.mark.parametrize("kind", ["entries", "features"])
def test_a_damaged_file_is_a_typed_error(kind: str, folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    (path,) = index.folder.glob(f"{kind}-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is damaged"):
        Index.open(folder)


def test_a_damaged_text_is_asked_anew(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    expected = index.search("red", k=3).paths
    for path in (index.folder / "texts").iterdir():
        path.write_bytes(b"broken")
    assert Index.open(folder, model).search("red", k=3).paths == expected


def test_a_text_of_another_width_is_asked_anew(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    expected = index.search("red", k=3).paths
    (text,) = (index.folder / "texts").iterdir()
    write_arrays({"feature": np.ones(9, np.float32) / 3}, text)
    assert Index.open(folder, model).search("red", k=3).paths == expected


def test_a_reader_keeps_its_state_while_another_writes(folder: Path, model: ColorModel) -> None:
    reader = Index.build(folder, model)
    before = reader.search("red", k=9).paths
    writer = Index.open(folder, model)
    for number in range(3):
        (folder / "red" / f"{number}.png").unlink()
        paint(folder / "more" / f"{number}.png", "red", number + 5)
    writer.update()
    assert reader.search("red", k=9).paths == before
    assert names(Index.open(folder, model).search("red", k=1).paths)[0].startswith("more/")


def test_a_state_that_is_replaced_while_it_is_read_is_read_anew(
    folder: Path, model: ColorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.build(folder, model)
    old = Manifest.read(index.folder)
    paint(folder / "new.png", "red", 8)
    index.update()
    reads = iter([old, Manifest.read(index.folder)])
    present = Manifest.read(index.folder)
    monkeypatch.setattr(Manifest, "read", lambda folder: next(reads, present))
    assert len(Collection(folder)) == 10


class FewResults:
    """A store that knows one image alone."""

    def add(self, names: Sequence[str], features: Floats) -> None:
        raise NotImplementedError

    def remove(self, names: Sequence[str]) -> None:
        raise NotImplementedError

    def search(self, queries: Floats, k: int, where: str | None = None) -> list[list[Hit]]:
        assert queries.shape == (1, 8)
        return [[Hit("blue/2.png", 0.25)]]

    def __len__(self) -> int:
        return 1


def test_another_store_is_searched_and_z_is_that_of_the_collection(
    folder: Path, model: ColorModel
) -> None:
    index = Index.build(folder, model)
    cosines = index.features @ index.feature_of("red")
    (found,) = Index.open(folder, model, store=FewResults()).search("red")
    assert names([found.path]) == ["blue/2.png"]
    assert found.z == pytest.approx((0.25 - cosines.mean()) / cosines.std(), abs=1e-4)


def test_a_copy_in_another_store_has_every_feature(folder: Path, model: ColorModel) -> None:
    from clipkit.search import MemoryStore

    index = Index.build(folder, model)
    store = MemoryStore(8)
    index.copy_to(store)
    assert len(store) == 9
    copied = Index.open(folder, model, store=store)
    assert copied.search("red", k=5).paths == index.search("red", k=5).paths


def test_the_features_can_be_read_without_clipkit(folder: Path, model: ColorModel) -> None:
    from safetensors.numpy import load_file

    index = Index.build(folder, model)
    manifest = json.loads((index.folder / MANIFEST).read_text())
    entries = load_file(index.folder / manifest["entries"])
    features = np.concatenate(
        [load_file(index.folder / name)["features"] for name in manifest["features"]]
    )
    paths = entries["paths"].tobytes().decode().split("\0")
    np.testing.assert_array_equal(features[entries["rows"]], index.features)
    assert [path.split("/")[-2:] for path in index.paths] == [path.split("/") for path in paths]
