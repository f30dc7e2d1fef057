"""Where a name leads: to a weight file, the config that the JSON files beside it state, and the registry's row."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipkit.checkpoints import hub, infer, registry
from clipkit.checkpoints.weights import shard_names
from clipkit.config import CLIPConfig
from clipkit.errors import (
    CheckpointNotFoundError,
    ClipkitError,
    ConfigError,
    CorruptCheckpointError,
    DownloadError,
)

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"
OPEN_CLIP_CONFIG, CONFIG, MERGES = "open_clip_config.json", "config.json", "merges.txt"
PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
)  # up to transformers 4, and since 5
SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Each layout's weight files in the order of preference, and by the name of its config. clipkit's own has the names of
# transformers' and tells itself by "format".
OPEN_CLIP = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TRANSFORMERS = ("model.safetensors", "pytorch_model.bin", *SHARDS)
LAYOUTS = {OPEN_CLIP_CONFIG: OPEN_CLIP, CONFIG: TRANSFORMERS}
WEIGHT_FILES = OPEN_CLIP + TRANSFORMERS
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

# The first of these names that exists. Raises `CheckpointNotFoundError` if none does.
Find = Callable[[Sequence[str]], Path]


@dataclass
class Source:
    """A weight file, the config stated beside it, the tokenizer's merges where they are its own, the registry's row."""

    weights: Path
    config: CLIPConfig | None = None
    merges: Path | None = None
    row: registry.Model | None = None


def resolve(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    ignore_config: bool = False,
) -> Source:
    """Find what `name` means, and download what is not there.

    Arguments and errors as in `loading.load_model`; with `ignore_config` the stated config is not read, for a caller
    who knows better. From the hub it is read before the weights are fetched, so that another model's are not.
    """
    if name == "tiny":
        return _in_folder(EMBEDDED, ignore_config)
    try:
        path = Path(name).expanduser()
        exists = (
            name != "" and path.exists()
        )  # "" is no name, though the path of the current folder
    except (OSError, RuntimeError, ValueError) as error:  # too long, of nobody's home, a null byte
        raise registry.unknown(name) from error
    if exists:
        return _in_folder(path, ignore_config) if path.is_dir() else _at_file(path, ignore_config)
    repo = name.removeprefix("hf-hub:")
    row = registry.find(repo)
    if row is None:
        if path.suffix in SUFFIXES or name.startswith((".", "/", "~")):
            raise CheckpointNotFoundError(f"there is no file or folder {name!r}")
        if not ignore_config:
            registry.refuse(repo)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or registry.LIKE_PUBLISHED.match(repo):
            raise registry.unknown(name)
    repo, cache = row.hub if row else repo, None if cache_dir is None else Path(cache_dir)
    find = partial(
        hub.fetch_hub,
        repo,
        revision=revision,
        cache_dir=cache,
        token=token,
        local_files_only=local_files_only,
    )
    try:
        return _on_hub(find, row, ignore_config)
    except (DownloadError, CheckpointNotFoundError) as error:
        if row is None:
            raise type(error)(f"{error}\nNor is there a local folder or file {name!r}") from error
        if row.openai is None or revision is not None:
            raise
        file, digest = row.openai
        address = registry.OPENAI_ARCHIVES.format(sha256=digest, file=file)
        try:
            return Source(
                hub.fetch_url(address, digest, cache, local_files_only=local_files_only), row=row
            )
        except DownloadError as second:
            raise DownloadError(
                f"{error}\nOpenAI's own archive was tried too: {second}"
            ) from second


def _on_hub(find: Find, row: registry.Model | None, ignore_config: bool) -> Source:
    """The layout that the registry or else the repository's JSON tells, open_clip's first."""
    if row is not None:
        document = OPEN_CLIP_CONFIG if row.layout == "open_clip" else CONFIG
    else:
        document = find((OPEN_CLIP_CONFIG, CONFIG)).name
    config, merges = _read_json(find, document, row, ignore_config)
    weights = find(LAYOUTS[document])
    if weights.name in SHARDS:
        for shard in shard_names(weights):
            find((shard,))
    return Source(weights, config, merges, row)


def _in_folder(folder: Path, ignore_config: bool) -> Source:
    """The first known weight file in a folder, or else the only one."""
    for file in WEIGHT_FILES:
        if (folder / file).exists():
            return _at_file(folder / file, ignore_config)
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(others) != 1:
        inside = ", ".join(path.name for path in others) or "no weight file"
        raise CheckpointNotFoundError(
            f"the folder {folder} holds {inside}: expected one of {', '.join(WEIGHT_FILES)}. Pass the path of a file"
        )
    document = OPEN_CLIP_CONFIG if (folder / OPEN_CLIP_CONFIG).exists() else CONFIG
    return Source(others[0], *_read_json(partial(_find_in, folder), document, None, ignore_config))


def _at_file(path: Path, ignore_config: bool) -> Source:
    """A weight file; JSON beside it counts only where the file has the name that goes with it."""
    for document, names in LAYOUTS.items():
        if path.name in names:
            return Source(
                path, *_read_json(partial(_find_in, path.parent), document, None, ignore_config)
            )
    return Source(path)


def _find_in(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise CheckpointNotFoundError(f"the folder {folder} has no {' or '.join(names)}")


def _find_any(find: Find, names: Sequence[str]) -> Path | None:
    try:
        return find(names)
    except CheckpointNotFoundError:
        return None


def _read_json(
    find: Find, document: str, row: registry.Model | None, ignore_config: bool
) -> tuple[CLIPConfig | None, Path | None]:
    """The config that a layout's JSON files state, unless they are missing or to be ignored, and the merges."""
    path = _find_any(find, (document,))
    if path is None:
        return None, None  # a weight file may come without
    stated = _parse(path)
    transformers = document == CONFIG and stated.get("format") != "clipkit"
    # Old repositories have no processor. transformers keeps the merges beside the weights, the standard ones too.
    processor = _find_any(find, PROCESSORS) if transformers else None
    merges = _find_any(find, (MERGES,)) if transformers else None
    if stated.get("tokenizer") == MERGES:
        merges = find((MERGES,))
    if ignore_config:
        return None, merges
    try:
        if document == OPEN_CLIP_CONFIG:
            return infer.from_open_clip(stated, row.config if row else None), merges
        if transformers:
            return infer.from_transformers(stated, _parse(processor) if processor else None), merges
        return CLIPConfig.from_dict(stated.get("model", {})), merges
    except ClipkitError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{document} states what no CLIP can be ({type(error).__name__}: {error})"
        ) from error


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values
