"""From a config, weights and a tokenizer to a folder, in clipkit's own layout or in those of other libraries."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clipkit.checkpoints import describe, layouts
from clipkit.checkpoints.documents import CONFIG, MERGES, OPEN_CLIP_CONFIG
from clipkit.checkpoints.source import WEIGHT_FILES
from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError
from clipkit.files import replacing, write_weights
from clipkit.tokenizer import Tokenizer

FolderLayout = Literal["clipkit", "open_clip", "transformers"]


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
    """Write a model into a folder that `load` reads back bit for bit.

    Args:
        config: what the weights are.
        weights: by canonical name.
        tokenizer: the one that belongs to the weights; None for CLIP's own.
        folder: made if it does not exist. Files of the same names are replaced, each only when its successor is whole.
        layout: "clipkit"; or "open_clip" or "transformers" for those libraries.
        dtype: of the floating-point weights on disk; as they are if not given.
        preprocess: plain data that describes a preprocessing other than the config's. `load_checkpoint` gives it back
            as `Checkpoint.preprocess`. Only clipkit's own layout has a place for it.

    Raises:
        ConfigError: if the layout cannot hold the model, or if the folder has weights that `load` would take instead.
    """
    folder = Path(folder)
    if preprocess is not None and layout != "clipkit":
        raise ConfigError(
            f"the {layout} layout cannot hold a preprocessing of its own: save with layout='clipkit', or give the "
            "model the preprocessing of its config"
        )
    if tokenizer is not None and tokenizer.is_default:
        tokenizer = None
    documents: dict[str, dict[str, Any]]  # by file name, the config first
    if layout == "clipkit":
        weight_file, keys = "model.safetensors", "canonical"
        documents = {CONFIG: {"format": "clipkit", "model": config.to_dict()}}
        if preprocess is not None:
            documents[CONFIG]["preprocess"] = preprocess
    elif layout == "open_clip":
        weight_file, keys = "open_clip_model.safetensors", "openai"
        documents = {OPEN_CLIP_CONFIG: describe.to_open_clip(config)}
    elif layout == "transformers":
        weight_file, keys = "model.safetensors", "transformers"
        documents = describe.to_transformers(
            config, tokenizer or Tokenizer(None, config.text.context_length)
        )
    else:
        raise ConfigError(
            f"layout must be 'clipkit', 'open_clip' or 'transformers', not {layout!r}"
        )
    if tokenizer is not None:
        documents[next(iter(documents))]["tokenizer"] = MERGES
    check_dtype(dtype)
    for name in WEIGHT_FILES[: WEIGHT_FILES.index(weight_file)]:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder} holds {name}, which load would take instead: save to another folder"
            )
    cast = (
        weights
        if dtype is None
        else {key: cast_weight(key, value, dtype) for key, value in weights.items()}
    )
    write_weights(layouts.from_canonical(cast, keys), folder / weight_file)
    texts = {name: json.dumps(values, indent=2) for name, values in documents.items()}
    if tokenizer is not None or layout == "transformers":  # whose tokenizer cannot do without
        merges = (tokenizer or Tokenizer()).merges
        texts[MERGES] = "\n".join(["#version: 0.2", *merges])
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text + "\n", "utf-8")


def cast_weight(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast a weight. Counters stay integers and the temperature float32: in bfloat16 a scale of 100 would become 98.9."""
    if not value.is_floating_point():
        return value
    return value.to(torch.float32 if key == "logit_scale" else dtype)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise `ConfigError` unless this is None or a floating-point dtype."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(
            f"dtype must be a float dtype such as torch.float32 or torch.bfloat16, not {dtype!r}"
        )
