"""Write features of images into files, and read them back with care."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from clipkit.checkpoints.weights import read_weights
from clipkit.encode.features import Features
from clipkit.errors import CheckpointNotFoundError, DataError
from clipkit.files import parse_json, spell_path, write_weights
from clipkit.plurals import number_of

# The tensor in our files that holds JSON as bytes. The header of the format, where text would go,
# ends at 100 MB.
_INFO = "clipkit_features"

# The version of that JSON. Files of 0.1.0 have none, and fingerprints made another way.
_FORMAT = 2


def write_features(features: Features, path: Path, fingerprints: Mapping[str, Any]) -> None:
    """Write features, and the fingerprints of what they were made of, all or nothing.

    Raises:
        OutputError: if the file cannot be written.
    """
    info: dict[str, Any] = {
        "format": _FORMAT,
        "made_of": fingerprints,
        "paths": features.paths,
        "skipped": features.skipped,
    }
    if features.class_names is not None:  # not as an object, whose keys would become texts
        info["class_names"] = list(features.class_names.items())
    text = bytearray(json.dumps(info).encode())
    tensors = {"features": features.features, _INFO: torch.frombuffer(text, dtype=torch.uint8)}
    if features.labels is not None:
        tensors["labels"] = features.labels
    write_weights(tensors, path)


def read_features(path: str | os.PathLike[str]) -> tuple[Features, dict[str, Any], bool]:
    """Return the features in a file, the fingerprints beside them, and whether 0.1.0 wrote it.

    Raises:
        DataError: if something else wrote it, or its parts do not match.
        CheckpointError: if it is missing, or broken as a whole.
    """
    path = spell_path(path, "a file of features")
    if not os.path.exists(path):
        raise CheckpointNotFoundError(f"There is no file {path}")
    tensors = read_weights(path)
    if not {"features", _INFO} <= tensors.keys():
        raise DataError(
            f"{path} was not written by extract_features, and is left as it is: name another file"
        )
    info = _read_info(tensors[_INFO], path)
    skipped = [(name, problem) for name, problem in info["skipped"]]
    features = Features(
        features=tensors["features"],
        labels=tensors.get("labels"),
        paths=info["paths"],
        skipped=skipped,
        class_names=_read_class_names(info.get("class_names"), path),
    )
    if problem := _problem_of(features):
        raise _damaged(path, problem)
    return features, info["made_of"], "format" not in info


def check_count(features: Features, count: int, path: Path) -> None:
    """Raise `DataError` if features in a file are not those of so many images.

    Args:
        features: with the images that were skipped.
        count: of the images that they must be of.
        path: the file.
    """
    found = len(features.paths) + len(features.skipped)
    if found != count:
        raise _damaged(path, f"it is of {found} images, where {count} belong")


def _read_info(text: Tensor, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON of a file, with its types checked."""
    if text.dtype != torch.uint8 or text.ndim != 1:
        raise _damaged(path, "its JSON is no row of bytes")
    info = parse_json(text.numpy().tobytes(), f"the JSON in {os.fspath(path)}")
    paths = info.get("paths")
    skipped = info.get("skipped")
    if not _are_texts(paths):
        raise _damaged(path, "its paths are no list of texts")
    if not isinstance(skipped, list) or not all(
        _are_texts(problem) and len(cast("list[str]", problem)) == 2
        for problem in cast("list[object]", skipped)
    ):
        raise _damaged(path, "its skipped images are no list of pairs of texts")
    if not isinstance(info.get("made_of"), dict):
        raise _damaged(path, "it does not say what it was made of")
    return info


def _read_class_names(value: object, path: str | os.PathLike[str]) -> dict[int, list[str]] | None:
    """Return the names of each label, as pairs of an integer and a list of texts have them."""
    if value is None:
        return None
    names: dict[int, list[str]] = {}
    for pair in cast("list[Any]", value) if isinstance(value, list) else [value]:
        if not isinstance(pair, list) or len(cast("list[Any]", pair)) != 2:
            raise _damaged(path, "its class names are no pairs")
        label, own = cast("list[Any]", pair)
        if not isinstance(label, int) or not _are_texts(own):
            raise _damaged(path, "its class names are no lists of texts")
        names[label] = own
    return names


def _are_texts(value: object) -> bool:
    if not isinstance(value, list):
        return False
    return all(isinstance(text, str) for text in cast("Sequence[object]", value))


def _problem_of(features: Features) -> str:
    """Return what does not match in features, or an empty text."""
    rows, labels = features.features, features.labels
    if rows.ndim != 2 or rows.dtype != torch.float32:
        return f"its features are {rows.dtype} {tuple(rows.shape)}, not float32 (M, D)"
    if len(rows) != len(features.paths):
        return (
            f"it has {number_of(len(rows), 'feature')} and {number_of(len(features.paths), 'path')}"
        )
    if labels is not None and (labels.shape != rows.shape[:1] or labels.dtype != torch.int64):
        return f"its labels are {labels.dtype} {tuple(labels.shape)}, not int64 ({len(rows)},)"
    return ""


def _damaged(path: str | os.PathLike[str], problem: str) -> DataError:
    return DataError(f"{os.fspath(path)} is damaged: {problem}. Delete it and make it again")
