"""Make small copies of images that a page can hold in itself."""

import base64
import io
import os
from collections.abc import Mapping
from typing import Any, cast

from clipkit.data.arrays import is_array_image
from clipkit.data.decode import is_encoded, read_image
from clipkit.errors import ImageError

SIDE = 160  # pixels of the longer side, at most
_QUALITY = 80  # of the JPEG; such an image takes about 6 kB, and 25 kB if it is noise


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
        small = read_image(image).copy()  # or the caller's own image would shrink
        small.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        small.convert("RGB").save(file, "JPEG", quality=_QUALITY)
    except (ImageError, OSError):  # it may have been moved since it was measured
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


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
