"""Write the parts of a classifier into a folder, beside the model, and read them back."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.classify.heads import CosineHead, Head, load_head, save_head
from clipkit.errors import CorruptCheckpointError
from clipkit.prompts import TEMPLATES, CheckedTemplates, check_templates, render

MODEL = "model"
HEAD = "head.safetensors"
ZERO_SHOT = "zero_shot.safetensors"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Hold what makes a classifier out of a model; see `ImageClassifier` for each of them."""

    head: Head
    labels: list[str]
    zero_shot_head: CosineHead
    prompts: list[list[str]]
    provenance: dict[str, Any]
    templates: CheckedTemplates | None


def save_parts(parts: Parts, folder: str | os.PathLike[str]) -> None:
    """Write both heads with all that belongs to them. Templates that are functions are left out."""
    start = {"prompts": parts.prompts, "templates": _as_json(parts.templates)}
    save_head(parts.zero_shot_head, Path(folder, ZERO_SHOT), parts.labels, start)
    save_head(parts.head, Path(folder, HEAD), parts.labels, parts.provenance)


def load_parts(folder: str | os.PathLike[str]) -> Parts:
    """Return what `save_parts` wrote, with the heads in eval mode.

    Raises:
        CheckpointNotFoundError: if a file is missing.
        CorruptCheckpointError: if a file is damaged, or the files are not of one classifier.
    """
    head, labels, provenance = load_head(Path(folder, HEAD))
    zero_shot_head, names, start = load_head(Path(folder, ZERO_SHOT))
    if names != labels or not isinstance(zero_shot_head, CosineHead) or "prompts" not in start:
        raise CorruptCheckpointError(f"{folder}: {ZERO_SHOT} and {HEAD} are not of one classifier")
    return Parts(
        head=head,
        labels=labels,
        zero_shot_head=zero_shot_head,
        prompts=start["prompts"],
        provenance=provenance,
        templates=_read_templates(start, labels),
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


def _read_templates(start: dict[str, Any], labels: list[str]) -> CheckedTemplates | None:
    if "templates" in start:
        return None if start["templates"] is None else check_templates(start["templates"])
    # Version 0.1.0 saved prompts only. They can show that the templates were those by default.
    return TEMPLATES if start["prompts"] == render(labels, TEMPLATES)[1] else None
