"""Windows cover an image, agree where they overlap, and are enlarged as the whole would be."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.errors import ConfigError, ImageError
from clipkit.inspect import refine_scores, windows
from clipkit.inspect.windows import average_windows, enlarge, lay_windows, working_size
from tests.helpers.exact import largest_difference


@pytest.mark.parametrize(
    ("size", "window", "stride", "extent", "rows", "columns"),
    [
        ((336, 448), 224, 112, (14, 14), [0, 7], [0, 7, 14]),
        ((336, 464), 224, 112, (14, 14), [0, 7], [0, 7, 14, 15]),
        ((160, 448), 224, 224, (10, 14), [0], [0, 14]),
        ((224, 224), 224, 112, (14, 14), [0], [0]),
        ((64, 48), 224, 1, (4, 3), [0], [0]),
        ((64, 64), 32, 1, (2, 2), [0, 1, 2], [0, 1, 2]),
    ],
)
def test_windows_lie_on_patches_and_end_at_the_edges(
    size: tuple[int, int],
    window: int,
    stride: int,
    extent: tuple[int, int],
    rows: list[int],
    columns: list[int],
) -> None:
    found = lay_windows(size, 16, window, stride)
    assert found.window == extent
    assert found.places == tuple((row, column) for row in rows for column in columns)


def test_windows_and_strides_are_rounded_to_patches() -> None:
    found = lay_windows((224, 480), 32, 224, 112)
    assert found.places == ((0, 0), (0, 3), (0, 6), (0, 8))
    assert lay_windows((320, 320), 32, 90, 32).window == (3, 3)


@pytest.mark.parametrize(
    ("size", "cell", "expected"),
    [
        ((768, 1024), 16, (336, 448)),
        ((768, 1024), 32, (320, 448)),
        ((1024, 500), 14, (686, 336)),
        ((1, 1), 16, (336, 336)),
    ],
)
def test_photos_are_resized_to_whole_patches(
    size: tuple[int, int], cell: int, expected: tuple[int, int]
) -> None:
    assert working_size(size, 336, cell) == expected


def test_photos_that_are_too_thin_are_refused() -> None:
    with pytest.raises(ImageError, match="1 x 5000 pixels would grow to 336 x 1680000, .*smaller"):
        working_size((1, 5000), 336, 16)


def means_of(image: Tensor) -> Tensor:
    """Return the mean of each patch of 4 pixels, and its square, (n, 6, rows, columns)."""
    means = F.avg_pool2d(image, 4)
    return torch.cat([means, means**2], dim=1)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 8), (12, 4), (100, 4), (4, 4)])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_windows_agree_with_one_pass_where_patches_do_not_see_each_other(
    window: int, stride: int, batch_size: int
) -> None:
    image = torch.randn(3, 20, 28, generator=torch.Generator().manual_seed(0))
    laid = lay_windows((20, 28), 4, window, stride)
    found = average_windows(image, laid, means_of, batch_size)
    torch.testing.assert_close(found, means_of(image[None])[0], rtol=1e-5, atol=1e-6)


def test_where_windows_overlap_their_mean_counts() -> None:
    image = torch.zeros(3, 4, 12)
    numbers = iter([1.0, 3.0])

    def numbered(given: Tensor) -> Tensor:
        assert given.shape == (1, 3, 4, 8)
        return torch.full((1, 1, 1, 2), next(numbers))

    found = average_windows(image, lay_windows((4, 12), 4, 8, 4), numbered, 1)
    assert found.tolist() == [[[1.0, 2.0, 3.0]]]


def test_each_window_is_the_part_of_the_image_that_it_says() -> None:
    rows = torch.arange(8.0)[:, None]
    image = (100 * rows + torch.arange(12.0)).expand(3, -1, -1)
    seen: list[float] = []

    def first(given: Tensor) -> Tensor:
        seen.extend(given[:, 0, 0, 0].tolist())
        return torch.zeros(len(given), 1, 1, 2)

    average_windows(image, lay_windows((8, 12), 4, 8, 4), lambda w: w[:, :1, ::4, ::4], 2)
    average_windows(image[:, 4:], lay_windows((4, 12), 4, 8, 4), first, 2)
    assert seen == [400.0, 404.0]


def test_a_map_of_another_grid_is_refused() -> None:
    laid = lay_windows((8, 8), 4, 8, 4)
    with pytest.raises(ConfigError, match="a window of 2 x 2 patches gave a map of 3 x 3: set the"):
        average_windows(torch.zeros(3, 8, 8), laid, lambda _: torch.zeros(1, 5, 3, 3), 1)


@pytest.mark.parametrize("size", [(40, 63), (3, 4), (5, 7), (1, 1), (500, 3)])
@pytest.mark.parametrize("numbers", [1, 1000, 1 << 22])
def test_strips_are_what_the_whole_would_be(
    size: tuple[int, int], numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "STRIP_NUMBERS", numbers)
    maps = torch.randn(6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strips = list(enlarge(maps, size))
    found = torch.cat([part for _, part in strips], dim=1)
    expected = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    assert largest_difference(found, expected) < 1e-12
    rows = [row for strip, _ in strips for row in range(strip.start, strip.stop)]
    assert rows == list(range(size[0]))
    assert all(part.numel() <= max(numbers, 6 * size[1]) for _, part in strips)


def refine_by_hand(scores: np.ndarray, image: np.ndarray, iterations: int) -> np.ndarray:
    """Return pixel-adaptive refinement (2005.08104) with distances 1 and 3, pixel by pixel."""
    _, height, width = image.shape
    sides = [(d * i, d * j) for d in (1, 3) for i in (-1, 0, 1) for j in (-1, 0, 1)]

    def at(maps: np.ndarray, row: int, column: int) -> np.ndarray:
        return maps[:, min(max(row, 0), height - 1), min(max(column, 0), width - 1)]

    for _ in range(iterations):
        refined = np.zeros_like(scores)
        for row in range(height):
            for column in range(width):
                around = np.stack([at(image, row + i, column + j) for i, j in sides])
                unit = 1e-8 + 0.1 * around.std(axis=0, ddof=1)
                others = [side for side in sides if side != (0, 0)]
                near = [
                    -(abs(at(image, row + i, column + j) - image[:, row, column]) / unit).mean()
                    for i, j in others
                ]
                weights = np.exp(near - np.max(near))
                weights /= weights.sum()
                for weight, (i, j) in zip(weights, others, strict=True):
                    refined[:, row, column] += weight * at(scores, row + i, column + j)
        scores = refined
    return scores


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_refinement_agrees_with_numpy(iterations: int) -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 6, 9, generator=random, dtype=torch.float64)
    image = torch.randn(3, 6, 9, generator=random, dtype=torch.float64)
    found = refine_scores(scores, image, iterations=iterations, dilations=(1, 3))
    expected = refine_by_hand(scores.numpy(), image.numpy(), iterations)
    assert largest_difference(found, expected) < 1e-11


def test_refinement_is_by_default_that_of_naclip() -> None:
    random = torch.Generator().manual_seed(0)
    scores, image = (torch.rand(count, 30, 40, generator=random) for count in (2, 3))
    expected = refine_scores(scores, image, iterations=10, dilations=(8, 16))
    assert torch.equal(refine_scores(scores, image), expected)


# Prints the bytes for each pixel that the refinement of some scores adds at its peak.
MEASURE_MEMORY = """
import resource, sys, torch
from clipkit.inspect import refine_scores
count = int(sys.argv[1])
refine_scores(torch.rand(count, 32, 32), torch.rand(3, 32, 32))
scores, image = torch.rand(count, 1200, 1500), torch.rand(3, 1200, 1500)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refine_scores(scores, image, iterations=2)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1200 / 1500)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss differs")
@pytest.mark.parametrize("count", [1, 24])
def test_refinement_needs_no_more_memory_than_it_says(count: int) -> None:
    command = [sys.executable, "-W", "ignore", "-c", MEASURE_MEMORY, str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 250 + (18 - 4) * count  # of which 4 are of the scores themselves


def test_refinement_stops_at_an_edge_of_the_image() -> None:
    """Scores that are off the edge by three pixels come to lie at it."""
    image = torch.zeros(3, 24, 24)
    image[:, :, 12:] = 1
    scores = torch.zeros(1, 24, 24)
    scores[:, :, 15:] = 1
    refined = refine_scores(scores, image, iterations=60, dilations=(1, 2))
    left, right = refined[0, :, :12], refined[0, :, 12:]
    assert left.max() < 0.05
    assert right.min() > 0.2
    before = scores[0, :, 12:]
    assert right.std() < before.std()


def test_constant_scores_and_a_flat_image_stay_finite() -> None:
    refined = refine_scores(torch.full((2, 5, 5), 0.5), torch.zeros(3, 5, 5))
    torch.testing.assert_close(refined, torch.full((2, 5, 5), 0.5))


def test_what_cannot_be_refined_is_refused() -> None:
    scores, image = torch.zeros(2, 5, 5), torch.zeros(3, 5, 5)
    with pytest.raises(ConfigError, match=r"scores \(2, 5, 5\) .* not \(3, 5, 4\)"):
        refine_scores(scores, image[:, :, 1:])
    for wrong in ((0,), (), (1.5,)):
        dilations: Any = wrong
        with pytest.raises(ConfigError, match=r"dilations must be whole pixels from 1 on, .* not"):
            refine_scores(scores, image, dilations=dilations)
    with pytest.raises(ConfigError, match="iterations must be an integer from 0 on, not -1"):
        refine_scores(scores, image, iterations=-1)
