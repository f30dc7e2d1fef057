"""Read NumPy arrays as images, where their layout leaves no doubt."""

from typing import TYPE_CHECKING, Any, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

_LAYOUT = "A NumPy image is uint8 in 0-255: RGB (h, w, 3), RGBA (h, w, 4) or gray (h, w)"


def is_array(value: object) -> TypeGuard[NDArray[Any]]:
    """Return whether this is a NumPy array of any dtype and shape."""
    return isinstance(value, np.ndarray)


def is_array_image(value: object) -> bool:
    """Return whether this is an array that can only be meant as one image.

    That is one with three axes, or a gray one: two axes of uint8. Other numbers on two axes are
    features. Whether the image can be used, `image_of_array` says.
    """
    if not is_array(value):
        return False
    return value.ndim == 3 or (value.ndim == 2 and value.dtype == np.uint8)


def is_array_of_images(value: object) -> bool:
    """Return whether this is an array of images of one size, (N, h, w, 3) or (N, h, w, 4)."""
    return is_array(value) and value.ndim == 4 and value.dtype == np.uint8


def image_of_array(array: NDArray[Any]) -> "Image":
    """Return an array as a PIL image in mode RGB, RGBA or L.

    Args:
        array: (h, w, 3) in the order red, green, blue; (h, w, 4) with the opacity behind them; or
            gray (h, w); uint8 in 0-255.

    Raises:
        ImageError: for any other dtype or shape. The message has what makes it one of these.
    """
    from PIL import Image

    if 0 in array.shape:
        raise ImageError("it has no pixels")
    has_shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if has_shape and array.dtype == np.uint8:
        return Image.fromarray(array)
    raise ImageError(f"{_LAYOUT}. {_remedy(array, has_shape)}")


def _remedy(array: NDArray[Any], has_shape: bool) -> str:
    """Return what to do with an array that is no image yet."""
    if not has_shape:
        if array.ndim == 3 and array.shape[2] == 1:
            return "Pass array[:, :, 0] for gray with an axis of its own"
        if array.ndim == 3 and array.shape[0] in (3, 4):
            return "Pass array.transpose(1, 2, 0) for one of (3, h, w)"
        return "Pass list(array) for several images"
    if array.dtype.kind == "f":
        return "Pass (array * 255).round().astype('uint8') for floats in 0-1"
    if array.dtype == np.uint16:
        return "Pass (array // 257).astype('uint8') for 16 bits"
    return "Pass array.astype('uint8') if its values are in 0-255"


def describe_array(array: NDArray[Any]) -> str:
    """Return words that name an array in an error message."""
    return f"the NumPy array ({array.dtype}, shape {cast('tuple[int, ...]', array.shape)})"
