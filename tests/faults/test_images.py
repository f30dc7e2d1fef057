"""Image files of every kind: which are found, which are opened, which way up, how bright."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import Preprocess, PreprocessConfig
from clipkit.data.decode import image_suffixes, read_image
from clipkit.data.pictures import list_images
from clipkit.errors import ConfigError, ImageError

PREPROCESS = Preprocess((8, 8), PreprocessConfig())


def encoded(image: Image.Image, kind: str) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jpe", ".jp2", ".tga", ".pgm", ".mpo"])
def test_every_raster_format_of_pillow_is_found_in_folders(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"image{suffix.upper()}"
    file.write_bytes(b"")
    assert list_images(tmp_path) == [file]


def test_formats_of_plug_ins_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photo.mine").write_bytes(b"")
    assert list_images(tmp_path) == []
    Image.init()
    monkeypatch.setitem(Image.EXTENSION, ".mine", "MINE")
    monkeypatch.setitem(Image.OPEN, "MINE", Image.OPEN["PNG"])
    assert list_images(tmp_path) == [tmp_path / "photo.mine"]


@pytest.mark.parametrize("suffix", [".eps", ".ps", ".wmf", ".emf", ".mpg", ".pdf"])
def test_what_is_no_raster_image_is_not_found(suffix: str) -> None:
    assert suffix not in image_suffixes()


def test_eps_is_refused_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript on it, which runs programs."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *call, **_: started.append(call))
    monkeypatch.setattr("subprocess.Popen", lambda *call, **_: started.append(call))
    file = tmp_path / "photo.jpg"
    file.write_bytes(encoded(Image.new("RGB", (8, 8)), "EPS"))
    with pytest.raises(ImageError, match="cannot read the image at the path"):
        read_image(file)
    assert started == []


def test_bytes_and_open_files_are_images(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "PNG")
    expected = PREPROCESS(Image.new("RGB", (8, 8), "red"))
    assert torch.equal(PREPROCESS(data), expected)
    assert torch.equal(PREPROCESS(io.BytesIO(data)), expected)
    (tmp_path / "red.png").write_bytes(data)
    with (tmp_path / "red.png").open("rb") as file:
        assert torch.equal(PREPROCESS(file), expected)
        assert not file.closed


def test_broken_bytes_are_named_by_their_number() -> None:
    with pytest.raises(ImageError, match="cannot read the image in 5 bytes"):
        PREPROCESS(b"12345")


def test_a_large_image_has_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("1", (64, 64)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="set PIL.Image.MAX_IMAGE_PIXELS"):
        PREPROCESS(data)


@pytest.mark.parametrize("mode", ["int32", "int64"])
def test_integers_of_8_bits_are_gray_levels(mode: str) -> None:
    """`Image.fromarray` makes mode I of them, which files use for 16 bits."""
    levels = np.arange(64).reshape(8, 8) * 4
    image = Image.fromarray(levels.astype(mode).astype("int32"))
    assert image.mode == "I"
    assert np.array_equal(np.asarray(read_image(image)), levels)


def test_integers_of_16_bits_are_scaled() -> None:
    levels = np.arange(64).reshape(8, 8) * 1028
    image = Image.fromarray(levels.astype("int32"))
    assert np.array_equal(np.asarray(read_image(image)), np.arange(64).reshape(8, 8) * 4)


def test_a_dark_file_of_16_bits_is_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 255, np.uint16)).save(tmp_path / "dark.png")
    assert np.asarray(read_image(tmp_path / "dark.png")).max() == 1


def portrait(tmp_path: Path) -> Path:
    """Write a photo whose EXIF says that it lies on its side."""
    image = Image.new("RGB", (8, 4), "blue")
    image.paste("red", (0, 0, 4, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "portrait.png", exif=exif)
    return tmp_path / "portrait.png"


def test_opened_images_are_turned_upright(tmp_path: Path) -> None:
    upright = read_image(Image.open(portrait(tmp_path)))
    assert upright.size == (4, 8)
    assert upright.getpixel((0, 0)) == (255, 0, 0)


def test_images_that_were_turned_by_hand_are_not_turned_again(tmp_path: Path) -> None:
    """Pillow keeps the EXIF of the file on what `rotate` returns."""
    by_hand = Image.open(portrait(tmp_path)).rotate(-90, expand=True)
    assert read_image(by_hand).size == (4, 8)
    assert read_image(by_hand).getpixel((0, 0)) == (255, 0, 0)


# Kind V2: 8 or 12 bits in a file of 16.


@pytest.mark.parametrize(("high", "factor"), [(255, 257), (200, 257), (4095, 16), (1000, 16)])
def test_a_dark_file_of_16_bits_is_told_once_with_the_way_on(
    high: int, factor: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"{high}.png"
    Image.fromarray(np.full((8, 8), high, np.uint16)).save(path)
    with caplog.at_level(logging.WARNING, "clipkit"):
        for _ in range(3):
            read_image(path)
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert f"no value above {high}" in record.getMessage()
    assert f"asarray(image) * {factor}" in record.getMessage()
    with Image.open(path) as image:
        bright = Image.fromarray(np.asarray(image) * factor)
    assert np.asarray(read_image(bright)).max() == round(high * factor / 257)


@pytest.mark.parametrize("levels", [0, 4096, 65535])
def test_other_files_of_16_bits_are_not_told(
    levels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(np.full((8, 8), levels, np.uint16)).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING, "clipkit"):
        assert np.asarray(read_image(tmp_path / "a.png")).max() == round(levels / 257)
    assert caplog.records == []


def test_a_turned_file_of_16_bits_is_as_dark_as_one_that_was_not(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((4, 8), 255, np.uint16))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.size == (4, 8)
    assert np.asarray(turned).max() == 1


def test_many_rows_of_16_bits_are_scaled_alike(tmp_path: Path) -> None:
    levels = np.arange(700 * 90, dtype=np.uint16).reshape(700, 90)
    Image.fromarray(levels).save(tmp_path / "rows.png")
    expected = (levels.astype(int) + 128) // 257
    assert np.array_equal(np.asarray(read_image(tmp_path / "rows.png")), expected)


# Kinds S3 and X10: what would take several times its size in memory.


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_images_that_copies_would_make_too_large_are_refused(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new(mode, (64, 64))
    read_image(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(
        ImageError, match=r"its 64 x 64 pixels of mode .*PIL.Image.MAX_IMAGE_PIXELS"
    ):
        read_image(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    read_image(image)


def test_a_warning_of_pillow_that_is_an_error_has_the_remedy_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(Image.new("1", (64, 64)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # an error from twice as many on
    with pytest.raises(ImageError, match="set PIL.Image.MAX_IMAGE_PIXELS"):
        PREPROCESS(data)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_an_image_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="it is no regular file: read it, and pass its bytes"):
        read_image(tmp_path / "a.png")
    assert list_images(tmp_path) == []


# Kind X13: sizes and numbers that no preprocessing has.


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mean": (float("nan"), 0, 0)}, "mean must be three numbers, .* all finite"),
        ({"mean": (0, 0)}, "mean must be three numbers"),
        ({"mean": "abc"}, "mean must be three numbers"),
        ({"std": (float("inf"), 1, 1)}, "std must be three numbers, .* all finite"),
        ({"std": (0, 1, 1)}, "std must be positive"),
        ({"std": (-1, 1, 1)}, "std must be positive"),
        ({"std": None}, "std must be three numbers"),
        ({"interpolation": "nearest"}, "interpolation must be one of"),
    ],
)
def test_impossible_numbers_of_a_preprocessing_are_refused(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        PreprocessConfig(**changes)


@pytest.mark.parametrize(
    ("resolution", "reason"),
    [
        ((0, 8), "two positive integers"),
        ((-8, 8), "two positive integers"),
        ((8.0, 8), "two positive integers"),
        ((True, 8), "two positive integers"),
        (8, "two positive integers"),
        ((8, 8, 8), "two positive integers"),
        ((10**9, 10**9), "more than the 67,108,864 pixels that fit into memory"),
    ],
)
def test_impossible_sizes_of_a_preprocessing_are_refused(resolution: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Preprocess(resolution, PreprocessConfig())
    config: Any = {"mean": (0, 0, 0)}
    with pytest.raises(ConfigError, match="config must be a PreprocessConfig"):
        Preprocess((8, 8), config)
