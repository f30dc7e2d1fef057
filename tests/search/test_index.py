"""An index is built, kept up to date, and searched."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit import CLIP, embed_images, zero_shot_weights
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.search import Index, Term
from clipkit.search.filling import Changes
from tests.helpers.figures import PHOTOS
from tests.search.conftest import COLORS, ColorModel, names, paint


def test_texts_find_images_of_their_color(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    assert len(index) == 9
    for color in COLORS:
        results = index.search(f"a {color} wall", k=3)
        assert {Path(path).parent.name for path in results.paths} == {color}
        assert all(os.path.samefile(Path(path).parents[1], folder) for path in results.paths)


def test_cosines_and_z_scores_are_those_of_the_features(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    query = index.feature_of("red")
    cosines = index.features.astype(np.float64) @ query.astype(np.float64)
    best = index.search("red", k=1)[0]
    assert best.cosine == pytest.approx(cosines.max(), abs=1e-6)
    assert best.z == pytest.approx((cosines.max() - cosines.mean()) / cosines.std(), abs=1e-4)


def test_features_are_those_of_the_model_in_the_order_of_the_paths(
    folder: Path, model: ColorModel
) -> None:
    index = Index.build(folder, model, batch_size=4)
    assert names(index.paths) == sorted(f"{c}/{n}.png" for c in COLORS for n in range(3))
    expected = embed_images(model, index.paths).numpy()
    np.testing.assert_allclose(index.features, expected, atol=1e-3)
    np.testing.assert_array_equal(index.features, expected.astype(np.float16))


def test_a_sum_weighs_its_terms(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    image = folder / "blue" / "1.png"
    parts = [2 * index.feature_of("red"), -index.feature_of("green"), index.feature_of(image)]
    total = np.sum(parts, axis=0)
    found = index.feature_of(f"2 * red - green + {image}")
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-6)


def test_terms_and_images_are_queries(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    by_terms = index.search([Term("red"), Term("blue", -0.5)], k=2)
    assert by_terms.paths == index.search("red - 0.5 * blue", k=2).paths
    by_image = index.search(Image.new("RGB", (9, 9), (30, 210, 40)), k=3)
    assert {Path(path).parent.name for path in by_image.paths} == {"green"}


def test_terms_that_cancel_out_are_a_typed_error(folder: Path, model: ColorModel) -> None:
    with pytest.raises(ConfigError, match="cancel each other out"):
        Index.build(folder, model).search("red - red")


def test_an_image_that_cannot_be_read_is_a_typed_error(folder: Path, model: ColorModel) -> None:
    with pytest.raises(ImageError, match=r"cannot find .*none\.png"):
        Index.build(folder, model).search("none.png")


def test_similar_images_leave_the_image_itself_out(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    results = index.similar(folder / "red" / "0.png", k=2)
    assert names(results.paths) == ["red/1.png", "red/2.png"]


def test_an_image_from_elsewhere_may_be_similar(
    folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    index = Index.build(folder, model)
    other = paint(tmp_path / "elsewhere.png", "green", 1)
    assert {Path(path).parent.name for path in index.similar(other, k=3).paths} == {"green"}


def test_a_pattern_narrows_the_search(folder: Path, model: ColorModel) -> None:
    results = Index.build(folder, model).search("red", k=9, where="blue/*")
    assert names(sorted(results.paths)) == ["blue/0.png", "blue/1.png", "blue/2.png"]


def test_templates_average_the_features_of_prompts(tmp_path: Path) -> None:
    tiny = CLIP.from_pretrained("tiny", device="cpu")
    index = Index.build(PHOTOS, tiny, tmp_path / "index")
    found = index.feature_of("cat", templates="imagenet")
    expected = zero_shot_weights(tiny, ["cat"], "imagenet").numpy()[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "cat" in Path(index.search("a photo of a cat", k=1)[0].path).name


def test_an_index_is_only_updated_the_second_time(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    encoded = model.encoded
    index = Index.build(folder, model)
    assert model.encoded - encoded == 4  # the images by which the model is known again
    assert len(index) == 9


def test_an_update_takes_what_changed(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    paint(folder / "green" / "9.png", "green", 9)  # new
    paint(folder / "red" / "0.png", "blue", 5)  # another content
    shutil.move(folder / "blue" / "0.png", folder / "blue" / "renamed.png")
    os.remove(folder / "red" / "2.png")
    os.utime(folder / "red" / "1.png", (1, 1))  # only touched
    encoded = model.encoded
    changes = index.update()
    assert changes == Changes(added=1, changed=1, renamed=1, removed=1, skipped=0)
    assert model.encoded - encoded == 2
    assert len(index) == 9
    fresh = Index.build(folder, model, folder.parent / "fresh")
    assert index.paths == fresh.paths
    np.testing.assert_array_equal(index.features, fresh.features)
    assert index.scan().is_clean


def test_an_update_of_nothing_writes_nothing(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in index.folder.iterdir())
    assert index.update() == Changes(0, 0, 0, 0, 0)
    after = sorted((path.name, path.stat().st_mtime_ns) for path in index.folder.iterdir())
    assert after == before


def test_a_file_of_another_time_is_read_again(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    os.utime(folder / "red" / "0.png", ns=(0, 0))
    assert [file.name for file in index.scan().todo] == ["red/0.png"]
    assert index.update() == Changes(0, 0, 0, 0, 0)  # it is the same
    assert index.scan().is_clean


def test_copies_are_encoded_once(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    for number in range(3):
        shutil.copy(folder / "red" / "0.png", folder / f"copy{number}.png")
    encoded = model.encoded
    assert index.update().added == 3
    assert model.encoded == encoded
    groups = index.duplicates(1)
    assert [names(group.paths) for group in groups] == [
        ["photos/copy0.png", "photos/copy1.png", "photos/copy2.png", "red/0.png"]
    ]
    assert groups[0].cosine == pytest.approx(1)


def test_copies_in_a_new_index_are_encoded_once(folder: Path, model: ColorModel) -> None:
    shutil.copy(folder / "red" / "0.png", folder / "copy.png")
    assert len(Index.build(folder, model)) == 10
    assert model.encoded == 4 + 9


def test_images_that_look_alike_come_in_groups(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    groups = index.duplicates(0.99)
    assert [{Path(path).parent.name for path in group.paths} for group in groups] == [
        {"blue"},
        {"green"},
        {"red"},
    ]
    assert [len(group.paths) for group in groups] == [3, 3, 3]
    assert all(0.99 <= group.cosine <= 1 for group in groups)


@pytest.mark.parametrize("threshold", [0, -1, 1.1, float("nan")])
def test_an_impossible_threshold_is_a_typed_error(
    threshold: float, folder: Path, model: ColorModel
) -> None:
    with pytest.raises(ConfigError, match="threshold must be above 0 and at most 1"):
        Index.build(folder, model).duplicates(threshold)


def test_broken_images_are_listed_and_tried_again_once_they_change(
    folder: Path, model: ColorModel
) -> None:
    broken = folder / "broken.png"
    broken.write_bytes(b"no image")
    index = Index.build(folder, model)
    assert len(index) == 9
    ((path, problem),) = index.skipped
    assert Path(path).name == "broken.png"
    assert "cannot identify image file" in problem
    assert index.update() == Changes(0, 0, 0, 0, 0)
    time.sleep(0.01)
    paint(broken, "red", 7)
    assert index.update().changed == 1
    assert index.skipped == []
    assert len(index) == 10


def test_left_out_and_hidden_images(folder: Path, model: ColorModel) -> None:
    paint(folder / ".hidden" / "0.png", "red", 4)
    index = Index.build(folder, model, exclude=["blue", "green/1.*"])
    assert names(index.paths) == [
        "green/0.png",
        "green/2.png",
        "red/0.png",
        "red/1.png",
        "red/2.png",
    ]
    paint(folder / "blue" / "8.png", "blue", 8)
    assert index.update() == Changes(0, 0, 0, 0, 0)  # it remembers
    wide = Index.build(folder, model, include_hidden=True)
    assert len(wide) == 11
    assert names(wide.paths)[0] == ".hidden/0.png"


def test_an_index_moves_with_its_images(folder: Path, model: ColorModel) -> None:
    Index.build(folder, model)
    moved = folder.rename(folder.parent / "moved")
    index = Index.open(moved, model)
    assert index.scan().is_clean
    assert Path(index.search("red", k=1)[0].path).is_relative_to(moved)


def test_an_index_elsewhere_stays_where_it_is(
    folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    index = Index.build(folder, model, tmp_path / "deep" / "index")
    assert not (folder / ".clipkit").exists()
    assert Path(index.search("red", k=1)[0].path).is_relative_to(folder)
    assert Index.open(tmp_path / "deep" / "index").paths == index.paths


def test_a_list_of_images(folder: Path, model: ColorModel, tmp_path: Path) -> None:
    listed = [folder / "red" / "0.png", str(folder / "blue" / "0.png")]
    index = Index.build(listed, model, tmp_path / "index")
    assert names(index.search("red", k=1).paths) == ["red/0.png"]
    assert index.update([*listed, folder / "green" / "0.png"]).added == 1
    os.remove(folder / "red" / "0.png")
    assert index.update().removed == 1
    assert names(index.paths) == ["blue/0.png", "green/0.png"]


def test_a_list_of_relative_paths_is_found_from_everywhere(
    folder: Path, model: ColorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "red")
    index = Index.build(["0.png", "1.png"], model, "../index")
    assert index.update(["0.png", "1.png"]) == Changes(0, 0, 0, 0, 0)
    encoded = model.encoded
    assert names(index.similar("0.png").paths) == ["red/1.png"]
    assert model.encoded == encoded
    assert all(Path(path).is_absolute() for path in index.paths)


def test_a_list_needs_a_place(folder: Path, model: ColorModel) -> None:
    with pytest.raises(ConfigError, match=r"needs a folder of its own: out="):
        Index.build([folder / "red" / "0.png"], model)


@pytest.mark.parametrize("images", [3, None, b"photos", [3]])
def test_what_is_no_list_is_a_typed_error(images: Any, model: ColorModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images must be a folder or a list of paths"):
        Index.build(images, model, tmp_path / "index")


def test_a_single_path_is_no_new_list(folder: Path, model: ColorModel, tmp_path: Path) -> None:
    index = Index.build([folder / "red" / "0.png"], model, tmp_path / "index")
    with pytest.raises(ConfigError, match="images must be a folder or a list of paths"):
        index.update("0.png")
    assert len(index) == 1


@pytest.mark.parametrize("options", [{"exclude": ["0*"]}, {"include_hidden": True}])
def test_what_a_list_would_ignore_is_an_error(
    options: Any, folder: Path, model: ColorModel, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="exclude and include_hidden would be ignored"):
        Index.build([folder / "red" / "0.png"], model, tmp_path / "index", **options)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "many"])
def test_impossible_workers_are_a_typed_error(
    workers: Any, folder: Path, model: ColorModel
) -> None:
    with pytest.raises(ConfigError, match='workers must be "auto" or an integer from 1 on'):
        Index.build(folder, model, workers=workers)


def test_a_file_that_can_be_read_again_is_read(
    folder: Path, model: ColorModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = str(folder / "red" / "0.png")
    with monkeypatch.context() as patch:
        real = open

        def refuse(file: Any, *args: Any, **options: Any) -> Any:
            if file == image:
                raise PermissionError(13, "Permission denied", file)
            return real(file, *args, **options)

        patch.setattr("builtins.open", refuse)
        patch.setattr(os, "access", lambda path, mode: path != image)
        index = Index.build(folder, model)
        assert index.skipped == [(image, "Permission denied")]
        assert index.scan().is_clean
    assert index.update().changed == 1
    assert len(index) == 9


def test_a_folder_takes_no_list(folder: Path, model: ColorModel) -> None:
    with pytest.raises(ConfigError, match=r"is of the folder .*photos, and takes no list"):
        Index.build(folder, model).update([folder / "red" / "0.png"])


def test_another_folder_is_a_typed_error(folder: Path, model: ColorModel, tmp_path: Path) -> None:
    Index.build(folder, model, tmp_path / "index")
    paint(tmp_path / "others" / "a.png", "red")
    with pytest.raises(ConfigError, match=r"is of .*photos, not of .*others: give another out="):
        Index.build(tmp_path / "others", model, tmp_path / "index")


@pytest.mark.parametrize("what", ["text", "image", "update", "build"])
def test_another_model_is_a_typed_error(
    what: str, folder: Path, model: ColorModel, other_model: ColorModel
) -> None:
    Index.build(folder, model)
    other = Index.open(folder, other_model)
    paint(folder / "new.png", "red", 9)
    with pytest.raises(ConfigError, match="was made by another model"):
        if what == "text":
            other.search("red")
        elif what == "image":
            other.search(folder / "new.png")
        elif what == "update":
            other.update()
        else:
            Index.build(folder, other_model)


def test_no_image_is_a_typed_error_and_leaves_nothing(tmp_path: Path, model: ColorModel) -> None:
    with pytest.raises(ConfigError, match="needs at least one image, and there is none in"):
        Index.build(tmp_path, model)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="there is no folder or file"):
        Index.build(tmp_path / "none", model)


def test_a_folder_that_lost_all_its_images_keeps_its_index(folder: Path, model: ColorModel) -> None:
    index = Index.build(folder, model)
    shutil.move(folder / "red", folder.parent / "red")
    for color in ("green", "blue"):
        shutil.rmtree(folder / color)
    with pytest.raises(
        DataError, match="holds no image any more, and the index has 9: is the disk"
    ):
        index.update()
    assert len(Index.open(folder)) == 9
