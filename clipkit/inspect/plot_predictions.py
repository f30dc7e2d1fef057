"""Draw images beside what a classifier says of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clipkit.classify.prediction import Prediction
from clipkit.data.decode import Readable
from clipkit.errors import ConfigError
from clipkit.inspect.plot_style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PLAIN,
    VERMILION,
    Look,
    add_axes,
    check_rows,
    new_figure,
    pixels_of,
    show_pixels,
    write_text,
)
from clipkit.inspect.short_names import letters, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.9  # inches of a panel
_ROW = 0.34  # of a label with its bar
_LEAST = 4  # rows for which there is room, so that a single label has a bar like others
_LETTERS = 32  # of a label, at most
_RIGHT, _WRONG = "\u2713", "\u2717"  # marks, so that color is not all that tells
_GAP = 0.04  # between panels, in widths of an image
_BOX = 0.27  # height of a bar, in rows


@dataclass(frozen=True)
class _Bar:
    """Hold one label of a panel."""

    text: str
    share: float
    color: str
    mark: str = ""


def prediction_panels(
    images: Sequence[Readable],
    predictions: Sequence[Prediction],
    truth: Sequence[str] | None = None,
    *,
    k: int = 5,
    columns: int = 2,
) -> "Figure":
    """Return a panel for each image: the image, and its most probable labels with bars.

    The right label is green, bold and has a check mark; below the others if it is not among them. A
    wrong label on top is red and has a cross.

    Args:
        images: N images: paths, PIL images, NumPy images or files' bytes.
        predictions: N, as `classifier.predict` returns them.
        truth: N right labels, as the classifier calls them.
        k: labels in a panel.
        columns: panels in a row.

    Raises:
        ConfigError: if the numbers do not fit, a right label is none of the classifier's, or
            matplotlib is missing.
        ImageError: if an image cannot be read.

    Example:
        figure = plots.prediction_panels(files, classifier.predict(files), ["cat", "dog"])
        figure.savefig("predictions.png")
    """
    check_rows("prediction_panels", predictions)
    counts = [len(images), len(predictions)] + ([] if truth is None else [len(truth)])
    if len(set(counts)) > 1:
        raise ConfigError(
            f"prediction_panels needs a prediction (and a right label) for each image, not {counts}"
        )
    if columns < 1:
        raise ConfigError(f"prediction_panels needs columns of at least 1, not {columns!r}")
    answers = [None] * len(predictions) if truth is None else truth
    panels = [_bars(*pair, k) for pair in zip(predictions, answers, strict=True)]
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    most = max(_LEAST, *map(len, panels))
    figure = new_figure(_WIDTH * columns, rows * (_ROW * most + 0.2))
    widths = [1.0, 1.5, _GAP] * columns
    grid = figure.add_gridspec(rows, 3 * columns, width_ratios=widths)
    for place, (image, bars) in enumerate(zip(images, panels, strict=True)):
        row, column = divmod(place, columns)
        shown = add_axes(figure, grid[row, 3 * column])
        shown.set_anchor("N")
        show_pixels(shown, pixels_of(image))
        _draw(add_axes(figure, grid[row, 3 * column + 1]), bars, most)
    return figure


def _bars(prediction: Prediction, truth: str | None, k: int) -> list[_Bar]:
    """Return the bars of a panel, the most probable first."""
    ranked = prediction.top(k)
    if truth is None:
        colors = [BLUE] + [PLAIN] * (len(ranked) - 1)
        return [_Bar(*pair, color) for pair, color in zip(ranked, colors, strict=True)]
    if truth not in prediction.labels:
        raise ConfigError(
            f"the right label {truth!r:.60} is none of the classifier's {len(prediction.labels)}: "
            "spell it as in classifier.labels"
        )
    if truth not in [label for label, _ in ranked]:
        share = float(prediction.probabilities[prediction.labels.index(truth)])
        ranked = [*ranked, (truth, share)]
    bars: list[_Bar] = []
    for place, (label, share) in enumerate(ranked):
        if label == truth:
            bars.append(_Bar(label, share, GREEN, _RIGHT))
        elif place == 0:
            bars.append(_Bar(label, share, VERMILION, _WRONG))
        else:
            bars.append(_Bar(label, share, PLAIN))
    return bars


def _draw(axes: "Axes", bars: Sequence[_Bar], rows: int) -> None:
    """Draw bars below their labels. All panels have room for as many rows."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(rows, 0)
    names = shorten_all([bar.text for bar in bars], letters(_LETTERS))
    for place, (bar, name) in enumerate(zip(bars, names, strict=True)):
        middle = place + 0.72
        axes.barh([middle], [1.0], _BOX, color="#efefef")
        axes.barh([middle], [bar.share], _BOX, color=bar.color)
        ink = INK if place == 0 or bar.mark else MUTED
        look = Look(color=ink, bold=bar.mark == _RIGHT)
        line = place + 0.5
        if bar.mark:  # the font that comes with matplotlib has these signs
            write_text(axes, 0, line, bar.mark, Look(color=bar.color, family="DejaVu Sans"))
        start = 0.065 if bar.mark else 0.0
        write_text(axes, start, line, name, look)
        write_text(axes, 1, line, f"{bar.share:.1%}", replace(look, horizontal="right"))
