"""An inference-only copy of a model that does less for the same features."""

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipkit.models.resnet import Bottleneck, ModifiedResNet

if TYPE_CHECKING:
    from clipkit.models.clip import CLIP


def optimize(model: "CLIP", compile: bool = False) -> "CLIP":
    """See `CLIP.optimize`."""
    model = deepcopy(model).eval().requires_grad_(False)
    done = []
    if isinstance(model.visual, ModifiedResNet):
        folded = 0
        for module in model.visual.modules():
            if isinstance(module, ModifiedResNet | Bottleneck):
                for i in "123":
                    folded += _fold(module, f"conv{i}", f"bn{i}")
                if isinstance(module, Bottleneck) and module.downsample is not None:
                    folded += _fold(module.downsample, "0", "1")
        model.visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        done += [f"{folded} batch norms folded into convolutions", "channels last"]
    if compile:
        model.visual.compile(mode="reduce-overhead" if model.device.type == "cuda" else None)  # with CUDA graphs
        done.append("image tower compiled")
    model.optimizations += tuple(done)
    return model


def _fold(parent: nn.Module, conv: str, norm: str) -> bool:
    """Into the convolution before it goes what a batch norm multiplies and adds, computed in float32."""
    before, after = getattr(parent, conv), getattr(parent, norm)
    if isinstance(after, nn.Identity):
        return False
    fused = fuse_conv_bn_eval(deepcopy(before).float(), deepcopy(after).float())
    setattr(parent, conv, fused.to(before.weight.dtype).requires_grad_(False))
    setattr(parent, norm, nn.Identity())
    return True
