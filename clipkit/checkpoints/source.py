"""Where a name leads: to a weight file, the JSON files that go with it, and the registry's row."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit import registry
from clipkit.checkpoints import files, hub
from clipkit.errors import CheckpointNotFoundError, CorruptCheckpointError, DownloadError

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"
OPEN_CLIP_CONFIG, CONFIG, PROCESSOR, MERGES = (
    "open_clip_config.json",
    "config.json",
    "preprocessor_config.json",
    "merges.txt",
)
TRANSFORMERS_SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass
class Source:
    """A weight file, the JSON files that go with it by name, its own merges and the registry's row."""

    weights: Path
    json: dict[str, Any] = field(default_factory=dict)
    merges: Path | None = None
    row: registry.Model | None = None


def resolve(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Source:
    """Find what `name` means, and download what is not there. Arguments and errors as in `loading.load_model`."""
    if name == "tiny":
        return _resolve_folder(EMBEDDED)
    path = Path(name).expanduser()
    if path.is_dir():
        return _resolve_folder(path)
    if path.exists():
        return _resolve_file(path)
    row = registry.find(name.removeprefix("hf-hub:"))
    repo = row.hub if row else name.removeprefix("hf-hub:")
    if row is None:
        registry.refuse(name)
        if path.suffix in (".pt", ".pth", ".bin", ".safetensors") or name.startswith((".", "/", "~")):
            raise CheckpointNotFoundError(f"there is no file or folder {name!r}")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or re.match(r"(?i)(vit|rn\d+)", repo):
            raise registry.unknown(name)

    def fetch(*names: str) -> Path:
        return hub.fetch_hub(
            repo, names, revision=revision, cache_dir=_path(cache_dir), token=token, local_files_only=local_files_only
        )

    try:
        return _resolve_hub(fetch, row)
    except DownloadError as error:
        if row is None or row.openai is None:
            raise
        file, digest = row.openai
        address = registry.OPENAI_ARCHIVES.format(sha256=digest, file=file)
        try:
            archive = hub.fetch_url(address, digest, _path(cache_dir), local_files_only=local_files_only)
        except DownloadError as second:
            raise DownloadError(f"{error}\nOpenAI's own archive was tried too: {second}") from second
        return Source(archive, row=row)


def _path(path: str | os.PathLike[str] | None) -> Path | None:
    return None if path is None else Path(path)


def _resolve_hub(fetch: Any, row: registry.Model | None) -> Source:
    found: dict[str, Any] = {}
    try:
        config = fetch(OPEN_CLIP_CONFIG, CONFIG)
        found[config.name] = _parse(config)
    except CheckpointNotFoundError:
        if row is None:
            raise
    names = registry.OPEN_CLIP_FILES if OPEN_CLIP_CONFIG in found else registry.TRANSFORMERS_FILES
    if row is not None:
        names = row.files
    weights = fetch(*names, *(TRANSFORMERS_SHARDS if OPEN_CLIP_CONFIG not in found else ()))
    if weights.name in TRANSFORMERS_SHARDS:
        for shard in files.shard_names(weights):
            fetch(shard)
    if OPEN_CLIP_CONFIG in found:
        return Source(weights, found, row=row)
    if found.get(CONFIG, {}).get("format") == "clipkit":
        return Source(weights, found, _own_merges(fetch, found[CONFIG]), row)
    try:
        found[PROCESSOR] = _parse(fetch(PROCESSOR))
    except CheckpointNotFoundError:
        pass  # old repositories have none; OpenAI's preprocessing is transformers' default
    return Source(weights, found, row=row)


def _own_merges(fetch: Any, values: Mapping[str, Any]) -> Path | None:
    return fetch(MERGES) if values.get("tokenizer") == MERGES else None


def _resolve_folder(folder: Path) -> Source:
    """The first known weight file in a folder."""
    has_open_clip = (folder / OPEN_CLIP_CONFIG).exists()
    order = (*registry.OPEN_CLIP_FILES, *registry.TRANSFORMERS_FILES, *TRANSFORMERS_SHARDS)
    for file in order:
        if (folder / file).exists():
            return _resolve_file(folder / file)
    others = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(others) == 1:
        source = Source(others[0])
        name = OPEN_CLIP_CONFIG if has_open_clip else CONFIG
        if (folder / name).exists():
            source.json[name] = _parse(folder / name)
        return source
    inside = ", ".join(p.name for p in others) or "no weight file"
    raise CheckpointNotFoundError(f"the folder {folder} holds {inside}: expected one of {', '.join(order)}")


def _resolve_file(path: Path) -> Source:
    """A weight file; JSON beside it counts only where the file has the name that goes with it."""
    source = Source(path)
    names: tuple[str, ...] = ()
    if path.name in registry.OPEN_CLIP_FILES:
        names = (OPEN_CLIP_CONFIG,)
    elif path.name in (*registry.TRANSFORMERS_FILES, *TRANSFORMERS_SHARDS):
        names = (CONFIG, PROCESSOR)
    for name in names:
        if (path.parent / name).exists():
            source.json[name] = _parse(path.parent / name)
    if source.json.get(CONFIG, {}).get("format") == "clipkit":
        source.merges = _own_merges(path.parent.joinpath, source.json[CONFIG])
    return source


def _parse(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptCheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CorruptCheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}")
    return values
