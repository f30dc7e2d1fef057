"""Make small copies of images that a page can hold in itself."""

import base64
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from clipkit.data.arrays import is_array_image
from clipkit.data.decode import Readable, is_encoded, read_image
from clipkit.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 160  # pixels of the longer side, at most
_QUALITY = 80  # of the JPEG; such an image takes about 6 kB, and 25 kB if it is noise
_GAP = 2.0  # how much larger than the copy an image may be when averages give way to a filter


class SmallCopy(NamedTuple):
    """Hold a small copy of an image, and the size of the image itself."""

    uri: str  # a JPEG
    width: int  # pixels, upright
    height: int


def thumbnail(item: object) -> str | None:
    """Return a small copy of an image as a data URI, or None if there is no image to be read.

    Args:
        item: a path, a PIL image, a NumPy image or a file's bytes; or a tuple that begins with one,
            or a mapping that has one as "image" or "img", as data sets have them. An open file is
            read no second time, and a tensor may be normalized in any way, so they have no copy.

    Example:
        thumbnail("photo.jpg")  # "data:image/jpeg;base64,..."
    """
    image = _image_in(item)
    if image is None:
        return None
    try:
        return small_copy(image)
    except (ImageError, OSError):  # it may have been moved since it was measured
        return None


def small_copy(image: Readable, side: int = SIDE) -> str:
    """Return a small copy of an image as a data URI of a JPEG.

    Args:
        image: what `read_image` takes. It is left as it is.
        side: pixels of the longer side, at most. Smaller images keep their size.

    Raises:
        ImageError: if it cannot be read.
    """
    return measured_copy(image, side).uri


def measured_copy(image: Readable, side: int = SIDE) -> SmallCopy:
    """Return a small copy of an image, with the size of the image itself, as in `small_copy`."""
    from PIL.Image import Resampling

    whole, (width, height) = _read(image, side)
    small = whole.resize(_fitted(whole, side), Resampling.BICUBIC, reducing_gap=_GAP)
    file = io.BytesIO()
    small.convert("RGB").save(file, "JPEG", quality=_QUALITY)
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return SmallCopy(uri, width, height)


def _read(image: Readable, side: int) -> "tuple[Image, tuple[int, int]]":
    """Return an image, upright, and its own size, which may be larger than that of what is read."""
    if isinstance(image, str | os.PathLike) and os.path.isfile(image):
        try:
            return _read_jpeg(os.fspath(image), side)
        except MemoryError:
            raise
        except Exception:  # it is no JPEG; or it is broken, and read_image says in which way
            pass
    upright = read_image(image)
    return upright, upright.size


def _read_jpeg(path: str, side: int) -> "tuple[Image, tuple[int, int]]":
    """Return a JPEG, decoded at a half, a quarter or an eighth of its size where that is enough.

    That takes a quarter of the time for a photo of 12 million pixels.
    """
    from PIL import Image

    opened = Image.open(path, formats=["JPEG"])
    with opened:
        width, height = opened.size
        opened.draft(None, (round(side * _GAP), round(side * _GAP)))
        decoded = opened.size
        upright = read_image(opened)
    return upright, (width, height) if upright.size == decoded else (height, width)


def _fitted(image: "Image", side: int) -> tuple[int, int]:
    """Return the width and the height that an image has in a square, in the same proportion."""
    scale = min(1.0, side / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _image_in(item: Any) -> Any:
    """Return what can be read of an item of a list or a data set; None if nothing can."""
    found = item
    if isinstance(found, Mapping):
        row = cast("Mapping[str, Any]", found)
        found = row.get("image", row.get("img"))
    if isinstance(found, tuple | list) and found:
        found = cast("tuple[Any, ...]", found)[0]
    image = cast(object, found)
    is_path = isinstance(image, str | os.PathLike)
    is_bytes = is_encoded(image) and not hasattr(image, "read")
    is_image = hasattr(image, "getbands") or is_array_image(image)
    return cast(object, image) if is_path or is_bytes or is_image else None
