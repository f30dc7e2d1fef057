"""`Preprocess.reduced_jpegs`: large JPEG files are decoded at a part of their size."""

import dataclasses
import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, JpegImagePlugin

from clipkit.data.decode import read_image
from clipkit.data.pictures import ImageSet
from clipkit.data.saved import describe_preprocess, restore_preprocess
from clipkit.data.views import Views
from clipkit.errors import ConfigError, ImageError
from clipkit.training.batches import prepare
from tests.helpers.models import VIT
from tests.helpers.noise import LEVEL, make_preprocess

PHOTO = Path(__file__).parents[2] / "examples" / "photos" / "cat.jpg"
FULL = make_preprocess((32, 32))
REDUCED = dataclasses.replace(FULL, reduced_jpegs=True)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a photo of 1200 x 900 pixels as a JPEG."""
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    Image.open(PHOTO).resize((1200, 900), Image.Resampling.LANCZOS).save(path, quality=92)
    return path


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list that gets the size in which each JPEG is decoded."""
    found: list[tuple[int, int]] = []
    real = JpegImagePlugin.JpegImageFile.load

    def load(self: Any, *args: Any, **options: Any) -> Any:
        found.append(self.size)
        return real(self, *args, **options)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    return found


@pytest.mark.parametrize(
    "least, expected",
    [
        (None, (1200, 900)),
        (451, (1200, 900)),
        (450, (600, 450)),
        (225, (300, 225)),
        (1, (150, 113)),
    ],
)
def test_no_side_is_below_the_least(
    least: int | None, expected: tuple[int, int], photo: Path
) -> None:
    assert read_image(photo, least_side=least).size == expected
    assert read_image(photo.read_bytes(), least_side=least).size == expected
    assert read_image(io.BytesIO(photo.read_bytes()), least_side=least).size == expected


def test_pixels_are_a_few_levels_off(photo: Path, sizes: list[tuple[int, int]]) -> None:
    found, expected = REDUCED(photo), FULL(photo)
    assert sizes[0] == (150, 113)  # an eighth: 64 pixels and more are wanted of each side
    assert sizes[-1] == (1200, 900)
    levels = (found - expected).abs() * LEVEL
    assert 0 < levels.mean() < 1.5
    assert levels.max() < 16


def test_an_opened_image_is_decoded_whole(photo: Path) -> None:
    """It belongs to the program, and stays as it is."""
    with Image.open(photo) as opened:
        assert torch.equal(REDUCED(opened), FULL(photo))
        assert opened.size == (1200, 900)


def test_other_formats_and_small_images_stay(photo: Path, tmp_path: Path) -> None:
    png, small = tmp_path / "photo.png", tmp_path / "small.jpg"
    with Image.open(photo) as image:
        image.save(png)
        image.resize((127, 90)).save(small)
    for path in (png, small):
        assert torch.equal(REDUCED(path), FULL(path))


def test_a_photo_is_turned_as_its_exif_says(photo: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as image:
        image.save(turned, exif=exif, quality=92)
    assert read_image(turned, least_side=200).size == (225, 300)
    assert ((REDUCED(turned) - FULL(turned)).abs() * LEVEL).mean() < 1.5


def test_views_are_of_the_reduced_photo(photo: Path, sizes: list[tuple[int, int]]) -> None:
    found, expected = Views(REDUCED, 10)(photo), Views(FULL, 10)(photo)
    assert sizes[0] == (150, 113)
    assert ((found - expected).abs() * LEVEL).mean() < 1.5


def test_views_of_files_are_read_reduced(photo: Path, sizes: list[tuple[int, int]]) -> None:
    ImageSet([photo], Views(REDUCED, 2))[0]
    ImageSet([photo], Views(FULL, 2))[0]
    assert set(sizes) == {(150, 113), (1200, 900)}


def test_training_reads_reduced(photo: Path, sizes: list[tuple[int, int]]) -> None:
    prepare(photo, REDUCED, None, random.Random(0))
    assert set(sizes) == {(150, 113)}


@pytest.mark.parametrize("views", [1, 2])
def test_features_are_known_to_be_of_reduced_photos(views: int) -> None:
    """The three images that stand for a transform may all be small."""
    images = [Image.new("RGB", (40, 40), color) for color in ("red", "green", "blue")]
    prints: list[str] = []
    for preprocess in (FULL, REDUCED):
        transform = preprocess if views == 1 else Views(preprocess, views)
        prints.append(ImageSet(images, transform).fingerprint())
    assert prints[0] != prints[1]


@pytest.mark.parametrize("kind", ["gray", "CMYK", "MPO"])
def test_every_kind_of_jpeg(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    with Image.open(PHOTO) as opened:
        image = opened.resize((400, 300))
    mode = {"gray": "L", "CMYK": "CMYK"}.get(kind, "RGB")
    more = {"save_all": True, "append_images": [image.rotate(90)]} if kind == "MPO" else {}
    image.convert(mode).save(path, "MPO" if kind == "MPO" else "JPEG", quality=95, **more)
    assert read_image(path, least_side=100).size == (200, 150)
    assert ((REDUCED(path) - FULL(path)).abs() * LEVEL).mean() < 4


def test_a_truncated_jpeg_is_told(photo: Path) -> None:
    with pytest.raises(ImageError, match="cannot read the image"):
        read_image(photo.read_bytes()[:3000], least_side=64)


def test_it_is_saved_with_a_model_only_where_it_is_set() -> None:
    config = dataclasses.replace(VIT, preprocess=FULL.config)
    preprocess = dataclasses.replace(REDUCED, resolution=config.vision.resolution)
    values = describe_preprocess(preprocess, config)
    assert values is not None
    assert restore_preprocess(values, config) == preprocess
    other = dataclasses.replace(preprocess, reduced_jpegs=False, backend="tensor")
    assert "reduced_jpegs" not in (describe_preprocess(other, config) or {})


def test_it_is_yes_or_no() -> None:
    wrong: Any = "yes"
    with pytest.raises(ConfigError, match="Preprocess.reduced_jpegs must be one of"):
        dataclasses.replace(FULL, reduced_jpegs=wrong)
