"""Read image files as upright PIL images with 8 bits per channel."""

import functools
import io
import logging
import os
import stat
import threading
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clipkit.data.arrays import describe_array, image_of_array
from clipkit.errors import ImageError
from clipkit.files import address_scheme

if TYPE_CHECKING:
    from PIL.Image import Image

_LOG = logging.getLogger("clipkit")

_File: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes]"
Readable: TypeAlias = "Image | str | os.PathLike[str] | bytes | IO[bytes] | NDArray[np.uint8]"

# What Pillow opens and is no raster image: EPS would start Ghostscript, the others need a program
# beside Pillow or hold no pixels. A file of any other name could be one of them.
_NO_RASTER = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"}

# The EXIF tag of the orientation, and PIL's name for the turn that undoes each of its values
# (CIPA DC-008, section 4.6.4). The value 1 is upright.
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

# These modes hold transparency, or may hold it.
_TRANSPARENT_MODES = {"P", "PA", "LA", "La", "RGBA", "RGBa"}
_LIMIT = "PIL.Image.MAX_IMAGE_PIXELS"
_ROWS = 256  # of an image that are scaled at a time, to need little memory beside it

# Pillow decodes an image that it has opened, and reads its EXIF, when somebody first asks. Threads
# that share the image would read from its one file at once. Few locks do: threads rarely meet.
_LOCKS = tuple(threading.Lock() for _ in range(64))


def raster_formats() -> list[str]:
    """Return the names of the raster formats that Pillow opens, with those of its plug-ins.

    A plug-in adds its own when it is registered. pillow-heif, which reads HEIC, is registered here
    if it is installed.
    """
    from PIL import Image

    Image.init()
    _register_heif()
    # A copy, because another thread may be adding formats for the first time.
    return [name for name in list(Image.OPEN) if name not in _NO_RASTER]


@functools.cache
def _register_heif() -> None:
    """Let Pillow read HEIC, as phones write it, where pillow-heif is installed."""
    try:
        pillow_heif: Any = import_module("pillow_heif")
    except ImportError:  # it is not, or is one of another machine
        return
    pillow_heif.register_heif_opener()


def image_suffixes() -> set[str]:
    """Return the endings of file names, in lower case, by which images are found in folders.

    Example:
        ".jpg" in image_suffixes(), ".avif" in image_suffixes()  # (True, True)
    """
    from PIL import Image

    # MPO files, several JPEGs in one, are opened as JPEG and have no entry of their own.
    formats = {*raster_formats(), "MPO"}
    every = list(Image.registered_extensions().items())  # a copy, as above
    return {suffix for suffix, name in every if name in formats}


def is_encoded(image: object) -> bool:
    """Return whether this is an image file's bytes, or an open file that has them."""
    return isinstance(image, bytes | bytearray | memoryview) or hasattr(image, "read")


def read_image(image: Readable, *, least_side: int | None = None) -> "Image":
    """Decode an image, turn it upright, and reduce it to 8 bits per channel.

    Transparent parts become white. 16-bit gray is scaled to 8 bits. An image that was opened from a
    file is turned as its EXIF says. One that was made from another, by `rotate` for instance, still
    has the other's EXIF in Pillow, which says nothing about it.

    Args:
        image: a path, the bytes of a file, an open file, a PIL image, or a NumPy array: uint8 in
            0-255, RGB (h, w, 3) in that order of channels, RGBA (h, w, 4) or gray (h, w). It is
            left as it is, and left open. Vector graphics such as EPS are refused, since Pillow
            would start another program.
        least_side: decode a JPEG file at the smallest of 1/2, 1/4 and 1/8 of its size of which no
            side is below so many pixels, if any. All other images come in their full size.

    Returns:
        A PIL image in mode L, RGB or CMYK. Reading it again changes nothing.

    Raises:
        ImageError: if it cannot be read. The reason is its cause. A `MemoryError` stays what it
            is, for it says nothing about the image.

    Example:
        image = read_image("photo.jpg").crop((0, 0, 224, 224))
    """
    from PIL import Image

    try:
        if isinstance(image, Image.Image):
            with _LOCKS[id(image) // 16 % len(_LOCKS)]:  # addresses are multiples of 16
                return _eight_bit(image)
        if isinstance(image, np.ndarray):
            return _eight_bit(image_of_array(image))
        return _decode(image, least_side)
    except MemoryError:
        raise
    except ImageError as error:
        raise ImageError(f"cannot use {_describe(image)}: {error}") from error
    except FileNotFoundError as error:
        is_address = isinstance(image, str) and address_scheme(image) is not None
        remedy = "Check its spelling and the working directory"
        if is_address:
            remedy = "Download it first, and pass its path or its bytes"
        raise ImageError(f"cannot find {_describe(image)}. {remedy}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{_describe(image)} is larger than Pillow opens by default: {error}. If you trust it, "
            f"set {_LIMIT} to its number of pixels"
        ) from error
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise ImageError(
            f"cannot read {_describe(image)}: {_reason(error)}. Is it complete, and of a type that "
            "Pillow reads?"
        ) from error


def _decode(file: _File, least_side: int | None) -> "Image":
    """Return what is in an image file. Arguments are those of `read_image`."""
    from PIL import Image

    if isinstance(file, str | os.PathLike):
        _check_file(file)
    readable: str | os.PathLike[str] | IO[bytes] = (
        io.BytesIO(file) if isinstance(file, bytes | bytearray | memoryview) else file
    )
    opened = Image.open(readable, formats=raster_formats())
    with opened:
        if least_side is not None:
            opened.draft(None, (least_side, least_side))
        return _eight_bit(opened)


def _check_file(path: str | os.PathLike[str]) -> None:
    """Raise `ImageError` for what is no regular file: to open a pipe may take for ever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("it is a folder, which stands by itself and not in a list")
    if not stat.S_ISREG(mode):
        raise ImageError("it is no regular file: read it, and pass its bytes")


def _reason(error: Exception) -> str:
    """Return what an error says, without the path that the message has already."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _describe(image: Readable) -> str:
    """Return words that name an image in an error message."""
    from PIL.Image import Image

    if isinstance(image, Image):
        return f"the PIL image (mode {image.mode}, size {image.size})"
    if isinstance(image, np.ndarray):
        return describe_array(image)
    if isinstance(image, str | os.PathLike):
        return f"the image at the path {os.fspath(image)!r}"
    if isinstance(image, bytes | bytearray | memoryview):
        return f"the image in {len(image):,} bytes"
    return "the image in the open file"


def _eight_bit(image: "Image") -> "Image":
    """Return the image upright, in mode L, RGB or CMYK.

    These three are resized as they are, as OpenAI's transform does.
    """
    if 0 in image.size:
        raise ImageError("it has no pixels")
    image.load()
    # What is made of an image has no format. That tells images of files from others.
    file = None if image.format is None else getattr(image, "filename", "")
    image = _upright(image)
    if image.mode == "F":
        raise ImageError(
            "mode F holds floats of unknown range. Scale them to 0-255 and convert them with "
            "PIL.Image.fromarray(array.astype('uint8')), or pass a float tensor (3, h, w) in 0-1"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scale_16_bit_gray(image, file)
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        return _lay_over_white(image)
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _scale_16_bit_gray(image: "Image", file: str | None) -> "Image":
    """Return 16-bit gray in mode L. PIL's own conversion would clip nearly all of it to white.

    Args:
        image: in mode I or I;16.
        file: the name of its file, "" if it has none; None for an image that a program made.
    """
    from PIL import Image

    _refuse_large(image)
    levels = np.asarray(image)
    low, high = int(levels.min()), int(levels.max())
    if file is None and low >= 0 and high <= 255:
        return Image.fromarray(levels.astype(np.uint8))  # 8-bit gray in an array of integers
    if low < 0 or high > 65535:
        raise ImageError(
            f"its integers run from {low} to {high}, but 16-bit gray is 0-65535. Scale them first"
        )
    if 0 < high < 1 << 12:
        _tell_of_dark_file(file or f"of size {image.size}", high)
    scaled = np.empty(levels.shape, np.uint8)
    for start in range(0, len(levels), _ROWS):
        rows = levels[start : start + _ROWS].astype(np.int32)
        # 65535 is 255 x 257, so adding half of 257 first rounds to the nearest level.
        scaled[start : start + _ROWS] = (rows + 128) // 257
    return Image.fromarray(scaled)


@functools.lru_cache(maxsize=4096)  # once for each file
def _tell_of_dark_file(name: str, high: int) -> None:
    """Say in the log that an image of 16 bits is dark, as one of 8 or 12 bits in 16 would be."""
    bits = 8 if high < 1 << 8 else 12
    _LOG.warning(
        "the 16-bit image %s has no value above %d and is read as nearly black. If its white is "
        "%d, multiply it first: Image.fromarray(numpy.asarray(image) * %d)",
        name,
        high,
        (1 << bits) - 1,
        65535 // ((1 << bits) - 1),
    )


def _refuse_large(image: "Image") -> None:
    """Raise `ImageError` for an image that copies of it would make several times as large."""
    from PIL.Image import MAX_IMAGE_PIXELS

    if MAX_IMAGE_PIXELS is not None and image.width * image.height > MAX_IMAGE_PIXELS:
        raise ImageError(
            f"its {image.width} x {image.height} pixels of mode {image.mode} would take several "
            f"gigabytes. If you trust it, set {_LIMIT} to its number of pixels"
        )


def _lay_over_white(image: "Image") -> "Image":
    """Return an image in mode RGB that is white where this one is transparent."""
    from PIL import Image

    _refuse_large(image)
    if image.mode == "La":  # premultiplied gray, which PIL converts to nothing but LA
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _upright(image: "Image") -> "Image":
    """Return the image turned as its EXIF says, or as it is where EXIF is missing or broken.

    PIL's own `exif_transpose` copies upright images too. It also rewrites the metadata, which fails
    where they are broken.
    """
    from PIL.Image import Transpose

    if image.format is None:  # made from another image, whose EXIF it may still have
        return image
    try:
        turn = _EXIF_TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except MemoryError:
        raise
    except Exception:  # the pixels are loaded and sound: broken metadata is no reason to lose them
        return image
    if turn is None:
        return image
    _refuse_large(image)
    info = image.info
    image = image.transpose(Transpose[turn])
    # With the old metadata it would be turned again. The transparent color is still needed.
    image.info = {"transparency": info["transparency"]} if "transparency" in info else {}
    return image
