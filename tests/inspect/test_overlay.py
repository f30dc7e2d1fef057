"""The overlay shows the class of each pixel in colors that all can tell apart, with a legend."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.errors import ConfigError
from clipkit.inspect import overlay
from clipkit.inspect.overlay import COLORS, color_of, draw_overlay, shares_of

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


def halves() -> torch.Tensor:
    """Return 200 x 300 pixels of class 0 with class 1 in the right half."""
    indices = torch.zeros(200, 300, dtype=torch.int64)
    indices[:, 150:] = 1
    return indices


def test_pixels_have_the_colors_of_their_classes() -> None:
    photo = Image.new("RGB", (300, 200), (100, 100, 100))
    drawn = np.asarray(draw_overlay(photo, halves(), ["cat", "dog"]))
    for column, index in ((20, 0), (280, 1)):
        expected = (np.array(color_of(index)) + 100) / 2
        assert np.abs(drawn[20, column] - expected).max() <= 1
    assert drawn[20, 150].tolist() == [255, 255, 255]
    bold = np.asarray(draw_overlay(photo, halves(), ["cat", "dog"], opacity=1.0))
    assert bold[20, 20].tolist() == list(color_of(0))


def test_the_background_stays_as_it_is() -> None:
    photo = Image.new("RGB", (300, 200), (100, 100, 100))
    drawn = np.asarray(draw_overlay(photo, halves(), ["cat", "background"], background=1))
    assert (drawn[:200, 152:] == 100).all()
    assert (drawn[:200, :149] != 100).any()


def test_numbers_stand_in_their_regions() -> None:
    """The boxes of the numbers are black, and nothing else is."""
    photo = Image.new("RGB", (300, 200), (100, 100, 100))
    drawn = np.asarray(draw_overlay(photo, halves(), ["cat", "dog"]))[:200]
    black = (drawn == 0).all(axis=2)
    assert 50 < black[:, :150].sum() < 1000
    assert 50 < black[:, 150:].sum() < 1000
    one = np.asarray(draw_overlay(photo, halves(), ["cat", "dog"], background=0))[:200]
    assert not (one[:, :150] == 0).all(axis=2).any()


def test_a_number_at_the_edge_is_whole() -> None:
    """Cut off, a 12 would read as a 2."""
    photo = Image.new("RGB", (300, 200), (100, 100, 100))
    labels = [f"class {number}" for number in range(12)]

    def black_of(first: int) -> np.ndarray:
        indices = torch.zeros(200, 300, dtype=torch.int64)
        indices[:, first : first + 8] = 11
        drawn = np.asarray(draw_overlay(photo, indices, labels, background=0))[:200]
        return (drawn == 0).all(axis=2)

    inside = black_of(150).sum()
    assert black_of(0).sum() == inside
    assert black_of(292).sum() == inside


def test_numbers_are_counted_from_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the map and in the legend alike."""
    written: list[str] = []

    def note(_draw: object, _center: object, text: str, _font: object) -> None:
        written.append(text)

    monkeypatch.setattr(overlay, "_draw_badge", note)
    draw_overlay(Image.new("RGB", (300, 200)), halves(), ["cat", "dog"])
    assert written == ["1", "2", "1", "2"]


def test_a_class_of_a_few_pixels_is_painted_without_a_number() -> None:
    photo = Image.new("RGB", (300, 200), (100, 100, 100))
    indices = torch.zeros(200, 300, dtype=torch.int64)
    indices[5:9, 5:9] = 1
    drawn = np.asarray(draw_overlay(photo, indices, ["cat", "dog"], background=0))[:200]
    assert not (drawn == 0).all(axis=2).any()
    assert (drawn[6:9, 6:9] != 100).any()


def test_the_legend_stands_below_and_is_as_wide_as_it_must() -> None:
    photo = Image.new("L", (300, 200), 50)
    labels = ["cat", "dog"]
    drawn = draw_overlay(photo, halves(), labels)
    assert drawn.width == 300
    assert drawn.height > 220
    legend = np.asarray(drawn)[200:].reshape(-1, 3).tolist()
    assert list(color_of(0)) in legend
    assert list(color_of(1)) in legend
    many = draw_overlay(photo, halves(), [f"class {i}" for i in range(20)])
    assert many.height > drawn.height + 100
    wide = draw_overlay(photo, halves(), ["a class with a rather long name " * 3, "dog"])
    assert wide.width > 300


@pytest.mark.parametrize("size", [(1, 1), (5, 900), (2000, 1500)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    indices = torch.zeros(size, dtype=torch.int64)
    drawn = draw_overlay(Image.new("RGB", (size[1], size[0])), indices, ["cat"])
    assert drawn.width >= size[1]


def test_shares_are_of_pixels() -> None:
    assert shares_of(torch.tensor([[0, 2], [2, 2]]), 4) == [0.25, 0, 0.75, 0]


def test_what_does_not_fit_is_refused() -> None:
    photo = Image.new("RGB", (30, 20))
    with pytest.raises(ConfigError, match=r"\(20, 30\), not \(30, 20\): ask for them with size"):
        draw_overlay(photo, torch.zeros(30, 20, dtype=torch.int64), ["cat"])
    with pytest.raises(ConfigError, match="class 3 has no label: there are 2"):
        draw_overlay(photo, torch.full((20, 30), 3), ["cat", "dog"])
    with pytest.raises(ConfigError, match=r"must be integers, not torch.float32: .* by scores.arg"):
        draw_overlay(photo, torch.zeros(20, 30), ["cat"])
    with pytest.raises(ConfigError, match="class -1 has no label: classes are numbered from 0"):
        draw_overlay(photo, torch.full((20, 30), -1), ["cat", "dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": 7}, "a class, 0 to 1, or None, not 7"),
        ({"background": -1}, "a class, 0 to 1, or None, not -1"),
        ({"background": "dog"}, "a class, 0 to 1, or None, not 'dog'"),
        ({"opacity": 3}, "opacity must be a number from 0 to 1, not 3"),
        ({"opacity": float("nan")}, "opacity must be a number from 0 to 1, not nan"),
        ({"opacity": "0.5"}, "opacity must be a number from 0 to 1, not '0.5'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        draw_overlay(Image.new("RGB", (300, 200)), halves(), ["cat", "dog"], **options)
