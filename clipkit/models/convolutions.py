"""Have oneDNN compute a ResNet's convolutions together with the activation and sum after them.

Each saves a pass over a map that no cache holds. The weights are packed in the order in which
oneDNN reads them, once and not in each call. Torch offers both by private ops only, which are tried
once before use.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.models.kernels import is_for_onednn, is_hooked, private_ops_will_do
from clipkit.models.resnet import Bottleneck, ModifiedResNet

_Activation = Literal["none", "relu"]


def fuse_convolutions(visual: ModifiedResNet) -> int:
    """Put fused convolutions in the place of those of an inference-only copy.

    What a program has hooked to a layer, or put in its place, stays.

    Args:
        visual: on the CPU, in eval mode, with its batch norms folded into the convolutions.

    Returns:
        How many convolutions are fused.
    """
    weight = visual.conv1.weight
    if not is_for_onednn(weight) or not _ops_agree(weight.dtype):
        return 0
    fused = 0
    if "forward" not in vars(visual):
        for number in (1, 2, 3):
            fused += _fuse_with_relu(visual, number)
    blocks = cast("list[tuple[str, nn.Module]]", list(visual.named_modules()))  # pyright: ignore
    for name, block in blocks:
        if type(block) is Bottleneck and _is_plain(block):
            parent, _, own_name = name.rpartition(".")
            setattr(visual.get_submodule(parent), own_name, FusedBottleneck(block))
            fused += 3 if block.downsample is None else 4
    return fused


class FusedConv2d(nn.Conv2d):
    """Convolve, add another map if there is one, and apply an activation.

    Where oneDNN's ops would not do, as for gradients, it is all done one after the other.

    Args:
        conv: whose weights to take.
        activation: "relu", or "none".
    """

    def __init__(self, conv: nn.Conv2d, activation: _Activation) -> None:
        # On the meta device the weights, which are replaced, cost nothing.
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # pyright: ignore[reportArgumentType]
            conv.stride,  # pyright: ignore[reportArgumentType]
            conv.padding,  # pyright: ignore[reportArgumentType]
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.activation: _Activation = activation
        self._packed: tuple[object, Tensor] | None = None  # what for, and the weight
        self.train(conv.training)

    def forward(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        """Map (N, in, H, W), and perhaps a map to add, to (N, out, H, W)."""
        if not self._can_fuse(input, other):
            out = super().forward(input)
            out = out if other is None else out + other
            return F.relu(out) if self.activation == "relu" else out
        x = input.contiguous(memory_format=torch.channels_last)
        weight = self._packed_for(x)
        padding = cast("tuple[int, int]", self.padding)
        return _convolve(x, other, weight, self.bias, padding, self.stride, self.activation)

    def _can_fuse(self, input: Tensor, other: Tensor | None) -> bool:
        if torch.is_grad_enabled():
            tensors = (input, other, self.weight, self.bias)
            if any(tensor is not None and tensor.requires_grad for tensor in tensors):
                return False
        return len(input) > 0 and private_ops_will_do(input, self.weight)

    def _packed_for(self, x: Tensor) -> Tensor:
        """Return the weight in the order in which oneDNN reads it for such maps.

        The order depends on the shape, and on the number of threads. A weight in another one, such
        as a plain one, is put in order in each call, which takes longer than some convolutions.
        """
        weight = self.weight
        version = 0 if weight.is_inference() else weight._version  # those of inference have none
        purpose = (torch.get_num_threads(), x.shape, weight.data_ptr(), version)
        packed = self._packed  # another thread may replace it
        if packed is None or packed[0] != purpose:
            padding = cast("tuple[int, int]", self.padding)
            packed = self._packed = (purpose, pack_kernel(weight, padding, self.stride, x.shape))
        return packed[1]

    def __getstate__(self) -> dict[str, Any]:
        # Torch can neither copy nor pickle a packed weight.
        return {**self.__dict__, "_packed": None}

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        return f"{super().extra_repr()}, activation={self.activation!r}"


def pack_kernel(
    weight: Tensor, padding: Sequence[int], stride: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """Return the weight (out, in, rows, columns) of a convolution as oneDNN reads it.

    Args:
        weight: of a convolution without groups and dilation.
        padding, stride: of the convolution.
        shape: (N, in, H, W) of its maps.
    """
    ops = torch.ops.mkldnn
    return ops._reorder_convolution_weight(weight.detach(), padding, stride, [1, 1], 1, shape)


class FusedBottleneck(nn.Module):
    """Compute what a `Bottleneck` does, with fewer passes over its maps.

    Args:
        block: that `_is_plain`.
    """

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = FusedConv2d(block.conv1, "relu")
        self.conv2 = FusedConv2d(block.conv2, "relu")
        self.avgpool = block.avgpool
        self.conv3 = FusedConv2d(block.conv3, "relu")
        self.downsample: nn.Module | None = None
        if block.downsample is not None:
            pool, conv, norm = block.downsample.children()
            assert isinstance(conv, nn.Conv2d)
            self.downsample = nn.Sequential(pool, FusedConv2d(conv, "none"), norm)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, 4 x width, H / stride, W / stride)."""
        out = self.avgpool(self.conv2(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(out, shortcut)


def _fuse_with_relu(visual: ModifiedResNet, number: int) -> int:
    """Fuse one convolution of the stem with the activation after it. Return how many it was."""
    conv, norm = getattr(visual, f"conv{number}"), getattr(visual, f"bn{number}")
    relu = getattr(visual, f"relu{number}")
    if not _is_ordinary(conv) or not _is_identity(norm) or not _is_relu(relu):
        return 0
    setattr(visual, f"conv{number}", FusedConv2d(conv, "relu"))
    setattr(visual, f"relu{number}", nn.Identity())
    return 1


def _is_plain(block: Bottleneck) -> bool:
    """Return whether a block is as clipkit makes it, once its batch norms are folded."""
    if is_hooked(block):
        return False
    convs: list[nn.Module] = [block.conv1, block.conv2, block.conv3]
    norms: list[nn.Module] = [block.bn1, block.bn2, block.bn3]
    if block.downsample is not None:
        parts = list(block.downsample.children())
        if type(block.downsample) is not nn.Sequential or len(parts) != 3:
            return False
        if is_hooked(block.downsample) or type(parts[0]) is not nn.AvgPool2d:
            return False
        convs.append(parts[1])
        norms.append(parts[2])
    relus = (block.relu1, block.relu2, block.relu3)
    return (
        all(map(_is_ordinary, convs))
        and all(map(_is_identity, norms))
        and all(map(_is_relu, relus))
    )


def _is_ordinary(conv: nn.Module) -> bool:
    """Return whether this is a convolution of torch as a ResNet has them, without hooks."""
    return (
        type(conv) is nn.Conv2d
        and not is_hooked(conv)
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and type(conv.weight) is nn.Parameter
    )


def _is_identity(module: nn.Module) -> bool:
    return type(module) is nn.Identity and not is_hooked(module)


def _is_relu(module: nn.Module) -> bool:
    return type(module) is nn.ReLU and not is_hooked(module)


@functools.cache
def _ops_agree(dtype: torch.dtype) -> bool:
    """Return whether the private ops are there, and give torch's own values for this dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    numbers = torch.linspace(-2, 2, 700, dtype=torch.float32, device="cpu").sin().to(dtype)
    x, weight, bias = (
        numbers[:500].view(2, 5, 5, 10),
        numbers[500:635].view(3, 5, 3, 3),
        numbers[:3],
    )
    other = numbers[-150:].view(2, 3, 5, 5)
    padding, stride = (1, 1), (1, 2)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    tolerance = 4 * torch.finfo(dtype).eps * float(exact.abs().max())
    try:
        if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False  # the processor has no bfloat16
        x, other = (map.contiguous(memory_format=torch.channels_last) for map in (x, other))
        kernel = pack_kernel(weight, padding, stride, x.shape)
        plain = _convolve(x, None, kernel, bias, padding, stride, "none")
        summed = _convolve(x, other, kernel, bias, padding, stride, "relu")
        expected = F.relu(exact + other.double())
        return torch.allclose(plain.double(), exact, 0, tolerance) and torch.allclose(
            summed.double(), expected, 0, tolerance
        )
    # There is no such op, it does not take this dtype, or it takes other arguments.
    except (AttributeError, RuntimeError, TypeError):
        return False


def _convolve(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    padding: Sequence[int],
    stride: Sequence[int],
    activation: _Activation,
) -> Tensor:
    """Return the activation of a convolution, or of its sum with `other`."""
    ops = torch.ops.mkldnn
    how = (padding, stride, [1, 1], 1)
    if other is None:
        return ops._convolution_pointwise(x, weight, bias, *how, activation, [], "")
    return ops._convolution_pointwise.binary(
        x, other, weight, bias, *how, "add", 1.0, activation, [], ""
    )
