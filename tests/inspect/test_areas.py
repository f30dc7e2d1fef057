"""Areas have colors that all can tell apart, numbers where they are widest, and fine lines."""

from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from numpy.typing import NDArray

from clipkit.inspect import plot_style
from clipkit.inspect.areas import (
    COLORS,
    color_of,
    entries_of,
    paint,
    place_numbers,
    share_text,
    shares_of,
    widest_place,
)

# Linear RGB to what the eyes of people without red, or without green, cones take in (Viénot,
# Brettel and Mollon, 1999: Digital video colourmaps for checking the legibility of displays).
TO_CONES = np.array(
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
WITHOUT = {
    "red": np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]]),
    "green": np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]]),
}


def seen_without(cones: str, color: tuple[int, int, int]) -> np.ndarray:
    linear = (np.array(color) / 255) ** 2.2
    simulated = np.linalg.inv(TO_CONES) @ WITHOUT[cones] @ TO_CONES @ linear
    return simulated.clip(0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("cones", ["red", "green"])
def test_colors_differ_for_the_color_blind(cones: str) -> None:
    for one, other in combinations(COLORS, 2):
        distance = np.linalg.norm(seen_without(cones, one) - seen_without(cones, other))
        assert distance > 0.1, (one, other)
    brick, olive = (190, 80, 60), (110, 110, 60)  # the test would fail for such a pair
    assert np.linalg.norm(seen_without(cones, brick) - seen_without(cones, olive)) < 0.1


def test_further_classes_have_colors_of_their_own() -> None:
    colors = [color_of(index) for index in range(21)]
    assert colors[:7] == list(COLORS)
    assert len(set(colors)) == 21


def test_no_color_of_many_classes_is_near_black_or_that_of_its_neighbor() -> None:
    colors = np.array([color_of(index) for index in range(200)])
    assert colors.max(axis=1).min() > 60
    assert np.abs(np.diff(colors, axis=0)).max(axis=1).min() > 30


def test_shares_are_of_pixels() -> None:
    assert shares_of(torch.tensor([[0, 2], [2, 2]]), 4) == [0.25, 0, 0.75, 0]


def test_figures_and_overlays_have_colors_of_the_same_names() -> None:
    names = {to_hex((red / 255, green / 255, blue / 255)).upper() for red, green, blue in COLORS}
    known = {value for value in vars(plot_style).values() if isinstance(value, str)}
    assert names <= known


def test_shares_are_never_said_to_be_0_of_what_is_there() -> None:
    assert [share_text(share) for share in (0, 1e-9, 0.0006, 0.5)] == [
        "0.0%",
        "<0.1%",
        "0.1%",
        "50.0%",
    ]


def test_a_legend_has_what_is_there_in_the_order_of_the_numbers() -> None:
    entries = entries_of(["wall", "cat", "eye", "dog"], [0.5, 0.2, 0.3, 0.0], 0)
    assert [tuple(entry) for entry in entries] == [
        (1, "2", "cat", "20.0%"),
        (2, "3", "eye", "30.0%"),
        (0, "", "wall", "50.0%"),
    ]


def blank(height: int = 60, width: int = 90) -> NDArray[np.bool_]:
    return np.zeros((height, width), dtype=bool)


def test_a_number_stands_where_its_area_is_widest() -> None:
    mask = blank()
    mask[10:50, 60:88] = True  # wide
    mask[20:24, :60] = True  # its long tail
    row, column = widest_place(mask)
    assert abs(row - 30) <= 6
    assert abs(column - 74) <= 1


def test_a_number_of_a_long_area_stands_in_its_middle() -> None:
    mask = blank(400, 600)
    mask[100:110, 50:551] = True
    row, column = widest_place(mask)
    assert 100 <= row < 110
    assert abs(column - 300) <= 7


@pytest.mark.parametrize("size", [(24, 32), (60, 90), (1000, 700), (3, 2000)])
def test_a_number_stands_in_its_area_however_thin_it_is(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random(size) < 0.003
        mask.flat[random.integers(mask.size)] = True
        assert mask[widest_place(mask)]
    ring = np.hypot(*np.indices((200, 200)) - 99.5)
    mask = (ring > 90) & (ring < 95)
    assert mask[widest_place(mask)]


def test_small_classes_and_the_background_have_no_number() -> None:
    indices = np.zeros((100, 100), dtype=np.int64)
    indices[:, 50:] = 1
    indices[3, 3] = 2
    shares = shares_of(torch.from_numpy(indices), 3)
    assert [number.text for number in place_numbers(indices, shares, None)] == ["1", "2"]
    (number,) = place_numbers(indices, shares, 0)
    assert number.text == "2"
    assert 50 <= number.x < 100


@pytest.mark.parametrize(("side", "width"), [(40, 1), (700, 1), (1000, 2), (2000, 4)])
def test_lines_are_as_wide_as_an_image_needs(side: int, width: int) -> None:
    indices = np.zeros((20, side), dtype=np.int64)
    indices[:, side // 2 :] = 1
    pixels = np.zeros((20, side, 3), dtype=np.uint8)
    painted = paint(pixels, indices, COLORS[:2], background=None, opacity=0.5)
    white = (painted == 255).all(axis=2)
    assert white.sum(axis=1).tolist() == [width] * 20
    assert abs(float(white[0].nonzero()[0].mean()) - side / 2) <= 1
