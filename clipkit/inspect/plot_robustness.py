"""Draw how a classifier does on corrupted images."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipkit.inspect.plot_style import (
    BLUE,
    LINE,
    MUTED,
    ORANGE,
    VERMILION,
    add_axes,
    add_grid,
    add_legend,
    check_rows,
    in_percent,
    new_figure,
    set_labels,
    set_title,
)
from clipkit.inspect.robustness_figures import RobustnessFigures, RobustnessRow
from clipkit.inspect.short_names import letters, shorten, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_WIDTH, _HEIGHT = 3.0, 2.7  # inches of a panel
_ENTRIES, _ENTRY = 4, 2.1  # of the legend, and inches of one


def robustness_figure(result: RobustnessFigures) -> "Figure":
    """Return accuracy and mean confidence over the severities of each corruption, as a figure.

    Where confidence stays high and accuracy falls, the classifier does not know that it errs. Of a
    class's name that is written on images, a third line says how many are taken for that class.

    Args:
        result: as from `clipkit.inspect.robustness`.

    Raises:
        ConfigError: if matplotlib is missing.

    Example:
        plots.robustness_figure(found).savefig("robustness.pdf")
    """
    groups = result.by_corruption()
    check_rows("robustness_figure", groups)
    columns = min(_COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    width = _WIDTH * columns + 0.4
    across = int(width / _ENTRY)  # entries of the legend in a line
    figure = new_figure(width, _HEIGHT * rows + 0.5 + 0.2 * math.ceil(_ENTRIES / across))
    grid = figure.add_gridspec(rows, columns)
    handles: dict[str, Any] = {}
    titles = shorten_all(groups, letters(34))
    for place, (title, own) in enumerate(zip(titles, groups.values(), strict=True)):
        axes = add_axes(figure, grid[place // columns, place % columns])
        handles |= _draw(axes, own)
        set_title(axes, title)
        set_labels(
            axes, shorten(own[0].unit, 36, 2), "" if place % columns else "accuracy, confidence"
        )
    add_legend(
        figure,
        list(handles.values()),
        list(handles),
        above=True,
        columns=across,
    )
    return figure


def _draw(axes: "Axes", rows: Sequence[RobustnessRow]) -> dict[str, Any]:
    """Draw the lines of a corruption, and return what they are for a legend."""
    places = list(range(1, len(rows) + 1))
    accuracy = [row.accuracy for row in rows]
    gaps = [
        [row.accuracy - row.interval[0] for row in rows],
        [row.interval[1] - row.accuracy for row in rows],
    ]
    (untouched,) = axes.plot(
        [0, len(rows) + 1], [rows[0].clean_accuracy] * 2, color=MUTED, linestyle=":", lw=1.3
    )
    right = axes.errorbar(
        places,
        accuracy,
        gaps,
        color=BLUE,
        marker="o",
        markersize=5,
        lw=1.8,
        capsize=2.5,
        elinewidth=1,
    )
    (sure,) = axes.plot(
        places, [row.confidence for row in rows], color=ORANGE, marker="s", ms=4.5, linestyle="--"
    )
    handles: dict[str, Any] = {
        "accuracy (95% interval)": right,
        "mean confidence": sure,
        "accuracy without it": untouched,
    }
    fooled = [math.nan if row.fooled is None else row.fooled for row in rows]
    if not all(map(math.isnan, fooled)):
        (line,) = axes.plot(places, fooled, color=VERMILION, marker="^", ms=5, linestyle="-.")
        handles["taken for the written class"] = line
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.set_xticks(places, [f"{row.severity:g}" for row in rows])
    axes.set_ylim(-0.02, 1.02)
    in_percent(axes)
    add_grid(axes)
    axes.spines["left"].set_color(LINE)
    return handles
