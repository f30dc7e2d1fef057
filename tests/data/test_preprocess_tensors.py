"""clipkit.data.preprocess: on tensors, close to what it makes of images; and what it refuses."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from clipkit.config import Interpolation, ResizeMode
from clipkit.errors import ImageError
from tests.helpers.noise import LEVEL, as_tensor, make_preprocess, noise, normalized

TO_16 = make_preprocess((16, 16))
TO_32 = make_preprocess((32, 32))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_tensor_is_close_to_the_image(
    resize_mode: ResizeMode, interpolation: Interpolation
) -> None:
    """Measured: 1.09 levels of 255 at most, 0.29 on average, as PIL rounds after each pass."""
    preprocess = make_preprocess((96, 96), resize_mode=resize_mode, interpolation=interpolation)
    for width, height in [(320, 240), (240, 321), (70, 90), (500, 151)]:
        image = noise(width, height).filter(ImageFilter.GaussianBlur(2))
        difference = (preprocess(image) - preprocess(as_tensor(image))).abs() * LEVEL
        assert difference.max() < 1.3
        assert difference.mean() < 0.4


def test_tensor_is_close_to_an_image_that_overshoots() -> None:
    """Full-contrast noise overshoots in both passes. To clamp once would be 17 levels off."""
    image = noise(640, 480)
    difference = (make_preprocess()(image) - make_preprocess()(as_tensor(image))).abs() * LEVEL
    assert difference.max() < 1.3


def test_tensor_of_the_right_size_equals_the_image() -> None:
    image = noise(32, 32)
    assert torch.equal(TO_32(as_tensor(image)), TO_32(image))


@pytest.mark.parametrize("resize_mode, resolution", [("shortest", (64, 64)), ("squash", (40, 90))])
def test_float_tensor_equals_open_clip(
    image_transform: Callable[..., Any], resize_mode: ResizeMode, resolution: tuple[int, int]
) -> None:
    """Bilinear, since bicubic differs by the clamping. Its other cases take PIL images only."""
    theirs = image_transform(
        resolution, is_train=False, resize_mode=resize_mode, interpolation="bilinear"
    )
    ours = make_preprocess(resolution, resize_mode=resize_mode, interpolation="bilinear")
    for width, height in [(120, 70), (70, 121), (33, 20), (64, 64)]:
        image = as_tensor(noise(width, height)) / 255
        torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=1e-5)


def test_clamped_after_resizing() -> None:
    image = torch.zeros(3, 8, 8)
    image[:, :, 4:] = 1
    result = make_preprocess((31, 31))(image)
    assert result.amin((1, 2)).allclose(normalized((0, 0, 0)), atol=1e-6)
    assert result.amax((1, 2)).allclose(normalized((255, 255, 255)), atol=1e-6)


@pytest.mark.parametrize("size", [(20, 30), (16, 16)])
def test_batch_equals_one_by_one(size: Any) -> None:
    batch = torch.randint(
        0, 256, (4, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for images in (batch, batch / 255):
        result = TO_16(images)
        assert result.shape == (4, 3, 16, 16)
        assert result.is_contiguous()
        torch.testing.assert_close(
            result, torch.stack([TO_16(i) for i in images]), rtol=0, atol=1e-6
        )


def test_empty_batch() -> None:
    for dtype in (torch.uint8, torch.float32):
        assert TO_16(torch.zeros(0, 3, 20, 30, dtype=dtype)).shape == (
            0,
            3,
            16,
            16,
        )


@pytest.mark.parametrize(
    "dtype, tolerance",
    [(torch.float32, 0), (torch.float64, 1e-6), (torch.float16, 3e-3), (torch.bfloat16, 3e-2)],
)
def test_float_dtypes(dtype: torch.dtype, tolerance: float) -> None:
    image = as_tensor(noise(30, 20))
    result = TO_16((image / 255).to(dtype))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, TO_16(image), rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", [(16, 16), (20, 30)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_callers_tensor_is_neither_changed_nor_shared(size: Any, dtype: torch.dtype) -> None:
    image = (torch.rand(2, 3, *size) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    before = image.clone()
    TO_16(image).fill_(7)
    assert torch.equal(image, before)


def test_memory_layout_does_not_matter() -> None:
    image = as_tensor(noise(30, 20))  # a permuted view
    assert torch.equal(TO_16(image), TO_16(image.contiguous()))
    batch = (torch.rand(2, 3, 16, 16)).to(memory_format=torch.channels_last)
    assert TO_16(batch).is_contiguous()


def test_gradients_flow() -> None:
    image = torch.rand(3, 20, 30, requires_grad=True)
    TO_16(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_default_dtype_does_not_matter() -> None:
    image = noise()
    expected = TO_16(image)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(TO_16(image), expected)
        assert TO_16(as_tensor(image)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_rounding_noise_outside_the_range_is_forgiven() -> None:
    image = torch.ones(3, 16, 16)
    noisy = image * (1 + torch.finfo(torch.float32).eps)
    assert noisy.max() > 1
    assert torch.equal(TO_16(noisy), TO_16(image))


# Refusals


@pytest.mark.parametrize("shape", [(3, 0, 5), (2, 3, 5, 0)])
def test_tensor_without_pixels(shape: Any) -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        make_preprocess()(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape, hint",
    [
        ((20, 30, 3), r"permute\(2, 0, 1\)"),
        ((5, 20, 30, 3), r"permute\(0, 3, 1, 2\)"),
        ((1, 20, 30), "Gray"),
        ((4, 20, 30), "RGBA"),
        ((20, 30), ""),
        ((1, 1, 3, 20, 30), ""),
        ((), ""),
    ],
)
def test_wrong_shape(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(
        ImageError, match=rf"\(3, h, w\) or \(N, 3, h, w\), not {re.escape(str(shape))}.*{hint}"
    ):
        make_preprocess()(torch.zeros(shape))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.int32, torch.bool, torch.complex64]
)
def test_wrong_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(ImageError, match=rf"uint8 in 0-255 or floating in 0-1, not {dtype}"):
        make_preprocess()(torch.zeros(3, 20, 30, dtype=dtype))


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
def test_float_tensor_out_of_range(dtype: torch.dtype, value: float, told: str) -> None:
    image = torch.zeros(2, 3, 20, 30, dtype=dtype)
    image[1, 2, 3, 4] = value
    with pytest.raises(ImageError, match=rf"must lie in 0-1.*{told}.*divide by 255"):
        make_preprocess()(image)


@pytest.mark.parametrize("other", [[Image.new("RGB", (4, 4))], None, 3, {"image": 1}])
def test_other_types_are_refused(other: Any) -> None:
    with pytest.raises(ImageError, match=f"not {type(other).__name__}. .*torch.stack"):
        make_preprocess()(other)
