"""Read a config from a checkpoint's JSON or from the shapes of its weights, and compare configs."""

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from clipkit.checkpoints.layouts import count_parts
from clipkit.checkpoints.processors import from_image_processor, from_preprocess_cfg
from clipkit.config import (
    Activation,
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from clipkit.errors import ConfigError, CorruptCheckpointError, UnsupportedCheckpointError

_LOG = logging.getLogger("clipkit")

# In configs of transformers that are older than its pull request 24773, the end-of-text token is 2,
# which is wrong. transformers therefore reads at the highest id if it is 2 (modeling_clip.py).
LEGACY_EOS = 2

# These options of open_clip leave the model a plain CLIP whatever their value. They act in training
# only, or on the names of weights.
OPEN_CLIP_NEUTRAL = {"custom_text", "init_logit_scale", "patch_dropout", "timm_model_pretrained"}
# These options of open_clip change nothing at these values. Any other value makes another model.
OPEN_CLIP_PLAIN: dict[str, tuple[Any, ...]] = {
    "attentional_pool": (False,),
    "embed_cls": (False,),
    "final_ln_after_pool": (False,),
    "no_causal_mask": (False,),
    "no_ln_pre": (False,),
    "nonscalar_logit_scale": (False,),
    "output_tokens": (False,),
    "proj_bias": (False,),
    "hf_tokenizer_name": ("",),
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
}


def from_open_clip(values: Mapping[str, Any], known: CLIPConfig | None = None) -> CLIPConfig:
    """Read `open_clip_config.json`.

    Args:
        values: the parsed JSON: `model_cfg` and, in most files, `preprocess_cfg`.
        known: the registry's config. It settles what the file leaves out (`quick_gelu` and the
            preprocessing), and nothing else. open_clip's own default is GELU.

    Raises:
        UnsupportedCheckpointError: for a model that is not a plain CLIP, with the option that makes
            it another.
        ConfigError: for missing, impossible or contradictory values.
    """
    cfg = dict(values.get("model_cfg", values))
    vision = dict(cfg.pop("vision_cfg", {}))
    text = dict(cfg.pop("text_cfg", {}))
    quick_gelu = cfg.pop("quick_gelu", known is not None and known.text.activation == "quick_gelu")
    activation: Activation = "quick_gelu" if quick_gelu else "gelu"
    try:
        embed_dim = cfg.pop("embed_dim")
        vision_sizes = _pop_vision_sizes(vision)
        text_sizes = _pop_text_sizes(text)
    except KeyError as error:
        _refuse_options(cfg, vision, text)  # a file of another model lacks it for a better reason
        raise ConfigError(f"open_clip_config.json has no {error}") from error
    vision_config = _open_clip_vision(vision_sizes, activation)
    _refuse_options(cfg, vision, text)
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=vision_config,
        text=TextConfig(**text_sizes, activation=activation),
        preprocess=from_preprocess_cfg(
            values.get("preprocess_cfg") or {},
            PreprocessConfig() if known is None else known.preprocess,
            vision_config.resolution,
        ),
    )


def _pop_vision_sizes(section: dict[str, Any]) -> dict[str, Any]:
    """Take the sizes out of `vision_cfg`. Raises KeyError for one that every image tower states."""
    return {
        "resolution": section.pop("image_size"),
        "layers": section.pop("layers"),
        "width": section.pop("width"),
        "head_width": section.pop("head_width", 64),
        # A ResNet ignores the last two.
        "patch_size": section.pop("patch_size", None),
        "mlp_ratio": section.pop("mlp_ratio", 4.0),
    }


def _pop_text_sizes(section: dict[str, Any]) -> dict[str, Any]:
    """Take the sizes out of `text_cfg`. Raises KeyError for one that every text tower states."""
    width = section.pop("width")
    vocab_size = section.pop("vocab_size", 49408)
    return {
        "width": width,
        "head_width": _head_width(width, section.pop("heads")),
        "layers": section.pop("layers"),
        "context_length": section.pop("context_length", 77),
        "vocab_size": vocab_size,
        "end_of_text": _pop_end_of_text(section, vocab_size),
        "mlp_ratio": section.pop("mlp_ratio", 4.0),
    }


def _pop_end_of_text(section: dict[str, Any], vocab_size: int) -> int | None:
    """Take the end-of-text token out of `text_cfg`, which counts with one way of pooling alone."""
    token = section.pop("eos_id", 2)  # open_clip's default
    if section.get("pool_type") != "eos":
        return None
    del section["pool_type"]
    return None if token == vocab_size - 1 else token


def _open_clip_vision(sizes: dict[str, Any], activation: Activation) -> ViTConfig | ResNetConfig:
    """Make the image tower's config. A ResNet states a list of layers, one for each stage."""
    if isinstance(sizes["layers"], list | tuple):
        names = ("resolution", "layers", "width", "head_width")
        return ResNetConfig(**{name: sizes[name] for name in names})
    return ViTConfig(**sizes, activation=activation)


def _refuse_options(*sections: Mapping[str, Any]) -> None:
    """Raise `UnsupportedCheckpointError` for an option that makes the model another than CLIP."""
    for options in sections:
        for key, value in options.items():
            if key in OPEN_CLIP_NEUTRAL or value is None or value in OPEN_CLIP_PLAIN.get(key, ()):
                continue
            if key.startswith("timm_") and not options.get("timm_model_name"):
                continue
            raise UnsupportedCheckpointError(
                f"open_clip_config.json: not a plain CLIP: {key} = {value!r}"
            )


def from_transformers(
    values: Mapping[str, Any], processor: Mapping[str, Any] | None = None
) -> CLIPConfig:
    """Read transformers' `config.json` and, where it is there, `preprocessor_config.json`.

    What a file leaves out has the default of transformers' CLIPConfig. A missing `hidden_act` is
    quick_gelu there.

    Raises:
        UnsupportedCheckpointError: for another `model_type`, activation, norm or preprocessing.
        ConfigError: for impossible or contradictory values.
    """
    kind = values.get("model_type", "clip")
    has_vision = "vision_config" in values or "vision_config_dict" in values
    if kind != "clip" or not has_vision:
        raise UnsupportedCheckpointError(
            f"config.json describes a {kind!r} model, not a CLIP with both towers"
        )
    # Old files say it twice, and transformers itself believes the `_dict`.
    vision: Any = values.get("vision_config_dict") or values.get("vision_config") or {}
    text: Any = values.get("text_config_dict") or values.get("text_config") or {}
    vision_config = ViTConfig(
        resolution=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 32),
        **_transformers_stack(vision, width=768, heads=12, mlp_width=3072),
    )
    vocab_size = text.get("vocab_size", 49408)
    text_config = TextConfig(
        context_length=text.get("max_position_embeddings", 77),
        vocab_size=vocab_size,
        end_of_text=_end_of_text(text, vocab_size),
        **_transformers_stack(text, width=512, heads=8, mlp_width=2048),
    )
    preprocess = PreprocessConfig()
    if processor:
        preprocess = from_image_processor(processor, vision_config.resolution)
    return CLIPConfig(
        embed_dim=values.get("projection_dim", 512),
        vision=vision_config,
        text=text_config,
        preprocess=preprocess,
    )


def _end_of_text(section: Mapping[str, Any], vocab_size: int) -> int | None:
    """Return where a config of transformers reads the text feature; None for the highest id."""
    token = section.get("eos_token_id", 49407)
    if token in (None, LEGACY_EOS, vocab_size - 1):
        return None
    if isinstance(token, int) and token >= vocab_size:
        if "eos_token_id" in section:
            _LOG.warning(
                "config.json: eos_token_id is %d, and there are %d tokens: texts are read at their "
                "highest id",
                token,
                vocab_size,
            )
        return None
    return token


def _transformers_stack(
    section: Mapping[str, Any], *, width: int, heads: int, mlp_width: int
) -> dict[str, Any]:
    """Return what both towers state, by the fields of our configs.

    `width`, `heads` and `mlp_width` are transformers' defaults.
    """
    activation = section.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise UnsupportedCheckpointError(
            f"config.json asks for the activation {activation!r}; CLIP has quick_gelu or gelu"
        )
    eps = section.get("layer_norm_eps", 1e-5)
    if eps != 1e-5:
        raise UnsupportedCheckpointError(
            f"config.json asks for layer_norm_eps {eps}; a plain CLIP has 1e-5"
        )
    width = section.get("hidden_size", width)
    return {
        "width": width,
        "layers": section.get("num_hidden_layers", 12),
        "head_width": _head_width(width, section.get("num_attention_heads", heads)),
        "mlp_ratio": section.get("intermediate_size", mlp_width) / width,
        "activation": activation,
    }


def _head_width(width: int, heads: int) -> int:
    """Return the width of one attention head. Raises `ConfigError` if it is no whole number."""
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ConfigError(f"a width of {width} cannot be split into {heads} heads")
    return width // heads


def from_shapes(
    weights: Mapping[str, Tensor],
    activation: Activation,
    head_width: int,
    text_head_width: int = 64,
) -> CLIPConfig:
    """Read a config off canonical weights.

    Activation and head widths leave no trace in the weights, so they must be given.

    Args:
        weights: by canonical name.
        activation: of both towers.
        head_width: of the image tower.
        text_head_width: of the text tower.

    Raises:
        CorruptCheckpointError: if a weight that tells a size is missing.
        ConfigError: if the position embeddings are no square grid, or the head widths do not fit.
    """
    try:
        vision: ViTConfig | ResNetConfig
        if "visual.layer1.0.conv1.weight" in weights:
            embed_dim = weights["visual.attnpool.c_proj.weight"].shape[0]
            vision = _resnet_from_shapes(weights, head_width)
        else:
            embed_dim = weights["visual.proj"].shape[1]
            vision = _vit_from_shapes(weights, activation, head_width)
        text = TextConfig(
            context_length=weights["text.positional_embedding"].shape[0],
            vocab_size=weights["text.token_embedding.weight"].shape[0],
            head_width=text_head_width,
            activation=activation,
            **_stack_from_shapes(weights, "text"),
        )
        return CLIPConfig(embed_dim=embed_dim, vision=vision, text=text)
    except ConfigError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise CorruptCheckpointError(
            f"the weights are incomplete: {error} is missing or misshapen"
        ) from error


def _resnet_from_shapes(weights: Mapping[str, Tensor], head_width: int) -> ResNetConfig:
    first, second, third, fourth = (
        count_parts(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)
    )
    return ResNetConfig(
        resolution=_resolution(weights["visual.attnpool.positional_embedding"], 32),
        layers=(first, second, third, fourth),
        width=weights["visual.layer1.0.conv1.weight"].shape[0],
        head_width=head_width,
    )


def _vit_from_shapes(
    weights: Mapping[str, Tensor], activation: Activation, head_width: int
) -> ViTConfig:
    patch_size = weights["visual.conv1.weight"].shape[3]
    return ViTConfig(
        resolution=_resolution(weights["visual.positional_embedding"], patch_size),
        patch_size=patch_size,
        head_width=head_width,
        activation=activation,
        **_stack_from_shapes(weights, "visual"),
    )


def _resolution(positions: Tensor, stride: int) -> tuple[int, int]:
    """Return the input size of a tower, from its (1 + rows x columns, W) position embeddings."""
    places = positions.shape[0] - 1
    side = math.isqrt(places)
    if side * side != places:
        raise ConfigError(
            f"{places} positions are no square grid, so they do not tell the resolution: pass "
            "config="
        )
    return side * stride, side * stride


def _stack_from_shapes(weights: Mapping[str, Tensor], tower: str) -> dict[str, Any]:
    """Return width, layers and MLP ratio of a tower's transformer, by the fields of our configs."""
    blocks = f"{tower}.transformer.resblocks."
    mlp_width, width = weights[blocks + "0.mlp.c_fc.weight"].shape
    return {"width": width, "layers": count_parts(weights, blocks), "mlp_ratio": mlp_width / width}


def differences(
    one: object, other: object, path: str = "", ignore: Collection[str] = ()
) -> list[str]:
    """Return where two configs disagree, as lines `path: this / that`.

    MLP ratios count as equal if they give the same width.

    Args:
        one, other: two configs, or two values in them.
        path: the place of the values in their configs.
        ignore: names of fields that may differ.

    Example:
        >>> from clipkit.checkpoints.registry import MODELS
        >>> differences(MODELS["ViT-B/32"].config, MODELS["ViT-B/16"].config)
        ['vision.patch_size: 32 / 16']
    """
    if type(one) is not type(other):
        return [f"{path or 'config'}: {one!r} / {other!r}"]
    if not is_dataclass(one):
        return [] if one == other else [f"{path}: {one!r} / {other!r}"]
    found: list[str] = []
    for field in fields(one):
        if field.name in ignore:
            continue
        name = "mlp_width" if field.name == "mlp_ratio" else field.name
        inner = f"{path}.{name}" if path else name
        found += differences(getattr(one, name), getattr(other, name), inner, ignore)
    return found
