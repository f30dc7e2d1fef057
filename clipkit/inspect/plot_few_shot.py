"""Draw how accuracy grows with the images of a class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from clipkit.classify.metric_inputs import is_count
from clipkit.errors import ConfigError
from clipkit.inspect.plot_style import (
    COLORS,
    DASHES,
    MARKERS,
    MUTED,
    add_axes,
    add_grid,
    add_legend,
    check_rows,
    in_percent,
    legend_size,
    new_figure,
    set_labels,
    set_title,
)
from clipkit.inspect.short_names import letters, shorten_all

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Between the points of two methods, and of all of them, as shares of the images: so that bars show,
# and points stay with their number of images.
_SHIFT, _SPREAD = 0.025, 0.3
_LETTERS = 26  # of a name in the legend


def few_shot_curves(
    results: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    zero_shot: float | None = None,
    title: str = "",
) -> "Figure":
    """Return the accuracy of methods over the number of images a class, with its spread.

    Points are means over draws, and bars are standard deviations. The legend begins with the best.

    Args:
        results: for each method and each number of images a class, the accuracy of each draw, 0 to
            1; one number where there is a single draw.
        zero_shot: accuracy without any image, which is drawn as a line.
        title: of the figure.

    Raises:
        ConfigError: if there is nothing to draw, a number of images is no integer from 1 on, or
            matplotlib is missing.

    Example:
        plots.few_shot_curves({"anchored": {1: [0.61, 0.64], 4: [0.72, 0.71]}}, zero_shot=0.58)
    """
    _check(results)
    order = sorted(results, key=lambda name: -float(np.mean(results[name][max(results[name])])))
    names = shorten_all(order, letters(_LETTERS)) + ["zero-shot"] * (zero_shot is not None)
    legend = legend_size(names)
    figure = new_figure(4.2 + legend.width, max(4.0, legend.height + 0.2))
    axes = add_axes(figure)
    step = min(_SHIFT, _SPREAD / len(order))
    handles: list[object] = []
    for place, name in enumerate(order):
        ks = sorted(results[name])
        shift = 1 + step * (place - (len(order) - 1) / 2)
        handles.append(
            axes.errorbar(
                [k * shift for k in ks],
                [float(np.mean(results[name][k])) for k in ks],
                [_spread(results[name][k]) for k in ks],
                color=COLORS[place % len(COLORS)],
                marker=MARKERS[place % len(MARKERS)],
                linestyle=DASHES[place // len(COLORS) % len(DASHES)],
                linewidth=1.6,
                markersize=5,
                elinewidth=1,
                capsize=2.5,
            )
        )
    if zero_shot is not None:
        handles.append(axes.axhline(zero_shot, color=MUTED, linestyle=":", linewidth=1.4))
    add_legend(figure, handles, names, columns=legend.columns)
    every = sorted({k for one in results.values() for k in one})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(k) for k in every], minor=False)
    axes.minorticks_off()
    in_percent(axes)
    add_grid(axes)
    set_labels(axes, "images of each class", "accuracy")
    set_title(axes, title)
    return figure


def _check(results: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    """Raise `ConfigError` unless each method has draws of positive numbers of images."""
    given: object = results
    if not isinstance(given, Mapping):
        raise ConfigError(
            'few_shot_curves needs methods with their accuracies, such as {"anchored": {1: [0.61, '
            f"0.64]}}}}, not {results!r:.60}"
        )
    check_rows("few_shot_curves", results)
    for name, own in results.items():
        _check_numbers(name, own)
        if empty := [k for k in own if not np.size(own[k])]:
            raise ConfigError(f"few_shot_curves needs draws, and {name!r:.60} has none at {empty}")
        for k, draws in own.items():
            if np.asarray(draws).dtype.kind not in "fiu":
                raise ConfigError(
                    f"few_shot_curves needs accuracies as numbers, such as [0.61, 0.64], and "
                    f"{name!r:.60} has {draws!r:.60} at {k}"
                )


def _check_numbers(name: str, own: object) -> None:
    """Raise `ConfigError` unless a method has accuracies by numbers of images from 1 on."""
    if not isinstance(own, Mapping) or not own:
        raise ConfigError(
            "few_shot_curves needs accuracies by numbers of images, such as {1: [0.61, 0.64]}, and "
            f"{name!r:.60} has {own!r:.60}"
        )
    for k in cast("Mapping[object, object]", own):
        if is_count(k):
            continue
        hint = ""
        if isinstance(k, str):  # those of a JSON file
            hint = (
                ": keys of JSON are texts, which {int(k): draws for k, draws in ...} makes numbers"
            )
        raise ConfigError(
            f"few_shot_curves needs numbers of images, integers from 1 on, and {name!r:.60} has "
            f"{k!r:.60}{hint}"
        )


def _spread(draws: Sequence[float]) -> float:
    """Return the standard deviation of draws, 0 of a single one."""
    return float(np.std(draws, ddof=1)) if np.size(draws) > 1 else 0.0
