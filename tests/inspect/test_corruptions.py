"""Corruptions do what their units say, against NumPy and SciPy, and are drawn alike everywhere."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from clipkit.errors import ConfigError, ImageError
from clipkit.inspect import Blur, Corruption, GaussianNoise, Jpeg, Masking, Sample
from clipkit.inspect.corruptions import MEAN_COLOR, sample_of

ALL: list[Corruption] = [Masking(), GaussianNoise(), Blur(), Jpeg()]
Pixels = NDArray[Any]


def sample(index: int = 0, name: str = "", seed: int = 0) -> Sample:
    return sample_of(index, 0, ["cat", "dog"], name=name, seed=seed)


def gray(width: int = 60, height: int = 40, level: int = 128) -> Image.Image:
    return Image.new("RGB", (width, height), (level, level, level))


def textured(width: int = 61, height: int = 40, seed: int = 0) -> Image.Image:
    """Return an image with structure of all sizes."""
    noise = np.random.default_rng(seed).normal(0, 1, (height, width, 3))
    smooth = sum(gaussian_filter(noise, (sigma, sigma, 0)) * sigma for sigma in (1, 3, 6))
    return Image.fromarray((128 + 60 * np.asarray(smooth)).clip(0, 255).astype(np.uint8))


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("corruption", ALL, ids=lambda one: one.name)
def test_the_image_stays_as_it_is_and_keeps_its_size(corruption: Corruption) -> None:
    image = textured(260, 200)  # so large that the slightest blur shows
    before = pixels(image)
    for severity in corruption.severities:
        found = corruption(image, severity, sample())
        assert found.mode == "RGB"
        assert found.size == image.size
        assert not np.array_equal(pixels(found), before)
    assert np.array_equal(pixels(image), before)


@pytest.mark.parametrize("corruption", ALL, ids=lambda one: one.name)
def test_default_severities_grow(corruption: Corruption) -> None:
    image = textured()
    errors = [
        np.abs(pixels(corruption(image, severity, sample())) - pixels(image)).mean()
        for severity in corruption.severities
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("corruption", ALL, ids=lambda one: one.name)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (300, 2)])
def test_tiny_images_can_be_corrupted(corruption: Corruption, size: tuple[int, int]) -> None:
    for severity in corruption.severities:
        assert corruption(gray(*size), severity, sample()).size == size


@pytest.mark.parametrize("corruption", [Masking(), GaussianNoise()], ids=lambda one: one.name)
def test_what_is_drawn_depends_on_index_name_and_seed_alone(corruption: Corruption) -> None:
    image, severity = gray(), corruption.severities[1]
    first = pixels(corruption(image, severity, sample(3, "a", 1)))
    assert np.array_equal(first, pixels(corruption(image, severity, sample(3, "a", 1))))
    for other in (sample(4, "a", 1), sample(3, "b", 1), sample(3, "a", 2)):
        assert not np.array_equal(first, pixels(corruption(image, severity, other)))


def test_masks_cover_the_share_of_patches_that_was_asked() -> None:
    corruption = Masking((0.25, 0.5, 1.0), patches=4)
    image = gray(80, 40, level=0)  # 8 x 4 patches of 10 px
    for severity in corruption.severities:
        covered = pixels(corruption(image, severity, sample())).any(axis=2)
        assert covered.mean() == severity
        blocks = covered.reshape(4, 10, 8, 10)  # rows, in a patch, columns, in a patch
        assert np.array_equal(blocks.all(axis=(1, 3)), blocks.any(axis=(1, 3)))


def test_masks_of_a_lower_share_lie_within_those_of_a_higher_one() -> None:
    corruption, image = Masking(), gray(level=0)
    masks = [
        pixels(corruption(image, severity, sample())).any(axis=2)
        for severity in corruption.severities
    ]
    for less, more in zip(masks, masks[1:], strict=False):
        assert (more >= less).all()
        assert more.sum() > less.sum()


def test_a_share_of_no_whole_patch_covers_nothing() -> None:
    image = gray(80, 40)  # 32 patches
    found = pixels(Masking((0.01,), patches=4)(image, 0.01, sample()))
    assert np.array_equal(found, pixels(image))


def test_masks_have_the_color_that_is_asked() -> None:
    found = pixels(Masking((1.0,))(gray(), 1.0, sample()))
    assert np.array_equal(found[0, 0], MEAN_COLOR)
    found = pixels(Masking((1.0,), color=(0, 255, 7))(gray(), 1.0, sample()))
    assert (found == [0, 255, 7]).all()


def test_noise_has_the_distribution_that_its_unit_says() -> None:
    sigma = 20.0
    found = pixels(GaussianNoise()(gray(300, 300), sigma, sample())) - 128
    assert found.std() == pytest.approx(sigma, rel=0.01)
    assert found.mean() == pytest.approx(0, abs=0.2)
    # Spread over a level, so that whole numbers can be compared with a density.
    spread = found + np.random.default_rng(0).uniform(-0.5, 0.5, found.shape)
    assert kstest(spread.ravel(), "norm", args=(0, sigma)).pvalue > 0.01
    channels = np.corrcoef(found.reshape(-1, 3).T)
    assert np.abs(channels - np.eye(3)).max() < 0.02
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1].ravel(), found[1:].ravel())[0, 1]) < 0.02


def test_noise_of_one_image_is_the_same_at_every_severity() -> None:
    image = gray(level=128)
    low = pixels(GaussianNoise()(image, 10, sample())) - 128
    high = pixels(GaussianNoise()(image, 20, sample())) - 128
    assert np.abs(high - 2 * low).max() <= 2  # of rounding


def test_noise_is_clipped_and_not_wrapped_around() -> None:
    white = pixels(GaussianNoise()(gray(level=255), 30, sample()))
    assert (white == 255).mean() == pytest.approx(0.5, abs=0.05)
    assert white.min() > 80


def test_rows_that_are_made_at_different_times_have_different_noise() -> None:
    found = pixels(GaussianNoise()(gray(4, 600), 20, sample()))
    assert not np.array_equal(found[:256], found[256:512])


@pytest.mark.parametrize("severity", [0.02, 0.05])
def test_blur_is_scipys_gaussian(severity: float) -> None:
    image = textured(150, 100)
    found = pixels(Blur()(image, severity, sample()))
    sigma = severity * 100  # of the short side
    expected = gaussian_filter(pixels(image).astype(float), (sigma, sigma, 0), mode="nearest")
    # Pillow's is made of three box filters, which differ most at the edges.
    assert np.abs(found - expected).mean() < 1
    inner = slice(int(3 * sigma), -int(3 * sigma))
    assert np.abs(found - expected)[inner, inner].max() < 3
    for wrong in (0.8 * sigma, 1.25 * sigma):
        other = gaussian_filter(pixels(image).astype(float), (wrong, wrong, 0), mode="nearest")
        assert np.abs(found - other).mean() > 2 * np.abs(found - expected).mean()


# The table of ITU-T T.81, annex K.1, from which libjpeg makes those of all qualities.
LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112
100 103 99
"""


@pytest.mark.parametrize("quality", [90, 50, 25, 7])
def test_jpeg_is_a_rounded_cosine_transform(quality: int) -> None:
    """On gray, where the color channels hold nothing."""
    base = np.array(LUMINANCE.split(), dtype=int).reshape(8, 8)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = ((base * scale + 50) // 100).clip(1, 255)
    levels = pixels(textured(64, 48))[..., 0]
    image = Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    found = pixels(Jpeg((quality,))(image, quality, sample()))[..., 0]
    blocks = levels.reshape(6, 8, 8, 8).transpose(0, 2, 1, 3) - 128.0  # (6, 8, 8, 8) blocks
    steps = np.asarray(dctn(blocks, axes=(2, 3), norm="ortho")) / table
    decoded = np.asarray(idctn(np.rint(steps) * table, axes=(2, 3), norm="ortho")) + 128
    expected = np.rint(decoded.transpose(0, 2, 1, 3).reshape(48, 64).clip(0, 255))
    # libjpeg computes in integers, and a cosine in the middle between two steps may go either way.
    damage = np.abs(found - levels).mean()
    assert np.abs(found - expected).mean() < 0.15 * damage
    assert np.mean(np.abs(found - expected) > 1) < 0.07


def test_jpeg_has_half_of_the_color() -> None:
    image = textured()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=25, subsampling=2)
    expected = pixels(Image.open(file))
    assert np.array_equal(pixels(Jpeg()(image, 25, sample())), expected)


def test_an_image_that_no_jpeg_can_hold_is_refused() -> None:
    with pytest.raises(ImageError, match="65501 x 1 pixels .* leave Jpeg out"):
        Jpeg()(gray(65501, 1), 25, sample())


@pytest.mark.parametrize(
    ("kind", "severities", "message"),
    [
        (Masking, (0.0,), "masking needs severities above 0, at most 1, not 0.0"),
        (Masking, (1.5,), "at most 1, not 1.5"),
        (GaussianNoise, (float("nan"),), "noise needs severities above 0, not nan"),
        (GaussianNoise, (float("inf"),), "not inf"),
        (Blur, (-1,), "blur needs severities above 0, at most 1, not -1"),
        (Blur, (), r"blur needs severities, such as .*, not \(\)"),
        (Blur, 0.1, "blur needs severities, such as .*, not 0.1"),
        (Blur, ("a",), "not 'a'"),
        (Jpeg, (96,), "JPEG needs severities above 0, at most 95, not 96"),
        (Jpeg, (7.5,), "whole numbers as qualities, not 7.5"),
        (Jpeg, (7, 7), "JPEG has a severity twice"),
    ],
)
def test_impossible_severities_are_refused(
    kind: type[Any], severities: Sequence[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(severities)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 0}, "patches of at least 1, not 0"),
        ({"color": (0, 0, 256)}, "a color of three integers of 0 to 255"),
        ({"color": (0.5, 0, 0)}, "a color of three integers of 0 to 255"),
        ({"color": "red"}, "a color of three integers of 0 to 255, not 'red'"),
    ],
)
def test_impossible_masks_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Masking(**options)
