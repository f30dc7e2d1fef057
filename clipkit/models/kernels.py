"""Which of torch's kernels computes: the modules of both towers ask here."""

import functools
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def recording() -> bool:
    """Whether torch.compile, torch.export or a tracer records a graph, which must not branch on the data."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than BLAS does here: on AMD it does, by up to three times."""
    ones = functools.partial(torch.ones, dtype=torch.float32, device="cpu")
    x, weight = ones(256, 768), ones(768, 768)  # drawing random ones would change what the caller draws next
    seconds: dict[Any, float] = {}
    for function in (F.linear, _onednn_linear) * 10:
        start = time.perf_counter()
        function(x, weight, None)
        seconds[function] = min(seconds.get(function, math.inf), time.perf_counter() - start)
    return seconds[_onednn_linear] < seconds[F.linear]


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
