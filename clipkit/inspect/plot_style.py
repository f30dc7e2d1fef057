"""Make figures that look alike: on white, for the color-blind too, and with names as they are.

Figures are made without pyplot, and no setting of matplotlib's is changed. Colors of text and lines
are stated, so that a dark style of the caller's leaves a figure as it is.
"""

import functools
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipkit.data.decode import Readable, read_image
from clipkit.errors import ConfigError

Map: TypeAlias = Tensor | NDArray[Any]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec
    from matplotlib.text import Text

INK = "#1a1a1a"
MUTED = "#595959"
LINE = "#bfbfbf"
PLAIN = "#9a9a9a"  # of bars without a meaning of their own

# Colors that the color-blind tell apart (Okabe and Ito, Color Universal Design, 2008), those that
# stand out on white first.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)  # of areas, see `areas.COLORS`

# Shapes tell apart what colors do not: together there are 70 kinds of points.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">")
DASHES = ("-", "--", "-.", ":")

SMALL, TEXT, TITLE = 8.0, 9.0, 10.0  # points
SIDE, _LEAST = 2.9, 1.1  # inches of the longer side of an image, and of the shorter one at least
_PAD = 0.07  # inches around axes
_IN_A_COLUMN = 16  # entries of a legend
_HANDLE, _LETTER, _ENTRY = 0.6, 0.078, 0.2  # inches in a legend: before a name, and of an entry
_LONGEST = 1024  # pixels of the longer side of an image that is drawn


def require_matplotlib() -> None:
    """Raise `ConfigError` if matplotlib is missing."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'clipkit-torch[plots]'") from error


class LegendSize(NamedTuple):
    """Hold how many columns a legend has, and its width and height in inches."""

    columns: int
    width: float
    height: float


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches, which shows itself in a notebook.

    Raises:
        ConfigError: if matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=_PAD, w_pad=_PAD)
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white", layout=layout)
    # Notebooks ask for it. They know figures by themselves only once pyplot was imported.
    vars(figure)["_repr_png_"] = functools.partial(_png_of, figure)
    return figure


def _png_of(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", dpi=figure.dpi)
    return file.getvalue()


def add_axes(figure: "Figure", place: "SubplotSpec | int" = 111) -> "Axes":
    """Return new axes at a place of a figure, as `add_subplot` takes it, in the colors of all."""
    axes = figure.add_subplot(place)
    axes.set_facecolor("white")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
        spine.set_linewidth(0.8)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=SMALL, which="both")
    axes.set_axisbelow(True)
    return axes


def add_grid(axes: "Axes") -> None:
    """Draw fine lines at the ticks of the vertical axis."""
    axes.grid(True, axis="y", color=LINE, linewidth=0.6, linestyle="-", alpha=0.7)


def in_percent(axes: "Axes") -> None:
    """Show the vertical axis, which holds shares, in percent."""
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def set_title(axes: "Axes", text: str, *, size: float = TITLE, color: str = INK) -> "Text":
    """Set a title with the text as it is: a dollar sign begins no formula."""
    return axes.set_title(text, parse_math=False, fontsize=size, color=color)


def set_labels(axes: "Axes", horizontal: str, vertical: str = "") -> None:
    """Set what the axes hold."""
    axes.set_xlabel(horizontal, fontsize=TEXT, color=INK, parse_math=False)
    axes.set_ylabel(vertical, fontsize=TEXT, color=INK, parse_math=False)


@dataclass(frozen=True)
class Look:
    """Hold how a text looks, in matplotlib's words."""

    size: float = SMALL
    color: str = INK
    bold: bool = False
    horizontal: Literal["left", "center", "right"] = "left"
    vertical: Literal["top", "center", "baseline", "bottom"] = "baseline"
    family: str | None = None


def write_text(axes: "Axes", x: float, y: float, text: str, look: Look) -> "Text":
    """Write a text as it is at a place."""
    return axes.text(
        x,
        y,
        text,
        parse_math=False,
        fontsize=look.size,
        color=look.color,
        weight="bold" if look.bold else "normal",
        ha=look.horizontal,
        va=look.vertical,
        family=look.family,
    )


def add_legend(
    figure: "Figure",
    handles: Sequence[object],
    names: Sequence[str],
    *,
    above: bool = False,
    columns: int = 1,
) -> None:
    """Add a legend outside of the axes, with names as they are, such as those that begin with _."""
    place = "upper center" if above else "right center"
    legend = figure.legend(
        cast("list[Any]", list(handles)),
        [str(place) for place in range(len(names))],
        loc=cast("Any", f"outside {place}"),  # its type does not know these
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        labelcolor=INK,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def legend_size(names: Sequence[str]) -> LegendSize:
    """Return the room that a legend beside the axes needs."""
    columns = -(-len(names) // _IN_A_COLUMN)
    longest = max(map(len, names), default=0)
    lines = min(len(names), _IN_A_COLUMN)
    return LegendSize(columns, (_HANDLE + _LETTER * longest) * columns, _ENTRY * lines)


def pixels_of(image: Readable) -> NDArray[np.uint8]:
    """Return the pixels of an image, (h, w, 3), made smaller if it has more than 1,024 a side.

    Raises:
        ImageError: if it cannot be read.
    """
    found = read_image(image)
    if max(found.size) > _LONGEST:
        found = found.copy()  # the caller's own keeps its size
        found.thumbnail((_LONGEST, _LONGEST))
    return np.asarray(found.convert("RGB"))


def show_pixels(axes: "Axes", pixels: NDArray[Any], *, size: tuple[int, int] | None = None) -> None:
    """Show pixels (h, w, 3) without ticks, in a thin frame that ends white images.

    Args:
        axes: where to show them.
        pixels: of an image.
        size: (height, width) that the image has in the axes; its own if not given.
    """
    height, width = pixels.shape[:2] if size is None else size
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(pixels, interpolation="antialiased", aspect="equal", extent=extent)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(LINE)


def check_rows(name: str, given: Mapping[str, Any] | Sequence[Any]) -> None:
    """Raise `ConfigError` if there is nothing to draw."""
    if not len(given):
        raise ConfigError(f"{name} has nothing to draw: it got an empty {type(given).__name__}")


def as_map(name: str, values: Map) -> NDArray[Any]:
    """Return a tensor or an array as an array (h, w), or raise `ConfigError`."""
    found = values.detach().cpu() if isinstance(values, Tensor) else values
    if isinstance(found, Tensor):
        found = (found.float() if found.is_floating_point() else found).numpy()
    found = np.asarray(found)
    if found.ndim != 2 or not found.size:
        raise ConfigError(f"{name} needs a map (h, w), not {found.shape}")
    return found


def panel_size(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the width and the height of a panel in inches, in the proportions of an image."""
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    return max(_LEAST, width * scale), max(_LEAST, height * scale)
