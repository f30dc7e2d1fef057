"""Hold an explanation, and bring its map to the size of an image."""

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit.errors import ConfigError
from clipkit.inspect.towers import RESNET_STRIDE, grid_of, patch_and_stride, vit_of
from clipkit.models.resnet import ModifiedResNet

Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Hold what `explain` found. All tensors are float32 on the CPU.

    `plots.heat_map(explanation.pixels, explanation.upsample())` draws the map over the image.

    Attributes:
        method: the one that was used.
        similarity: the cosine of the image's and the text's features; of a classifier the logit of
            the class.
        heat_map: (rows, columns) of the image tower's grid; of `rise`, of pixels. The higher, the
            more a place speaks for the text. The unit is the method's own: maps of one method can
            be compared, and those of two methods cannot. Only `rise` has negative values, where a
            place speaks against the text.
        pixels: (H, W, 3) uint8 RGB, the image as the tower saw it: after preprocessing, which may
            have cropped it. Its mean and standard deviation are taken off again.
        seen: (height, width) in pixels of the part of it, from the top left, that the map covers.
        tokens: the strings of the text's tokens, without start and end; None where the method has
            no values for them, or a feature or a class was given in the place of a text.
        token_values: (tokens,), how much each speaks for the image; None where `tokens` is.
        token_words: the text's words, each with the number of its tokens; None where `tokens` is.

    Example:
        explanation = clipkit.inspect.explain(model, "cat.jpg", "a photo of a cat")
        explanation.upsample().argmax()  # the pixel that says most
    """

    method: str
    similarity: float
    heat_map: Tensor
    pixels: NDArray[np.uint8]
    seen: Size
    tokens: list[str] | None = None
    token_values: Tensor | None = None
    token_words: list[tuple[str, int]] | None = None

    def upsample(self, size: Size | None = None) -> Tensor:
        """Return the map at the size of the image, (H, W) float32, by linear interpolation.

        Args:
            size: (height, width) in pixels, over which the image as the tower saw it is spread;
                that of `pixels` if not given. Pixels that the tower did not see get 0.

        Raises:
            ConfigError: if the size is impossible.
        """
        full = _enlarge(self.heat_map, self.seen)
        height, width = self.pixels.shape[:2]
        full = full[:height, :width]
        full = F.pad(full, (0, width - full.shape[1], 0, height - full.shape[0]))
        if size is None:
            return full
        if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
            raise ConfigError(f"size must be (height, width), two positive integers, not {size!r}")
        return _enlarge(full, size)

    @property
    def words(self) -> list[tuple[str, float]] | None:
        """Return the words of the text, each with the sum of its tokens' values, or None.

        It is None where `tokens` is. Punctuation marks are words of their own.
        """
        if self.token_values is None or self.token_words is None:
            return None
        words: list[tuple[str, float]] = []
        start = 0
        for word, count in self.token_words:
            words.append((word, float(self.token_values[start : start + count].sum())))
            start += count
        return words

    def __repr__(self) -> str:
        rows, columns = self.heat_map.shape
        return (
            f"Explanation({self.method}, similarity={self.similarity:.4f}, "
            f"heat_map: {rows} x {columns}, "
            f"tokens: {'none' if self.tokens is None else len(self.tokens)})"
        )


def seen_size(visual: nn.Module, image: Tensor) -> Size:
    """Return the (height, width) in pixels that the grid of an image tower covers.

    A ResNet's grid may cover a pixel more than there is.

    Args:
        visual: the image tower.
        image: (N, 3, H, W).
    """
    rows, columns = grid_of(visual, image)
    if isinstance(visual, ModifiedResNet):
        return rows * RESNET_STRIDE, columns * RESNET_STRIDE
    patch, stride = patch_and_stride(vit_of(visual))
    return (rows - 1) * stride + patch, (columns - 1) * stride + patch


def _enlarge(heat_map: Tensor, size: Size) -> Tensor:
    """Return a map of another size by linear interpolation: (h, w) -> (H, W)."""
    if tuple(heat_map.shape) == size:
        return heat_map
    enlarged = F.interpolate(
        heat_map[None, None], size, mode="bilinear", align_corners=False
    )  # (h, w) -> (1, 1, H, W)
    return enlarged[0, 0]
