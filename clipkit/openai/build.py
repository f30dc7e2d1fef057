"""Say what a checkpoint means in the terms of OpenAI's package, or why it means nothing there."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipkit.checkpoints import infer, registry
from clipkit.checkpoints.load import Checkpoint, published_config
from clipkit.config import CLIPConfig, ResNetConfig
from clipkit.data.preprocess import Preprocess
from clipkit.data.saved import restore_preprocess
from clipkit.errors import ConfigError, UnsupportedCheckpointError

HEAD_WIDTH = 64  # in all of OpenAI's models

# The end of messages about what OpenAI's structure cannot express.
_REMEDY = "load it with `import clipkit` in place of clipkit.openai"


class SettingError(ConfigError, RuntimeError):
    """Report a `ConfigError` where programs for OpenAI's package catch RuntimeError."""


def arguments_of(config: CLIPConfig) -> dict[str, Any]:
    """Return the arguments of `clipkit.openai.model.CLIP` that build a config's model.

    Raises:
        UnsupportedCheckpointError: for a resolution or an end of text that OpenAI's structure
            cannot express.
    """
    vision, text = config.vision, config.text
    arguments: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "image_resolution": side_of(config),
        "vision_layers": vision.layers,
        "vision_width": vision.width,
        "vision_patch_size": None,
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "transformer_width": text.width,
        "transformer_heads": text.heads,
        "transformer_layers": text.layers,
        "vision_head_width": vision.head_width,
        "transformer_mlp_width": text.mlp_width,
        "transformer_activation": text.activation,
    }
    if not isinstance(vision, ResNetConfig):
        arguments["vision_patch_size"] = vision.patch_size
        arguments["vision_mlp_width"] = vision.mlp_width
        arguments["vision_activation"] = vision.activation
    if text.end_of_text not in (None, text.vocab_size - 1):
        raise UnsupportedCheckpointError(
            f"the model reads texts at the id {text.end_of_text}, and OpenAI's structure at the "
            f"highest one, up to {text.vocab_size - 1}: {_REMEDY}"
        )
    return arguments


def config_of(weights: Mapping[str, Tensor]) -> CLIPConfig:
    """Return the config of weights that come without one, by the rules of OpenAI's package.

    A tower of width W has W // 64 heads, and its MLPs have QuickGELU. The weights do not tell
    either, so what is known to be of another kind is refused.

    Args:
        weights: by canonical name.

    Raises:
        CheckpointError, SettingError: if the weights are incomplete, or of another kind.
    """
    try:
        config = infer.from_shapes(
            weights,
            "quick_gelu",
            _head_width(weights.get("visual.class_embedding")),
            _head_width(weights.get("text.ln_final.weight")),
        )
    except ConfigError as error:
        raise SettingError(f"{error}. Or {_REMEDY}") from error
    _refuse_other_kinds(config)
    return config


def _head_width(per_channel: Tensor | None) -> int:
    """Return the width of a head in a tower, of which this is a weight (W,); 64 for a ResNet."""
    if per_channel is None or per_channel.ndim != 1:
        return HEAD_WIDTH
    heads = len(per_channel) // HEAD_WIDTH
    return len(per_channel) // heads if heads and len(per_channel) % heads == 0 else HEAD_WIDTH


def _refuse_other_kinds(config: CLIPConfig) -> None:
    """Raise `UnsupportedCheckpointError` for sizes that only models of another kind have."""
    remedy = "pass clipkit.load the file with config= and the published name that it derives from"
    for tower in (config.vision, config.text):
        if not isinstance(tower, ResNetConfig) and tower.mlp_width != 4 * tower.width:
            raise UnsupportedCheckpointError(
                f"an MLP is {tower.mlp_width} wide where OpenAI's have 4 x {tower.width}, so the "
                f"heads and the activation may be other ones too: {remedy}"
            )
    other = ("activation", "head_width", "preprocess")
    known = {row.name: row.config for row in registry.MODELS.values()}
    known["tiny"] = published_config("tiny")
    alike = [name for name in known if not infer.differences(known[name], config, ignore=other)]
    same = [name for name in alike if not infer.differences(known[name], config, ignore=other[2:])]
    if alike and not same:
        names = ", ".join(alike)
        raise UnsupportedCheckpointError(
            f"of these shapes are {names}, which have other heads or GELU where OpenAI's models "
            f"have {HEAD_WIDTH} channels a head and QuickGELU: {remedy}"
        )


def with_counters(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with integer counters of batch norms, which old files lack.

    Args:
        found: weights as they were stored.
        expected: the state dict of the model.
    """
    counters = [key for key in expected if key.endswith("num_batches_tracked")]
    none_yet = torch.tensor(0, device="cpu")
    return {**found, **{key: found.get(key, none_yet).long() for key in counters}}


def side_of(config: CLIPConfig) -> int:
    """Return the one number that OpenAI's towers have for the resolution, in pixels.

    Raises:
        UnsupportedCheckpointError: if images are not square, or if a ResNet's last map is larger
            than OpenAI's arithmetic makes its position embeddings.
    """
    vision = config.vision
    height, width = vision.resolution
    if height != width:
        raise UnsupportedCheckpointError(
            f"the model takes images of {height} x {width} pixels, and OpenAI's structure square "
            f"ones: {_REMEDY}"
        )
    if isinstance(vision, ResNetConfig) and vision.grid[0] != height // 32:
        raise UnsupportedCheckpointError(
            f"a ResNet of {height} pixels a side has {vision.grid[0]} x {vision.grid[1]} positions "
            f"and OpenAI's structure {height // 32} x {height // 32}: {_REMEDY}"
        )
    return height


def preprocess_of(checkpoint: Checkpoint) -> Preprocess:
    """Return a checkpoint's preprocessing, which torchvision's transforms can express.

    Raises:
        UnsupportedCheckpointError, SettingError: if they cannot.
    """
    try:
        preprocess = restore_preprocess(checkpoint.preprocess, checkpoint.config)
    except ConfigError as error:
        raise SettingError(f"{error}. Or {_REMEDY}") from error
    config = preprocess.config
    height, width = preprocess.resolution
    if config.resize_mode == "longest" or height != width:
        raise UnsupportedCheckpointError(
            f"images are prepared by resize_mode={config.resize_mode!r} to {height} x {width} "
            f"pixels, which resizing and cropping to a square cannot do: {_REMEDY}"
        )
    return preprocess


def check_tokenizer(checkpoint: Checkpoint) -> None:
    """Raise `UnsupportedCheckpointError` for a tokenizer other than that of `clip.tokenize`."""
    tokenizer = checkpoint.tokenizer
    if tokenizer is not None and not tokenizer.is_default:
        raise UnsupportedCheckpointError(
            f"the model comes with {tokenizer!r}, and clip.tokenize has CLIP's own vocabulary: "
            f"{_REMEDY}, and use model.tokenizer"
        )
