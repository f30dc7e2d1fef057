"""Read a checkpoint as data: a name becomes a config, weights and a tokenizer, and no model yet.

A name leads to a weight file and the JSON beside it. The weights are read safely, renamed to
canonical names and checked against the config.

Weights from a path of the caller's are copied into memory, so whatever happens to the file later
(torch.save over it, for one) changes no model. Only the files of the hub's cache, of OpenAI's
archives and the embedded checkpoint stay mapped, because nothing rewrites those in place.
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
from clipkit.checkpoints.vocabulary import check_tokenizer, read_tokenizer
from clipkit.checkpoints.weights import read_run_config, read_weights
from clipkit.config import Activation, CLIPConfig, ResNetConfig, ViTConfig
from clipkit.errors import (
    CheckpointError,
    ConfigError,
    StateDictMismatchError,
)
from clipkit.models.build import expected_weights
from clipkit.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """Hold a whole CLIP as data.

    Attributes:
        config: the architecture and the preprocessing.
        weights: by canonical name, on the CPU, in the dtypes of the file.
        tokenizer: the one that belongs to the weights; None for CLIP's own.
        source: the weight file.
        preprocess: what a folder in clipkit's layout says of a preprocessing that differs from the
            config's, as it was given to `save_checkpoint`. None if it says nothing, and None with
            `config=`, which overrules the folder.
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
    tokenizer: Tokenizer | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Read the checkpoint that a name means, and check that its weights fit its config.

    Args:
        name: "tiny", a published name, a hub id, a folder or a weight file. A local folder with
            weights comes before a published name or hub id of the same spelling (see
            `clipkit.checkpoints.source.resolve`).
        config: what the weights are, a CLIPConfig or the name of the same architecture (see
            `published_config`: "ViT-B-32" has GELU, "ViT-B/32" QuickGELU). It overrules what the
            checkpoint says of itself.
        activation: of both towers, for weights without a config, or with a config whose name
            leaves it open ("RN50").
        head_width: of the image tower, for weights without a config.
        resolution: (height, width) or one side in pixels. Position embeddings are resampled if it
            is not the checkpoint's own.
        tokenizer: use this in place of the one beside the weights.
        revision: branch, tag or commit of a hub repository.
        cache_dir: where downloads are kept.
        token: for private and gated repositories.
        local_files_only: use what is cached, ask no network.

    Raises:
        UnknownModelError, CheckpointNotFoundError, DownloadError: if there is nothing to load.
        CorruptCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError,
        StateDictMismatchError, ConfigError: if what is there cannot be loaded.

    Example:
        >>> checkpoint = load_checkpoint("tiny")
        >>> checkpoint.config.vision.resolution
        (96, 96)
        >>> checkpoint.weights["text.text_projection"].shape[1] == checkpoint.config.embed_dim
        True
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
    stored = read_weights(source.weights, mapped=source.is_constant)
    try:
        weights = layouts.to_canonical(stored)
        stated = _stated_config(source, stored, weights, config, activation)
        decided = _decide_config(stated, source, weights, activation, head_width)
        _check_weights(decided, weights)
        if resolution is not None:
            decided, weights = _resize(decided, weights, resolution)
    except CheckpointError as error:
        raise type(error)(f"{source.weights}: {error}") from error
    if tokenizer is None:
        tokenizer = read_tokenizer(source.tokenizer, decided.text)
    else:
        check_tokenizer(tokenizer, decided.text)
    return Checkpoint(decided, weights, tokenizer, source.weights, source.preprocess)


def published_config(name: str, activation: Activation | None = None) -> CLIPConfig:
    """Return the architecture that a name means, or that of "tiny".

    The spelling tells whose name it is, since two libraries give other meanings to like names:

    - with open_clip's hyphens ("ViT-B-32") it is open_clip's architecture, which has GELU;
      "ViT-B-32-quickgelu" has QuickGELU;
    - with OpenAI's slash ("ViT-B/32", "ViT-L/14@336px") it is OpenAI's, which has QuickGELU;
    - with a tag ("ViT-B-32/laion2b_s34b_b79k", "RN50/openai"), or as a hub id, it is that
      checkpoint's;
    - "RN50" and the like are spelled alike in both. They need `activation`, or "RN50/openai",
      "RN50-quickgelu" (both QuickGELU) in their place.

    Args:
        name: in any of these forms.
        activation: settles what a name leaves open. It changes no name that is clear.

    Raises:
        UnknownModelError: for any other name.
        ConfigError: for a name that means two architectures. The message lists the choices.

    Example:
        >>> published_config("ViT-B/32").text.activation
        'quick_gelu'
        >>> published_config("ViT-B-32").text.activation
        'gelu'
    """
    known = resolve(name).config if name == "tiny" else registry.architecture(name, activation)
    if known is None:
        raise registry.unknown(name)
    return known


def _stated_config(
    source: Source,
    stored: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    config: str | CLIPConfig | None,
    activation: Activation | None,
) -> CLIPConfig | None:
    """Return the config that is stated somewhere, or None if nobody knows.

    The caller comes first, then the JSON beside the weights, then the registry.

    Args:
        source: where the weights came from.
        stored: the weights as the file names them.
        weights: the same by canonical name.
        config, activation: what the caller gave.
    """
    if isinstance(config, CLIPConfig):
        return config
    if config is not None:
        given: object = config
        if not isinstance(given, str):
            raise ConfigError(
                "config must be a CLIPConfig or the published name of an architecture, not "
                f"{given!r:.60}"
            )
        return published_config(config, activation)
    row = source.row
    if source.config is not None:
        if row is not None:
            _refuse_disagreement(source.weights, source.config, row)
        return source.config
    if row is not None:
        return row.config
    if OPENAI_SCALARS <= stored.keys():  # all nine of OpenAI's models are alike in this
        return infer.from_shapes(weights, "quick_gelu", 64)
    own = read_run_config(source.weights)
    return CLIPConfig.from_dict(own) if own else None


def _refuse_disagreement(file: Path, stated: CLIPConfig, row: registry.Model) -> None:
    """Raise `ConfigError` if a file says of itself otherwise than the registry does."""
    conflicts = infer.differences(stated, row.config)
    if conflicts:
        raise ConfigError(
            f"{file.name} says of itself otherwise than the registry says of {row.name!r} "
            f"(file / registry): {'; '.join(conflicts)}. Pass config= to settle it"
        )


def _decide_config(
    stated: CLIPConfig | None,
    source: Source,
    weights: Mapping[str, Tensor],
    activation: Activation | None,
    head_width: int | None,
) -> CLIPConfig:
    """Return the stated config, or else one made of the shapes and the caller's two arguments.

    Nothing is guessed. Raises `ConfigError` if the arguments contradict the stated config, or if
    there is none and one of them is missing.
    """
    if stated is not None:
        _refuse_contradiction(stated, activation, head_width)
        return stated
    if activation is not None and head_width is not None:
        return infer.from_shapes(weights, activation, head_width)
    names = _published_names_of_the_same_shape(weights)
    hint = f" (of this shape are {', '.join(names)})" if names else ""
    raise ConfigError(
        f"{source.weights.name} comes without a config, and weights reveal neither activation nor "
        f"head width: pass config= with the published name that it derives from{hint}, or "
        "activation= and head_width="
    )


def _published_names_of_the_same_shape(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the published models that have weights of the same shapes."""
    # Any activation and head width will do here. A width of 1 divides every other.
    shapes = infer.from_shapes(weights, "gelu", head_width=1, text_head_width=1)
    unknown = ("activation", "head_width", "preprocess")
    return [
        registry.clear_name(row)
        for row in registry.MODELS.values()
        if not infer.differences(row.config, shapes, ignore=unknown)
    ]


def _refuse_contradiction(
    stated: CLIPConfig, activation: Activation | None, head_width: int | None
) -> None:
    """Raise `ConfigError` if the caller asks for what the checkpoint states otherwise."""
    asked: list[tuple[str, object, object]] = [
        ("vision.head_width", stated.vision.head_width, head_width),
        ("text.activation", stated.text.activation, activation),
    ]
    if isinstance(stated.vision, ViTConfig):  # a ResNet has no activation to choose
        asked.insert(0, ("vision.activation", stated.vision.activation, activation))
    conflicts = [
        f"{name}: {has!r} / {value!r}"
        for name, has, value in asked
        if value is not None and has != value
    ]
    if conflicts:
        raise ConfigError(
            "the checkpoint contradicts what was asked (checkpoint / asked): "
            f"{'; '.join(conflicts)}"
        )


def _check_weights(config: CLIPConfig, weights: dict[str, Tensor]) -> None:
    """Raise `StateDictMismatchError` with a diff if these are not the weights of the config.

    Counters of batch norms are added where they are missing: old files lack them, and inference
    never reads them. `model.half()` makes them fractions in some programs, so they become integers.
    """
    _check_layers(config, weights)
    for key, value in weights.items():
        if key.endswith("num_batches_tracked") and value.is_floating_point():
            weights[key] = value.to(torch.int64)
    expected = expected_weights(config)
    for key in expected.keys() - weights.keys():
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0, device="cpu")
    if problem := layouts.describe_mismatch(expected, weights):
        raise StateDictMismatchError(problem)


def _check_layers(config: CLIPConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` for more layers than there are weights, before any layer is built."""
    layers = config.vision.layers
    stacked = sum(layers) if isinstance(layers, tuple) else layers
    for tower, count in (("vision", stacked), ("text", config.text.layers)):
        if count > len(weights):
            raise ConfigError(
                f"the config states {count:,} layers of the {tower} tower, and there are "
                f"{len(weights)} weights in all: it is of other weights, or damaged"
            )


def _resize(
    config: CLIPConfig, weights: dict[str, Tensor], resolution: int | tuple[int, int]
) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Return config and weights for another input, with resampled position embeddings."""
    sides = (resolution, resolution) if isinstance(resolution, int) else resolution
    vision = replace(config.vision, resolution=sides)
    key = "visual.positional_embedding"
    if isinstance(vision, ResNetConfig):
        key = "visual.attnpool.positional_embedding"
    resized = resize_positions(weights[key], config.vision.grid, vision.grid)
    return replace(config, vision=vision), weights | {key: resized}
