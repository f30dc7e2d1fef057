"""Write a config as the JSON files of other layouts, the inverse of `infer`."""

import math
from dataclasses import asdict
from typing import Any

from clipkit.byte_pairs import byte_ids
from clipkit.checkpoints.infer import LEGACY_EOS
from clipkit.config import (
    CLIPConfig,
    PreprocessConfig,
    ResNetConfig,
    TextConfig,
    TransformerConfig,
    ViTConfig,
)
from clipkit.errors import ConfigError
from clipkit.tokenizer import Tokenizer
from clipkit.words import END, START


def to_open_clip(config: CLIPConfig) -> dict[str, Any]:
    """Return the content of `open_clip_config.json`.

    Raises:
        ConfigError: for what the file cannot say: two activations in one model, and a ResNet for
            input that is not square.

    Example:
        >>> from clipkit.checkpoints.registry import MODELS
        >>> to_open_clip(MODELS["ViT-B/32"].config)["model_cfg"]["quick_gelu"]
        True
    """
    text = config.text
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": text.activation == "quick_gelu",
            "vision_cfg": _open_clip_vision(config),
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
                "mlp_ratio": _mlp_ratio(text),
                **_open_clip_end(text),
            },
        },
        "preprocess_cfg": asdict(config.preprocess),
    }


def _open_clip_end(text: TextConfig) -> dict[str, Any]:
    """Return what `text_cfg` says of the end of a text, if it is not the highest id."""
    return {} if text.end_of_text is None else {"pool_type": "eos", "eos_id": text.end_of_text}


def _open_clip_vision(config: CLIPConfig) -> dict[str, Any]:
    """Return `vision_cfg`."""
    vision = config.vision
    height, width = vision.resolution
    values: dict[str, Any] = {
        "image_size": height if height == width else [height, width],
        "layers": vision.layers,
        "width": vision.width,
        "head_width": vision.head_width,
    }
    if isinstance(vision, ResNetConfig):
        if height != width:
            raise ConfigError(
                f"the open_clip layout cannot hold a ResNet of {height} x {width} input: it knows "
                "squares"
            )
        return values
    if vision.activation != config.text.activation:
        raise ConfigError(
            f"the open_clip layout has one activation for both, not {vision.activation} and "
            f"{config.text.activation}"
        )
    return values | {"patch_size": vision.patch_size, "mlp_ratio": _mlp_ratio(vision)}


def _mlp_ratio(tower: TransformerConfig) -> float:
    """Return a ratio from which open_clip makes the same MLP width.

    open_clip rounds down, also where the product falls just short of the width.
    """
    if int(tower.width * tower.mlp_ratio) == tower.mlp_width:
        return tower.mlp_ratio
    return math.nextafter(tower.mlp_width / tower.width, math.inf)


def to_transformers(config: CLIPConfig, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the content of transformers' JSON files by name.

    They are those of the model, the image processor and the tokenizer, which needs `merges.txt`
    too.

    Raises:
        ConfigError: for what that layout cannot say: a ResNet, input that is not square, resizing
            to the longest side, and gaps between the ids of added tokens.

    Example:
        >>> from clipkit.checkpoints.registry import MODELS
        >>> sorted(to_transformers(MODELS["ViT-B/32"].config, Tokenizer([])))
        ['config.json', 'preprocessor_config.json', 'tokenizer_config.json', 'vocab.json']
    """
    vision = config.vision
    if isinstance(vision, ResNetConfig):
        raise ConfigError(
            "transformers has no CLIP with a ResNet: save in the open_clip layout instead"
        )
    height, width = vision.resolution
    if height != width or config.preprocess.resize_mode == "longest":
        raise ConfigError(
            f"the transformers layout cannot hold a {height} x {width} input resized by "
            f"{config.preprocess.resize_mode!r}: it knows squares, and 'shortest' or 'squash'"
        )
    documents: dict[str, dict[str, Any]] = {
        "config.json": _transformers_config(config, vision, tokenizer),
        "preprocessor_config.json": _image_processor(config.preprocess, height),
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": config.text.context_length,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": END,
        },
        # Without it and merges.txt transformers' tokenizer takes every word for an unknown one,
        # and says nothing.
        "vocab.json": vocabulary(tokenizer),
    }
    if tokenizer.added_tokens:
        documents["added_tokens.json"] = dict(tokenizer.added_tokens)
        documents["tokenizer_config.json"]["added_tokens_decoder"] = _added_tokens(tokenizer)
    return documents


def _transformers_config(
    config: CLIPConfig, vision: ViTConfig, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return the content of `config.json`."""
    text = config.text
    height, _ = vision.resolution
    vision_values = _tower(vision, config.embed_dim, "clip_vision_model")
    text_values = _tower(text, config.embed_dim, "clip_text_model")
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "vision_config": vision_values
        | {
            "image_size": height,
            "patch_size": vision.patch_size,
        },
        "text_config": text_values
        | {
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": tokenizer.sot_token,
            "eos_token_id": _eos_token_id(text, tokenizer),
            "pad_token_id": tokenizer.eot_token,
        },
    }


def _eos_token_id(text: TextConfig, tokenizer: Tokenizer) -> int:
    """Return where transformers is to read the text feature."""
    if text.end_of_text is not None:
        return text.end_of_text
    # Where that is not the highest id of the vocabulary, 2 tells transformers to take the highest.
    return tokenizer.eot_token if tokenizer.eot_token == text.vocab_size - 1 else LEGACY_EOS


def _added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the added tokens as `tokenizer_config.json` has them."""
    by_id = dict(sorted((token, text) for text, token in tokenizer.added_tokens.items()))
    first = tokenizer.eot_token + 1
    if list(by_id) != list(range(first, first + len(by_id))):
        raise ConfigError(
            f"transformers numbers added tokens from {first} on without a gap, and they are {by_id}"
        )
    return {
        str(token): {
            "content": text,
            "normalized": text not in tokenizer.exact_tokens,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "special": False,
        }
        for token, text in by_id.items()
    }


def _tower(config: TransformerConfig, embed_dim: int, kind: str) -> dict[str, Any]:
    """Return what both towers' sections of `config.json` state."""
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


def _image_processor(preprocess: PreprocessConfig, side: int) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`."""
    square = {"height": side, "width": side}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side} if preprocess.resize_mode == "shortest" else square,
        "resample": 3 if preprocess.interpolation == "bicubic" else 2,  # PIL's numbers
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
        "do_convert_rgb": True,
    }


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Return the content of `vocab.json`: the id of each symbol."""
    joined = (merge.replace(" ", "") for merge in tokenizer.merges)
    return {symbol: number for number, symbol in enumerate([*byte_ids(), *joined, START, END])}
