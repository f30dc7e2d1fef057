"""Draw which classes are taken for one another, with images of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipkit.classify.metric_inputs import is_count
from clipkit.data.decode import Readable
from clipkit.errors import ConfigError
from clipkit.inspect.plot_style import (
    MUTED,
    SMALL,
    TEXT,
    Look,
    add_axes,
    check_rows,
    new_figure,
    pixels_of,
    set_title,
    show_pixels,
    write_text,
)
from clipkit.inspect.short_names import letters, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE = 1.25  # inches of an image
_WORDS = 1.9  # inches of the names
_LINE = 0.15  # of text, in heights of an image
_LETTERS = 20  # of a line of a name


def confusion_pairs(
    pairs: Sequence[tuple[str, str, float]],
    examples: Mapping[str, Readable],
    *,
    mistakes: Mapping[tuple[str, str], Sequence[Readable]] | None = None,
    most: int = 3,
    unit: str = "images",
) -> "Figure":
    """Return a row for each pair of classes: their names, and what images of them look like.

    Of each image the square in the middle is drawn.

    Args:
        pairs: which class was taken for which, and how often: `(row.true, row.predicted,
            row.count)` of rows of `report.confusions`, or what `metrics.most_confused` finds, with
            names in the place of indices.
        examples: an image of each class.
        mistakes: images of the first class that were taken for the second.
        most: how many of those are drawn in a row.
        unit: what the third value of a pair counts, as a plural; "" for a share, which is
            written in percent.

    Raises:
        ConfigError: if there is no pair, a class has no example, or matplotlib is missing.
        ImageError: if an image cannot be read.

    Example:
        rows = report.confusions[:5]
        pairs = [(row.true, row.predicted, row.count) for row in rows]
        plots.confusion_pairs(pairs, {"cat": "cat.jpg", "lynx": "lynx.jpg"})
    """
    check_rows("confusion_pairs", pairs)
    if not (is_count(most) or most == 0):
        raise ConfigError(f"confusion_pairs needs most of at least 0, not {most!r:.60}")
    if missing := [name for pair in pairs for name in pair[:2] if name not in examples]:
        raise ConfigError(f"confusion_pairs needs an example of each class: {missing[0]!r:.60}")
    wrong = mistakes or {}
    extra = min(most, max(len(wrong.get((one, other), ())) for one, other, _ in pairs))
    figure = new_figure(_WORDS + (_SIDE + 0.15) * (2 + extra), 0.3 + (_SIDE + 0.1) * len(pairs))
    widths = [_WORDS / _SIDE, 1.0, 1.0, 0.05, *[1.0] * extra]
    grid = figure.add_gridspec(len(pairs), 4 + extra, width_ratios=widths)
    titles = {1: "the class", 2: "taken for", 4: "such images"}
    every = list(dict.fromkeys(name for pair in pairs for name in pair[:2]))
    short = dict(zip(every, shorten_all(every, letters(_LETTERS), 2), strict=True))
    for row, (one, other, value) in enumerate(pairs):
        _write_pair(add_axes(figure, grid[row, 0]), short[one], short[other], _count(value, unit))
        shown = dict(enumerate(list(wrong.get((one, other), ()))[:extra], start=4))
        for column, image in {1: examples[one], 2: examples[other], **shown}.items():
            axes = add_axes(figure, grid[row, column])
            show_pixels(axes, _square(pixels_of(image)))
            if row == 0 and column in titles:
                set_title(axes, titles[column], size=SMALL, color=MUTED)
    return figure


def _write_pair(axes: "Axes", one: str, other: str, count: str) -> None:
    """Write a pair of names and what is counted."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    second = f"\u2192 {other}"
    write_text(axes, 0, 0.57, one, Look(TEXT, bold=True, vertical="bottom"))
    write_text(axes, 0, 0.53, second, Look(TEXT, vertical="top"))
    below = 0.53 - _LINE * len(second.splitlines()) - 0.03
    write_text(axes, 0, below, count, Look(color=MUTED, vertical="top"))


def _count(value: float, unit: str) -> str:
    if not unit:
        return f"{value:.1%}"
    return f"{value:,.0f} {unit.removesuffix('s') if value == 1 else unit}"


def _square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the square in the middle of an image (h, w, 3)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]
