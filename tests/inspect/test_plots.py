"""Figures of every kind can be read: nothing is cut off or overlaps, and names are as they are."""

import functools
import io
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from clipkit.inspect.plot_style import COLORS, MARKERS, pixels_of
from tests.helpers.figures import FIGURES, LONG

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rendered(figure: "Figure") -> NDArray[np.uint8]:
    """Return the pixels of a figure (h, w, 4)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


@functools.cache
def drawn(name: str) -> "tuple[Figure, NDArray[np.uint8]]":
    """Return a figure and its pixels, which tests must not change."""
    figure = FIGURES[name]()
    return figure, rendered(figure)


def texts_of(figure: "Figure") -> list[Any]:
    """Return what can be seen of the texts in a figure that was drawn, each with its box."""
    every: list[Any] = figure.findobj(Text)
    hidden = hidden_labels(figure)
    boxes = [(text, text.get_window_extent()) for text in every if text.get_text().strip()]
    return [
        (text, box)
        for text, box in boxes
        if text.get_visible() and box.width > 0 and text not in hidden
    ]


def hidden_labels(figure: Any) -> set[Any]:
    """Return the labels of ticks that are not drawn: beyond the limits, or of axes without any."""
    hidden: set[Any] = set()
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            drawn = axis._update_ticks() if axes.axison else []
            ticks = [tick for tick in (*axis.majorTicks, *axis.minorTicks) if tick not in drawn]
            hidden |= {label for tick in ticks for label in (tick.label1, tick.label2)}
            hidden |= set() if axes.axison else {axis.label, axis.offsetText}
    return hidden


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off(name: str) -> None:
    figure, pixels = drawn(name)
    height, width = pixels.shape[:2]
    outside = [
        text.get_text()
        for text, box in texts_of(figure)
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > width + 0.5 or box.y1 > height + 0.5
    ]
    assert outside == []


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_on_another(name: str) -> None:
    found = texts_of(drawn(name)[0])
    assert found or "background" in name
    overlapping: list[tuple[str, str]] = []
    for place, (text, box) in enumerate(found):
        for other, other_box in found[place + 1 :]:
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            if width > 1 and height > 1.5:
                overlapping.append((text.get_text(), other.get_text()))
    assert overlapping == []


@pytest.mark.parametrize("name", FIGURES)
def test_a_style_of_the_callers_changes_no_color(name: str) -> None:
    _, expected = drawn(name)
    with matplotlib.style.context("dark_background"):
        found = rendered(FIGURES[name]())
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_white_at_their_edges(name: str) -> None:
    _, found = drawn(name)
    edges = [found[0], found[-1], found[:, 0], found[:, -1]]
    assert all((edge == 255).all() for edge in edges)


@pytest.mark.parametrize("name", FIGURES)
def test_names_are_no_formulas(name: str) -> None:
    found: list[Any] = drawn(name)[0].findobj(Text)
    assert [
        text.get_text() for text in found if "$" in text.get_text() and text.get_parse_math()
    ] == []


def test_names_are_shown_as_they_are() -> None:
    def words(name: str) -> str:
        return "\n".join(text.get_text() for text, _ in texts_of(drawn(name)[0]))

    assert "$5 bill and $10 bill" in words("predictions")
    assert "_hidden" in words("predictions")
    assert "_hidden" in words("curves")
    assert "_hidden" in words("embedding")
    assert "<b>rocket</b>" in words("predictions")
    assert "$x$" in words("segmentation")
    assert LONG not in words("segmentation")
    assert "a rather long class name\u2026" in words("segmentation")


@pytest.mark.parametrize("name", ["predictions", "heat maps", "segmentation", "curves"])
def test_figures_show_themselves_in_notebooks_and_can_be_pickled(name: str) -> None:
    figure: Any = FIGURES[name]()
    file = io.BytesIO(figure._repr_png_())
    assert Image.open(file).size == tuple((figure.get_size_inches() * figure.dpi).astype(int))
    again: Any = pickle.loads(pickle.dumps(figure))
    assert again._repr_png_()[:4] == b"\x89PNG"


def test_figures_need_no_pyplot_and_change_no_setting() -> None:
    program = """
import sys
from clipkit.inspect import plots
assert not [name for name in sys.modules if name.startswith("matplotlib")]
import matplotlib, numpy, PIL.Image
before = matplotlib.rcParams.copy()
figure = plots.heat_map(PIL.Image.new("RGB", (9, 9)), numpy.eye(3))
figure.canvas.draw()
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "call",
    [
        "heat_map(photo, numpy.eye(3))",
        "segmentation(photo, numpy.eye(9, dtype=int), ['cat', 'dog'])",
        "segmentation(photo, numpy.eye(9, dtype=int), ['cat', 'dog'], colors=['red', 'blue'])",
        "few_shot_curves({'one': {1: [0.5]}})",
        "embedding_map(numpy.eye(4), [0, 1, 0, 1])",
    ],
)
def test_a_missing_matplotlib_is_told_with_its_remedy(call: str) -> None:
    program = f"""
import sys
sys.modules["matplotlib"] = None
import numpy, PIL.Image
from clipkit.errors import ConfigError
from clipkit.inspect import plots
photo = PIL.Image.new("RGB", (9, 9))
try:
    plots.{call}
except ConfigError as error:
    assert "pip install 'clipkit-torch[plots]'" in str(error)
    sys.exit(3)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 3, run.stderr


def lightness(color: str) -> float:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_lines_and_points_are_told_apart_without_colors() -> None:
    kinds = {
        (place % len(COLORS), (place % len(COLORS) + place // len(COLORS)) % len(MARKERS))
        for place in range(70)
    }
    assert len(kinds) == 70
    assert all(lightness(color) < 190 for color in COLORS)  # they stand out on white


def test_large_images_are_drawn_small_and_stay_as_they_are() -> None:
    image = Image.new("RGB", (3000, 1500))
    assert pixels_of(image).shape == (512, 1024, 3)
    assert image.size == (3000, 1500)
    assert pixels_of(Image.new("L", (5, 4))).shape == (4, 5, 3)
