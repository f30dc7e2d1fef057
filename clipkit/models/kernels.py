"""Which of torch's kernels computes: the modules of both towers ask here."""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.errors import ConfigError


def recording() -> bool:
    """Whether torch.compile, torch.export or a tracer records a graph, which must not branch on the data."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL does here, as on AMD.

    By vendor, for a measurement would fall out by chance at times, and another run would not give the same bits.
    """
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = platform.processor()  # on Windows it names the vendor
    return "AuthenticAMD" in about


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """`F.linear`, by whichever of torch's libraries is faster for float32 on this CPU; equal to float noise.

    `torch.backends.mkldnn.flags(enabled=False)` keeps to BLAS, as do gradients and graphs that are being recorded.
    A weight from `pack` has left that choice behind, and it alone can have an activation, by oneDNN's name for it.
    """
    if weight.is_mkldnn:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ConfigError(
                "a model from optimize() has no gradients: take those of the model that it is a copy of"
            )
        if torch.is_autocast_enabled("cpu"):
            raise ConfigError(
                "a model from optimize() takes no autocast: cast the model it is of, and optimize that"
            )
        return _onednn_linear(x, weight, bias, activation)
    plain = (
        weight.dtype is not torch.float32
        or weight.device.type != "cpu"
        or torch.is_grad_enabled()
        or recording()
        or torch.is_autocast_enabled("cpu")
        or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    )
    return (
        F.linear(x, weight, bias)
        if plain or not _onednn_is_faster()
        else _onednn_linear(x, weight, bias, "none")
    )


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN is what multiplies by this weight, and would do so faster if it were packed."""
    if weight.device.type != "cpu" or not (
        torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    ):
        return False
    if weight.dtype is torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype is torch.float32 and _onednn_is_faster()


class PackedWeight(nn.Parameter):
    """A weight in oneDNN's own order, which torch by itself can neither copy nor pickle."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedWeight":
        memo[id(self)] = PackedWeight(self.data.clone(), requires_grad=False)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return pack, (self.to_dense(),)


def pack(weight: Tensor) -> PackedWeight:
    """A weight (out, in) for `linear` alone, ordered as oneDNN reads it."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return PackedWeight(packed, requires_grad=False)


class Linear(nn.Linear):
    """`nn.Linear` that computes by `linear`."""

    activation = "none"

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.activation)


class Patches(nn.Conv2d):
    """A convolution of square windows side by side: one product of all patches with the weight, by `linear`.

    With another `stride`, as is set for denser maps, it is the ordinary convolution.
    """

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__(channels, width, size, stride=size, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, width, rows, columns), without what is left over at the right and bottom edge."""
        if self.stride != self.kernel_size:
            return super().forward(images)
        size = self.kernel_size[0]
        rows, columns = (side // size for side in images.shape[2:])
        x = (
            images[:, :, : rows * size, : columns * size]
            .unflatten(2, (rows, size))
            .unflatten(4, (columns, size))
        )
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(
            3
        )  # (N, C, rows, size, columns, size) -> (N, rows, columns, C x size²)
        weight = (
            self.weight if self.weight.is_mkldnn else self.weight.flatten(1)
        )  # packed, it is flat already
        return linear(x, weight, None).permute(0, 3, 1, 2)
