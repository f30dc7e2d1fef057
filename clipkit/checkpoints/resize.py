"""Resample position embeddings to another resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a grid of position embeddings, bicubic with anti-aliasing.

    The first one belongs to the class token and not to a place in the grid. It is kept.

    Args:
        positions: (1 + rows x columns, W), any float dtype.
        old: (rows, columns) before.
        new: (rows, columns) after.

    Returns:
        (1 + new rows x new columns, W) in the same dtype, computed in float32. It is the very same
        tensor if the grids are equal.

    Example:
        >>> import torch
        >>> resize_positions(torch.randn(1 + 7 * 7, 768), (7, 7), (14, 14)).shape
        torch.Size([197, 768])
    """
    if old == new:
        return positions
    first = positions[:1]
    grid = positions[1:].float().T.reshape(1, -1, *old)  # (places, W) -> (1, W, rows, columns)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    resized = grid.flatten(2)[0].T  # (1, W, new rows, new columns) -> (new places, W)
    return torch.cat([first, resized.to(positions.dtype)])
