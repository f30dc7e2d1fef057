"""Draw maps over images: where something is strong."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from clipkit.classify.metric_inputs import is_number
from clipkit.data.decode import Readable
from clipkit.errors import ConfigError
from clipkit.inspect.plot_style import (
    INK,
    LINE,
    MUTED,
    SIDE,
    SMALL,
    Map,
    add_axes,
    as_map,
    check_rows,
    new_figure,
    panel_size,
    pixels_of,
    set_title,
    show_pixels,
)
from clipkit.inspect.short_names import letters, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GRAY = np.array([0.299, 0.587, 0.114])  # lightness of red, green and blue (BT.601)
_PAD, _BAR = 0.07, 0.11  # inches between an image and its scale, and of the scale
_STRENGTH = 0.62  # of the colors over the gray image


def heat_map(
    image: Readable,
    values: Map | Mapping[str, Map],
    *,
    limits: tuple[float, float] | None = None,
    columns: int = 4,
) -> "Figure":
    """Return an image beside one or more maps of it, each laid over the image in gray.

    Light yellow is high and dark blue is low, also in a gray print.

    Args:
        image: a path, a PIL image, a NumPy image or a file's bytes. It must show what the map is
            of: a map of what the model saw belongs to the image as it was cropped.
        values: (h, w) finite numbers of any kind, which are stretched over the image; or several
            such maps by their titles.
        limits: the lowest and the highest value of the colors; by default those of each map.
        columns: panels in a row, with that of the image.

    Raises:
        ConfigError: for values of another shape, or not finite; or if matplotlib is missing.
        ImageError: if the image cannot be read.

    Example:
        plots.heat_map("cat.jpg", {"Grad-ECLIP": first, "rollout": second})
    """
    maps = dict(values) if isinstance(values, Mapping) else {"": values}
    check_rows("heat_map", maps)
    _check_limits(limits)
    pixels = pixels_of(image)
    count = len(maps) + 1
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    width, height = panel_size(pixels)
    figure = new_figure((width + 0.75) * columns, (height + 0.4) * rows)
    grid = figure.add_gridspec(rows, columns)
    first = add_axes(figure, grid[0, 0])
    show_pixels(first, pixels)
    if len(maps) > 1 or "" not in maps:
        set_title(first, "image")
    titles = shorten_all(maps, letters(30), 2)
    for place, (title, one) in enumerate(zip(titles, maps.values(), strict=True), start=1):
        axes = add_axes(figure, grid[place // columns, place % columns])
        set_title(axes, title)
        _draw_map(figure, axes, pixels, _numbers(one), limits)
    return figure


def _draw_map(
    figure: "Figure",
    axes: "Axes",
    pixels: NDArray[np.uint8],
    values: NDArray[np.float64],
    limits: tuple[float, float] | None,
) -> None:
    """Lay values (h, w) over an image in gray, with a scale beside it."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits or (float(values.min()), float(values.max()))
    gray = (pixels @ _GRAY)[..., None].repeat(3, axis=2) / 255  # (h, w, 3)
    show_pixels(axes, gray)
    shown = axes.imshow(
        stretch(values, pixels),
        cmap="cividis",
        alpha=_STRENGTH,
        vmin=low,
        vmax=high if high > low else low + 1,
        interpolation="nearest",
    )
    height, width = (SIDE * length / max(pixels.shape) for length in pixels.shape[:2])
    beside = axes.inset_axes((1 + _PAD / width, 0.0, _BAR / width, 1.0))
    beside.set_facecolor("white")
    scale = figure.colorbar(shown, cax=beside)
    scale.ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL)
    scale.outline.set_edgecolor(LINE)
    scale.locator = MaxNLocator(max(1, min(4, round(3 * height))))
    scale.update_ticks()


def _check_limits(limits: object) -> None:
    """Raise `ConfigError` unless limits are two finite numbers, the lower one first, or None."""
    if limits is None:
        return
    pair = list(cast("Sequence[Any]", limits)) if isinstance(limits, tuple | list) else []
    if len(pair) != 2 or not all(is_number(one) for one in pair) or not pair[0] <= pair[1]:
        raise ConfigError(
            f"heat_map needs limits from low to high, such as (0, 1), not {limits!r:.60}"
        )


def stretch(values: NDArray[np.float64], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return values (h, w) in the size of an image, bilinear between their centers."""
    from PIL import Image

    height, width = pixels.shape[:2]
    small = Image.fromarray(values.astype(np.float32))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def _numbers(values: Map) -> NDArray[np.float64]:
    """Return values as (h, w) float64, or raise `ConfigError`."""
    found = as_map("heat_map", values)
    if found.dtype.kind not in "fiub" or not np.isfinite(found).all():
        raise ConfigError(
            f"heat_map needs finite numbers, not those of {found.dtype} in {values!r:.60}"
        )
    return found.astype(np.float64)
