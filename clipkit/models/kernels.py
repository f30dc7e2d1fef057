"""Choose which of torch's kernels computes the linear layers of both towers.

On AMD processors with AVX-512 oneDNN multiplies float32 matrices 1.2 to 2.3 times as fast as MKL,
which `F.linear` uses; on those without, matrices of few rows alone. Torch offers oneDNN for float32
by private ops only. They are tried once before use, they see plain tensors alone, and `F.linear`
does the work wherever they will not do.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx import Proxy
from torch.nn.modules import module as torch_module
from torch.utils import _python_dispatch as dispatch

from clipkit.errors import ConfigError
from clipkit.models.int8 import Int8Scales, multiply, pack_levels, quantize_weight

Fused = Literal["none", "gelu", "swish"]  # oneDNN's names for the activations that it can fuse

# An AMD processor without AVX-512 multiplies float32 matrices of more rows faster by MKL: at 50
# rows oneDNN takes 0.75 of MKL's time, at 257 as much, at 1,600 1.14 times (Zen 3).
MOST_ROWS = 256

# Private functions of torch, and what stands in for one that another version lacks.
_Ask = Callable[[], object]
_torch_c = torch._C  # pyright: ignore[reportPrivateUsage]
_is_transforming: _Ask = getattr(_torch_c, "_are_functorch_transforms_active", lambda: False)
_is_dispatching: _Ask = getattr(dispatch, "is_in_torch_dispatch_mode", lambda: False)
_is_hooked_everywhere: _Ask = getattr(torch_module, "_has_any_global_hook", lambda: True)
_DEFAULT_DEVICE = "torch.utils._device"  # the module of the mode that `torch.device` sets
_is_profiling: _Ask = getattr(torch.autograd, "_profiler_enabled", lambda: False)
_function_modes: Callable[[], list[object]] = getattr(
    torch.overrides, "_get_current_function_mode_stack", list
)


def values_are_known(x: Tensor) -> bool:
    """Return whether code may look at the values of `x`.

    It may not while a graph is recorded (by torch.compile, torch.export, torch.jit.trace or
    torch.fx), which would then hold for this input alone. Nor may it where there are none: in fake
    and meta tensors, and under vmap.
    """
    return (
        type(x) in (Tensor, nn.Parameter)
        and not x.is_meta
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not _is_transforming()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `F.linear(x, weight, bias)`, by the faster of torch's kernels; equal to float noise.

    Args:
        x: (..., in).
        weight: (out, in), or a weight from `pack`.
        bias: (out,).

    Returns:
        (..., out).
    """
    if type(weight) is PackedWeight:
        return _packed_linear(x, weight, bias, "none")
    if _takes_onednn(x, weight):
        return _onednn_linear(x, weight, bias, "none")
    return F.linear(x, weight, bias)


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Return `layer(x)`, by the faster of torch's kernels if `layer` is an ordinary `nn.Linear`.

    The layers are of torch's own class, so that whatever looks for that class (quantization,
    adapters) finds it. What has been put in a layer's place, hooked to it or wrapped around it is
    called as usual.
    """
    if type(layer) is nn.Linear and _takes_onednn(x, layer.weight) and not is_hooked(layer):
        return _onednn_linear(x, layer.weight, layer.bias, "none")
    return layer(x)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN's private op may compute this product, and is the faster one."""
    return (
        not torch.is_grad_enabled()
        and weight.dtype is torch.float32
        and private_ops_will_do(x, weight)
        and _onednn_is_faster()
        and _rows_of(x) <= _most_rows()
        and _onednn_agrees(torch.float32, packed=False)
    )


def _rows_of(x: Tensor) -> int:
    """Return the rows of a matrix (..., in)."""
    return x.numel() // max(1, x.shape[-1])


def private_ops_will_do(x: Tensor, weight: Tensor) -> bool:
    """Return whether one of oneDNN's private ops may compute something of these two.

    Autocast, subclasses of Tensor and whatever watches torch's calls (FlopCounterMode) know nothing
    of them. Nor do gradients, for which the caller looks.
    `torch.backends.mkldnn.flags(enabled=False)` switches them off.
    """
    return (
        x.dtype is weight.dtype
        and type(weight) in (Tensor, nn.Parameter)
        and weight.is_cpu
        and values_are_known(x)
        and not torch.is_autocast_enabled("cpu")
        and not _is_dispatching()
        and not _has_tangents()
        and bool(torch.backends.mkldnn.enabled)
    )


def _has_tangents() -> bool:
    """Return whether forward-mode differentiation is under way, of which the ops know nothing.

    `torch.no_grad` does not switch it off. Transforms of torch.func are seen by
    `values_are_known`.
    """
    return getattr(forward_ad, "_current_level", -1) >= 0


def is_hooked(layer: nn.Module) -> bool:
    """Return whether calling the layer does more than its class's `forward`."""
    if layer._forward_hooks or layer._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
        return True
    return bool(_is_hooked_everywhere()) or "forward" in vars(layer)


def is_watched(module: nn.Module, x: Tensor) -> bool:
    """Return whether a program looks at what passes a module or its parts.

    It does by hooks, or by a symbolic trace, from which torchvision's feature extractors take any
    module's output. Such a program is shown every token. Hooks on all modules of the process are
    those of profilers, which are to see the work as it is done.

    Args:
        module: whose parts may be looked at.
        x: what the module is given.
    """
    return isinstance(x, Proxy) or _has_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    """Return whether a module or a part of it has hooks, for the forward or the backward pass."""
    if module._forward_hooks or module._forward_pre_hooks:  # pyright: ignore[reportPrivateUsage]
        return True
    if vars(module)["_backward_hooks"] or vars(module)["_backward_pre_hooks"]:
        return True
    # Every call of a tower asks, and modules() takes three times as long.
    parts = module._modules.values()  # pyright: ignore[reportPrivateUsage]
    return any(_has_hooks(part) for part in parts if part is not None)


def calls_are_seen() -> bool:
    """Return whether a program looks at all of torch's calls in this thread, or at all modules.

    Counters, profilers and modes such as FlopCounterMode see nothing of what other threads do. A
    default device is such a mode too, but sees nothing.
    """
    modes = [mode for mode in _function_modes() if type(mode).__module__ != _DEFAULT_DEVICE]
    return bool(modes or _is_dispatching() or _is_profiling() or _is_hooked_everywhere())


@functools.cache
def _onednn_is_faster() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster than MKL does here, as on AMD.

    It does up to `_most_rows()`. The vendor decides. A measurement would fall out by chance at
    times, and two runs would not give the same bits.
    """
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = platform.processor()  # on Windows it names the vendor
    return "AuthenticAMD" in about


@functools.cache
def _most_rows() -> float:
    """Return up to how many rows oneDNN is the faster one, where it is at all."""
    has_avx512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return float("inf") if has_avx512 else MOST_ROWS


@functools.cache
def _onednn_agrees(dtype: torch.dtype, packed: bool) -> bool:
    """Return whether oneDNN's private ops are there, and give `F.linear`'s values for this dtype.

    Another version of torch may lack them, or have changed them.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    numbers = torch.linspace(-2, 2, 63, dtype=torch.float32, device="cpu").sin().to(dtype)
    x, weight, bias = numbers[:35].view(5, 7), numbers[35:56].view(3, 7), numbers[56:59]
    exact = F.linear(x.double(), weight.double(), bias.double())
    expected: dict[Fused, Tensor] = {"none": exact, "gelu": F.gelu(exact), "swish": F.silu(exact)}
    tolerance = 8 * torch.finfo(dtype).eps  # the values are of order one
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False  # the processor has no bfloat16
        used = pack(weight) if packed else weight
        return all(
            torch.allclose(_onednn_linear(x, used, bias, name).double(), value, 0, tolerance)
            for name, value in expected.items()
        )
    # There is no such op, it does not take this dtype, or it takes other arguments.
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Fused) -> Tensor:
    """Return the activation of `F.linear(x, weight, bias)` by oneDNN's private op."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


class PackedWeight(nn.Parameter):
    """Hold a weight in oneDNN's own order: (out, in), or in int8 its levels (in, out).

    Torch by itself can neither copy nor pickle one.

    Attributes:
        plain: the same weight in the usual order, for matrices of many rows, where MKL is faster
            with them; or none.
        scales: of a weight in int8; of any other none.
    """

    plain: Tensor | None = None
    scales: Int8Scales | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedWeight":
        copy = PackedWeight(self.data.clone(), requires_grad=False)
        copy.plain = None if self.plain is None else self.plain.clone()
        copy.scales = None if self.scales is None else self.scales.clone()
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self.scales is None:
            return pack, (self.to_dense(),)
        return _pack_int8, (self.to_dense().T.contiguous(), self.scales)


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN multiplies by this weight, and faster once the weight is packed."""
    if not is_for_onednn(weight):
        return False
    if weight.dtype is torch.float32 and not _onednn_is_faster():
        return False
    return _onednn_agrees(weight.dtype, True)


def is_for_onednn(weight: Tensor) -> bool:
    """Return whether oneDNN may compute with a weight: a plain one on the CPU, of its dtypes."""
    is_plain = type(weight) in (Tensor, nn.Parameter) and weight.is_cpu
    has_dtype = weight.dtype in (torch.float32, torch.bfloat16)
    return is_plain and has_dtype and bool(torch.backends.mkldnn.enabled)


def pack(weight: Tensor) -> PackedWeight:
    """Return a weight (out, in) in the order in which oneDNN reads it, for `linear` alone."""
    plain = weight.detach().contiguous()
    reordered = torch.ops.mkldnn._reorder_linear_weight(plain, None)
    packed = PackedWeight(reordered, requires_grad=False)
    if plain.dtype is torch.float32 and _most_rows() < float("inf"):
        packed.plain = plain
    return packed


def pack_int8(weight: Tensor) -> PackedWeight:
    """Return a weight (out, in) rounded to int8, for `linear` alone."""
    return _pack_int8(*quantize_weight(weight))


def _pack_int8(levels: Tensor, scales: Int8Scales) -> PackedWeight:
    packed = PackedWeight(pack_levels(levels), requires_grad=False)
    packed.scales = scales
    return packed


def _packed_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: Fused
) -> Tensor:
    """Return the activation of a product, or refuse what a packed weight cannot do."""
    refuse_gradients_and_autocast(x)
    if weight.scales is not None:
        y = multiply(x, weight.data, weight.scales, bias)
    elif weight.plain is not None and _rows_of(x) > _most_rows():
        y = F.linear(x, weight.plain, bias)
    else:
        return _onednn_linear(x, weight, bias, activation)
    if activation == "swish":
        return F.silu(y, inplace=True)
    return F.gelu(y) if activation == "gelu" else y


def refuse_gradients_and_autocast(x: Tensor) -> None:
    """Raise `ConfigError` for what a copy from `optimize` cannot do, where it would be ignored.

    Args:
        x: what a part of the copy is given.
    """
    if (torch.is_grad_enabled() and x.requires_grad) or _has_tangents():
        raise ConfigError(
            "a model from optimize() has no gradients: take those of the model that it is a copy of"
        )
    if torch.is_autocast_enabled("cpu"):
        raise ConfigError(
            "a model from optimize() takes no autocast: cast the model it is of, and optimize that"
        )


class PackedLinear(nn.Module):
    """Apply a linear layer with a packed weight, and the activation that follows it.

    It is for inference alone.

    Args:
        weight: packed, from `pack` or `pack_int8`.
        bias: (out,).
        activation: by oneDNN's name for it.
    """

    def __init__(
        self, weight: PackedWeight, bias: Tensor | None, activation: Fused = "none"
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.activation: Fused = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return _packed_linear(x, self.weight, self.bias, self.activation)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        about = f"activation={self.activation!r}"
        if self.weight.scales is not None:
            in_features, out_features = self.weight.shape
            return f"{in_features}, {out_features}, {about}, int8"
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, {about}"
