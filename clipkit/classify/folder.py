"""Write a classifier into a folder, all of it at once, and read its parts back."""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from clipkit.checkpoints.documents import CONFIG, MERGES
from clipkit.checkpoints.source import WEIGHT_FILES
from clipkit.classify.calibration import Calibration
from clipkit.classify.head_files import HeadFile, read_head_file
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.saved_heads import build_head, save_head
from clipkit.clip import CLIP
from clipkit.data.pictures import tensor_bytes
from clipkit.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError
from clipkit.files import check_output, read_json, replacing_folder, settle, sha256
from clipkit.prompts import TEMPLATES, CheckedTemplates, as_words, check_templates, render

MODEL = "model"
HEAD = "head.safetensors"
ZERO_SHOT = "zero_shot.safetensors"

WEIGHTS = "model.safetensors"  # what `CLIP.save_pretrained` writes beside CONFIG
_LOOKED_AT = 256  # numbers at the beginning, the middle and the end of a weight


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Hold what makes a classifier out of a model; see `ImageClassifier` for each of them."""

    head: Head
    labels: list[str]
    zero_shot_head: CosineHead
    prompts: list[list[str]]
    provenance: dict[str, Any]
    templates: CheckedTemplates | None
    calibration: Calibration | None


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a path, or raise `ConfigError` for what is none. An empty text is none either."""
    spelled = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    if not spelled or "\0" in spelled:
        raise ConfigError(
            f"a path is needed to save, load or export a classifier, not {path!r:.99}"
        )
    return Path(spelled)


def _check_place(folder: Path) -> None:
    """Raise `OutputError` if no classifier can be written to a folder, before any work."""
    check_output(folder, "folder")
    check_output(folder / MODEL, "folder")
    check_output(folder / HEAD)
    check_output(folder / ZERO_SHOT)


def save_parts(model: CLIP, parts: Parts, folder: str | os.PathLike[str]) -> None:
    """Write a model and both heads with all that belongs to them.

    The old classifier is replaced as one, and other files in the folder stay. Each head has digests
    of what it was saved with, so that `load_parts` knows a mix of two classifiers. Templates that
    are functions are left out.

    Raises:
        OutputError: if the folder cannot be written.
        ConfigError: as `CLIP.save_pretrained`.
    """
    folder = as_path(folder)
    _check_place(folder)
    start = {"prompts": parts.prompts, "templates": _as_json(parts.templates)}
    with replacing_folder(folder) as fresh:
        _keep_other_files(folder / MODEL, fresh / MODEL)
        model.save_pretrained(fresh / MODEL)
        beside = {MODEL: _fingerprint(fresh / MODEL)}
        save_head(parts.zero_shot_head, fresh / ZERO_SHOT, parts.labels, start, beside=beside)
        beside[ZERO_SHOT] = sha256(fresh / ZERO_SHOT)
        save_head(
            parts.head,
            fresh / HEAD,
            parts.labels,
            parts.provenance,
            beside=beside,
            calibration=parts.calibration,
        )


def load_parts(folder: str | os.PathLike[str]) -> Parts:
    """Return what `save_parts` wrote but the model, with the heads in eval mode.

    Raises:
        CheckpointNotFoundError: if a file is missing.
        CorruptCheckpointError: if a file is damaged, or the files are not of one classifier.
    """
    folder = as_path(folder)
    settle(folder)
    _check_is_classifier(folder)
    head = read_head_file(folder / HEAD)
    start = read_head_file(folder / ZERO_SHOT)
    _check_beside(folder, head, start)
    zero_shot_head = build_head(start)
    prompts = start.provenance.get("prompts")
    if start.labels != head.labels or not isinstance(zero_shot_head, CosineHead):
        raise _mix(folder)
    if not _are_prompts(prompts):
        raise _mix(folder)
    provenance = head.provenance
    if "pictures" in provenance:  # as version 0.1.0 called them
        provenance = {**provenance, "images": provenance["pictures"]}
        del provenance["pictures"]
    return Parts(
        head=build_head(head),
        labels=head.labels,
        zero_shot_head=zero_shot_head,
        prompts=cast("list[list[str]]", prompts),
        provenance=provenance,
        templates=_read_templates(folder, start.provenance, head.labels),
        calibration=head.calibration,
    )


def _check_is_classifier(folder: Path) -> None:
    """Raise `CheckpointNotFoundError` that says what a folder without a head is."""
    # os.path says False, where Path raises an error, of a name that is too long.
    if not os.path.isdir(folder):
        found = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise CheckpointNotFoundError(
            f"{str(folder):.300} {found}: name the folder of a classifier"
        )
    if (folder / HEAD).exists():
        return
    message = f"{folder} has no {HEAD}, so it is no classifier"
    if any((folder / name).exists() for name in (CONFIG, *WEIGHT_FILES)):
        message += (
            f". It is a model: load it by clipkit.load({str(folder)!r}), and make a classifier of "
            f"it by ImageClassifier.zero_shot({str(folder)!r}, class_names)"
        )
    raise CheckpointNotFoundError(message)


def _mix(folder: Path) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{folder}: {ZERO_SHOT} and {HEAD} are not of one classifier. Copy its folder as a whole"
    )


def _check_beside(folder: Path, head: HeadFile, start: HeadFile) -> None:
    """Raise `CorruptCheckpointError` if the files of a folder were not saved together.

    Files of version 0.1.0 do not know what they were saved with.
    """
    if ZERO_SHOT in head.beside and head.beside[ZERO_SHOT] != sha256(folder / ZERO_SHOT):
        raise _mix(folder)
    expected = {file.beside[MODEL] for file in (head, start) if MODEL in file.beside}
    if expected and expected != {_fingerprint(folder / MODEL)}:
        raise CorruptCheckpointError(
            f"{folder}: the model is not the one that {HEAD} was saved with. Copy the folder of a "
            "classifier as a whole, or make a new classifier of the model"
        )


def _fingerprint(model: Path) -> str:
    """Return a digest by which the model in a folder is known: config, and three parts of a weight.

    The whole of the weights is not looked at, which would take longer than loading them. Training
    changes every part of a weight.
    """
    from safetensors import SafetensorError, safe_open

    settle(model)
    for name in (CONFIG, WEIGHTS):
        if not (model / name).is_file():
            raise CheckpointNotFoundError(f"there is no {name} in {model}")
    config = read_json(model / CONFIG, error=CorruptCheckpointError)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    try:
        opened: Any = safe_open(model / WEIGHTS, "pt")  # it has no types
        with opened as file:
            for name in sorted(file.keys()):
                weight = file.get_tensor(name).reshape(-1)  # (...) -> (n,)
                digest.update(f"{name} {len(weight)} {weight.dtype} ".encode())
                middle = len(weight) // 2
                for start in (0, middle, max(0, len(weight) - _LOOKED_AT)):
                    digest.update(tensor_bytes(weight[start : start + _LOOKED_AT]))
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpointError(f"{model / WEIGHTS} cannot be read: {error}") from error
    return digest.hexdigest()


def _keep_other_files(old: Path, fresh: Path) -> None:
    """Take over what else lies in the folder of the old model, which is replaced as a whole."""
    if not old.is_dir():
        return
    settle(old)
    fresh.mkdir()
    for entry in old.iterdir():
        is_remnant = entry.name.startswith((".new-", ".swap", ".lock"))
        if entry.name in (CONFIG, WEIGHTS, MERGES) or is_remnant:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, fresh / entry.name, symlinks=True, copy_function=_link_or_copy)
        else:
            _link_or_copy(entry, fresh / entry.name)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where the file system has one name for a file only."""
    with contextlib.suppress(OSError, NotImplementedError):
        os.link(source, target, follow_symlinks=False)
        return
    shutil.copy2(source, target, follow_symlinks=False)


def _are_prompts(prompts: Any) -> bool:
    """Return whether this is a list of lists of texts."""
    return isinstance(prompts, list) and all(
        isinstance(own, list) and all(isinstance(text, str) for text in cast("list[Any]", own))
        for own in cast("list[Any]", prompts)
    )


def _as_json(templates: CheckedTemplates | None) -> object:
    """Return templates as lists of texts, or None if they are not known or not all texts."""
    if templates is None:
        return None
    if isinstance(templates, dict):
        every = [template for own in templates.values() for template in own]
    else:
        every = list(templates)
    return templates if all(isinstance(template, str) for template in every) else None


def _read_templates(
    folder: Path, start: dict[str, Any], labels: list[str]
) -> CheckedTemplates | None:
    if "templates" in start:
        try:
            return None if start["templates"] is None else check_templates(start["templates"])
        except ConfigError as error:
            raise CorruptCheckpointError(f"{folder}: {ZERO_SHOT} is damaged: {error}") from error
    # Version 0.1.0 saved prompts only. They can show that the templates were those by default. It
    # did not write underscores as spaces.
    prompts = [[text.replace("_", " ") for text in own] for own in start["prompts"]]
    names = {label: as_words(label) for label in labels}
    return TEMPLATES if prompts == render(names, TEMPLATES)[1] else None
