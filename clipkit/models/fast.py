"""Change the towers of an inference-only copy so that they do less for the same features."""

from copy import deepcopy
from typing import Literal, TypeAlias, TypeGuard

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipkit.errors import ConfigError
from clipkit.models.convolutions import fuse_convolutions
from clipkit.models.kernels import Fused, PackedLinear, Patches, can_pack, is_hooked, pack
from clipkit.models.layers import MLP, Attention, QuickGELU
from clipkit.models.openvino_tower import Calibration, OpenVINOTower
from clipkit.models.resnet import AttentionPool2d, Bottleneck, ModifiedResNet
from clipkit.models.two_towers import TwoTowers

Runtime: TypeAlias = Literal["torch", "openvino"]

# Pixels that a ResNet takes at once. Its feature maps then stay in a CPU's cache: 5 images of RN50.
CACHED_PIXELS = 300_000


def make_fast(
    model: TwoTowers,
    *,
    compile: bool = False,
    runtime: Runtime = "torch",
    calibration: Calibration | None = None,
) -> tuple[str, ...]:
    """Change both towers in place so that they do less for the same features.

    They are then for inference alone. What a program has hooked to a layer, put in its place or
    wrapped around it stays, and that layer computes as before.

    Args:
        model: a copy, in eval mode and without gradients.
        compile: compile the image tower, and pack no weights. See `clipkit.CLIP.optimize`.
        runtime: what computes the image tower.
        calibration: as in `OpenVINOTower`, for int8.

    Returns:
        What was done, in words for people; nothing if there was nothing to gain.

    Raises:
        ConfigError: for another runtime, or one that cannot be had here.
        ExportError: if OpenVINO does not compute what the tower does.
    """
    _check_runtime(compile, runtime, calibration is not None)
    if runtime == "openvino":
        tower = OpenVINOTower(model.visual, calibration)
        model.add_module("visual", tower)
        done = (tower.about, *_pack(model.text))
    else:
        done = _make_towers_fast(model.visual, model.text, compile)
    # New modules are in train mode. For one of them each call would work on a view of the model.
    model.eval()
    return done


def _make_towers_fast(visual: nn.Module, text: nn.Module, compile: bool) -> tuple[str, ...]:
    """Change both towers for torch. Return what was done."""
    device = next(visual.parameters()).device
    done: list[str] = []
    if isinstance(visual, ModifiedResNet):
        done += _simplify_resnet(visual)
    if compile:
        # On CUDA with CUDA graphs. The compiler cannot see through packed weights: there are none.
        visual.compile(mode="reduce-overhead" if device.type == "cuda" else None)
        return (*done, "image tower compiled")
    if isinstance(visual, ModifiedResNet) and device.type == "cpu":
        visual.pixels_at_once = CACHED_PIXELS
        done.append("large batches in parts")
        if fused := fuse_convolutions(visual):
            done.append(f"{fused} convolutions fused for oneDNN")
    return (*done, *_pack(visual, text))


def _check_runtime(compile: bool, runtime: str, is_calibrated: bool) -> None:
    """Raise `ConfigError` for arguments of `make_fast` that do not go together."""
    if runtime not in ("torch", "openvino") or (compile and runtime != "torch"):
        also = " with compile=True" if compile else ""
        raise ConfigError(f'runtime must be "torch" or "openvino", not {runtime!r}{also}')
    if is_calibrated and runtime != "openvino":
        raise ConfigError(
            "calibration= makes an image tower of int8, which OpenVINO computes: add "
            'runtime="openvino", or leave calibration out'
        )


def _pack(*towers: nn.Module) -> tuple[str, ...]:
    """Pack the linear layers of towers, and return what was done."""
    packed = sum(map(_pack_layers, towers))
    return (f"{packed} linear layers packed for oneDNN",) if packed else ()


def _simplify_resnet(visual: ModifiedResNet) -> list[str]:
    """Fold batch norms into convolutions and put channels last. Return what was done."""
    done: list[str] = []
    if folded := sum([_fold_norms(module) for module in visual.modules()]):
        done.append(f"{folded} batch norms folded into convolutions")
    visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    done.append("channels last")
    return done


def _fold_norms(module: nn.Module) -> int:
    """Fold the batch norms that a part of a ResNet has itself. Return how many they were."""
    if type(module) not in (ModifiedResNet, Bottleneck) or _is_overridden(module):
        return 0
    folded = sum([_fold(module, f"conv{i}", f"bn{i}") for i in (1, 2, 3)])
    shortcut = getattr(module, "downsample", None)
    if type(shortcut) is nn.Sequential and not _is_overridden(shortcut):
        folded += _fold(shortcut, "0", "1")
    return folded


def _is_overridden(module: nn.Module) -> bool:
    """Return whether a module has a `forward` of its own, which may use its parts in any way."""
    return "forward" in vars(module)


def _fold(parent: nn.Module, conv_name: str, norm_name: str) -> bool:
    """Fold a norm into the convolution before it, in float32. Return whether there was one."""
    conv, norm = getattr(parent, conv_name, None), getattr(parent, norm_name, None)
    if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d:
        return False
    if is_hooked(conv) or is_hooked(norm) or norm.running_mean is None:
        return False
    fused = fuse_conv_bn_eval(deepcopy(conv).float(), deepcopy(norm).float())
    setattr(parent, conv_name, fused.to(conv.weight.dtype).requires_grad_(False))
    setattr(parent, norm_name, nn.Identity())
    return True


def _pack_layers(tower: nn.Module) -> int:
    """Pack the linear layers of a tower that oneDNN computes. Return how many they were."""
    packed = 0
    for module in list(tower.modules()):
        # Any other module may use the weights of the layers in it in its own way.
        if type(module) in (MLP, Attention, AttentionPool2d) and not _is_overridden(module):
            packed += _pack_parts(module)
        if type(module) is Patches:
            packed += _pack_patches(module)
    return packed


def _pack_patches(patches: Patches) -> int:
    """Pack the weight of a patch embedding that is one product. Return how many weights."""
    is_product = patches.stride == patches.kernel_size and not is_hooked(patches)
    if not is_product or not can_pack(patches.weight):
        return 0
    patches.weight = pack(patches.weight.flatten(1))  # (W, C, size, size) -> (W, C x size x size)
    return 1


def _pack_parts(module: nn.Module) -> int:
    """Pack the linear layers that a module of ours has itself. Return how many they were."""
    packed = _pack_mlp(module) if type(module) is MLP else 0
    for name, layer in list(module.named_children()):
        if _is_ordinary(layer) and can_pack(layer.weight):
            setattr(module, name, PackedLinear(layer.weight, layer.bias))
            packed += 1
    if type(module) is Attention and not is_hooked(module) and can_pack(module.in_proj_weight):
        module.in_proj_weight = pack(module.in_proj_weight)
        packed += 1
    return packed


def _is_ordinary(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether this is a linear layer of torch, without hooks or a `forward` of its own."""
    return type(layer) is nn.Linear and not is_hooked(layer)


def _pack_mlp(mlp: MLP) -> int:
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
    if not can_pack(fc.weight) or not can_pack(proj.weight):
        return 0
    # oneDNN has no QuickGELU. It has x sigmoid(x), and QuickGELU is that of 1.702 x, divided by
    # 1.702.
    scale = 1.702 if fused == "swish" else 1.0
    parts = {
        "c_fc": PackedLinear(fc.weight * scale, fc.bias * scale, fused),
        "gelu": nn.Identity(),
        "c_proj": PackedLinear(proj.weight * (1 / scale), proj.bias),
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
