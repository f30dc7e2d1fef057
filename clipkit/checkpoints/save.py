"""Write a config, weights and a tokenizer into a folder, in clipkit's layout or in another one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clipkit.checkpoints import describe, layouts
from clipkit.checkpoints.documents import (
    ADDED_TOKENS,
    CONFIG,
    MERGES,
    OPEN_CLIP_CONFIG,
    SETTINGS,
    TOKENIZER,
)
from clipkit.checkpoints.source import WEIGHT_FILES
from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError
from clipkit.files import check_output, replacing_folder, write_weights
from clipkit.models.build import expected_weights
from clipkit.tokenizer import Tokenizer

FolderLayout = Literal["clipkit", "open_clip", "transformers"]

# The weight file of each layout, and the names of the weights in it.
_FORMATS: dict[FolderLayout, tuple[str, layouts.Layout]] = {
    "clipkit": ("model.safetensors", "canonical"),
    "open_clip": ("open_clip_model.safetensors", "openai"),
    "transformers": ("model.safetensors", "transformers"),
}


def save_checkpoint(
    config: CLIPConfig,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    folder: str | os.PathLike[str],
    *,
    layout: FolderLayout = "clipkit",
    dtype: torch.dtype | None = None,
    preprocess: dict[str, Any] | None = None,
) -> None:
    """Write a model into a folder that `load_checkpoint` reads back bit for bit.

    Args:
        config: the architecture and the preprocessing.
        weights: by canonical name.
        tokenizer: the one that belongs to the weights; None for CLIP's own.
        folder: made if it does not exist. A model that is there is replaced as one: a process that
            is killed at any moment leaves the old one or the new one. Other files in the folder, a
            README for instance, stay as they are.
        layout: "clipkit"; or "open_clip" or "transformers" for those libraries.
        dtype: of the floating-point weights on disk; as they are if not given.
        preprocess: plain data that describes a preprocessing other than the config's.
            `load_checkpoint` gives it back as `Checkpoint.preprocess`. Only clipkit's own layout
            has a place for it.

    Raises:
        ConfigError: if the layout cannot hold the model, if weights are missing, or if the folder
            has weights that `load` would take instead.
        OutputError: if the folder cannot be written.

    Example:
        checkpoint = load_checkpoint("ViT-B/32")
        save_checkpoint(checkpoint.config, checkpoint.weights, checkpoint.tokenizer, "folder")
    """
    given: object = folder
    if not isinstance(given, str | os.PathLike):
        raise ConfigError(f"a model is saved in a folder, by its path, not {given!r:.60}")
    check_output(folder, "folder")
    folder = Path(folder)
    if layout not in _FORMATS:
        raise ConfigError(
            f"layout must be 'clipkit', 'open_clip' or 'transformers', not {layout!r}"
        )
    if tokenizer is not None and tokenizer.is_default:
        tokenizer = None
    weight_file, names = _FORMATS[layout]
    texts = _texts(config, tokenizer, layout, preprocess)
    check_dtype(dtype)
    _refuse_missing(config, weights)
    _refuse_other_weights(folder, weight_file)
    cast = dict(weights)
    if dtype is not None:
        cast = {key: cast_weight(key, value, dtype) for key, value in weights.items()}
    # A tokenizer that transformers saved there before would overrule the one that is written.
    others = [TOKENIZER, ADDED_TOKENS, *SETTINGS] if layout == "transformers" else []
    with replacing_folder(folder, owned=[MERGES, *others]) as fresh:
        write_weights(layouts.from_canonical(cast, names), fresh / weight_file)
        for name, text in texts.items():
            (fresh / name).write_text(text + "\n", "utf-8")


def _refuse_missing(config: CLIPConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` for a model without parts that its config says it has."""
    missing = sorted(expected_weights(config).keys() - weights.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(
            f"the model has no {', '.join(missing[:3])}{more}, which its config describes: put "
            "back what was taken away before it is saved, or save its state_dict() by torch.save"
        )


def _texts(
    config: CLIPConfig,
    tokenizer: Tokenizer | None,
    layout: FolderLayout,
    preprocess: dict[str, Any] | None,
) -> dict[str, str]:
    """Return the content of a layout's text files by name."""
    main = OPEN_CLIP_CONFIG if layout == "open_clip" else CONFIG
    documents: dict[str, dict[str, Any]]
    if layout == "clipkit":
        documents = {main: {"format": "clipkit", "model": config.to_dict()}}
    elif layout == "open_clip":
        documents = {main: describe.to_open_clip(config)}
    else:
        written = tokenizer or Tokenizer(None, config.text.context_length)
        documents = describe.to_transformers(config, written)
    if preprocess is not None:
        if layout != "clipkit":
            raise ConfigError(
                f"the {layout} layout cannot hold a preprocessing of its own: save with "
                "layout='clipkit', or give the model the preprocessing of its config"
            )
        documents[main]["preprocess"] = preprocess
    if tokenizer is not None:
        documents[main]["tokenizer"] = MERGES
        if tokenizer.added_tokens and layout != "transformers":
            documents[main]["added_tokens"] = dict(tokenizer.added_tokens)
            documents[main]["exact_tokens"] = sorted(tokenizer.exact_tokens)
    texts = {name: json.dumps(values, indent=2) for name, values in documents.items()}
    # transformers' tokenizer cannot do without the merges, CLIP's own included.
    if tokenizer is not None or layout == "transformers":
        merges = (tokenizer or Tokenizer()).merges
        texts[MERGES] = "\n".join(["#version: 0.2", *merges])
    return texts


def weights_before(layout: FolderLayout) -> tuple[str, ...]:
    """Return the names of weight files that `load` prefers to the one of a layout."""
    return _names_before(_FORMATS[layout][0]) if layout in _FORMATS else ()


def _names_before(weight_file: str) -> tuple[str, ...]:
    return WEIGHT_FILES[: WEIGHT_FILES.index(weight_file)]


def _refuse_other_weights(folder: Path, weight_file: str) -> None:
    """Raise `ConfigError` if a folder has weights that `load` prefers to those to be written."""
    for name in _names_before(weight_file):
        if (folder / name).exists():
            raise ConfigError(
                f"{folder} holds {name}, which load would take instead: save to another folder"
            )


def cast_weight(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight to another dtype, unless it is a counter or the temperature.

    Counters stay integers. The temperature stays float32: in bfloat16 a scale of 100 would become
    98.9.

    Args:
        key: the weight's canonical name.
        value: any shape and dtype.
        dtype: a floating-point dtype.

    Returns:
        The same shape, in `dtype`, float32 or the counter's own dtype.
    """
    if not value.is_floating_point():
        return value
    return value.to(torch.float32 if key == "logit_scale" else dtype)


def place_weights(
    weights: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return weights by name, cast as `cast_weight` does, on a device, each in one piece."""
    return {
        key: cast_weight(key, value, dtype).to(device).contiguous()
        for key, value in weights.items()
    }


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise `ConfigError` unless this is None or a dtype in which a model computes."""
    if dtype is not None and dtype not in layouts.WEIGHT_DTYPES:
        raise ConfigError(
            f"dtype must be torch.float32, float16, bfloat16 or float64, not {dtype!r:.99}"
        )
