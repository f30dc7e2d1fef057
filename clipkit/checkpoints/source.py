"""Find what a name means: a weight file, what the JSON beside it states, and the registry's row."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from clipkit.checkpoints import hub, registry
from clipkit.checkpoints.documents import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    Find,
    Stated,
    read_documents,
)
from clipkit.checkpoints.weights import shard_names
from clipkit.config import CLIPConfig
from clipkit.errors import (
    CheckpointNotFoundError,
    DownloadError,
    UnsupportedCheckpointError,
)
from clipkit.files import settle

EMBEDDED = Path(__file__).parents[1] / "assets" / "tiny"

SHARDS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OPEN_CLIP = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TRANSFORMERS = ("model.safetensors", "pytorch_model.bin", *SHARDS)
# The weight files of each layout, in the order of preference, by the layout's main document.
# clipkit's own layout has the names of transformers'.
LAYOUTS = {OPEN_CLIP_CONFIG: OPEN_CLIP, CONFIG: TRANSFORMERS}
WEIGHT_FILES = OPEN_CLIP + TRANSFORMERS
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Hold where a checkpoint lies and what is known of it before its weights are read.

    Attributes:
        weights: the weight file.
        config: the config that the JSON beside it states.
        merges: the merge table of a tokenizer that belongs to the weights.
        row: the registry's row of a published model.
        preprocess: what clipkit's own layout says of a preprocessing beside the config.
        is_constant: whether nothing rewrites the weight file in place. That holds for the hub's
            cache, which names files by their content, and for the embedded checkpoint.
    """

    weights: Path
    config: CLIPConfig | None = None
    merges: Path | None = None
    row: registry.Model | None = None
    preprocess: dict[str, Any] | None = None
    is_constant: bool = False


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    ignore_config: bool = False,
    needs_config: bool = True,
) -> Source:
    """Find what `name` means, and download what is not there.

    A local file or folder comes before a published name or hub id of the same spelling. A folder
    without a weight file, of logs for instance, does not hide them. A name that is spelled as a
    path ("./RN50", "RN50/" or a `Path`) always means the path. "tiny" always means the embedded
    checkpoint.

    On the hub the JSON is read before the weights are fetched, so that the weights of an unsuitable
    model are not.

    Args:
        name: "tiny", a published name, a hub id, a folder or a weight file.
        revision: branch, tag or commit of a hub repository.
        cache_dir: where downloads are kept.
        token: for private and gated repositories.
        local_files_only: use what is cached, ask no network.
        ignore_config: do not read the stated config, for a caller who knows better.
        needs_config: raise for a hub repository without JSON before its weights are fetched.

    Raises:
        UnknownModelError: if the name is none of those above.
        CheckpointNotFoundError: if there is no such path, repository, revision or file.
        DownloadError: if the network fails or access is refused.
        UnsupportedCheckpointError, ConfigError, CorruptCheckpointError: if the JSON is of another
            model, contradictory or damaged.
    """
    local = _find_local(name, ignore_config)
    if local is not None:
        return local
    spelled = os.fspath(name)
    repo = spelled.removeprefix("hf-hub:")
    row = registry.find(repo)
    if row is None:
        _refuse_name(spelled, repo, ignore_config)
    cache = None if cache_dir is None else Path(cache_dir)
    find = partial(
        hub.fetch_hub,
        repo if row is None else row.hub,
        revision=revision,
        cache_dir=cache,
        token=token,
        local_files_only=local_files_only,
    )
    try:
        return _on_hub(find, row, ignore_config, needs_config and not ignore_config)
    except (DownloadError, CheckpointNotFoundError) as error:
        if row is None:
            raise type(error)(f"{error}\n{_no_local(spelled)}") from error
        if row.openai is None or revision is not None:
            raise
        return _from_openai(row, row.openai, error, cache, local_files_only)


def _find_local(name: str | os.PathLike[str], ignore_config: bool) -> Source | None:
    """Return what lies at a path of this name, or None if the name means something elsewhere.

    Raises `CheckpointNotFoundError` for the path of nothing.
    """
    if name == "tiny":
        return replace(_in_folder(EMBEDDED, ignore_config), is_constant=True)
    spelled = os.fspath(name)
    try:
        path = Path(spelled).expanduser()
        exists = spelled != "" and path.exists()  # Path("") would be the current folder
    except (OSError, RuntimeError, ValueError) as error:
        # The name is too long, holds a null byte, or names the home of nobody.
        raise registry.unknown(spelled) from error
    if exists and not path.is_dir():
        return _at_file(path, ignore_config)
    if exists and (_is_spelled_as_path(name) or not _means_a_model(spelled) or _weight_files(path)):
        return _in_folder(path, ignore_config)
    if _is_spelled_as_path(name):
        raise CheckpointNotFoundError(f"there is no file or folder {spelled!r}")
    return None


def _is_spelled_as_path(name: str | os.PathLike[str]) -> bool:
    """Return whether a name can only be a path, whether or not there is anything."""
    if not isinstance(name, str):
        return True
    path = Path(name)
    starts_or_ends = name.startswith((".", "/", "~")) or name.endswith(("/", os.sep))
    return starts_or_ends or path.is_absolute() or path.suffix in SUFFIXES


def _means_a_model(name: str) -> bool:
    """Return whether a name is a published one or has the form of a hub id."""
    repo = name.removeprefix("hf-hub:")
    return registry.find(repo) is not None or _HUB_ID.fullmatch(repo) is not None


def _weight_files(folder: Path) -> list[Path]:
    """Return the files in a folder that may hold weights, those of known names first."""
    known = [folder / name for name in WEIGHT_FILES if (folder / name).exists()]
    others = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    return known + [path for path in others if path not in known]


def _no_local(name: str) -> str:
    """Say, of a name for which the hub has nothing, that there is nothing here either."""
    if Path(name).is_dir():
        return f"The local folder {name!r} holds no weight file either"
    return f"Nor is there a local folder or file {name!r}"


def _refuse_name(name: str, repo: str, ignore_config: bool) -> None:
    """Raise for a name that cannot be a hub id, or tells that the model is not a plain CLIP."""
    if not ignore_config:
        registry.refuse(repo)
    if not _HUB_ID.fullmatch(repo) or registry.LIKE_PUBLISHED.match(repo):
        raise registry.unknown(name)


def _on_hub(
    find: Find, row: registry.Model | None, ignore_config: bool, needs_config: bool
) -> Source:
    """Fetch a repository's files, in the registry's layout or else in open_clip's first."""
    document = _document_on_hub(find, row, needs_config)
    if document is None:
        stated = Stated()
        weights = find(WEIGHT_FILES)
    else:
        known = None if row is None else row.config
        stated = read_documents(find, document, known, ignore_config=ignore_config)
        weights = find(LAYOUTS[document])
    if weights.name in SHARDS:
        for shard in shard_names(weights):
            find((shard,))
    return replace(_source(weights, stated, row), is_constant=True)


def _document_on_hub(find: Find, row: registry.Model | None, needs_config: bool) -> str | None:
    """Return the name of the main document of a repository's layout, or None if it has neither."""
    if row is not None:
        return OPEN_CLIP_CONFIG if row.layout == "open_clip" else CONFIG
    try:
        return find((OPEN_CLIP_CONFIG, CONFIG)).name
    except hub.MissingFilesError as error:
        if needs_config:
            raise CheckpointNotFoundError(
                f"{error}. Weights reveal neither activation nor head width: pass config= with "
                "the published name that they derive from, or activation= and head_width="
            ) from error
        return None


def _from_openai(
    row: registry.Model,
    archive: tuple[str, str],
    failure: Exception,
    cache_dir: Path | None,
    local_files_only: bool,
) -> Source:
    """Fetch OpenAI's own archive of a model, since the hub failed."""
    file, digest = archive
    address = registry.OPENAI_ARCHIVES.format(sha256=digest, file=file)
    try:
        path = hub.fetch_url(address, digest, cache_dir, local_files_only=local_files_only)
    except DownloadError as error:
        raise DownloadError(f"{failure}\nOpenAI's own archive was tried too: {error}") from error
    return Source(path, row=row, is_constant=True)


def _in_folder(folder: Path, ignore_config: bool) -> Source:
    """Take the first weight file of a known name in a folder, or else the only one."""
    settle(folder)
    files = _weight_files(folder)
    if files and files[0].name in WEIGHT_FILES:
        _refuse_adapters(folder)
        return _at_file(files[0], ignore_config)
    if any((folder / "model" / name).exists() for name in WEIGHT_FILES):
        return _in_folder(
            folder / "model", ignore_config
        )  # a run of `clipkit train` that has ended
    _refuse_adapters(folder)
    if len(files) != 1:
        held = ", ".join(path.name for path in files) or "no weight file"
        raise CheckpointNotFoundError(
            f"the folder {folder} holds {held}: expected one of {', '.join(WEIGHT_FILES)}. "
            "Pass the path of a file"
        )
    document = OPEN_CLIP_CONFIG if (folder / OPEN_CLIP_CONFIG).exists() else CONFIG
    find = partial(_find_in, folder)
    return _source(files[0], read_documents(find, document, None, ignore_config=ignore_config))


def _refuse_adapters(folder: Path) -> None:
    """Raise `UnsupportedCheckpointError` for a folder of another library, and name the way on."""
    if (folder / "adapter_config.json").exists() and not (folder / CONFIG).exists():
        raise UnsupportedCheckpointError(
            f"{folder} holds an adapter of PEFT, and not the model that it adapts: load both with "
            "peft, call merge_and_unload(), save the result with save_pretrained and load that"
        )
    if (folder / "modules.json").exists():
        raise UnsupportedCheckpointError(
            f"{folder} is a folder of sentence-transformers. The CLIP lies in a folder inside of "
            f"it: load {str(folder / '0_CLIPModel')!r}"
        )


def _at_file(path: Path, ignore_config: bool) -> Source:
    """Take a weight file.

    JSON beside it may be of other weights. It counts only where the file has the name that goes
    with the JSON's.
    """
    for document, names in LAYOUTS.items():
        if path.name in names:
            find = partial(_find_in, path.parent)
            return _source(path, read_documents(find, document, None, ignore_config=ignore_config))
    return Source(path)


def _source(weights: Path, stated: Stated, row: registry.Model | None = None) -> Source:
    return Source(weights, stated.config, stated.merges, row, stated.preprocess)


def _find_in(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the files that the folder has."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise CheckpointNotFoundError(f"the folder {folder} has no {' or '.join(names)}")
