"""Draw which class each pixel of an image is of."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit.data.decode import Readable
from clipkit.errors import ConfigError
from clipkit.inspect.areas import (
    Color,
    Entry,
    check_options,
    color_of,
    entries_of,
    paint,
    place_numbers,
    shares_of,
)
from clipkit.inspect.plot_style import (
    INK,
    SMALL,
    Look,
    Map,
    add_axes,
    add_legend,
    as_map,
    check_rows,
    legend_size,
    new_figure,
    panel_size,
    pixels_of,
    require_matplotlib,
    show_pixels,
    write_text,
)
from clipkit.inspect.short_names import letters, shorten_all

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_LETTERS = 28  # of a name in the legend
_SCALE = 1.5  # an image is this much larger here than in other figures
_SHARP = 800  # pixels of the longer side that make lines fine, and pixels of small images sharp


def segmentation(
    image: Readable,
    classes: Map,
    names: Sequence[str],
    *,
    background: int | None = None,
    colors: Sequence[str] | None = None,
    opacity: float = 0.55,
) -> "Figure":
    """Return an image with the class of each pixel as a color, and a legend with their shares.

    Each area has a line around it, and the number of its class in it, so that nobody needs to tell
    colors apart. A class has the same color and number in every image, those of `draw_overlay`. The
    legend has the classes that are in the image; those that are nowhere are left out.

    Args:
        image: as in `heat_map`.
        classes: (h, w) integers, indices of `names`, which are stretched over the image.
        names: C names.
        background: a class that gets no color and no number. It comes last in the legend.
        colors: C colors as matplotlib takes them, by default those that the color-blind tell apart.
        opacity: of the colors, 0 to 1.

    Raises:
        ConfigError: for other shapes, or an index that has no name; or if matplotlib is missing.
        ImageError: if the image cannot be read.

    Example:
        plots.segmentation("street.jpg", scores.argmax(dim=0), ["road", "car", "sky"])
    """
    require_matplotlib()
    pixels = pixels_of(image)
    indices = _indices(classes, names, pixels)
    check_options(len(names), background, opacity)
    palette = _palette(colors, len(names))
    shares = shares_of(torch.from_numpy(indices), len(names))
    entries = entries_of(names, shares, background)
    lines = _lines(entries)
    legend = legend_size(lines)
    width, height = (_SCALE * length for length in panel_size(pixels))
    figure = new_figure(width + legend.width + 0.2, max(height, legend.height) + 0.2)
    axes = add_axes(figure)
    many = max(1, round(_SHARP / max(indices.shape)))
    painted = paint(
        _enlarge(pixels, many),
        _enlarge(indices, many),
        palette,
        background=background,
        opacity=opacity,
    )
    show_pixels(axes, painted, size=pixels.shape[:2])
    for number in place_numbers(indices, shares, background):
        _write_number(axes, number.x, number.y, number.text)
    add_legend(figure, _patches(entries, palette), lines, columns=legend.columns)
    return figure


def _palette(colors: Sequence[str] | None, classes: int) -> list[Color]:
    """Return a color for each class, or raise `ConfigError`."""
    if colors is None:
        return [color_of(place) for place in range(classes)]
    if len(colors) != classes:
        raise ConfigError(f"{classes} classes need as many colors, not {len(colors)}")
    from matplotlib.colors import is_color_like, to_rgb

    if wrong := [color for color in colors if not is_color_like(color)]:
        raise ConfigError(
            "segmentation needs colors as matplotlib takes them, such as '#0072B2', not "
            f"{wrong[0]!r:.60}"
        )
    levels = [[round(255 * level) for level in to_rgb(color)] for color in colors]
    return [(red, green, blue) for red, green, blue in levels]


def _enlarge(rows: NDArray[Any], many: int) -> NDArray[Any]:
    """Return (h, w, ...) with as many rows and columns in the place of each."""
    return rows.repeat(many, axis=0).repeat(many, axis=1)


def _indices(classes: Map, names: Sequence[str], pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the class of each pixel of an image, or raise `ConfigError`."""
    check_rows("segmentation", names)
    found = as_map("segmentation", classes)
    if found.dtype.kind not in "iu":
        raise ConfigError(f"segmentation needs a map of integers, not of {found.dtype}")
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= len(names):
        raise ConfigError(
            f"segmentation needs indices of the {len(names)} names, 0 to {len(names) - 1}, not "
            f"{low} to {high}"
        )
    height, width = pixels.shape[:2]
    rows = [row * found.shape[0] // height for row in range(height)]
    columns = [column * found.shape[1] // width for column in range(width)]
    return found[np.ix_(rows, columns)].astype(np.int64)


def _write_number(axes: "Axes", x: float, y: float, number: str) -> None:
    """Write the number of a class on a box, as `draw_overlay` does."""
    look = Look(SMALL, "white", bold=True, horizontal="center", vertical="center")
    text = write_text(axes, x, y, number, look)
    text.set_bbox(
        {"boxstyle": "round,pad=0.25", "facecolor": "black", "edgecolor": "white", "linewidth": 0.8}
    )


def _lines(entries: Sequence[Entry]) -> list[str]:
    """Return the texts of a legend: number, name and share of each class."""
    names = shorten_all([entry.label for entry in entries], letters(_LETTERS))
    return [
        "  ".join(filter(None, (entry.number, name, entry.share)))
        for entry, name in zip(entries, names, strict=True)
    ]


def _patches(entries: Sequence[Entry], palette: Sequence[Color]) -> "list[Patch]":
    """Return the colors of a legend. The background is white."""
    from matplotlib.patches import Patch

    white: Color = (255, 255, 255)
    colors = [palette[entry.place] if entry.number else white for entry in entries]
    return [
        Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor=INK, linewidth=0.5)
        for red, green, blue in colors
    ]
