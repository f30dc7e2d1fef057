"""A config written as the JSON files of other layouts, the inverse of `infer`."""

import math
from typing import Any

from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.errors import ConfigError
from clipkit.tokenizer import END, START, Tokenizer


def to_open_clip(config: CLIPConfig) -> dict[str, Any]:
    """`open_clip_config.json`.

    Raises `ConfigError` for what it cannot say: two activations in one model, and a ResNet whose input is not square.
    """
    vision, text = config.vision, config.text
    if isinstance(vision, ViTConfig) and vision.activation != text.activation:
        raise ConfigError(
            f"the open_clip layout has one activation for both towers, not {vision.activation} and {text.activation}"
        )
    height, width = vision.resolution
    if isinstance(vision, ResNetConfig) and height != width:
        raise ConfigError(f"the open_clip layout cannot hold a ResNet of {height} x {width} input: it knows squares")
    vision_cfg: dict[str, Any] = {
        "image_size": height if height == width else [height, width],
        "layers": vision.layers if isinstance(vision, ViTConfig) else list(vision.layers),
        "width": vision.width,
        "head_width": vision.head_width,
    }
    if isinstance(vision, ViTConfig):
        vision_cfg |= {"patch_size": vision.patch_size, "mlp_ratio": _mlp_ratio(vision)}
    text_cfg: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.width // text.head_width,
        "layers": text.layers,
    }
    if text.mlp_ratio != 4.0:
        text_cfg["mlp_ratio"] = _mlp_ratio(text)
    preprocess = config.preprocess
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": vision_cfg,
            "text_cfg": text_cfg,
        },
        "preprocess_cfg": {
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize_mode,
        },
    }


def _mlp_ratio(tower: ViTConfig | TextConfig) -> float:
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
        raise ConfigError("transformers has no CLIP with a ResNet: save in the open_clip layout instead")
    height, width = vision.resolution
    if height != width or preprocess.resize_mode == "longest":
        raise ConfigError(
            f"the transformers layout cannot hold a {height} x {width} input resized by {preprocess.resize_mode!r}: it "
            "knows squares, and 'shortest' or 'squash'"
        )
    start, end = tokenizer.sot_token, tokenizer.eot_token
    model = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "vision_config": _tower(vision, "clip_vision_model")
        | {"image_size": height, "patch_size": vision.patch_size, "projection_dim": config.embed_dim},
        "text_config": _tower(text, "clip_text_model")
        | {
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
            "projection_dim": config.embed_dim,
        },
    }
    square = {"height": height, "width": height}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height} if preprocess.resize_mode == "shortest" else square,
        "resample": 3 if preprocess.interpolation == "bicubic" else 2,  # PIL's numbers
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
        "do_convert_rgb": True,
    }
    tokens = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": text.context_length,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    # Without vocab.json and merges.txt transformers' tokenizer takes every word for an unknown one, and says nothing.
    vocabulary = {symbol: i for i, symbol in enumerate([*tokenizer._symbols, START, END])}
    return {
        "config.json": model,
        "preprocessor_config.json": processor,
        "tokenizer_config.json": tokens,
        "vocab.json": vocabulary,
    }


def _tower(config: Any, kind: str) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.width // config.head_width,
        "hidden_act": config.activation,
        "layer_norm_eps": 1e-5,
    }
