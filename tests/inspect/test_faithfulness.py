"""Curves change the pixels that they say, in their order, and hits are on the object."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import auc
from torch import Tensor

from clipkit.errors import ConfigError, ImageError
from clipkit.inspect.faithfulness import (
    area_under,
    blur,
    box_mask,
    deletion_curve,
    insertion_curve,
    pointing_hit,
)


def mean_of(images: Tensor) -> Tensor:
    assert not torch.is_grad_enabled()
    return images.flatten(1).mean(dim=1)


def falling_map(height: int, width: int) -> Tensor:
    """Return a map that is highest at the first pixel and falls row by row."""
    return -torch.arange(height * width).float().view(height, width)


def test_deletion_takes_the_highest_pixels_first() -> None:
    image = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0)) + 1
    found = deletion_curve(mean_of, image, falling_map(4, 6), steps=5)
    pixels = image.double().numpy().reshape(3, 24)
    expected: list[float] = []
    for step in range(6):
        left = pixels.copy()
        left[:, : round(24 * step / 5)] = 0
        expected.append(float(left.mean()))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert found.dtype == torch.float32


def test_insertion_brings_the_highest_pixels_back_first() -> None:
    image = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    found = insertion_curve(mean_of, image, falling_map(16, 32), steps=4)
    blurred = blur(image)
    for step in range(5):
        mixed = blurred.clone()
        mixed[:, :, : 4 * step] = image[:, :, : 4 * step]
        assert float(found[step]) == pytest.approx(float(mixed.mean()), abs=1e-6)
    assert float(found[-1]) == pytest.approx(float(image.mean()), abs=1e-6)


def test_images_are_scored_in_batches() -> None:
    sizes: list[int] = []

    def score(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return mean_of(images)

    curve = deletion_curve(score, torch.ones(3, 10, 10), falling_map(10, 10), steps=70)
    assert sizes == [32, 32, 7]
    assert len(curve) == 71
    np.testing.assert_allclose(curve, np.linspace(1, 0, 71), atol=0.0051)


def test_pixels_of_the_same_value_come_in_a_random_order() -> None:
    seen: list[Tensor] = []

    def score(images: Tensor) -> Tensor:
        seen.append(images[1, 0] == 0)
        return mean_of(images)

    heat_map = torch.zeros(20, 20)
    heat_map[0, 0] = 1
    for seed in (0, 0, 1):
        deletion_curve(score, torch.ones(3, 20, 20), heat_map, steps=2, seed=seed)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert all(deleted[0, 0] for deleted in seen)
    assert all(int(deleted.sum()) == 200 for deleted in seen)
    assert 60 < int(seen[0][:10].sum()) < 140


def test_the_area_is_that_of_trapezoids() -> None:
    curve = torch.rand(9, generator=torch.Generator().manual_seed(0))
    expected = auc(np.linspace(0, 1, 9), curve.double().numpy())
    assert area_under(curve) == pytest.approx(expected, abs=1e-6)


def test_a_good_map_has_less_area_by_deletion_and_more_by_insertion() -> None:
    image = torch.zeros(3, 32, 32)
    image[:, 8:16, 8:16] = 1
    good = image[0].clone()

    def score(images: Tensor) -> Tensor:
        return images[:, 0, 8:16, 8:16].mean(dim=(1, 2))

    for curve, sign in ((deletion_curve, 1), (insertion_curve, -1)):
        areas = [sign * area_under(curve(score, image, one)) for one in (good, -good)]
        assert areas[0] < areas[1]


def test_blur_is_a_gaussian_of_a_sixteenth_of_the_shorter_side() -> None:
    image = torch.zeros(3, 64, 96)
    image[:, 32, 48] = 1
    found = blur(image)
    assert found.shape == image.shape
    assert float(found.sum()) == pytest.approx(3, abs=1e-5)
    rows = found[0].double().sum(dim=1).numpy()
    offsets = np.arange(64) - 32
    assert np.sqrt((rows * offsets**2).sum()) == pytest.approx(4, rel=0.02)
    expected = np.exp(-(offsets**2) / 32)
    np.testing.assert_allclose(rows, expected / expected.sum(), atol=1e-3)
    assert torch.equal(blur(torch.ones(1, 3, 2, 2)).round(), torch.ones(1, 3, 2, 2))


def test_a_hit_is_the_highest_pixel_on_the_object() -> None:
    mask = box_mask([(1, 0, 3, 2), (4.6, 3, 9, 4)], 4, 6)
    assert mask.int().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    heat_map = torch.zeros(4, 6)
    heat_map[1, 2] = 1
    assert pointing_hit(heat_map, mask) == 1
    heat_map[2, 2] = 2
    assert pointing_hit(heat_map, mask) == 0
    heat_map[1, 2] = 2
    assert pointing_hit(heat_map, mask) == 0.5


def test_what_cannot_be_measured() -> None:
    image, heat_map = torch.ones(3, 8, 8), torch.zeros(8, 8)
    with pytest.raises(ConfigError, match=r"finite map of the same size, not one of \(4, 8\)"):
        deletion_curve(mean_of, image, torch.zeros(4, 8))
    with pytest.raises(ConfigError, match="finite map"):
        insertion_curve(mean_of, image, heat_map.log().mul(0))
    with pytest.raises(ConfigError, match="steps must be an integer of at least 1, not 0"):
        deletion_curve(mean_of, image, heat_map, steps=0)
    with pytest.raises(ImageError, match=r"not \(2, 3, 8, 8\): prepare it"):
        insertion_curve(mean_of, torch.ones(2, 3, 8, 8), heat_map)
    wrong: Any = torch.zeros(8, 8)
    with pytest.raises(ConfigError, match=r"mask of the same size and of torch\.bool"):
        pointing_hit(heat_map, wrong)
    with pytest.raises(ConfigError, match="a map needs finite numbers"):
        pointing_hit(heat_map.log().mul(0), wrong.bool())
    for curve in (torch.ones(1), torch.ones(2, 2), torch.tensor(1.0)):
        with pytest.raises(ConfigError, match="two points or more, .* deletion_curve makes one"):
            area_under(curve)
    with pytest.raises(ImageError, match="of 1 x 8 pixels has no .* at least 2 a side"):
        blur(torch.ones(3, 1, 8))
    with pytest.raises(ImageError, match=r"not \(8, 8\): prepare it"):
        blur(torch.ones(8, 8))
