"""An inference-only copy of a model that does less for the same features."""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipkit.models import kernels
from clipkit.models.kernels import Linear, Patches
from clipkit.models.layers import MLP, Attention, QuickGELU
from clipkit.models.resnet import Bottleneck, ModifiedResNet

CACHED = 300_000  # pixels of a batch whose feature maps stay in a CPU's cache: 5 images of RN50


def make_fast(visual: nn.Module, text: nn.Module, *, compile: bool = False) -> tuple[str, ...]:
    """Change both towers in place so that they do less for the same features. They are then for inference alone.

    Args:
        visual, text: copies of their own, in eval mode and without gradients.
        compile: compile the image tower, and pack no weights. See `clipkit.CLIP.optimize`.

    Returns:
        What was done, in words for people.
    """
    done: list[str] = []
    device = next(visual.parameters()).device
    if isinstance(visual, ModifiedResNet):
        if folded := sum([_fold_norms(module) for module in visual.modules()]):
            done.append(f"{folded} batch norms folded into convolutions")
        visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        done.append("channels last")
    if compile:  # which cannot see through packed weights
        visual.compile(
            mode="reduce-overhead" if device.type == "cuda" else None
        )  # with CUDA graphs
        done.append("image tower compiled")
        return tuple(done)
    if isinstance(visual, ModifiedResNet) and device.type == "cpu":
        visual.pixels_at_once = CACHED
        done.append("large batches in parts")
    modules = [*visual.modules(), *text.modules()]
    for module in modules:
        _fuse(module)
    if packed := sum([_pack(module) for module in modules]):
        done.append(f"{packed} linear layers packed for oneDNN")
    return tuple(done)


def _fold_norms(module: nn.Module) -> int:
    """Fold the batch norms of a part of a ResNet into the convolutions before them: how many."""
    if not isinstance(module, ModifiedResNet | Bottleneck):
        return 0
    folded = sum([_fold(module, f"conv{i}", f"bn{i}") for i in "123"])
    if isinstance(module, Bottleneck) and module.downsample is not None:
        folded += _fold(module.downsample, "0", "1")
    return folded


def _fold(parent: nn.Module, conv: str, norm: str) -> bool:
    """Into the convolution before it goes what a batch norm multiplies and adds, computed in float32."""
    before, after = getattr(parent, conv), getattr(parent, norm)
    if isinstance(after, nn.Identity):
        return False
    fused = fuse_conv_bn_eval(deepcopy(before).float(), deepcopy(after).float())
    setattr(parent, conv, fused.to(before.weight.dtype).requires_grad_(False))
    setattr(parent, norm, nn.Identity())
    return True


def _fuse(module: nn.Module) -> None:
    """Leave the activation of an MLP to its first layer, if both are what oneDNN knows."""
    if not isinstance(module, MLP) or not type(module.c_fc) is type(module.c_proj) is Linear:
        return
    exact = type(module.gelu) is nn.GELU and module.gelu.approximate == "none"
    if not kernels.can_pack(module.c_fc.weight) or not (exact or type(module.gelu) is QuickGELU):
        return
    if (
        not exact
    ):  # oneDNN knows x sigmoid(x), of which QuickGELU is that of 1.702 x, divided by 1.702
        fc, proj = module.c_fc, module.c_proj
        fc.weight, fc.bias = _scaled(fc.weight, 1.702), _scaled(fc.bias, 1.702)
        proj.weight = _scaled(proj.weight, 1 / 1.702)
    module.c_fc.activation, module.gelu = "gelu" if exact else "swish", nn.Identity()


def _scaled(parameter: Tensor, scale: float) -> nn.Parameter:
    return nn.Parameter(parameter * scale, requires_grad=False)


def _pack(module: nn.Module) -> bool:
    """Pack the weight of a linear layer, if this is one that can be."""
    if type(module) not in (Linear, Patches, Attention):
        return False
    name = "in_proj_weight" if isinstance(module, Attention) else "weight"
    if not kernels.can_pack(weight := getattr(module, name)):
        return False
    setattr(module, name, kernels.pack(weight.flatten(1)))
    return True
