"""Find what a name means: a weight file, what the JSON beside it states, and the registry's row."""

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from clipkit.checkpoints import hub, registry
from clipkit.checkpoints.documents import (
    CONFIG,
    OPEN_CLIP_CONFIG,
    Find,
    Stated,
    read_documents,
)
from clipkit.checkpoints.embedded import EMBEDDED
from clipkit.checkpoints.formats import describe_others
from clipkit.checkpoints.vocabulary import TokenizerFiles
from clipkit.checkpoints.weights import shard_names
from clipkit.config import CLIPConfig
from clipkit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    DownloadError,
    OutputError,
    UnknownModelError,
    UnsupportedCheckpointError,
)
from clipkit.files import read_text, settle

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
RUN_MODEL = "model"  # the folder of the model in that of a run of `clipkit train` that has ended

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """Hold where a checkpoint lies and what is known of it before its weights are read.

    Attributes:
        weights: the weight file.
        config: the config that the JSON beside it states.
        tokenizer: the files of a tokenizer that belongs to the weights.
        row: the registry's row of a published model.
        preprocess: what clipkit's own layout says of a preprocessing beside the config.
        is_constant: whether nothing rewrites the weight file in place. That holds for the hub's
            cache, which names files by their content, and for the embedded checkpoint.
    """

    weights: Path
    config: CLIPConfig | None = None
    tokenizer: TokenizerFiles = TokenizerFiles()
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
            model, contradictory or damaged; or if a revision is given for what lies here.
    """
    _check_arguments(name, revision, cache_dir, token)
    local = _find_local(name, ignore_config)
    if local is not None:
        refuse_revision(name, revision)
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
    failure: DownloadError | CheckpointNotFoundError
    try:
        return _on_hub(find, row, ignore_config, needs_config and not ignore_config)
    except (DownloadError, CheckpointNotFoundError) as error:
        failure = error
    # From here on there is no exception in flight: one error says it all, and drags none along.
    if row is None:
        raise type(failure)(f"{failure}\n{_no_local(spelled)}")
    if row.openai is None or revision is not None:
        raise failure from None
    return _from_openai(row, row.openai, failure, cache, local_files_only)


def is_hub_id(name: str | os.PathLike[str]) -> bool:
    """Return whether a name has the form "owner/name", and is not spelled as a path."""
    return isinstance(name, str) and not _is_spelled_as_path(name) and bool(_HUB_ID.fullmatch(name))


def hub_id_of(name: str | os.PathLike[str]) -> str | None:
    """Return the repository on the hub that a name means, or None if it means something here."""
    if name == "tiny" or _is_spelled_as_path(name) or os.path.exists(name):
        return None
    repo = os.fspath(name).removeprefix("hf-hub:")
    row = registry.find(repo)
    return repo if row is None else row.hub


def refuse_revision(name: str | os.PathLike[str], revision: str | None) -> None:
    """Raise `ConfigError` if a revision was given for what lies here, which has none."""
    if revision is not None:
        raise ConfigError(
            f"revision={revision!r:.60} is of hub repositories, and {os.fspath(name)!r} lies here: "
            "leave it out"
        )


def _check_arguments(name: object, revision: object, cache_dir: object, token: object) -> None:
    """Raise an error for arguments of a wrong type, before anything is looked for."""
    kind = type(name).__name__
    if not isinstance(name, str | os.PathLike) or isinstance(os.fspath(cast(Any, name)), bytes):
        raise UnknownModelError(
            f"a model is named by a string or a path, not {kind} {name!r:.60}: "
            "`clipkit.list_models()` has the published names"
        )
    if not isinstance(revision, str | None):
        raise ConfigError(f"revision must be a branch, tag or commit, not {revision!r:.60}")
    if not isinstance(cache_dir, str | os.PathLike | None):
        raise ConfigError(f"cache_dir must be the path of a folder, not {cache_dir!r:.60}")
    if not isinstance(token, str | bool | None):
        raise ConfigError(f"token must be a string or a bool, not of type {type(token).__name__}")


def _find_local(name: str | os.PathLike[str], ignore_config: bool) -> Source | None:
    """Return what lies at a path of this name, or None if the name means something elsewhere.

    Raises `CheckpointNotFoundError` for the path of nothing.
    """
    if name == "tiny":
        return replace(_in_folder(EMBEDDED, ignore_config), is_constant=True)
    spelled = os.fspath(name)
    try:
        path = Path(spelled).expanduser()
        # A save that was killed in one of these folders may have files left to move.
        for folder in (path.parent, path, path / RUN_MODEL):
            settle(folder)
        exists = spelled != "" and path.exists()  # Path("") would be the current folder
    except OutputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        # The name is too long, holds a null byte, or names the home of nobody.
        raise registry.unknown(spelled) from error
    if exists and not path.is_dir():
        return _at_file(path, ignore_config)
    if exists and (_is_spelled_as_path(name) or not _means_a_model(spelled) or _holds_model(path)):
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
    try:
        files = sorted(path for path in folder.iterdir() if not path.is_dir())
    except OSError as error:
        raise CheckpointError(
            f"the folder {folder} cannot be listed ({error.strerror}): give yourself the "
            "permission to read it, or pass the path of a copy"
        ) from error
    known = [folder / name for name in WEIGHT_FILES if folder / name in files]
    return known + [path for path in files if path.suffix in SUFFIXES and path not in known]


def _holds_model(folder: Path) -> bool:
    """Return whether a folder, or the model of a run in it, has a weight file."""
    run_model = folder / RUN_MODEL
    return bool(_weight_files(folder) or (run_model.is_dir() and _weight_files(run_model)))


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
        reasons = f"{failure}\nOpenAI's own archive was tried too: {error}"
    else:
        return Source(path, row=row, is_constant=True)
    raise DownloadError(reasons)


def _in_folder(folder: Path, ignore_config: bool) -> Source:
    """Take the first weight file of a known name in a folder, or else the only one."""
    files = _weight_files(folder)
    if files and files[0].name in WEIGHT_FILES:
        _refuse_adapters(folder)
        return _at_file(files[0], ignore_config)
    if any((folder / RUN_MODEL / name).exists() for name in WEIGHT_FILES):
        return _in_folder(folder / RUN_MODEL, ignore_config)
    _refuse_adapters(folder)
    if len(files) != 1:
        held = ", ".join(path.name for path in files) or f"no weight file{describe_others(folder)}"
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
    # Newer versions of sentence-transformers keep the CLIP itself beside its modules.json.
    has_model = (folder / CONFIG).exists() and _weight_files(folder)
    if (folder / "modules.json").exists() and not has_model:
        raise UnsupportedCheckpointError(
            f"{folder} is a folder of sentence-transformers, and the CLIP lies in a folder inside "
            f"of it{_way_to_module(folder)}"
        )


def _way_to_module(folder: Path) -> str:
    """Name the first folder with a model that sentence-transformers' `modules.json` lists."""
    modules: Any = []
    with suppress(ValueError):  # the message does without it
        modules = json.loads(read_text(folder / "modules.json", error=UnsupportedCheckpointError))
    modules = cast("list[Any]", modules) if isinstance(modules, list) else []
    for module in modules:
        path = cast("dict[str, Any]", module).get("path") if isinstance(module, dict) else None
        if isinstance(path, str) and path and os.path.exists(folder / path / CONFIG):
            return f": load {str(folder / path)!r}"
    return ", but none that its modules.json names has a config.json"


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
    return Source(weights, stated.config, stated.tokenizer, row, stated.preprocess)


def _find_in(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the files that the folder has."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise CheckpointNotFoundError(f"the folder {folder} has no {' or '.join(names)}")
