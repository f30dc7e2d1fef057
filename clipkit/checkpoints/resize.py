"""Position embeddings resampled to another resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a grid of position embeddings, bicubic with anti-aliasing; the first one, of no place, is kept.

    Args:
        positions: (1 + rows x columns, W), any float dtype.
        old, new: (rows, columns) before and after.

    Returns:
        (1 + new rows x new columns, W) in the same dtype, computed in float32; the very same tensor if old == new.
    """
    if old == new:
        return positions
    first, grid = positions[:1], positions[1:].float()
    grid = grid.T.reshape(1, -1, *old)  # (rows x columns, W) -> (1, W, rows, columns)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid.flatten(2)[0].T.to(positions.dtype)])
