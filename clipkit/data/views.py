"""See an image several times: as it is, mirrored, and in parts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clipkit.data.decode import Readable
from clipkit.data.pictures import Transform, read_for
from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

VIEW_COUNTS = (1, 2, 10)
PART = 0.8  # of both sides of an image, that each of its parts has


def check_views(views: object) -> None:
    """Raise `ConfigError` unless an image can be seen so many times."""
    if isinstance(views, bool) or views not in VIEW_COUNTS:
        raise ConfigError(
            f"views must be 1 for the image as it is, 2 for it and its mirror image, or 10 for its "
            f"corners and its middle with theirs, not {views!r}"
        )


@dataclass(frozen=True)
class Views:
    """Prepare several views of an image, always the same ones.

    Args:
        preprocess: prepares one view: (3, H, W) of an RGB PIL image or a tensor.
        count: 2 for the image and its mirror image; 10 for its four corners and its middle, each
            0.8 of its height and width, and their mirror images.

    Example:
        transform = Views(model.preprocess, 2)
        views = transform(image)  # (2, 3, H, W)
    """

    preprocess: Transform
    count: int

    @property
    def reduced_jpegs(self) -> bool:
        """Return whether JPEG files are decoded at a reduced size."""
        return getattr(self.preprocess, "reduced_jpegs", False)

    def read_source(self, image: Readable) -> "Image":
        """Return an image as the preprocessing reads it."""
        return read_for(self.preprocess, image)

    def __call__(self, image: Any) -> Tensor:
        """Return the views of a PIL or NumPy image, or a tensor (3, h, w): (V, 3, H, W)."""
        if not isinstance(image, Tensor):
            image = self.read_source(image).convert("RGB")
        parts = [image] if self.count == 2 else _parts_of(image)
        views = [self.preprocess(view) for part in parts for view in (part, _mirror(part))]
        return torch.stack(views)


def _parts_of(image: Any) -> list[Any]:
    """Return the four corners and the middle of an image."""
    height, width = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
    rows, columns = (max(1, round(PART * side)) for side in (height, width))
    bottom, right = height - rows, width - columns
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return [_crop(image, top, left, rows, columns) for top, left in corners]


def _crop(image: Any, top: int, left: int, rows: int, columns: int) -> Any:
    if isinstance(image, Tensor):
        return image[..., top : top + rows, left : left + columns]
    return image.crop((left, top, left + columns, top + rows))


def _mirror(image: Any) -> Any:
    from PIL.Image import Transpose

    if isinstance(image, Tensor):
        return image.flip(-1)
    return image.transpose(Transpose.FLIP_LEFT_RIGHT)
