"""Change the towers of an inference-only copy so that they do less for the same features."""

from copy import deepcopy
from typing import Literal, TypeAlias

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clipkit.errors import ConfigError
from clipkit.models.convolutions import fuse_convolutions
from clipkit.models.int8 import has_int8
from clipkit.models.kernels import is_for_onednn, is_hooked
from clipkit.models.openvino_tower import Calibration, OpenVINOTower
from clipkit.models.packing import is_overridden, pack_tower, quantize_tower
from clipkit.models.resnet import Bottleneck, ModifiedResNet
from clipkit.models.two_towers import TwoTowers
from clipkit.models.vision_transformer import VisionTransformer

Runtime: TypeAlias = Literal["torch", "openvino"]

# Pixels that a ResNet takes at once. Its feature maps then stay in a CPU's cache: 5 images of RN50.
CACHED_PIXELS = 300_000


def make_fast(
    model: TwoTowers,
    *,
    compile: bool = False,
    runtime: Runtime = "torch",
    int8: bool = False,
    calibration: Calibration | None = None,
) -> tuple[str, ...]:
    """Change both towers in place so that they do less for the same features.

    They are then for inference alone. What a program has hooked to a layer, put in its place or
    wrapped around it stays, and that layer computes as before.

    Args:
        model: a copy, in eval mode and without gradients.
        compile: compile the image tower, and pack none of its weights. See `clipkit.CLIP.optimize`.
        runtime: what computes the image tower.
        int8: round the linear layers of the image tower to int8. Features then differ by more than
            float noise.
        calibration: as in `OpenVINOTower`, for int8 there, with `int8` or without.

    Returns:
        What was done, in words for people; nothing if there was nothing to gain.

    Raises:
        ConfigError: for another runtime, one that cannot be had here, or a tower that it does not
            take.
        ExportError: if OpenVINO does not compute what the tower does.
    """
    _check_runtime(compile, runtime, int8, calibration is not None)
    towers: list[nn.Module] = [model.text]
    if runtime == "openvino":
        tower = OpenVINOTower(model.visual, calibration)
        model.add_module("visual", tower)
        done = [tower.about]
    elif compile:
        done = _compile(model.visual)
    else:
        done = _make_visual_fast(model.visual, int8)
        towers.append(model.visual)
    if packed := sum(map(pack_tower, towers)):
        done.append(f"{packed} linear layers packed for oneDNN")
    # New modules are in train mode. For one of them each call would work on a view of the model.
    model.eval()
    return tuple(done)


def _check_runtime(compile: bool, runtime: str, int8: bool, is_calibrated: bool) -> None:
    """Raise `ConfigError` for arguments of `make_fast` that do not go together."""
    if runtime not in ("torch", "openvino") or (compile and runtime != "torch"):
        also = " with compile=True" if compile else ""
        raise ConfigError(f'runtime must be "torch" or "openvino", not {runtime!r}{also}')
    if is_calibrated and runtime != "openvino":
        raise ConfigError(
            "calibration= makes an image tower of int8 that OpenVINO computes: add "
            'runtime="openvino", or pass int8=True in its place, which needs no images'
        )
    if int8 and runtime == "openvino" and not is_calibrated:
        raise ConfigError(
            "int8 in OpenVINO needs images to calibrate on: pass a hundred or so of your own as "
            "calibration=, or leave runtime= out"
        )
    if int8 and compile:
        raise ConfigError("weights of int8 cannot be compiled: leave int8=True or compile=True out")


def _compile(visual: nn.Module) -> list[str]:
    """Compile an image tower, on CUDA with CUDA graphs. Return what was done.

    The compiler cannot see through packed weights, so the tower gets none.
    """
    device = next(visual.parameters()).device
    done = _simplify_resnet(visual) if isinstance(visual, ModifiedResNet) else []
    visual.compile(mode="reduce-overhead" if device.type == "cuda" else None)
    return [*done, "image tower compiled"]


def _make_visual_fast(visual: nn.Module, int8: bool) -> list[str]:
    """Change an image tower for torch, all but what is packed. Return what was done."""
    if int8:
        return [f"{_quantize(visual)} linear layers of the image tower in int8"]
    if not isinstance(visual, ModifiedResNet):
        return []
    done = _simplify_resnet(visual)
    if next(visual.parameters()).device.type == "cpu":
        visual.pixels_at_once = CACHED_PIXELS
        done.append("large batches in parts")
        if fused := fuse_convolutions(visual):
            done.append(f"{fused} convolutions fused for oneDNN")
    return done


def _quantize(visual: nn.Module) -> int:
    """Round the linear layers of an image tower to int8. Return how many they were."""
    otherwise = (
        'pass runtime="openvino" and calibration= for int8 in OpenVINO, or leave int8=True out'
    )
    if not isinstance(visual, VisionTransformer):
        raise ConfigError(
            "torch's int8 is for vision transformers, and the image tower is of the class "
            f"{type(visual).__name__}: {otherwise}"
        )
    if not torch.backends.mkldnn.enabled:
        raise ConfigError(
            "torch's int8 is oneDNN's, which is switched off: set torch.backends.mkldnn.enabled to "
            "True, or leave int8=True out"
        )
    weight = next(visual.parameters())
    if not is_for_onednn(weight):
        raise ConfigError(
            "torch's int8 takes plain weights in float32 or bfloat16 on the CPU, and the image "
            f"tower has a {type(weight).__name__} in {weight.dtype} on {weight.device}: move or "
            "cast the model before optimize()"
        )
    if not has_int8():
        raise ConfigError(
            f"torch {torch.__version__} does not multiply in int8 on this processor: {otherwise}"
        )
    quantized = quantize_tower(visual)
    if quantized == 0:
        raise ConfigError(
            "no linear layer of the image tower can be in int8, as all have hooks or are not "
            "torch's own: remove the hooks, or leave int8=True out"
        )
    return quantized


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
    if type(module) not in (ModifiedResNet, Bottleneck) or is_overridden(module):
        return 0
    folded = sum([_fold(module, f"conv{i}", f"bn{i}") for i in (1, 2, 3)])
    shortcut = getattr(module, "downsample", None)
    if type(shortcut) is nn.Sequential and not is_overridden(shortcut):
        folded += _fold(shortcut, "0", "1")
    return folded


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
