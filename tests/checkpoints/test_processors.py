"""Read a preprocessing from JSON: each setting is kept or refused, and none is ignored."""

import json
from pathlib import Path
from typing import Any

import pytest

from clipkit import CLIP, PreprocessConfig
from clipkit.checkpoints.infer import from_open_clip, from_transformers
from clipkit.errors import ConfigError, UnsupportedCheckpointError
from tests.helpers.model_files import write_json, write_open_clip, write_transformers
from tests.helpers.models import assert_same


def of_processor(values: dict[str, Any], image_size: int | None = None) -> PreprocessConfig:
    """Read a processor of transformers beside a CLIP for images of this size, or the default's."""
    vision = {} if image_size is None else {"image_size": image_size}
    return from_transformers({"model_type": "clip", "vision_config": vision}, values).preprocess


def of_open_clip(stated: dict[str, Any], image_size: Any = 224) -> PreprocessConfig:
    """Read the `preprocess_cfg` of an open_clip file for images of this size."""
    values = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": image_size, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {"width": 512, "heads": 8, "layers": 12},
    }
    return from_open_clip({"model_cfg": values, "preprocess_cfg": stated}).preprocess


# transformers

SQUASH = PreprocessConfig(resize_mode="squash")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"size": 224}, PreprocessConfig()),
        ({"size": {"shortest_edge": 224}}, PreprocessConfig()),
        ({"size": {"shortest_edge": 224, "longest_edge": None}}, PreprocessConfig()),
        ({"size": {"height": 224, "width": 224}}, SQUASH),
        ({"size": [224, 224]}, SQUASH),
        ({"size": {"height": 224, "width": 224}, "do_center_crop": False}, SQUASH),
        (
            {"resample": 2, "image_mean": [0.5] * 3},
            PreprocessConfig(interpolation="bilinear", mean=(0.5, 0.5, 0.5)),
        ),
    ],
)
@pytest.mark.parametrize(
    "crop", [{}, {"crop_size": 224}, {"crop_size": {"height": 224, "width": 224}}]
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_processor_is_read(
    values: dict[str, Any], expected: PreprocessConfig, crop: dict[str, Any], nested: bool
) -> None:
    values = values | crop
    # transformers 5 nests it.
    assert of_processor({"image_processor": values} if nested else values) == expected


@pytest.mark.parametrize("key", ["size", "crop_size"])
@pytest.mark.parametrize(
    "size",
    [
        336,
        {"shortest_edge": 336},
        {"height": 336, "width": 336},
        {"height": 224, "width": 336},
        {"height": 336, "width": 224},
        [224, 336],
    ],
)
def test_a_size_that_contradicts_the_image_size(key: str, size: Any) -> None:
    """The message names both values and the remedy."""
    message = rf"{key} is .*336.*image_size is 224 .*Pass config="
    with pytest.raises(ConfigError, match=message):
        of_processor({key: size})
    with pytest.raises(ConfigError, match=message):
        of_processor({"image_processor": {key: size}}, image_size=224)


def test_a_size_that_contradicts_another_image_size() -> None:
    with pytest.raises(ConfigError, match=r"size is \{'shortest_edge': 224\}.*image_size is 336"):
        of_processor({"size": {"shortest_edge": 224}}, image_size=336)
    with pytest.raises(ConfigError, match="crop_size is 224 there, and image_size is 336"):
        of_processor({"size": 336, "crop_size": 224}, image_size=336)
    assert of_processor({"size": 336, "crop_size": 336}, image_size=336) == PreprocessConfig()


def test_a_resize_to_more_than_the_crop() -> None:
    """Classifiers often do so. A CLIP would see its images at another scale."""
    with pytest.raises(ConfigError, match="size is 256 there, and image_size is 224"):
        of_processor({"size": 256, "crop_size": 224})


def test_a_crop_that_is_not_done_may_have_any_size() -> None:
    squash = {"size": {"height": 224, "width": 224}, "do_center_crop": False, "crop_size": 256}
    assert of_processor(squash) == SQUASH


@pytest.mark.parametrize(
    "size", [{"longest_edge": 224}, {"height": 224}, {"max_pixels": 224}, [224], "224", {}]
)
def test_sizes_of_other_preprocessings(size: Any) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="a preprocessing to the size"):
        of_processor({"size": size})


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"do_center_crop": False, "size": 224}, "do_center_crop is false"),
        ({"rescale_factor": 1.0}, r"rescale_factor 1\.0 is not 1/255"),
        ({"resample": 1}, "resample 1 is neither bilinear nor bicubic"),
    ],
)
def test_steps_of_other_preprocessings(processor: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=message):
        of_processor(processor)


def test_a_folder_whose_processor_contradicts_it(vit: CLIP, tmp_path: Path) -> None:
    write_transformers(vit, tmp_path)
    write_json(tmp_path / "preprocessor_config.json", {"size": {"shortest_edge": 224}})
    with pytest.raises(ConfigError, match="'shortest_edge': 224.*image_size is 48 .*Pass config="):
        CLIP.from_pretrained(tmp_path, device="cpu")
    assert_same(CLIP.from_pretrained(tmp_path, device="cpu", config=vit.config), vit)


# open_clip


@pytest.mark.parametrize("size", [224, [224, 224], None])
def test_an_open_clip_size_that_agrees(size: Any) -> None:
    assert of_open_clip({"size": size, "mode": "RGB", "fill_color": 0}) == PreprocessConfig()


def test_an_open_clip_size_that_is_no_square() -> None:
    assert of_open_clip({"size": [224, 320]}, image_size=[224, 320]) == PreprocessConfig()


@pytest.mark.parametrize("size", [336, [336, 336], [224, 336], [336, 224]])
def test_an_open_clip_size_that_contradicts_the_image_size(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"the size .*336.*the image_size 224\. Pass config="):
        of_open_clip({"size": size})


def test_an_open_clip_size_that_contradicts_an_oblong_image_size() -> None:
    with pytest.raises(ConfigError, match="the size 224, and vision_cfg the image_size 224 x 320"):
        of_open_clip({"size": 224}, image_size=[224, 320])


@pytest.mark.parametrize("size", ["224", [224], {"longest_edge": 224}])
def test_open_clip_sizes_of_other_preprocessings(size: Any) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="a preprocessing to the size"):
        of_open_clip({"size": size})


@pytest.mark.parametrize(
    "stated",
    [
        {"mode": "L"},
        {"resize_mode": "longest", "fill_color": 128},
        {"resize_mode": "longest", "fill_color": [0, 0, 9]},
    ],
)
def test_open_clip_colors_of_other_preprocessings(stated: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="a plain CLIP has 'RGB' and 0"):
        of_open_clip(stated)


@pytest.mark.parametrize("fill_color", [0, None, [0, 0, 0]])
def test_open_clip_padding_with_black(fill_color: Any) -> None:
    stated = {"resize_mode": "longest", "fill_color": fill_color}
    assert of_open_clip(stated) == PreprocessConfig(resize_mode="longest")


def test_an_open_clip_folder_that_contradicts_itself(vit: CLIP, tmp_path: Path) -> None:
    write_open_clip(vit, tmp_path)
    path = tmp_path / "open_clip_config.json"
    values = json.loads(path.read_text("utf-8"))
    values["preprocess_cfg"]["size"] = 224
    write_json(path, values)
    with pytest.raises(ConfigError, match="the size 224, and vision_cfg the image_size 48"):
        CLIP.from_pretrained(tmp_path, device="cpu")
    assert_same(CLIP.from_pretrained(tmp_path, device="cpu", config=vit.config), vit)
