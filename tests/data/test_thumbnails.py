"""Thumbnails are small copies of images, upright and without what else a file tells."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.data import thumbnails
from clipkit.data.decode import read_image
from clipkit.data.thumbnails import SIDE, measured_copy, small_copy, thumbnail
from clipkit.errors import ImageError
from tests.helpers.toy_data import two_colors


@pytest.fixture
def photo(tmp_path: Path) -> str:
    file = tmp_path / "photo.png"
    two_colors((200, 10, 10), (10, 10, 200), seed=0, size=(600, 300)).save(file)
    return str(file)


def image_in(uri: str | None) -> Image.Image:
    assert uri is not None
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_thumbnails_are_small_copies(photo: str) -> None:
    copy = image_in(thumbnail(photo))
    assert copy.size == (SIDE, SIDE // 2)
    assert np.asarray(copy).astype(float)[40, 30] == pytest.approx([200, 10, 10], abs=40)
    original = two_colors((9, 9, 9), (9, 9, 9), seed=0, size=(600, 300))
    assert image_in(thumbnail(original)).size == (SIDE, SIDE // 2)
    assert original.size == (600, 300)
    noise = np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8)
    uri = thumbnail(noise)
    assert uri is not None
    assert len(uri) < 40_000
    for item in ((photo, 3), {"img": Path(photo)}, Path(photo).read_bytes()):
        assert thumbnail(item) == thumbnail(photo)


def test_what_cannot_be_read_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    items = [
        tmp_path / "broken.png",
        str(tmp_path / "no.png"),
        b"",
        torch.zeros(3, 9, 9),
        {},
        (),
        5,
    ]
    assert [thumbnail(item) for item in items] == [None] * 7


def test_the_side_can_be_chosen_and_small_images_keep_their_size(photo: str) -> None:
    assert image_in(small_copy(photo, 256)).size == (256, 128)
    assert image_in(small_copy(photo, 32)).size == (32, 16)
    assert image_in(small_copy(Image.new("RGB", (9, 5)), 32)).size == (9, 5)
    assert image_in(small_copy(Image.new("L", (1000, 1)), 32)).size == (32, 1)


def test_copies_are_upright_and_tell_nothing_of_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    image = two_colors((200, 10, 10), (10, 10, 200), seed=0, size=(64, 32))
    image.save(tmp_path / "turned.jpg", exif=exif)
    copy = image_in(small_copy(tmp_path / "turned.jpg"))
    assert copy.size == (32, 64)
    assert dict(copy.getexif()) == {}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_jpeg_is_as_upright_as_a_small_one(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = two_colors((200, 10, 10), (10, 10, 200), seed=0, size=(1200, 403))
    image.save(tmp_path / "large.jpg", exif=exif, quality=95)
    found = measured_copy(tmp_path / "large.jpg", 40)  # decoded at an eighth of the size
    upright = read_image(tmp_path / "large.jpg")
    assert (found.width, found.height) == upright.size
    copy = image_in(found.uri)
    assert copy.size == ((40, 13) if orientation < 5 else (13, 40))
    whole = np.asarray(upright.resize(copy.size, Image.Resampling.BOX)).astype(float)
    assert np.abs(np.asarray(copy) - whole).mean() < 12


def test_a_large_jpeg_is_decoded_no_larger_than_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (1600, 800)).save(tmp_path / "large.jpg")
    decoded: list[tuple[int, int]] = []

    def read(image: Image.Image) -> Image.Image:
        decoded.append(image.size)
        return read_image(image)

    monkeypatch.setattr(thumbnails, "read_image", read)
    assert measured_copy(tmp_path / "large.jpg", 100)[1:] == (1600, 800)
    assert decoded == [(400, 200)]


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    copy = np.asarray(image_in(small_copy(tmp_path / "clear.png")))
    assert copy.min() > 250


def test_a_copy_of_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot find"):
        small_copy(tmp_path / "no.png")
