"""Where a name leads: to a weight file, the config that the JSON files beside it state, and the registry's row."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from clipkit import registry
from clipkit.checkpoints import files, hub, infer
from clipkit.config import CLIPConfig
from clipkit.errors import CheckpointNotFoundError, ClipkitError, ConfigError, CorruptCheckpointError, DownloadError

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"
OPEN_CLIP_CONFIG, CONFIG, MERGES = "open_clip_config.json", "config.json", "merges.txt"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # up to transformers 4, and since 5
SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Each layout's JSON files, the config first, each with its other names, and its weight files in the order of
# preference. clipkit's own has the names of transformers' and tells itself by "format".
OPEN_CLIP = (((OPEN_CLIP_CONFIG,),), registry.OPEN_CLIP_FILES)
TRANSFORMERS = (((CONFIG,), PROCESSORS), (*registry.TRANSFORMERS_FILES, *SHARDS))
WEIGHT_FILES = (*OPEN_CLIP[1], *TRANSFORMERS[1])
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
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of nobody's home, a null byte
        raise registry.unknown(name) from error
    if is_folder and name:  # "" is no name, though the path of the current folder
        return _in_folder(path, ignore_config)
    if exists and name:
        return _at_file(path, ignore_config)
    repo = name.removeprefix("hf-hub:")
    row = registry.find(repo)
    if row is None:
        if path.suffix in SUFFIXES or name.startswith((".", "/", "~")):
            raise CheckpointNotFoundError(f"there is no file or folder {name!r}")
        registry.refuse(repo)
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or registry.LIKE_PUBLISHED.match(repo):
            raise registry.unknown(name)
    cache = None if cache_dir is None else Path(cache_dir)
    find = partial(
        hub.fetch_hub,
        row.hub if row else repo,
        revision=revision,
        cache_dir=cache,
        token=token,
        local_files_only=local_files_only,
    )
    try:
        return _on_hub(find, row, ignore_config)
    except (DownloadError, CheckpointNotFoundError) as error:
        if row is None or row.openai is None or revision is not None:
            raise
        file, digest = row.openai
        address = registry.OPENAI_ARCHIVES.format(sha256=digest, file=file)
        try:
            return Source(hub.fetch_url(address, digest, cache, local_files_only=local_files_only), row=row)
        except DownloadError as second:
            raise DownloadError(f"{error}\nOpenAI's own archive was tried too: {second}") from second


def _on_hub(find: Find, row: registry.Model | None, ignore_config: bool) -> Source:
    """The layout that the registry or else the repository's JSON tells, open_clip's first."""
    if row is not None:
        layout = OPEN_CLIP if row.files == OPEN_CLIP[1] else TRANSFORMERS
    else:
        layout = OPEN_CLIP if find((OPEN_CLIP_CONFIG, CONFIG)).name == OPEN_CLIP_CONFIG else TRANSFORMERS
    config, merges = _read_json(find, layout[0], row, ignore_config)
    weights = find(layout[1])
    if weights.name in SHARDS:
        for shard in files.shard_names(weights):
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
    layout = OPEN_CLIP if (folder / OPEN_CLIP_CONFIG).exists() else TRANSFORMERS
    config, merges = _read_json(partial(_find_in, folder), layout[0], None, ignore_config)
    return Source(others[0], config, merges)


def _at_file(path: Path, ignore_config: bool) -> Source:
    """A weight file; JSON beside it counts only where the file has the name that goes with it."""
    for jsons, names in (OPEN_CLIP, TRANSFORMERS):
        if path.name in names:
            return Source(path, *_read_json(partial(_find_in, path.parent), jsons, None, ignore_config))
    return Source(path)


def _find_in(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise CheckpointNotFoundError(f"the folder {folder} has no {' or '.join(names)}")


def _read_json(
    find: Find, names: Sequence[Sequence[str]], row: registry.Model | None, ignore_config: bool
) -> tuple[CLIPConfig | None, Path | None]:
    """The config that a layout's JSON files state, unless they are missing or to be ignored, and the merges."""
    documents: list[dict[str, Any]] = []
    for spellings in names:
        try:
            documents.append(_parse(find(spellings)))
        except CheckpointNotFoundError:
            break  # a weight file may come without; old transformers repositories have no processor
    if not documents:
        return None, None
    stated, processor = documents[0], documents[1] if len(documents) > 1 else None
    merges = None
    if stated.get("tokenizer") == MERGES:
        merges = find((MERGES,))
    elif names == TRANSFORMERS[0] and stated.get("format") != "clipkit":
        try:
            merges = find((MERGES,))  # transformers keeps the table beside the weights, the standard one too
        except CheckpointNotFoundError:
            pass
    if ignore_config:
        return None, merges
    try:
        if names == OPEN_CLIP[0]:
            return infer.from_open_clip(stated, row.config if row else None), merges
        if stated.get("format") == "clipkit":
            return CLIPConfig.from_dict(stated.get("model", {})), merges
        return infer.from_transformers(stated, processor), merges
    except ClipkitError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{names[0][0]} states what no CLIP can be ({type(error).__name__}: {error})") from error


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values
