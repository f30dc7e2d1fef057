"""From a name, a hub id, a folder or a file to a `Checkpoint`: config, weights and tokenizer, and no model yet.

A source is resolved to a weight file and the JSON beside it. The weights are read safely, renamed to canonical names and
checked against the config.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.checkpoints import infer, layouts, registry
from clipkit.checkpoints.resize import resize_positions
from clipkit.checkpoints.source import Source, resolve
from clipkit.checkpoints.unpickle import OPENAI_SCALARS
from clipkit.checkpoints.weights import read_weights
from clipkit.config import Activation, CLIPConfig, ResNetConfig
from clipkit.errors import CheckpointError, ConfigError, StateDictMismatchError
from clipkit.models.build import expected_weights
from clipkit.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A whole CLIP as data.

    Attributes:
        config: what the weights are.
        weights: by canonical name, on the CPU, in the dtypes of the file.
        tokenizer: the one that belongs to the weights; None for CLIP's own.
        source: the weight file.
        preprocess: what a folder in clipkit's layout says of a preprocessing other than the config's, as it was given
            to `save_checkpoint`; None if it says nothing, and None with `config=`, which overrules the folder.
    """

    config: CLIPConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer | None
    source: Path
    preprocess: dict[str, Any] | None = None


def load_checkpoint(
    name: str | os.PathLike[str],
    *,
    config: str | CLIPConfig | None = None,
    activation: Activation | None = None,
    head_width: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Read the checkpoint that a name means, and check that its weights fit its config.

    Arguments and errors are those of `clipkit.load`.
    """
    source = resolve(
        name,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        ignore_config=config is not None,
        needs_config=activation is None or head_width is None,
    )
    found = read_weights(source.weights)
    try:
        weights = layouts.to_canonical(found)
        stated = _stated_config(source, found, weights, config)
        decided = _decide_config(stated, source, weights, activation, head_width)
        _check_weights(decided, weights)
        if resolution is not None:
            decided, weights = _resize(decided, weights, resolution)
    except CheckpointError as error:
        raise type(error)(f"{source.weights}: {error}") from error
    tokenizer = _read_tokenizer(source.merges, decided)
    return Checkpoint(decided, weights, tokenizer, source.weights, source.preprocess)


def published_config(name: str) -> CLIPConfig:
    """Return the architecture of a published name or of "tiny". Raises `UnknownModelError` for any other."""
    if name == "tiny":
        known = resolve(name).config
    else:
        row = registry.find(name)
        known = row.config if row else None
    if known is None:
        raise registry.unknown(name)
    return known


def _stated_config(
    source: Source,
    found: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    config: str | CLIPConfig | None,
) -> CLIPConfig | None:
    """The caller's config, else that of the JSON beside the weights, else the registry's; None if nobody knows."""
    if isinstance(config, CLIPConfig):
        return config
    if config is not None:
        return published_config(config)
    row = source.row
    if row and source.config and (conflict := infer.differences(source.config, row.config)):
        raise ConfigError(
            f"{source.weights.name} says of itself otherwise than the registry says of {row.name!r} (file / registry): "
            f"{'; '.join(conflict)}. Pass config= to settle it"
        )
    if source.config:
        return source.config
    if row:
        return row.config
    if OPENAI_SCALARS <= found.keys():  # all nine of OpenAI's models are alike in this
        return infer.from_shapes(weights, "quick_gelu", 64)
    return None


def _decide_config(
    stated: CLIPConfig | None,
    source: Source,
    weights: Mapping[str, Tensor],
    activation: Activation | None,
    head_width: int | None,
) -> CLIPConfig:
    """What is stated, which the caller's activation and head width must not contradict; else the shapes and those two.

    Never a guess: weights alone reveal neither.
    """
    if stated is not None:
        _refuse_contradiction(stated, activation, head_width)
        return stated
    if activation is not None and head_width is not None:
        return infer.from_shapes(weights, activation, head_width)
    shapes = infer.from_shapes(weights, "gelu", 1, 1)
    unknown = ("activation", "head_width", "preprocess")
    alike = [
        row.name
        for row in registry.MODELS.values()
        if not infer.differences(row.config, shapes, ignore=unknown)
    ]
    hint = f" (of this shape are {', '.join(alike)})" if alike else ""
    raise ConfigError(
        f"{source.weights.name} comes without a config, and weights reveal neither activation nor head width: pass "
        f"config= with the published name that it derives from{hint}, or activation= and head_width="
    )


def _refuse_contradiction(
    stated: CLIPConfig, activation: Activation | None, head_width: int | None
) -> None:
    """Raise `ConfigError` if the caller asks for another activation or head width than the checkpoint states."""
    asked = [
        (
            "vision.activation",
            getattr(stated.vision, "activation", activation),
            activation,
        ),  # a ResNet has none
        ("vision.head_width", stated.vision.head_width, head_width),
        ("text.activation", stated.text.activation, activation),
    ]
    conflict = [
        f"{name}: {has!r} / {value!r}"
        for name, has, value in asked
        if value is not None and has != value
    ]
    if conflict:
        raise ConfigError(
            f"the checkpoint contradicts what was asked (checkpoint / asked): {'; '.join(conflict)}"
        )


def _check_weights(config: CLIPConfig, weights: dict[str, Tensor]) -> None:
    """Raise `StateDictMismatchError` with a diff if the weights are not those of the config's model."""
    expected = expected_weights(config)
    for key in expected.keys() - weights.keys():
        if key.endswith(
            "num_batches_tracked"
        ):  # a counter that inference never reads, and old files lack
            weights[key] = torch.tensor(0)
    if problem := layouts.describe_mismatch(expected, weights):
        raise StateDictMismatchError(problem)


def _resize(
    config: CLIPConfig, weights: dict[str, Tensor], resolution: int | tuple[int, int]
) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """The config and the weights for another input, with resampled position embeddings."""
    vision = replace(config.vision, resolution=resolution)  # pyright: ignore[reportArgumentType]
    resnet = isinstance(vision, ResNetConfig)
    key = "visual.attnpool.positional_embedding" if resnet else "visual.positional_embedding"
    resized = resize_positions(weights[key], config.vision.grid, vision.grid)
    return replace(config, vision=vision), weights | {key: resized}


def _read_tokenizer(merges: Path | None, config: CLIPConfig) -> Tokenizer | None:
    """The tokenizer of a merge file beside the weights; None where that is CLIP's own, or there is no such file."""
    if merges is None:
        return None
    tokenizer = Tokenizer(merges.read_text("utf-8").splitlines(), config.text.context_length)
    if tokenizer.is_default:
        return None
    if tokenizer.vocab_size != config.text.vocab_size:
        raise ConfigError(
            f"{merges} makes {tokenizer.vocab_size} tokens, the model has {config.text.vocab_size}"
        )
    return tokenizer
