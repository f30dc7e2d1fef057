"""Know the model of an index again by what it makes of a few fixed images and texts.

Digests of its weights would not do: on CUDA they are in half precision, `optimize` packs them, and
the features are nearly the same. What counts for a search is that they can be compared.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipkit.errors import ConfigError
from clipkit.search.arrays import map_arrays, write_arrays
from clipkit.search.encoder import Encoder
from clipkit.search.store import Floats

if TYPE_CHECKING:
    from PIL.Image import Image

PROBE = "model.safetensors"

_TEXTS = ("a photo of a cat", "a red square on white", "the sea at night", "a page of a book")
_SIDE = 64  # pixels
_ALIKE = 0.99  # the cosine that half precision leaves above; other models are far below


def write_probe(encoder: Encoder, folder: Path) -> int:
    """Write what a model makes of the images and texts, and return the width of its features."""
    images = encoder.images(probe_images())
    write_arrays({"images": images, "texts": encoder.texts(_TEXTS)}, folder / PROBE)
    return images.shape[1]


def check_images(encoder: Encoder, folder: Path) -> None:
    """Raise `ConfigError` unless a model makes the same of images as that of the index."""
    _check(encoder.images(probe_images()), map_arrays(folder / PROBE)["images"], folder, "images")


def check_texts(encoder: Encoder, folder: Path) -> None:
    """Raise `ConfigError` unless a model makes the same of texts as that of the index."""
    _check(encoder.texts(_TEXTS), map_arrays(folder / PROBE)["texts"], folder, "texts")


def probe_images() -> "list[Image]":
    """Return images that are the same everywhere: slopes, stripes, rings and squares of color."""
    from PIL import Image

    rows, columns = np.mgrid[:_SIDE, :_SIDE]  # (64, 64) each
    slopes = np.stack([rows * 4, columns * 4, 255 - rows * 4], axis=2)
    stripes = np.stack([(columns // 8 % 2) * 255, (columns // 4 % 2) * 255, rows * 2], axis=2)
    distance = np.sqrt((rows - 32.0) ** 2 + (columns - 32.0) ** 2)
    rings = np.stack([(distance // 6 % 2) * 200, 40 + distance * 3, 255 - distance * 5], axis=2)
    squares = np.stack([rows // 16 * 80, columns // 16 * 80, (rows + columns) // 16 * 30], axis=2)
    arrays = [slopes, stripes, rings, squares]
    return [Image.fromarray(array.clip(0, 255).astype(np.uint8)) for array in arrays]


def _check(found: Floats, known: Floats, folder: Path, what: str) -> None:
    if found.shape == known.shape:
        cosines = np.einsum("nd,nd->n", found, known)  # (n,)
        if cosines.min() >= _ALIKE:
            return
        problem = f"a cosine of {cosines.min():.2f} between the features of the same {what}"
    else:
        problem = f"features of width {found.shape[1]}, where the index has {known.shape[1]}"
    raise ConfigError(
        f"the index in {folder} was made by another model ({problem}): take that model, or delete "
        "the folder and build the index with this one"
    )
