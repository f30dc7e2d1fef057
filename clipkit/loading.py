"""Load and save: from a name, a hub id, a folder or a file to a model, and back.

This is the one place that decides device and dtype. A source is resolved to a weight file and the JSON beside it; the
weights are read safely, renamed, checked against the config and assigned into a model built on the meta device, so
that there is neither a second copy nor a random initialisation.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from clipkit import registry
from clipkit.checkpoints import describe, files, infer, layouts
from clipkit.checkpoints.resize import resize_positions
from clipkit.checkpoints.source import CONFIG, MERGES, OPEN_CLIP_CONFIG, PROCESSOR, Source, resolve
from clipkit.config import Activation, CLIPConfig, ResNetConfig
from clipkit.errors import ConfigError, CorruptCheckpointError, StateDictMismatchError
from clipkit.models.clip import CLIP
from clipkit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from clipkit.preprocess import Preprocess


def load(
    name: str | os.PathLike[str],
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[CLIP, "Preprocess"]:
    """Load a checkpoint. The result is in eval mode.

    Args:
        name: "tiny" (the embedded checkpoint), a published name in either spelling ("ViT-B/32", "ViT-B-32"), a hub id
            in open_clip's or transformers' layout ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"), a folder, or a weight
            file: safetensors, a torch state dict, or one of OpenAI's archives. No code from any of them is run.
        device: where to put it; CUDA if there is one, else the CPU.
        jit: accepted for code written for OpenAI's package; only False.
        download_root: OpenAI's name for `cache_dir`.
        dtype: of the weights. By default float32 on the CPU; on CUDA the checkpoint's own half precision, and float16
            for one stored in float32.
        options: as in `load_model`.

    Returns:
        The model, and the preprocessing that belongs to it: a function from a picture to a (3, H, W) float32 tensor.

    Raises:
        UnknownModelError, CheckpointNotFoundError, DownloadError: if there is nothing to load.
        CorruptCheckpointError, UnsafeCheckpointError, UnsupportedCheckpointError, StateDictMismatchError, ConfigError:
            if what is there cannot be loaded. See `clipkit.errors`.
    """
    if jit:
        raise ConfigError("jit=True asks for TorchScript, which torch has deprecated: use torch.compile(model) instead")
    if download_root is not None:
        options.setdefault("cache_dir", download_root)
    model = load_model(name, device=device, dtype=dtype, **options)
    return model, model.preprocess


def load_model(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    config: str | CLIPConfig | None = None,
    activation: Activation | None = None,
    head_width: int | None = None,
    resolution: int | tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> CLIP:
    """Load a checkpoint as one object that carries its tokenizer, preprocessing and config.

    Args:
        name, device, dtype: as in `load`.
        config: what the weights are, for files that come without a config: a CLIPConfig or the published name of the
            same architecture. It overrules what the checkpoint says of itself.
        activation, head_width: the same for a bare state dict, whose other sizes are read off the weights. `head_width`
            is the image tower's; text heads are 64 wide.
        resolution: (height, width) or one side in pixels; position embeddings are resampled if it differs.
        revision: branch, tag or commit of a hub repository.
        cache_dir: where downloads are kept; by default the hub's own cache, and ~/.cache/clip for OpenAI's archives.
        token: for private and gated repositories.
        local_files_only: use what is cached, ask no network.

    Raises:
        As `load`.
    """
    source = resolve(
        os.fspath(name), revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only
    )
    found = files.read_weights(source.weights)
    try:
        weights = layouts.to_canonical(found)
        resolved = _decide_config(source, found, weights, config, activation, head_width)
        return _assemble(resolved, weights, source.merges, device, dtype, resolution)
    except (CorruptCheckpointError, StateDictMismatchError) as error:
        raise type(error)(f"{source.weights}: {error}") from error


def _assemble(
    config: CLIPConfig,
    weights: dict[str, Tensor],
    merges: Path | None,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    resolution: int | tuple[int, int] | None,
) -> CLIP:
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None:
        stored = weights["logit_scale"].dtype if "logit_scale" in weights else torch.float32
        stored = next((w.dtype for w in weights.values() if w.dtype in (torch.float16, torch.bfloat16)), stored)
        half = stored if stored in (torch.float16, torch.bfloat16) else torch.float16
        dtype = half if device.type == "cuda" else torch.float32
    if not dtype.is_floating_point:
        raise ConfigError(f"dtype must be a float dtype such as torch.float32 or torch.bfloat16, not {dtype}")

    with torch.device("meta"):
        expected = CLIP(config).state_dict()
    for key in expected.keys() - weights.keys():
        if key.endswith("num_batches_tracked"):  # a counter that inference never reads, and old files lack
            weights[key] = torch.tensor(0)
    if problem := layouts.describe_mismatch(expected, weights):
        raise StateDictMismatchError(problem)
    if resolution is not None:
        old, config = config.vision, replace(config, vision=replace(config.vision, resolution=resolution))
        key = "visual.attnpool.positional_embedding" if isinstance(old, ResNetConfig) else "visual.positional_embedding"
        weights[key] = resize_positions(weights[key], old.grid, config.vision.grid)

    tokenizer = None
    if merges is not None:
        tokenizer = Tokenizer(merges.read_text("utf-8").splitlines(), config.text.context_length)
        if tokenizer.vocab_size != config.text.vocab_size:
            raise ConfigError(f"{merges} makes {tokenizer.vocab_size} tokens, the model has {config.text.vocab_size}")
    with torch.device("meta"):
        model = CLIP(config, tokenizer)
    ready = {
        key: value.to(device, dtype if value.is_floating_point() else None).contiguous()
        for key, value in weights.items()
    }
    model.load_state_dict(ready, assign=True)
    return model.eval()


def _decide_config(
    source: Source,
    found: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    config: str | CLIPConfig | None,
    activation: Activation | None,
    head_width: int | None,
) -> CLIPConfig:
    """The caller's config, else the checkpoint's JSON, else the registry's row, else the shapes; never a guess."""
    if isinstance(config, CLIPConfig):
        return config
    if config is not None:
        row = registry.find(config)
        if row is None:
            raise registry.unknown(config)
        return row.config

    row_config = source.row.config if source.row else None
    stated = _read_json(source.json, row_config)
    if stated and row_config and (conflict := infer.differences(stated, row_config)):
        raise ConfigError(
            f"{source.weights.name} says of itself otherwise than the registry says of {source.row.name!r} "  # pyright: ignore[reportOptionalMemberAccess]
            f"(file / registry): {'; '.join(conflict)}. Pass config= to settle it"
        )
    stated = stated or row_config
    if stated:
        given = stated
        if activation is not None:
            given = replace(given, text=replace(given.text, activation=activation))
            if not isinstance(given.vision, ResNetConfig):
                given = replace(given, vision=replace(given.vision, activation=activation))
        if head_width is not None:
            given = replace(given, vision=replace(given.vision, head_width=head_width))
        if conflict := infer.differences(stated, given):
            raise ConfigError(
                f"the checkpoint contradicts what was asked for (checkpoint / asked): {'; '.join(conflict)}"
            )
        return stated
    if all(name in found for name in ("input_resolution", "context_length", "vocab_size")):
        # Only OpenAI's own archives hold these three; all nine have QuickGELU and heads of 64.
        activation, head_width = activation or "quick_gelu", head_width or 64
    if activation is None or head_width is None:
        shapes = infer.from_shapes(weights, activation or "quick_gelu", head_width or 64)
        fitting = [row.name for row in registry.MODELS.values() if _same_shapes(row.config, shapes)]
        hint = f" (of this shape are {', '.join(fitting)})" if fitting else ""
        raise ConfigError(
            f"{source.weights.name} comes without a config, and weights reveal neither activation nor head width: pass "
            f"config= with the published name that it derives from{hint}, or activation= and head_width="
        )
    return infer.from_shapes(weights, activation, head_width)


def _same_shapes(one: CLIPConfig, other: CLIPConfig) -> bool:
    return not any(
        not path.startswith("preprocess") and not path.endswith(("activation", "head_width"))
        for path in (line.split(":")[0] for line in infer.differences(one, other))
    )


def _read_json(found: Mapping[str, Any], row: CLIPConfig | None) -> CLIPConfig | None:
    if OPEN_CLIP_CONFIG in found:
        return infer.from_open_clip(found[OPEN_CLIP_CONFIG], row)
    if CONFIG in found:
        values = found[CONFIG]
        if isinstance(values, dict) and values.get("format") == "clipkit":
            return CLIPConfig.from_dict(values["model"])
        return infer.from_transformers(values, found.get(PROCESSOR))
    return None


def save_pretrained(
    model: CLIP,
    folder: str | os.PathLike[str],
    *,
    layout: Literal["clipkit", "open_clip", "transformers"] = "clipkit",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model into a folder that `load` reads back bit for bit.

    Args:
        model: whose weights, config and, where they are its own, merges to write. It is not changed.
        folder: made if it does not exist; files of the same names are replaced, each only when its successor is whole.
        layout: "clipkit"; or "open_clip" or "transformers" for those libraries.
        dtype: of the floating-point weights on disk; as they are if not given.

    Raises:
        ConfigError: if the layout cannot hold the model (see `clipkit.checkpoints.describe`).
    """
    folder = Path(folder)
    documents: dict[str, Any]
    merges = None if _is_standard(model) else model.tokenizer.merges
    if layout == "clipkit":
        weight_file, keys = "model.safetensors", "canonical"
        documents = {CONFIG: {"format": "clipkit", "model": model.config.to_dict()}}
        if merges is not None:
            documents[CONFIG]["tokenizer"] = MERGES
    elif layout == "open_clip":
        weight_file, keys = "open_clip_model.safetensors", "openai"
        documents = {OPEN_CLIP_CONFIG: describe.to_open_clip(model.config)}
    elif layout == "transformers":
        weight_file, keys = "model.safetensors", "transformers"
        documents = describe.to_transformers(model.config, model.tokenizer)
    else:
        raise ConfigError(f"layout must be 'clipkit', 'open_clip' or 'transformers', not {layout!r}")
    weights = {
        key: value.to(dtype) if dtype and value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    files.write_weights(layouts.from_canonical(weights, keys), folder / weight_file)
    for name, values in documents.items():
        _write_text(folder / name, json.dumps(values, indent=2) + "\n")
    if merges is not None:
        _write_text(folder / MERGES, "\n".join(merges) + "\n")


def _is_standard(model: CLIP) -> bool:
    """Whether the model goes with the standard table; one whose tokenizer was never asked for does."""
    return model._tokenizer is None or model.tokenizer.is_default


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    try:
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
