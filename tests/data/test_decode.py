"""clipkit.data.decode: every kind of image becomes upright and 8 bits deep, or an ImageError."""

import builtins
import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from clipkit.data.decode import read_image
from clipkit.data.pictures import ImageSet
from clipkit.errors import ImageError
from tests.helpers.noise import Color, make_preprocess, noise, normalized, openai_transform

TO_16 = make_preprocess((16, 16))
TO_32 = make_preprocess((32, 32))

# Kinds of image


def turned(folder: Path, orientation: int) -> Path:
    """Save an image of 31 x 20 stored pixels with an EXIF that says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(31, 20).save(folder / "turned.jpg", exif=exif)
    return folder / "turned.jpg"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honored(tmp_path: Path, orientation: int) -> None:
    path = turned(tmp_path, orientation)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        plain = Image.fromarray(np.asarray(image))
    result = TO_16(path)
    assert torch.equal(result, TO_16(upright))
    assert torch.equal(result, TO_16(plain)) == (orientation == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_turned_once(tmp_path: Path, orientation: int) -> None:
    """An image from read_image may be cropped and preprocessed, or read again."""
    path = turned(tmp_path, orientation)
    once = read_image(path)
    assert once.size == ((20, 31) if orientation > 4 else (31, 20))
    with Image.open(path) as image:
        assert once.tobytes() == ImageOps.exif_transpose(image).tobytes()
    for again in (read_image(once), once.copy(), once.crop((0, 0, *once.size))):
        assert torch.equal(TO_16(again), TO_16(path))


def test_an_image_turned_by_its_xmp_is_turned_once() -> None:
    image = noise(31, 20)
    image.format = "PNG"  # as if it were opened from a file
    image.info["XML:com.adobe.xmp"] = '<rdf:Description tiff:Orientation="6"/>'
    once = read_image(image)
    assert once.size == (20, 31)
    assert once.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert read_image(once).tobytes() == once.tobytes()


def test_a_turned_image_keeps_its_transparent_color(tmp_path: Path) -> None:
    image = Image.new("P", (8, 4), 0)
    exif = Image.Exif()
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(1, (0, 0, 4, 4))
    exif[0x0112] = 6
    image.save(tmp_path / "icon.png", transparency=1, exif=exif)
    pixels = np.asarray(read_image(tmp_path / "icon.png"))
    assert pixels.shape == (8, 4, 3)
    assert (pixels[:4] == 255).all()
    assert (pixels[4:] == (0, 0, 255)).all()


def test_open_files_are_read_and_left_open(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    noise(31, 20).save(path)
    expected = noise(31, 20).tobytes()
    with path.open("rb") as file:
        memory = io.BytesIO(path.read_bytes())
        for source in (file, memory, path, str(path), noise(31, 20)):
            image = read_image(source)
            assert image.mode == "RGB"
            assert image.tobytes() == expected
        assert not file.closed
        assert not memory.closed


@pytest.mark.parametrize("content", [b"", b"no image", b"half"])
def test_an_open_file_that_cannot_be_read_is_an_image_error(content: bytes) -> None:
    if content == b"half":
        whole = io.BytesIO()
        noise(31, 20).save(whole, "png")
        content = whole.getvalue()[:900]
    with pytest.raises(
        ImageError, match="cannot read the image in the open file: .*Is it complete"
    ):
        read_image(io.BytesIO(content))


@pytest.mark.parametrize(
    "mode, result",
    [
        ("RGB", "RGB"),
        ("L", "L"),
        ("CMYK", "CMYK"),
        ("1", "L"),
        ("P", "RGB"),
        ("RGBA", "RGB"),
        ("LA", "RGB"),
        ("YCbCr", "RGB"),
        ("I;16", "L"),
        ("I", "L"),
        ("HSV", "RGB"),
    ],
)
def test_images_become_8_bit_l_rgb_or_cmyk(mode: str, result: str) -> None:
    once = read_image(Image.new(mode, (5, 4)))
    assert once.mode == result
    assert once.size == (5, 4)
    assert read_image(once).tobytes() == once.tobytes()


@pytest.mark.parametrize("block", [b"Exif\0\0no header, no tags", b"Exif\0\0MM\0*\0\0e"])
def test_broken_exif_does_not_lose_the_image(block: bytes) -> None:
    probe, image = noise(), noise()
    probe.info["exif"] = image.info["exif"] = block
    with pytest.raises((SyntaxError, struct.error), match="not a TIFF file|unpack requires"):
        probe.getexif()  # raises the first time only
    assert torch.equal(TO_16(image), TO_16(noise()))


def test_opaque_alpha_equals_rgb() -> None:
    image = noise(50, 70)
    opaque = image.copy()
    opaque.putalpha(255)
    assert torch.equal(TO_32(opaque), TO_32(image))
    assert torch.equal(TO_32(opaque), openai_transform(32)(opaque))
    gray = noise(50, 70, "L")
    assert torch.equal(TO_32(gray.convert("LA")), TO_32(gray))


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), (255, 255, 255)),
        # 0.4 of the color and 0.6 of white
        (Image.new("RGBA", (9, 9), (200, 100, 0, 102)), (233, 193, 153)),
        (Image.new("RGBa", (9, 9), (80, 40, 0, 102)), (233, 193, 153)),
        # a palette with alpha in it
        (Image.new("RGBA", (9, 9), (200, 100, 0, 102)).quantize(4), (233, 193, 153)),
        (Image.new("LA", (9, 9), (0, 0)), (255, 255, 255)),
        (Image.new("La", (9, 9), (0, 51)), (204, 204, 204)),
    ],
)
def test_transparency_is_laid_over_white(image: Image.Image, expected: Color) -> None:
    torch.testing.assert_close(
        make_preprocess((4, 4))(image)[:, 0, 0], normalized(expected), rtol=0, atol=1e-6
    )


def test_palette_is_converted_before_resizing() -> None:
    image = noise(50, 70).quantize(16)
    assert torch.equal(TO_32(image), TO_32(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_shows_white(tmp_path: Path, transparency: Any) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(1, (0, 0, 8, 4))
    image.save(tmp_path / "icon.png", transparency=transparency)
    result = make_preprocess((8, 8))(tmp_path / "icon.png")
    torch.testing.assert_close(result[:, 0, 0], normalized((255, 255, 255)), rtol=0, atol=1e-6)
    torch.testing.assert_close(result[:, 7, 0], normalized((0, 0, 255)), rtol=0, atol=1e-6)


def test_transparent_color_of_an_rgb_png_shows_white(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "keyed.png", transparency=(255, 0, 0))
    result = make_preprocess((8, 8))(tmp_path / "keyed.png")
    torch.testing.assert_close(result[:, 0, 0], normalized((255, 255, 255)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bit_gray_is_scaled_and_not_clipped(mode: str) -> None:
    levels = np.arange(4096, dtype=np.int64).reshape(64, 64) * 16
    levels[-1, -1] = 65535
    kind = {"I": "=i4", "I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (64, 64), levels.astype(kind).tobytes())
    expected = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    assert torch.equal(make_preprocess((64, 64))(image), make_preprocess((64, 64))(expected))
    assert torch.equal(TO_32(image), TO_32(expected))


def test_sixteen_bit_png_file(tmp_path: Path) -> None:
    small = noise(20, 20, "L")
    Image.fromarray(np.asarray(small).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert torch.equal(
        make_preprocess((20, 20))(tmp_path / "deep.png"), make_preprocess((20, 20))(small)
    )


def test_one_bit_is_smoothed() -> None:
    image = noise(50, 70, "L").convert("1")
    assert torch.equal(TO_32(image), TO_32(image.convert("L")))
    assert len(TO_32(image).unique()) > 10


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "RGBX"])
def test_other_color_spaces(mode: str) -> None:
    image = noise(30, 20).convert(mode)
    assert torch.equal(TO_16(image), TO_16(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "lime", "blue")]
    path = tmp_path / f"animation.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    assert torch.equal(TO_16(path), TO_16(frames[0]))


# What cannot be read


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match="cannot find the image at the path .*nothing.jpg"
    ) as caught:
        make_preprocess()(tmp_path / "nothing.jpg")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("keep", [0, 20, 0.6])
def test_truncated_file(tmp_path: Path, kind: str, keep: float) -> None:
    whole = io.BytesIO()
    noise(90, 80).save(whole, kind)
    data = whole.getvalue()
    path = tmp_path / "broken"
    path.write_bytes(data[: int(keep * len(data) if keep < 1 else keep)])
    with pytest.raises(
        ImageError, match="cannot read the image at the path .*broken.*Is it complete"
    ) as caught:
        make_preprocess()(str(path))
    assert caught.value.__cause__ is not None


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        whole = io.BytesIO()
        noise(30, 20).save(whole, kind)
        for _ in range(30):
            data = np.frombuffer(whole.getvalue(), np.uint8).copy()
            data[rng.integers(8, len(data), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(data.tobytes())
            try:
                make_preprocess((8, 8))(path)
            except ImageError:
                pass


def test_not_an_image_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match="notes.txt.*cannot identify"):
        make_preprocess()(tmp_path / "notes.txt")
    with pytest.raises(ImageError, match="cannot use the image at the path .*it is a folder"):
        make_preprocess()(tmp_path)
    with pytest.raises(ImageError, match="null byte"):
        make_preprocess()("a\0b")


def test_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "good.gif", save_all=True, append_images=[noise(seed=1)])
    (tmp_path / "broken.gif").write_bytes((tmp_path / "good.gif").read_bytes()[:300])
    opened: list[Any] = []
    really_open = builtins.open

    def noted_open(*arguments: Any, **options: Any) -> Any:
        opened.append(really_open(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(builtins, "open", noted_open)
    make_preprocess()(tmp_path / "good.gif")
    with pytest.raises(ImageError, match="broken.gif"):
        make_preprocess()(tmp_path / "broken.gif")
    assert len(opened) == 2
    assert all(file.closed for file in opened)


def test_truncated_pil_image() -> None:
    whole = io.BytesIO()
    noise(90, 80).save(whole, "JPEG")
    with Image.open(io.BytesIO(whole.getvalue()[:-900])) as image:
        with pytest.raises(
            ImageError, match=r"cannot read the PIL image \(mode RGB, size \(90, 80\)\).*truncated"
        ):
            make_preprocess()(image)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(90, 80).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="bomb.png.*decompression bomb"):
        make_preprocess()(tmp_path / "bomb.png")


def test_unreadable_chunk_of_text_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 5000, zip=True)
    noise().save(tmp_path / "text.png", pnginfo=info)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 100)
    with pytest.raises(ImageError, match="text.png"):
        make_preprocess()(tmp_path / "text.png")


@pytest.mark.parametrize("as_file", [False, True])
def test_float_image(tmp_path: Path, as_file: bool) -> None:
    image = Image.new("F", (8, 8), 0.5)
    image.save(tmp_path / "depth.tiff")
    with pytest.raises(ImageError, match="cannot use .*mode F holds floats.*convert"):
        make_preprocess()(tmp_path / "depth.tiff" if as_file else image)


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_out_of_range(value: int) -> None:
    image = Image.new("I", (8, 8), value)
    with pytest.raises(
        ImageError, match=f"integers run from {value} to {value}, but 16-bit gray is 0-65535"
    ):
        make_preprocess()(image)


def test_image_without_pixels() -> None:
    with pytest.raises(ImageError, match=r"size \(0, 5\)\): it has no pixels"):
        make_preprocess()(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("place", ["load", "getexif"])
def test_lack_of_memory_is_no_broken_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(self: Any) -> None:
        raise MemoryError("no memory left")

    noise().save(tmp_path / "good.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, place, fail)
    with pytest.raises(MemoryError, match="no memory left"):
        read_image(tmp_path / "good.png")
    images = ImageSet([tmp_path / "good.png"], TO_16)
    with pytest.raises(MemoryError, match="no memory left"):
        images[0]


def test_heic_is_read_where_its_plug_in_is_installed(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="it has no wheel for this platform")
    path = tmp_path / "photo.heic"
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 60))).save(path, quality=90)
    program = (
        "import sys; from clipkit.data.decode import image_suffixes, read_image\n"
        "print('.heic' in image_suffixes(), read_image(sys.argv[1]).size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True (64, 48)\n"


def test_a_program_without_the_plug_in_reads_all_else() -> None:
    program = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from clipkit.data.decode import image_suffixes\n"
        "print('.heic' in image_suffixes(), '.jpg' in image_suffixes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n"
