"""Which of torch's kernels computes: the modules of both towers ask here."""

import functools
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def recording() -> bool:
    """Whether torch.compile, torch.export or a tracer records a graph, which must not branch on the data."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL does here: on AMD it does, by 1.1 to 3 times.

    By vendor, for a measurement would fall out by chance at times, and another run would not give the same bits.
    """
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = platform.processor()  # on Windows it names the vendor
    return "AuthenticAMD" in about


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`F.linear`, by whichever of torch's libraries is faster for float32 on this CPU; equal to float noise.

    `torch.backends.mkldnn.flags(enabled=False)` keeps to BLAS, as do gradients and graphs that are being recorded.
    """
    plain = (
        weight.dtype is not torch.float32
        or weight.device.type != "cpu"
        or torch.is_grad_enabled()
        or recording()
        or torch.is_autocast_enabled("cpu")
        or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)
    )
    return F.linear(x, weight, bias) if plain or not _onednn_is_faster() else _onednn_linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` that computes by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
