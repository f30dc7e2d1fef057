"""Make a table, a JSON and figures of the runs of `examples/segmentation.py`."""

import datetime
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from camvid import NAMES
from robustness import processor
from segmenter import METHODS
from torch import Tensor

from clipkit.inspect.overlay import color_of
from clipkit.inspect.plot_style import (
    COLORS,
    DASHES,
    SMALL,
    add_axes,
    add_grid,
    add_legend,
    new_figure,
    set_labels,
    set_title,
    show_pixels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

Run = dict[str, Any]
UNTRAINED = ("place", "class_map", "class_map, one pass", "class_map, refined")
PAINTED = ("class_map, one pass", *METHODS)  # in the figure of test frames, if they are there


def runs_by_method(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the runs of each method that has some, in the order of the table."""
    groups = {name: [run for run in runs if run["method"] == name] for name in order()}
    return {name: own for name, own in groups.items() if own}


def order() -> tuple[str, ...]:
    """Return all methods, those without training first."""
    return (*UNTRAINED, *METHODS)


def mean_of(values: list[float]) -> str:
    """Return the mean in percent, with the standard deviation over the seeds if there are some."""
    if len(values) == 1:
        return f"{100 * values[0]:.1f}"
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def table(runs: list[Run]) -> str:
    """Return two tables as Markdown: the scores of each method, and the IoU of each class."""
    groups = runs_by_method(runs)
    lines = [
        "| method | trained weights | seeds | test mean IoU, % | right pixels, % | core minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in groups.items():
        minutes = statistics.mean(run["seconds"] for run in own) / 60
        lines.append(
            f"| {name} | {own[0].get('trained_parameters', 0):,} | {len(own)} | "
            f"{mean_of([run['mean_iou'] for run in own])} | "
            f"{mean_of([run['accuracy'] for run in own])} | {minutes:.1f} |"
        )
    lines += ["", "| IoU, % | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for name, own in groups.items():
        each = [100 * statistics.mean(run["iou"][label] for run in own) for label in NAMES]
        lines.append(f"| {name} | " + " | ".join(f"{one:.0f}" for one in each) + " |")
    return "\n".join(lines)


def write(path: Path, runs: list[Run]) -> None:
    """Write all runs as JSON, without their frames."""
    kept = ("seed", "trained_parameters", "seconds", "epoch", "val_mean_iou", "mean_iou")
    keys = (*kept, "accuracy", "iou", "curves")
    methods = {
        name: [{key: run[key] for key in keys if key in run} for run in own]
        for name, own in runs_by_method(runs).items()
    }
    head = {"date": datetime.date.today().isoformat(), "processor": processor()}
    whole = head | {"settings": runs[0]["settings"], "methods": methods}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(whole, indent=1)
    path.write_text(text + "\n", "utf-8")


def draw(folder: Path, runs: list[Run], frames: Tensor, truth: Tensor) -> None:
    """Write the figures of the curves and of some test frames."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = runs_by_method(runs)
    if any(name in groups for name in METHODS):
        draw_curves(groups).savefig(folder / "frozen_segmentation_curves.png", dpi=72)
    figure = draw_frames(groups, frames, truth)
    options = {"quality": 60, "optimize": True}
    figure.savefig(folder / "frozen_segmentation.jpg", dpi=90, pil_kwargs=options)


def draw_curves(groups: dict[str, list[Run]]) -> "Figure":
    """Return a figure of the loss and the mean IoU over the epochs, the mean of the seeds."""
    from matplotlib.ticker import MaxNLocator  # pyright: ignore[reportMissingImports]

    figure = new_figure(9.5, 3.6)
    grid = figure.add_gridspec(1, 3)
    titles = {"loss": "training loss", "val_loss": "validation loss", "val_mean_iou": "mean IoU, %"}
    handles: list[object] = []
    for place, (key, title) in enumerate(titles.items()):
        axes = add_axes(figure, grid[0, place])
        handles = [draw_curve(axes, own, name, key) for name, own in trained(groups).items()]
        add_grid(axes)
        set_title(axes, title if place < 2 else f"validation {title}")
        set_labels(axes, "epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    add_legend(figure, handles, list(trained(groups)), above=True, columns=5)
    return figure


def trained(groups: dict[str, list[Run]]) -> dict[str, list[Run]]:
    """Return the methods that are trained."""
    return {name: own for name, own in groups.items() if name in METHODS}


def draw_curve(axes: "Axes", runs: list[Run], name: str, key: str) -> object:
    """Draw what the runs of a method had at each epoch, and return the line."""
    number = list(METHODS).index(name)
    rows = [[row for row in run["curves"] if key in row] for run in runs]
    epochs = [row["epoch"] for row in rows[0]]
    scale = 100 if key == "val_mean_iou" else 1
    values = scale * np.array([[row[key] for row in own] for own in rows])  # (seeds, epochs)
    color, dash = COLORS[number], DASHES[number % len(DASHES)]
    if len(runs) > 1:
        axes.fill_between(epochs, values.min(0), values.max(0), color=color, alpha=0.15, lw=0)
    mark = "o" if key.startswith("val") else ""  # validated now and then
    mean = values.mean(0)
    (line,) = axes.plot(epochs, mean, color=color, linestyle=dash, marker=mark, markersize=3.5)
    return line


def paint(image: Tensor, classes: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return an image (3, h, w) under the colors of its classes (h, w), void in black."""
    palette = np.array([color_of(number) for number in range(len(NAMES))] + [(0, 0, 0)])
    pixels = image.permute(1, 2, 0).numpy()  # (3, h, w) -> (h, w, 3)
    return (0.2 * pixels + 0.8 * palette[classes.numpy()]).astype(np.uint8)


def draw_frames(groups: dict[str, list[Run]], frames: Tensor, truth: Tensor) -> "Figure":
    """Return a figure with a row for each of some frames: the truth, and what methods say."""
    columns: dict[str, Tensor] = {"truth": truth}
    columns |= {name: groups[name][0]["frames"] for name in PAINTED if name in groups}
    figure = new_figure(1.55 * (1 + len(columns)), 1.17 * len(frames) + 0.6)
    grid = figure.add_gridspec(len(frames), 1 + len(columns))
    for row, frame in enumerate(frames):
        axes = add_axes(figure, grid[row, 0])
        show_pixels(axes, frame.permute(1, 2, 0).numpy())
        set_title(axes, "frame" if row == 0 else "", size=SMALL)
        for column, (name, classes) in enumerate(columns.items(), start=1):
            axes = add_axes(figure, grid[row, column])
            show_pixels(axes, paint(frame, classes[row]))
            if row == 0:
                set_title(axes, name, size=SMALL)
    add_classes(figure, columns=12 if len(columns) > 5 else 6)
    return figure


def add_classes(figure: "Figure", columns: int) -> None:
    """Add a legend of the classes below a figure."""
    from matplotlib.patches import Patch  # pyright: ignore[reportMissingImports]

    colors = [tuple(level / 255 for level in color_of(place)) for place in range(len(NAMES))]
    handles = [Patch(facecolor=cast("Any", color), edgecolor="#595959") for color in colors]
    handles.append(Patch(facecolor="black"))
    names = [*NAMES, "void"]
    place = cast("Any", "outside lower center")  # its type does not know it
    legend = figure.legend(handles, names, loc=place, ncols=columns, fontsize=SMALL)
    legend.set_frame_on(False)
