"""Write heads to files, and read them, whatever kind they are of."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.classify.adapted_head import AdaptedHead
from clipkit.classify.calibration import Calibration
from clipkit.classify.head_files import HeadFile, read_head_file, write_head_file
from clipkit.classify.heads import CacheHead, CosineHead, Head, LinearHead, WeightedPromptHead
from clipkit.errors import ConfigError
from clipkit.plurals import number_of_classes

HEADS: dict[str, type[Head]] = {
    "LinearHead": LinearHead,
    "CosineHead": CosineHead,
    "WeightedPromptHead": WeightedPromptHead,
    "CacheHead": CacheHead,
    "AdaptedHead": AdaptedHead,
}


def save_head(
    head: Head,
    path: str | os.PathLike[str],
    labels: Sequence[str],
    provenance: dict[str, Any] | None = None,
    *,
    beside: Mapping[str, str] | None = None,
    calibration: Calibration | None = None,
) -> None:
    """Write a head as safetensors, with its labels and how it was made.

    Args:
        head: the head to write.
        path: the file; it is replaced only when its successor is whole.
        labels: C names.
        provenance: how the head was made, as JSON: model, method, data ... It informs people;
            nothing that is computed depends on it.
        beside: digests of what the head is saved with, by name.
        calibration: of the classifier with this head, if it is calibrated.

    Raises:
        ConfigError: if there is not one label per class.
    """
    if len(labels) != head.classes:
        raise ConfigError(
            f"a head of {number_of_classes(head.classes)} needs as many labels, not {len(labels)}"
        )
    file = HeadFile(
        kind=type(head).__name__,
        tensors=head.state_dict(),
        labels=list(labels),
        provenance=provenance or {},
        scale=head.scale if isinstance(head, LinearHead) else None,  # others have it in tensors
        beside=dict(beside or {}),
        calibration=calibration,
    )
    write_head_file(file, path)


def load_head(path: str | os.PathLike[str]) -> tuple[Head, list[str], dict[str, Any]]:
    """Return what `save_head` wrote: the head in eval mode, its labels and its provenance.

    Raises:
        CheckpointNotFoundError: if there is no such file.
        CorruptCheckpointError: if the file is damaged, or holds no head.
    """
    file = read_head_file(path)
    return build_head(file), file.labels, file.provenance


def build_head(file: HeadFile) -> Head:
    """Return the head, in eval mode, that a file describes."""
    if file.kind == "LinearHead":
        return LinearHead(**file.tensors, scale=file.scale).eval()
    return HEADS[file.kind](**file.tensors).eval()
