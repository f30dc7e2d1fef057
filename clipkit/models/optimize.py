"""An inference-only copy of a model that does less for the same features."""

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipkit.models import kernels
from clipkit.models.kernels import Linear, Patches
from clipkit.models.layers import MLP, Attention, QuickGELU
from clipkit.models.resnet import Bottleneck, ModifiedResNet

if TYPE_CHECKING:
    from clipkit.models.clip import CLIP


def optimize(model: "CLIP", compile: bool = False) -> "CLIP":
    """See `CLIP.optimize`."""
    model = deepcopy(model).eval().requires_grad_(False)
    done = []
    if isinstance(model.visual, ModifiedResNet):
        if folded := sum([_fold_norms(module) for module in model.visual.modules()]):
            done.append(f"{folded} batch norms folded into convolutions")
        model.visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        done.append("channels last")
    if compile:  # which cannot see through packed weights
        model.visual.compile(mode="reduce-overhead" if model.device.type == "cuda" else None)  # with CUDA graphs
        done.append("image tower compiled")
    elif packed := sum([_pack(module) for module in model.modules()]):
        done.append(f"{packed} linear layers packed for oneDNN")
    model.optimizations = tuple(dict.fromkeys((*model.optimizations, *done)))
    return model


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


def _pack(module: nn.Module) -> bool:
    """Pack the weight of a linear layer, and of an MLP the activation with it: whether there was one to pack."""
    if isinstance(module, MLP) and _packable(module.c_fc.weight) and not isinstance(module.gelu, nn.Identity):
        # oneDNN knows x sigmoid(x), of which QuickGELU is that of 1.702 x, divided by 1.702.
        scale = 1.702 if isinstance(module.gelu, QuickGELU) else 1.0
        for value in module.c_fc.parameters():
            value.mul_(scale)
        module.c_proj.weight.div_(scale)
        module.c_fc.activation = "swish" if scale != 1 else "gelu"
        module.gelu = nn.Identity()
    name = "in_proj_weight" if isinstance(module, Attention) else "weight"
    if not isinstance(module, Linear | Patches | Attention) or not _packable(weight := getattr(module, name)):
        return False
    setattr(module, name, kernels.pack(weight.flatten(1)))
    return True


def _packable(weight: Tensor) -> bool:
    return not weight.is_mkldnn and kernels.can_pack(weight)
