"""Read the images of a contact sheet one after the other, and say what of them can be compared."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from clipkit.data.thumbnails import measured_copy
from clipkit.errors import ImageError
from clipkit.files import sha256


@dataclass(frozen=True)
class Shown:
    """Hold what a page shows of an image.

    Attributes:
        path: as it was given.
        uri: a small copy; "" if the image cannot be read.
        problem: why it cannot be read.
        width, height: pixels of the image itself, upright.
        size: bytes of its file.
    """

    path: str
    uri: str = ""
    problem: str = ""
    width: int = 0
    height: int = 0
    size: int = 0


def look_at(path: str, side: int) -> Shown:
    """Return what a page shows of an image, with a small copy of `side` pixels at most."""
    try:
        copy = measured_copy(path, side)
        return Shown(path, copy.uri, "", copy.width, copy.height, os.path.getsize(path))
    except (ImageError, OSError) as error:
        return Shown(path, problem=_problem(path, error))


def _problem(path: str, error: Exception) -> str:
    """Return why an image cannot be read, without its path, which stands beside it."""
    if not os.path.lexists(path):
        return "it is not there any more"
    return str(error).replace(f"the image at the path {path!r}", "it")


def are_copies(images: Sequence[Shown]) -> bool:
    """Return whether files are the same byte for byte."""
    if len({image.size for image in images}) != 1 or any(image.problem for image in images):
        return False
    try:
        return len({sha256(image.path) for image in images}) == 1
    except OSError:  # one was removed in this moment
        return False


def largest_of(images: Sequence[Shown]) -> set[str]:
    """Return the paths of the images with the most pixels, of these the largest files.

    Where all are of one size there is none.
    """
    sizes = [(image.width * image.height, image.size) for image in images]
    largest = max(sizes)
    if min(sizes) == largest:
        return set()
    return {image.path for image, size in zip(images, sizes, strict=True) if size == largest}
