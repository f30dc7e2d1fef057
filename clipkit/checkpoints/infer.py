"""From a checkpoint's JSON, or the shapes of its weights, to a config; and whether the two agree."""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from clipkit.config import Activation, CLIPConfig, PreprocessConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.errors import ConfigError, CorruptCheckpointError, UnsupportedCheckpointError

# open_clip options that leave the model a plain CLIP whatever their value: they act in training only, or on key names.
OPEN_CLIP_NEUTRAL = {"custom_text", "init_logit_scale", "patch_dropout", "timm_model_pretrained"}
# open_clip options at these values change nothing; any other value makes another model.
OPEN_CLIP_PLAIN: dict[str, tuple[Any, ...]] = {
    "pool_type": ("tok", "argmax"),
    "embed_cls": (False,),
    "no_causal_mask": (False,),
    "no_ln_pre": (False,),
    "final_ln_after_pool": (False,),
    "attentional_pool": (False,),
    "output_tokens": (False,),
    "proj_type": ("linear",),
    "proj_bias": (False,),
    "pos_embed_type": ("learnable",),
    "nonscalar_logit_scale": (False,),
    "init_logit_bias": (),
    "multimodal_cfg": (),
    "timm_model_name": (),
    "hf_model_name": (),
    "hf_tokenizer_name": ("",),
    "ls_init_value": (),
}


def from_open_clip(values: Mapping[str, Any], row: CLIPConfig | None = None) -> CLIPConfig:
    """Read `open_clip_config.json`.

    Args:
        values: the parsed JSON; `model_cfg` and, in most files, `preprocess_cfg`.
        row: the registry's config. It settles what the file leaves out (`quick_gelu` and the preprocessing; open_clip's
            own default is GELU), and nothing else.

    Raises:
        UnsupportedCheckpointError: for a model that is not a plain CLIP, naming the option that makes it another.
        ConfigError: for missing or impossible values.
    """
    cfg = dict(values.get("model_cfg", values))
    vision, text = dict(cfg.pop("vision_cfg", {})), dict(cfg.pop("text_cfg", {}))
    quick_gelu = cfg.pop("quick_gelu", row is not None and row.text.activation == "quick_gelu")
    activation: Activation = "quick_gelu" if quick_gelu else "gelu"
    try:
        embed_dim = cfg.pop("embed_dim")
        size, layers, width = (vision.pop(key) for key in ("image_size", "layers", "width"))
        head_width, patch_size = vision.pop("head_width", 64), vision.pop("patch_size", None)
        text_width = text.pop("width")
        text_config = TextConfig(
            context_length=text.pop("context_length", 77),
            vocab_size=text.pop("vocab_size", 49408),
            width=text_width,
            head_width=_head_width(text_width, text.pop("heads")),
            layers=text.pop("layers"),
            mlp_ratio=text.pop("mlp_ratio", 4.0),
            activation=activation,
        )
    except KeyError as error:
        for section in (cfg, vision, text):  # a file of another model lacks them for a better reason
            _refuse_options(section)
        raise ConfigError(f"open_clip_config.json has no {error}") from error
    if isinstance(layers, list | tuple):
        vision_config: ViTConfig | ResNetConfig = ResNetConfig(
            resolution=size, layers=tuple(layers), width=width, head_width=head_width
        )
        vision.pop("mlp_ratio", None)
    else:
        vision_config = ViTConfig(
            resolution=size,
            patch_size=patch_size,
            width=width,
            layers=layers,
            head_width=head_width,
            mlp_ratio=vision.pop("mlp_ratio", 4.0),
            activation=activation,
        )
    for section in (cfg, vision, text):
        _refuse_options(section)
    preprocess = (
        {name: getattr(row.preprocess, name) for name in ("mean", "std", "interpolation", "resize_mode")} if row else {}
    )
    known = {f.name for f in fields(PreprocessConfig)}
    preprocess |= {k: v for k, v in (values.get("preprocess_cfg") or {}).items() if k in known and v is not None}
    return CLIPConfig(
        embed_dim=embed_dim, vision=vision_config, text=text_config, preprocess=PreprocessConfig(**preprocess)
    )


def _refuse_options(options: Mapping[str, Any]) -> None:
    for key, value in options.items():
        if key in OPEN_CLIP_NEUTRAL or value is None or value in OPEN_CLIP_PLAIN.get(key, ()):
            continue
        if key.startswith("timm_") and not options.get("timm_model_name"):
            continue
        raise UnsupportedCheckpointError(
            f"open_clip_config.json describes a model that is not a plain CLIP: {key} = {value!r}"
        )


def from_transformers(values: Mapping[str, Any], processor: Mapping[str, Any] | None = None) -> CLIPConfig:
    """Read transformers' `config.json` and, where it is there, `preprocessor_config.json`.

    What a file leaves out has the default of transformers' CLIPConfig; a missing `hidden_act` is quick_gelu there.

    Raises:
        UnsupportedCheckpointError: for another `model_type`, activation or norm.
        ConfigError: for impossible values.
    """
    kind = values.get("model_type", "clip")
    if kind != "clip" or "vision_config" not in values and "vision_config_dict" not in values:
        raise UnsupportedCheckpointError(
            f"config.json describes a {kind!r} model, not a CLIP with both towers (model_type 'clip')"
        )
    # Old files say it twice, and transformers itself believes the `_dict`.
    vision = values.get("vision_config_dict") or values.get("vision_config") or {}
    text = values.get("text_config_dict") or values.get("text_config") or {}
    width = vision.get("hidden_size", 768)
    vision_config = ViTConfig(
        resolution=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 32),
        width=width,
        layers=vision.get("num_hidden_layers", 12),
        head_width=_head_width(width, vision.get("num_attention_heads", 12)),
        mlp_ratio=vision.get("intermediate_size", 3072) / width,
        activation=_transformers_activation(vision),
    )
    width = text.get("hidden_size", 512)
    text_config = TextConfig(
        context_length=text.get("max_position_embeddings", 77),
        vocab_size=text.get("vocab_size", 49408),
        width=width,
        layers=text.get("num_hidden_layers", 12),
        head_width=_head_width(width, text.get("num_attention_heads", 8)),
        mlp_ratio=text.get("intermediate_size", 2048) / width,
        activation=_transformers_activation(text),
    )
    return CLIPConfig(
        embed_dim=values.get("projection_dim", 512),
        vision=vision_config,
        text=text_config,
        preprocess=_transformers_preprocess(processor) if processor else PreprocessConfig(),
    )


def _transformers_activation(section: Mapping[str, Any]) -> Activation:
    name = section.get("hidden_act", "quick_gelu")
    if name not in ("quick_gelu", "gelu"):
        raise UnsupportedCheckpointError(
            f"config.json asks for the activation {name!r}; a plain CLIP has quick_gelu or gelu"
        )
    if section.get("layer_norm_eps", 1e-5) != 1e-5:
        raise UnsupportedCheckpointError(
            f"config.json asks for layer_norm_eps {section['layer_norm_eps']}; a plain CLIP has 1e-5"
        )
    return name


def _transformers_preprocess(values: Mapping[str, Any]) -> PreprocessConfig:
    values = values.get("image_processor") or values  # so it is nested in `processor_config.json`, transformers 5
    resample = values.get("resample", 3)  # PIL's numbers
    if resample not in (2, 3):
        raise UnsupportedCheckpointError(
            f"preprocessor_config.json: resample {resample!r} is neither bilinear nor bicubic"
        )
    size = values.get("size", {"shortest_edge": 224})
    squash = isinstance(size, dict) and "shortest_edge" not in size
    for key in ("do_resize", "do_rescale", "do_normalize", *(() if squash else ("do_center_crop",))):
        if values.get(key) is False:
            raise UnsupportedCheckpointError(f"preprocessor_config.json: {key} is false, but a plain CLIP's is true")
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise UnsupportedCheckpointError(
            f"preprocessor_config.json: rescale_factor {values['rescale_factor']!r} is not 1/255"
        )
    return PreprocessConfig(
        mean=tuple(values.get("image_mean", PreprocessConfig.mean)),
        std=tuple(values.get("image_std", PreprocessConfig.std)),
        interpolation="bicubic" if resample == 3 else "bilinear",
        resize_mode="squash" if squash else "shortest",
    )


def _head_width(width: int, heads: int) -> int:
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ConfigError(f"a width of {width} cannot be split into {heads} heads")
    return width // heads


def from_shapes(
    weights: Mapping[str, Tensor], activation: Activation, head_width: int, text_head_width: int = 64
) -> CLIPConfig:
    """Read a config off canonical weights. Activation and head widths leave no trace there, so they must be given.

    Raises:
        CorruptCheckpointError: if a weight that tells a size is missing.
        ConfigError: if the position embeddings are no square grid, or the head widths do not fit.
    """
    try:
        return _from_shapes(weights, activation, head_width, text_head_width)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CorruptCheckpointError(
            f"the weights of a CLIP are incomplete: {error} is missing or misshapen"
        ) from error


def _from_shapes(weights: Mapping[str, Tensor], activation: Activation, head_width: int, text_head: int) -> CLIPConfig:
    if "visual.layer1.0.conv1.weight" in weights:
        vision: ViTConfig | ResNetConfig = ResNetConfig(
            resolution=_resolution(weights["visual.attnpool.positional_embedding"], 32),
            layers=tuple(_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),  # pyright: ignore[reportArgumentType]
            width=weights["visual.layer1.0.conv1.weight"].shape[0],
            head_width=head_width,
        )
        embed_dim = weights["visual.attnpool.c_proj.weight"].shape[0]
    else:
        width, _, patch, _ = weights["visual.conv1.weight"].shape
        vision = ViTConfig(
            resolution=_resolution(weights["visual.positional_embedding"], patch),
            patch_size=patch,
            width=width,
            layers=_count(weights, "visual.transformer.resblocks."),
            head_width=head_width,
            mlp_ratio=_mlp_ratio(weights, "visual."),
            activation=activation,
        )
        embed_dim = weights["visual.proj"].shape[1]
    context_length, text_width = weights["text.positional_embedding"].shape
    text = TextConfig(
        context_length=context_length,
        vocab_size=weights["text.token_embedding.weight"].shape[0],
        width=text_width,
        layers=_count(weights, "text.transformer.resblocks."),
        head_width=text_head,
        mlp_ratio=_mlp_ratio(weights, "text."),
        activation=activation,
    )
    return CLIPConfig(embed_dim=embed_dim, vision=vision, text=text)


def _resolution(positions: Tensor, stride: int) -> tuple[int, int]:
    side = math.isqrt(positions.shape[0] - 1)
    if side * side + 1 != positions.shape[0]:
        raise ConfigError(
            f"{positions.shape[0] - 1} positions are no square grid, so they do not tell the resolution: pass config="
        )
    return side * stride, side * stride


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def _mlp_ratio(weights: Mapping[str, Tensor], tower: str) -> float:
    hidden, width = weights[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"].shape
    return hidden / width


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two configs disagree, as `path: this / that`. MLP ratios count as equal if they give the same width."""
    if type(one) is not type(other):
        return [f"{path or 'config'}: {one!r} / {other!r}"]
    if is_dataclass(one):
        names = [f.name for f in fields(one) if f.name != "mlp_ratio"]
        names += ["mlp_width"] if hasattr(one, "mlp_width") else []
        return [d for n in names for d in differences(getattr(one, n), getattr(other, n), f"{path}.{n}" if path else n)]
    return [] if one == other else [f"{path}: {one!r} / {other!r}"]
