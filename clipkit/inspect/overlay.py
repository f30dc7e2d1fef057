"""Paint the classes of pixels over a photo, with a legend, for all eyes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clipkit.classify.metric_inputs import is_count, is_number
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

Color = tuple[int, int, int]

# Okabe and Ito's colors, which the color-blind tell apart too (Color Universal Design, 2008). Their
# black is left to the outlines. Each class has a number as well, on the map and in the legend.
COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# Of the same colors, (how much of white, how much of the color): as they are, lighter, darker.
_SHADES = ((0.0, 1.0), (0.5, 0.5), (0.0, 0.55))
_SMALLEST_SHARE = 0.002  # of the pixels of a photo, for a class to get its number on the map
_SEARCH_SIDE = 96  # pixels to which a mask is reduced to find where it is widest


def color_of(index: int) -> Color:
    """Return the color (red, green, blue) of a class by its number; after 21 they come again."""
    white, share = _SHADES[index // len(COLORS) % len(_SHADES)]
    red, green, blue = (round(255 * white + share * level) for level in COLORS[index % len(COLORS)])
    return red, green, blue


def draw_overlay(
    image: "Image",
    indices: Tensor,
    labels: Sequence[str],
    *,
    background: int | None = None,
    opacity: float = 0.5,
) -> "Image":
    """Return a photo with the class of each pixel as a color, outlines, numbers and a legend.

    Args:
        image: of any mode.
        indices: the class of each pixel, (H, W) integers, as large as the image.
        labels: the names of the classes.
        background: the class that stays as it is in the photo, if any.
        opacity: of the colors, from 0 to 1.

    Returns:
        An RGB image, as wide as the photo or wider, with the legend below it.

    Raises:
        ConfigError: if sizes differ, indices are no integers, there is a class without a label, or
            an option is impossible.

    Example:
        mapper = clipkit.inspect.ClassMapper(model, ["cat", "sofa"])
        photo = PIL.Image.open("cat.jpg")
        draw_overlay(photo, mapper.indices(photo), mapper.labels).save("cat.overlay.png")
    """
    from PIL import Image

    if indices.shape != (image.height, image.width):
        raise ConfigError(
            f"there must be a class for each pixel, ({image.height}, {image.width}), not "
            f"{tuple(indices.shape)}: ask for them with size=(image.height, image.width)"
        )
    _check_options(len(labels), background, opacity)
    shares = shares_of(indices, len(labels))
    painted = Image.fromarray(_paint(image, indices.numpy(), len(labels), background, opacity))
    _draw_numbers(painted, indices, shares, background)
    return _with_legend(painted, labels, shares, background)


def shares_of(indices: Tensor, classes: int) -> list[float]:
    """Return the share of pixels that each class has, from 0 to 1.

    Args:
        indices: the class of each pixel, of any shape, integers from 0.
        classes: how many there are.

    Raises:
        ConfigError: if there is a class of another number, or numbers are no integers.
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ConfigError(
            f"classes must be integers, not {indices.dtype}: scores (C, H, W) become such by "
            "scores.argmax(dim=0)"
        )
    indices = indices.long()
    if indices.numel() and (lowest := int(indices.min())) < 0:
        raise ConfigError(f"class {lowest} has no label: classes are numbered from 0")
    counts = torch.bincount(indices.flatten(), minlength=classes)
    if len(counts) > classes:
        raise ConfigError(f"class {len(counts) - 1} has no label: there are {classes}")
    return cast("list[float]", (counts.double() / indices.numel()).tolist())


def _check_options(classes: int, background: object, opacity: object) -> None:
    """Raise `ConfigError` unless the background is a class or None, and the opacity a share."""
    if background is not None and not (
        (is_count(background) or background == 0) and cast("int", background) < classes
    ):
        raise ConfigError(
            f"background must be the number of a class, 0 to {classes - 1}, or None, not "
            f"{background!r:.60}"
        )
    if not is_number(opacity) or not 0 <= cast("float", opacity) <= 1:
        raise ConfigError(f"opacity must be a number from 0 to 1, not {opacity!r:.60}")


def _paint(
    image: "Image",
    indices: NDArray[np.int64],
    classes: int,
    background: int | None,
    opacity: float,
) -> NDArray[np.uint8]:
    """Return the photo with colors and outlines, (H, W, 3) uint8."""
    photo = np.asarray(image.convert("RGB"), dtype=np.float32)
    colors = np.array([color_of(index) for index in range(classes)], dtype=np.float32)
    strength = np.full(classes, opacity, dtype=np.float32)
    if background is not None:
        strength[background] = 0
    share = strength[indices][:, :, None]  # (H, W, 1)
    painted = np.asarray((1 - share) * photo + share * colors[indices], dtype=np.float32)
    painted[edges_of(indices)] = 255
    return np.asarray(painted.round(), dtype=np.uint8)


def edges_of(indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return where the class (H, W) is another than to the left or above, (H, W) bool."""
    edges = np.zeros(indices.shape, dtype=bool)
    edges[:, 1:] |= indices[:, 1:] != indices[:, :-1]
    edges[1:] |= indices[1:] != indices[:-1]
    return edges


def _draw_numbers(
    image: "Image", indices: Tensor, shares: Sequence[float], background: int | None
) -> None:
    """Write the number of each class where its region is widest, in place."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(image)
    font = _font(image)
    for index, share in enumerate(shares):
        if index == background or share < _SMALLEST_SHARE:
            continue
        row, column = _widest_place(indices == index)
        _draw_badge(draw, (column, row), str(index + 1), font)


def _widest_place(mask: Tensor) -> tuple[int, int]:
    """Return a pixel (row, column) of a mask that is as far from its edge as any, or nearly."""
    height, width = mask.shape
    scale = min(1.0, _SEARCH_SIDE / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    left = F.interpolate(mask[None, None].float(), size, mode="area")  # (1, 1, *size)
    while True:
        smaller = -F.max_pool2d(-F.pad(left, (1, 1, 1, 1)), 3, stride=1)  # the edge moves inwards
        if not (smaller > 0.5).any():
            break
        left = smaller
    row, column = divmod(int(left.flatten().argmax()), size[1])
    return int((row + 0.5) * height / size[0]), int((column + 0.5) * width / size[1])


def _draw_badge(
    draw: "ImageDraw",
    center: tuple[float, float],
    text: str,
    font: "FreeTypeFont | ImageFont",
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


def _with_legend(
    image: "Image", labels: Sequence[str], shares: Sequence[float], background: int | None
) -> "Image":
    """Return the image with a legend below it, in rows as wide as the image."""
    from PIL import Image, ImageDraw

    font = _font(image)
    draw = ImageDraw.Draw(image)
    texts = [f"{label}  {share:.0%}" for label, share in zip(labels, shares, strict=True)]
    swatch = int(draw.textbbox((0, 0), "88", font=font)[3]) + 10
    widths = [int(draw.textlength(text, font=font)) + 2 * swatch + 24 for text in texts]
    canvas_width = max(image.width, *widths)
    places: list[tuple[int, int]] = []
    x, y = 0, image.height + 8
    for width in widths:
        if x and x + width > canvas_width:
            x, y = 0, y + swatch + 8
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (canvas_width, y + swatch + 8), "white")
    canvas.paste(image, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, (text, (x, y)) in enumerate(zip(texts, places, strict=True)):
        box = (x + 8, y, x + 8 + 2 * swatch, y + swatch)
        is_shown = index != background
        draw.rectangle(box, fill=color_of(index) if is_shown else "white", outline=(90, 90, 90))
        if is_shown:
            middle = (x + 8 + swatch, y + swatch / 2)
            _draw_badge(draw, middle, str(index + 1), font)
        bottom = draw.textbbox((0, 0), text, font=font)[3]
        draw.text((x + 16 + 2 * swatch, y + (swatch - bottom) / 2), text, fill="black", font=font)
    return canvas


def _font(image: "Image") -> "FreeTypeFont | ImageFont":
    """Return Pillow's own font, in a size that suits the image where Pillow can scale it."""
    from PIL import ImageFont

    size = min(max(min(image.size) // 24, 12), 40)
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # before Pillow 10.1, or without FreeType
        return ImageFont.load_default()
