"""Put packed weights in the place of the linear layers of a tower.

What a program has hooked to a layer, put in its place or wrapped around it stays as it is.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

from torch import Tensor, nn

from clipkit.models.kernels import (
    Fused,
    PackedLinear,
    PackedWeight,
    can_pack,
    is_for_onednn,
    is_hooked,
    pack,
    pack_int8,
)
from clipkit.models.layers import MLP, Attention, QuickGELU
from clipkit.models.resnet import AttentionPool2d
from clipkit.models.vision_transformer import Patches


class _Packer(NamedTuple):
    """Hold how to pack a weight (out, in), and how to know one that can be packed so."""

    takes: Callable[[Tensor], bool]
    pack: Callable[[Tensor], PackedWeight]


_IN_FLOAT = _Packer(can_pack, pack)
_IN_INT8 = _Packer(is_for_onednn, pack_int8)


def pack_tower(tower: nn.Module) -> int:
    """Pack the linear layers of a tower that oneDNN computes. Return how many they were."""
    packed = _pack_layers(tower, _IN_FLOAT)
    for module in list(tower.modules()):
        if type(module) is Patches:
            packed += _pack_patches(module)
    return packed


def quantize_tower(tower: nn.Module) -> int:
    """Round the linear layers of a transformer to int8. Return how many they were.

    The patch embedding is none of them: it sees pixels, and is little of the work.
    """
    return _pack_layers(tower, _IN_INT8)


def is_overridden(module: nn.Module) -> bool:
    """Return whether a module has a `forward` of its own, which may use its parts in any way."""
    return "forward" in vars(module)


def _pack_layers(tower: nn.Module, packer: _Packer) -> int:
    """Pack the linear layers in the parts of a tower that are ours. Return how many they were."""
    packed = 0
    for module in list(tower.modules()):
        # Any other module may use the weights of the layers in it in its own way.
        if type(module) in (MLP, Attention, AttentionPool2d) and not is_overridden(module):
            packed += _pack_parts(module, packer)
    return packed


def _pack_patches(patches: Patches) -> int:
    """Pack the weight of a patch embedding that is one product. Return how many weights."""
    is_product = patches.stride == patches.kernel_size and not is_hooked(patches)
    if not is_product or not can_pack(patches.weight):
        return 0
    patches.weight = pack(patches.weight.flatten(1))  # (W, C, size, size) -> (W, C x size x size)
    return 1


def _pack_parts(module: nn.Module, packer: _Packer) -> int:
    """Pack the linear layers that a module of ours has itself. Return how many they were."""
    packed = _pack_mlp(module, packer) if type(module) is MLP else 0
    for name, layer in list(module.named_children()):
        if _is_ordinary(layer) and packer.takes(layer.weight):
            setattr(module, name, PackedLinear(packer.pack(layer.weight), layer.bias))
            packed += 1
    if type(module) is Attention and not is_hooked(module) and packer.takes(module.in_proj_weight):
        module.in_proj_weight = packer.pack(module.in_proj_weight)
        packed += 1
    return packed


def _is_ordinary(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether this is a linear layer of torch, without hooks or a `forward` of its own."""
    return type(layer) is nn.Linear and not is_hooked(layer)


def _pack_mlp(mlp: MLP, packer: _Packer) -> int:
    """Pack both layers of an MLP, the first together with the activation. Return how many.

    Neither is packed here if oneDNN cannot fuse the activation, or if a layer is not torch's own or
    has hooks.
    """
    fc, proj = mlp.c_fc, mlp.c_proj
    fused = _fused_name(mlp.gelu)
    if fused is None or not _is_ordinary(fc) or not _is_ordinary(proj):
        return 0
    if "bias" not in dict(fc.named_parameters()):
        return 0
    if not packer.takes(fc.weight) or not packer.takes(proj.weight):
        return 0
    # oneDNN has no QuickGELU. It has x sigmoid(x), and QuickGELU is that of 1.702 x, divided by
    # 1.702.
    scale = 1.702 if fused == "swish" else 1.0
    parts = {
        "c_fc": PackedLinear(packer.pack(fc.weight * scale), fc.bias * scale, fused),
        "gelu": nn.Identity(),
        "c_proj": PackedLinear(packer.pack(proj.weight * (1 / scale)), proj.bias),
    }
    for name, part in parts.items():
        setattr(mlp, name, part)
    return 2


def _fused_name(activation: nn.Module) -> Fused | None:
    """Return oneDNN's name for the activation that it fuses in place of this one, if any."""
    if is_hooked(activation):
        return None
    if type(activation) is QuickGELU:
        return "swish"
    if type(activation) is nn.GELU and activation.approximate == "none":
        return "gelu"
    return None
