"""Low-rank changes of linear maps, which are trained while the maps stay as they are."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Projection = Literal["q", "k", "v"]

PROJECTIONS: tuple[Projection, ...] = ("q", "k", "v")  # in the order of their rows when fused


class Change(nn.Module):
    """Compute a low-rank change of a linear map from W numbers to W numbers.

    Args:
        width: W.
        rank: of the change, from 1.
        scale: that multiplies it.
        dropout: the share of the input's numbers that is left out in training.
    """

    def __init__(self, width: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))  # so it starts as no change at all
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as LoRA's code does
        self.scale = scale
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., W) to (..., W)."""
        dtype = x.dtype
        x = F.dropout(x, self.dropout, self.training).to(self.down.dtype)
        return (self.scale * F.linear(F.linear(x, self.down), self.up)).to(dtype)

    def weight(self) -> Tensor:
        """Return what is added to the map's weight, (W, W), at least float32."""
        dtype = torch.promote_types(self.up.dtype, torch.float32)
        return self.scale * (self.up.detach().to(dtype) @ self.down.detach().to(dtype))


class FusedChange(nn.Module):
    """Change queries, keys and values that one projection makes together.

    Args:
        changes: by the name of the projection. What has no change stays as it is.
        width: W, of each of the three.
    """

    def __init__(self, changes: dict[Projection, Change], width: int) -> None:
        super().__init__()
        self.width = width
        for name in PROJECTIONS:
            self.add_module(name, changes.get(name))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., W) to (..., 3W)."""
        return torch.cat([self._change(change, x) for change in self._changes()], dim=-1)

    def weight(self) -> Tensor:
        """Return what is added to the fused weight, (3W, W), at least float32."""
        rows = [
            self._nothing() if change is None else change.weight() for change in self._changes()
        ]
        return torch.cat(rows)

    def _changes(self) -> list[Change | None]:
        found = [self._modules[name] for name in PROJECTIONS]
        return [change if isinstance(change, Change) else None for change in found]

    def _change(self, change: Change | None, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if change is None else change(x)

    def _nothing(self) -> Tensor:
        """Return the weight of no change, (W, W)."""
        weight = next(self.parameters())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return weight.new_zeros(self.width, self.width, dtype=dtype)


class ChangedLinear(nn.Module):
    """Apply a linear layer and add its change.

    Args:
        layer: the layer, which is not trained.
        change: of the same widths.
    """

    def __init__(self, layer: nn.Linear, change: Change) -> None:
        super().__init__()
        self.layer = layer
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.layer(x) + self.change(x)


def has_changes(model: nn.Module) -> bool:
    """Return whether a module has low-rank changes that are not merged."""
    return any(isinstance(module, Change) for module in model.modules())
