"""The overlay shows the class of each pixel in colors that all can tell apart, with a legend."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from clipkit.errors import ConfigError
from clipkit.inspect import overlay
from clipkit.inspect.areas import color_of
from clipkit.inspect.overlay import draw_overlay


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
    indices = torch.arange(20).repeat_interleave(15).repeat(200, 1)
    many = draw_overlay(photo, indices, [f"class {i}" for i in range(20)])
    assert many.height > drawn.height + 100
    wide = draw_overlay(photo, halves(), ["a class with a rather long name " * 3, "dog"])
    assert wide.width == 300
    assert wide.height > drawn.height + 15
    narrow = draw_overlay(Image.new("RGB", (32, 24)), halves()[:24, 134:166], labels)
    assert 150 < narrow.width < 300


def written(monkeypatch: pytest.MonkeyPatch, indices: torch.Tensor, labels: list[str]) -> list[str]:
    """Return the texts that are written in the legend of a photo of 300 x 200 pixels."""
    texts: list[str] = []
    own = overlay._draw_entry

    def note(draw: Any, entry: Any, text: str, place: Any, legend: Any) -> None:
        texts.append(text)
        own(draw, entry, text, place, legend)

    monkeypatch.setattr(overlay, "_draw_entry", note)
    draw_overlay(Image.new("RGB", (300, 200)), indices, labels)
    return texts


def test_the_legend_leaves_out_classes_that_are_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = halves()
    indices[0, 0] = 2
    labels = ["cat", "dog", "eye", "nowhere"]
    assert written(monkeypatch, indices, labels) == ["cat  50.0%", "dog  50.0%", "eye  <0.1%"]


def test_long_labels_are_wrapped_and_never_become_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = "a street with houses and trees on both sides, and people "
    labels = [start + "who walk by day", start + "who walk by night"]
    first, second = written(monkeypatch, halves(), labels)
    assert first != second
    assert first.startswith("a street with houses")
    assert first.endswith("\u2026day  50.0%")
    assert second.endswith("\u2026night  50.0%")
    assert first.count("\n") == 1


def test_a_pillow_without_freetype_writes_a_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its font has the letters of Latin-1 alone."""
    plain = ImageFont.load_default_imagefont()
    monkeypatch.setattr(ImageFont, "load_default", lambda *_: plain)
    texts = written(monkeypatch, halves(), ["\u732b", "a street " * 20])
    assert texts[0] == "?  50.0%"
    assert texts[1].endswith("...  50.0%")


@pytest.mark.parametrize("size", [(1, 1), (5, 900), (2000, 1500)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    indices = torch.zeros(size, dtype=torch.int64)
    drawn = draw_overlay(Image.new("RGB", (size[1], size[0])), indices, ["cat"])
    assert drawn.width >= size[1]


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


def test_a_path_is_no_image() -> None:
    path: Any = "cat.jpg"
    with pytest.raises(ConfigError, match=r"PIL has opened, not 'cat\.jpg': PIL\.Image\.open"):
        draw_overlay(path, torch.zeros(4, 4, dtype=torch.int64), ["cat"])
