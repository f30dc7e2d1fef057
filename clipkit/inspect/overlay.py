"""Paint the classes of pixels over a photo, with a legend, for all eyes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from torch import Tensor

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
from clipkit.inspect.short_names import ELLIPSIS, shorten_all

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font: TypeAlias = FreeTypeFont | ImageFont

_LINES = 2  # of a label in the legend, at most
_LETTERS = 16  # for which a line of the legend has room below the narrowest photo
_GAP = 8  # pixels between the parts of a legend


def draw_overlay(
    image: "Image",
    indices: Tensor,
    labels: Sequence[str],
    *,
    background: int | None = None,
    opacity: float = 0.5,
) -> "Image":
    """Return a photo with the class of each pixel as a color, outlines, numbers and a legend.

    A class has the same color and number in every photo, whatever else is there. The legend has the
    classes that are in the photo; those that are nowhere are left out. Long labels are wrapped, and
    shortened if two lines are not enough.

    Args:
        image: of any mode.
        indices: the class of each pixel, (H, W) integers, as large as the image.
        labels: the names of the classes.
        background: the class that stays as it is in the photo, if any.
        opacity: of the colors, from 0 to 1.

    Returns:
        An RGB image, as wide as the photo, with the legend below it. A photo that is too narrow for
        a legend stands at its left end.

    Raises:
        ConfigError: for what is no PIL image, if sizes differ, indices are no integers, there is a
            class without a label, or an option is impossible.

    Example:
        mapper = clipkit.inspect.ClassMapper(model, ["cat", "sofa"])
        photo = PIL.Image.open("cat.jpg")
        draw_overlay(photo, mapper.indices(photo), mapper.labels).save("cat.overlay.png")
    """
    from PIL import Image, ImageDraw

    if not isinstance(image, Image.Image):
        raise ConfigError(
            f"draw_overlay takes an image that PIL has opened, not {image!r}: PIL.Image.open(path)"
        )
    if indices.shape != (image.height, image.width):
        raise ConfigError(
            f"there must be a class for each pixel, ({image.height}, {image.width}), not "
            f"{tuple(indices.shape)}: ask for them with size=(image.height, image.width)"
        )
    check_options(len(labels), background, opacity)
    shares = shares_of(indices, len(labels))
    places = indices.long().numpy()
    pixels = np.asarray(image.convert("RGB"))
    colors = [color_of(index) for index in range(len(labels))]
    painted = Image.fromarray(paint(pixels, places, colors, background=background, opacity=opacity))
    font = _font(image)
    draw = ImageDraw.Draw(painted)
    for number in place_numbers(places, shares, background):
        _draw_badge(draw, (number.x, number.y), number.text, font)
    return _with_legend(painted, entries_of(labels, shares, background), font)


def _draw_badge(
    draw: "ImageDraw",
    center: tuple[float, float],
    text: str,
    font: "Font",
    fill: Color = (0, 0, 0),
) -> None:
    """Write a text in white on a box, which is moved inside where it would be cut off."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    half = (right - left) / 2 + 4, (bottom - top) / 2 + 3
    # Cut off at the edge, a 12 would read as a 2.
    x, y = (
        min(max(place, part), max(part, side - 1 - part))
        for place, part, side in zip(center, half, draw.im.size, strict=True)
    )
    box = (x - half[0], y - half[1], x + half[0], y + half[1])
    draw.rounded_rectangle(box, radius=4, fill=fill, outline=(255, 255, 255))
    draw.text((x - (left + right) / 2, y - (top + bottom) / 2), text, fill="white", font=font)


@dataclass(frozen=True)
class _Legend:
    """Hold what is measured of a legend, in pixels.

    Attributes:
        font: of its texts.
        line: the height of a line.
        swatch: the width of a color.
        width: of the whole.
    """

    font: "Font"
    line: int
    swatch: int
    width: int

    @property
    def before(self) -> int:
        """Return the pixels before the text of an entry."""
        return _GAP + self.swatch + _GAP


def _with_legend(image: "Image", entries: Sequence[Entry], font: "Font") -> "Image":
    """Return the image with a legend below it, in rows as wide as the image."""
    from PIL import Image, ImageDraw

    if not entries:
        return image
    draw = ImageDraw.Draw(image)
    legend = _measure(draw, entries, font, image.width)
    texts = _texts(draw, entries, legend)
    places: list[tuple[int, int]] = []
    x, y, height = 0, image.height + _GAP, 0  # `height` is that of the row
    for text in texts:
        width = legend.before + int(draw.multiline_textbbox((0, 0), text, font=font)[2]) + 2 * _GAP
        if x and x + width > legend.width:
            x, y, height = 0, y + height + _GAP, 0
        places.append((x, y))
        x, height = x + width, max(height, legend.line * len(text.splitlines()))
    canvas = Image.new("RGB", (legend.width, y + height + _GAP), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for entry, text, place in zip(entries, texts, places, strict=True):
        _draw_entry(draw, entry, text, place, legend)
    return canvas


def _measure(draw: "ImageDraw", entries: Sequence[Entry], font: "Font", width: int) -> _Legend:
    """Return the measures of a legend below an image of a width."""
    line = int(draw.textbbox((0, 0), "88", font=font)[3]) + 10
    legend = _Legend(font, line, 2 * line, width)
    shares = max(draw.textlength(f"  {entry.share}", font=font) for entry in entries)
    least = legend.before + int(draw.textlength("n" * _LETTERS, font=font) + shares) + 2 * _GAP
    return _Legend(font, line, 2 * line, max(width, least))


def _texts(draw: "ImageDraw", entries: Sequence[Entry], legend: _Legend) -> list[str]:
    """Return label and share of each entry, in lines that have room."""
    room = legend.width - legend.before - 2 * _GAP
    shares = [f"  {entry.share}" for entry in entries]
    room -= max(int(draw.textlength(share, font=legend.font)) + 1 for share in shares)

    def fits(text: str) -> bool:
        return draw.textlength(text, font=legend.font) <= room

    labels = [_writable(entry.label, legend.font) for entry in entries]
    shortened = shorten_all(labels, fits, _LINES, _writable(ELLIPSIS, legend.font))
    return [label + share for label, share in zip(shortened, shares, strict=True)]


def _draw_entry(
    draw: "ImageDraw", entry: Entry, text: str, place: tuple[int, int], legend: _Legend
) -> None:
    """Draw the color of a class with its number, and its label beside it."""
    x, y = place
    left = x + _GAP
    box = (left, y, left + legend.swatch, y + legend.line)
    is_background = not entry.number
    draw.rectangle(
        box, fill="white" if is_background else color_of(entry.place), outline=(90, 90, 90)
    )
    if not is_background:
        middle = (left + legend.swatch / 2, y + legend.line / 2)
        _draw_badge(draw, middle, entry.number, legend.font)
    below = draw.textbbox((0, 0), "8g", font=legend.font)[3]
    for number, line in enumerate(text.splitlines()):
        top = y + number * legend.line + (legend.line - below) / 2
        draw.text((x + legend.before, top), line, fill="black", font=legend.font)


def _writable(text: str, font: "Font") -> str:
    """Return a text in letters that a font has. That of a Pillow without FreeType has few."""
    from PIL.ImageFont import FreeTypeFont

    if isinstance(font, FreeTypeFont):
        return text
    return text.replace(ELLIPSIS, "...").encode("latin-1", "replace").decode("latin-1")


def _font(image: "Image") -> "Font":
    """Return Pillow's own font, in a size that suits the image where Pillow can scale it."""
    from PIL import ImageFont

    size = min(max(min(image.size) // 24, 12), 40)
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # before Pillow 10.1, or without FreeType
        return ImageFont.load_default()
