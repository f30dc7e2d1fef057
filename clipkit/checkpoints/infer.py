"""From a checkpoint's JSON, or the shapes of its weights, to a config; and whether the two agree."""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

from clipkit.config import (
    Activation,
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from clipkit.errors import ConfigError, CorruptCheckpointError, UnsupportedCheckpointError

# open_clip options that leave the model a plain CLIP whatever their value: they act in training only, or on key names.
OPEN_CLIP_NEUTRAL = {"custom_text", "init_logit_scale", "patch_dropout", "timm_model_pretrained"}
# open_clip options at these values change nothing; any other value makes another model.
OPEN_CLIP_PLAIN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        "attentional_pool embed_cls final_ln_after_pool no_causal_mask no_ln_pre".split(), (False,)
    ),
    **dict.fromkeys("nonscalar_logit_scale output_tokens proj_bias".split(), (False,)),
    "hf_tokenizer_name": ("",),
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
}
OPEN_CLIP_SIZES = {
    "resolution": "image_size",
    "layers": "layers",
    "width": "width",
}  # that every image tower states


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
        sizes = {name: vision.pop(key) for name, key in OPEN_CLIP_SIZES.items()}
        sizes["head_width"] = vision.pop("head_width", 64)
        patch_size, mlp_ratio = (
            vision.pop("patch_size", None),
            vision.pop("mlp_ratio", 4.0),
        )  # which a ResNet ignores
        width = text.pop("width")
        text_config = TextConfig(
            context_length=text.pop("context_length", 77),
            vocab_size=text.pop("vocab_size", 49408),
            width=width,
            head_width=_head_width(width, text.pop("heads")),
            layers=text.pop("layers"),
            mlp_ratio=text.pop("mlp_ratio", 4.0),
            activation=activation,
        )
    except KeyError as error:
        _refuse_options(cfg, vision, text)  # a file of another model lacks them for a better reason
        raise ConfigError(f"open_clip_config.json has no {error}") from error
    if isinstance(sizes["layers"], list | tuple):
        vision_config: ViTConfig | ResNetConfig = ResNetConfig(**sizes)
    else:
        vision_config = ViTConfig(
            **sizes, patch_size=patch_size, mlp_ratio=mlp_ratio, activation=activation
        )
    _refuse_options(cfg, vision, text)
    known = {f.name for f in fields(PreprocessConfig)}
    preprocess = {
        k: v
        for k, v in (values.get("preprocess_cfg") or {}).items()
        if k in known and v is not None
    }
    return CLIPConfig(
        embed_dim=embed_dim,
        vision=vision_config,
        text=text_config,
        preprocess=replace(row.preprocess if row else PreprocessConfig(), **preprocess),
    )


def _refuse_options(*sections: Mapping[str, Any]) -> None:
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

    What a file leaves out has the default of transformers' CLIPConfig; a missing `hidden_act` is quick_gelu there.

    Raises:
        UnsupportedCheckpointError: for another `model_type`, activation or norm.
        ConfigError: for impossible values.
    """
    kind = values.get("model_type", "clip")
    if kind != "clip" or "vision_config" not in values and "vision_config_dict" not in values:
        raise UnsupportedCheckpointError(
            f"config.json describes a {kind!r} model, not a CLIP with both towers"
        )
    # Old files say it twice, and transformers itself believes the `_dict`.
    vision = values.get("vision_config_dict") or values.get("vision_config") or {}
    text = values.get("text_config_dict") or values.get("text_config") or {}
    return CLIPConfig(
        embed_dim=values.get("projection_dim", 512),
        vision=ViTConfig(
            resolution=vision.get("image_size", 224),
            patch_size=vision.get("patch_size", 32),
            **_transformers_stack(vision, 768, 12, 3072),
        ),
        text=TextConfig(
            context_length=text.get("max_position_embeddings", 77),
            vocab_size=text.get("vocab_size", 49408),
            **_transformers_stack(text, 512, 8, 2048),
        ),
        preprocess=_transformers_preprocess(processor) if processor else PreprocessConfig(),
    )


def _transformers_stack(
    section: Mapping[str, Any], width: int, heads: int, mlp_width: int
) -> dict[str, Any]:
    """What both towers state, in the fields of our configs; the numbers are transformers' defaults."""
    activation, eps = section.get("hidden_act", "quick_gelu"), section.get("layer_norm_eps", 1e-5)
    if activation not in ("quick_gelu", "gelu"):
        raise UnsupportedCheckpointError(
            f"config.json asks for the activation {activation!r}; CLIP has quick_gelu or gelu"
        )
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


def _transformers_preprocess(values: Mapping[str, Any]) -> PreprocessConfig:
    values = (
        values.get("image_processor") or values
    )  # so it is nested in `processor_config.json`, transformers 5
    resample = values.get("resample", 3)  # PIL's numbers
    if resample not in (2, 3):
        raise UnsupportedCheckpointError(
            f"preprocessor_config.json: resample {resample!r} is neither bilinear nor bicubic"
        )
    size = values.get("size", {"shortest_edge": 224})
    squash = isinstance(size, dict) and "shortest_edge" not in size
    for key in (
        "do_resize",
        "do_rescale",
        "do_normalize",
        *(() if squash else ("do_center_crop",)),
    ):
        if values.get(key) is False:
            raise UnsupportedCheckpointError(
                f"preprocessor_config.json: {key} is false, but a plain CLIP's is true"
            )
    if abs((factor := values.get("rescale_factor", 1 / 255)) - 1 / 255) > 1e-6:
        raise UnsupportedCheckpointError(
            f"preprocessor_config.json: rescale_factor {factor!r} is not 1/255"
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
    weights: Mapping[str, Tensor],
    activation: Activation,
    head_width: int,
    text_head_width: int = 64,
) -> CLIPConfig:
    """Read a config off canonical weights. Activation and head widths leave no trace there, so they must be given.

    Raises:
        CorruptCheckpointError: if a weight that tells a size is missing.
        ConfigError: if the position embeddings are no square grid, or the head widths do not fit.
    """
    try:
        if "visual.layer1.0.conv1.weight" in weights:
            embed_dim = weights["visual.attnpool.c_proj.weight"].shape[0]
            vision: ViTConfig | ResNetConfig = ResNetConfig(
                resolution=_resolution(weights["visual.attnpool.positional_embedding"], 32),
                layers=tuple(_count(weights, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)),  # pyright: ignore[reportArgumentType]
                width=weights["visual.layer1.0.conv1.weight"].shape[0],
                head_width=head_width,
            )
        else:
            embed_dim, patch = (
                weights["visual.proj"].shape[1],
                weights["visual.conv1.weight"].shape[3],
            )
            vision = ViTConfig(
                resolution=_resolution(weights["visual.positional_embedding"], patch),
                patch_size=patch,
                head_width=head_width,
                activation=activation,
                **_stack(weights, "visual"),
            )
        text = TextConfig(
            context_length=weights["text.positional_embedding"].shape[0],
            vocab_size=weights["text.token_embedding.weight"].shape[0],
            head_width=text_head_width,
            activation=activation,
            **_stack(weights, "text"),
        )
        return CLIPConfig(embed_dim=embed_dim, vision=vision, text=text)
    except ConfigError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise CorruptCheckpointError(
            f"the weights are incomplete: {error} is missing or misshapen"
        ) from error


def _resolution(positions: Tensor, stride: int) -> tuple[int, int]:
    side = math.isqrt(positions.shape[0] - 1)
    if side * side + 1 != positions.shape[0]:
        raise ConfigError(
            f"{positions.shape[0] - 1} positions are no square grid, so they do not tell the resolution: pass config="
        )
    return side * stride, side * stride


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})


def _stack(weights: Mapping[str, Tensor], tower: str) -> dict[str, Any]:
    blocks = f"{tower}.transformer.resblocks."
    hidden, width = weights[blocks + "0.mlp.c_fc.weight"].shape
    return {"width": width, "layers": _count(weights, blocks), "mlp_ratio": hidden / width}


def differences(one: Any, other: Any, path: str = "", ignore: Collection[str] = ()) -> list[str]:
    """Where two configs disagree, as `path: this / that`; fields of the names in `ignore` may.

    MLP ratios count as equal if they give the same width.
    """
    if type(one) is not type(other):
        return [f"{path or 'config'}: {one!r} / {other!r}"]
    if is_dataclass(one):
        names = [
            "mlp_width" if f.name == "mlp_ratio" else f.name
            for f in fields(one)
            if f.name not in ignore
        ]
        prefix = f"{path}." if path else ""
        return [
            d
            for n in names
            for d in differences(getattr(one, n), getattr(other, n), prefix + n, ignore)
        ]
    return [] if one == other else [f"{path}: {one!r} / {other!r}"]
