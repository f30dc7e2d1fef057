"""A config written as the JSON files of other layouts, the inverse of `infer`."""

import math
from dataclasses import asdict
from typing import Any

from clipkit.config import CLIPConfig, ResNetConfig, TransformerConfig, ViTConfig
from clipkit.errors import ConfigError
from clipkit.tokenizer import END, START, Tokenizer


def to_open_clip(config: CLIPConfig) -> dict[str, Any]:
    """`open_clip_config.json`.

    Raises `ConfigError` for what it cannot say: two activations in one model, and a ResNet whose input is not square.
    """
    vision, text = config.vision, config.text
    height, width = vision.resolution
    vision_cfg: dict[str, Any] = {"image_size": height if height == width else [height, width]}
    if isinstance(vision, ViTConfig):
        if vision.activation != text.activation:
            raise ConfigError(
                f"the open_clip layout has one activation for both, not {vision.activation} and {text.activation}"
            )
        vision_cfg |= {"patch_size": vision.patch_size, "mlp_ratio": _mlp_ratio(vision)}
    elif height != width:
        raise ConfigError(
            f"the open_clip layout cannot hold a ResNet of {height} x {width} input: it knows squares"
        )
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": vision_cfg
            | {"layers": vision.layers, "width": vision.width, "head_width": vision.head_width},
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
                "mlp_ratio": _mlp_ratio(text),
            },
        },
        "preprocess_cfg": asdict(config.preprocess),
    }


def _mlp_ratio(tower: TransformerConfig) -> float:
    """A ratio of which open_clip, which rounds down where the product falls just short, makes the same MLP width."""
    if int(tower.width * tower.mlp_ratio) == tower.mlp_width:
        return tower.mlp_ratio
    return math.nextafter(tower.mlp_width / tower.width, math.inf)


def to_transformers(config: CLIPConfig, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """transformers' JSON files by name: model, image processor and tokenizer, which needs `merges.txt` too.

    Raises `ConfigError` for what that layout cannot say: ResNets, non-square input, resizing to the longest side.
    """
    vision, text, preprocess = config.vision, config.text, config.preprocess
    if isinstance(vision, ResNetConfig):
        raise ConfigError(
            "transformers has no CLIP with a ResNet: save in the open_clip layout instead"
        )
    height, width = vision.resolution
    if height != width or preprocess.resize_mode == "longest":
        raise ConfigError(
            f"the transformers layout cannot hold a {height} x {width} input resized by {preprocess.resize_mode!r}: it "
            "knows squares, and 'shortest' or 'squash'"
        )
    square = {"height": height, "width": height}
    return {
        "config.json": {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": config.embed_dim,
            "vision_config": _tower(vision, config.embed_dim, "clip_vision_model")
            | {"image_size": height, "patch_size": vision.patch_size},
            "text_config": _tower(text, config.embed_dim, "clip_text_model")
            | {
                "vocab_size": text.vocab_size,
                "max_position_embeddings": text.context_length,
                "bos_token_id": tokenizer.sot_token,
                "eos_token_id": tokenizer.eot_token,
                "pad_token_id": tokenizer.eot_token,
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": height} if preprocess.resize_mode == "shortest" else square,
            "resample": 3 if preprocess.interpolation == "bicubic" else 2,  # PIL's numbers
            "do_center_crop": True,
            "crop_size": square,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": preprocess.mean,
            "image_std": preprocess.std,
            "do_convert_rgb": True,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": text.context_length,
            "bos_token": START,
            **dict.fromkeys(("eos_token", "unk_token", "pad_token"), END),
        },
        # Without it and merges.txt transformers' tokenizer takes every word for an unknown one, and says nothing.
        "vocab.json": {symbol: i for i, symbol in enumerate([*tokenizer._symbols, START, END])},
    }


def _tower(config: TransformerConfig, embed_dim: int, kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "hidden_act": config.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": embed_dim,
    }
