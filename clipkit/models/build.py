"""Build the towers that a config describes.

The modules take plain arguments; this is the one place that reads them from configs.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.models.resnet import ModifiedResNet
from clipkit.models.text_transformer import TextTransformer
from clipkit.models.vision_transformer import VisionTransformer

M = TypeVar("M", bound=nn.Module)


def build_visual(
    config: ViTConfig | ResNetConfig, embed_dim: int
) -> VisionTransformer | ModifiedResNet:
    """Build the image tower that a config describes, with features of width `embed_dim`."""
    if isinstance(config, ResNetConfig):
        return ModifiedResNet(
            resolution=config.resolution,
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            output_dim=embed_dim,
        )
    return VisionTransformer(
        resolution=config.resolution,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_width=config.mlp_width,
        activation=config.activation,
        output_dim=embed_dim,
    )


def build_text(config: TextConfig, embed_dim: int) -> TextTransformer:
    """Build the text tower that a config describes, with features of width `embed_dim`."""
    return TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_width=config.mlp_width,
        activation=config.activation,
        output_dim=embed_dim,
        end_of_text=config.end_of_text,
    )


class Uninitialized(TorchFunctionMode):
    """Leave the memory of new modules as it is, for weights that are loaded at once.

    Drawing random numbers, even on the meta device, would import torch's compiler, which takes
    longer than the loading.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def assemble(make: Callable[[], M], weights: Mapping[str, Tensor]) -> M:
    """Return a module in eval mode around weights: no second copy of them, and none drawn.

    Args:
        make: builds the module.
        weights: its whole state dict.
    """
    with torch.device("meta"), Uninitialized():
        module = make()
    module.load_state_dict(weights, assign=True)
    return module.eval()


def expected_weights(config: CLIPConfig) -> dict[str, Tensor]:
    """Return the canonical state dict of a config's model on the meta device.

    It has names, shapes and dtypes, and no numbers.
    """
    with torch.device("meta"), Uninitialized():
        visual = build_visual(config.vision, config.embed_dim)
        text = build_text(config.text, config.embed_dim)
        weights: dict[str, Tensor] = {"logit_scale": torch.empty(())}
    weights |= {f"visual.{name}": value for name, value in visual.state_dict().items()}
    weights |= {f"text.{name}": value for name, value in text.state_dict().items()}
    return weights
