"""The file of a head: its tensors, and as JSON what else there is to know of it.

The JSON is a tensor of bytes among the others. The header of the format, where version 0.1.0 had
it, ends at 100 MB, which the prompts of many classes exceed.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipkit.checkpoints.weights import read_weights
from clipkit.classify.calibration import Calibration
from clipkit.classify.calibration_file import (
    calibration_parts,
    read_calibration,
    take_calibration,
)
from clipkit.errors import ConfigError, CorruptCheckpointError
from clipkit.files import parse_json, write_weights
from clipkit.plurals import number_of, number_of_classes

_ABOUT = "clipkit_head"  # the tensor that holds the JSON

# The tensors of each kind of head. Axes with the same letter have the same length.
SHAPES: dict[str, dict[str, str]] = {
    "LinearHead": {"weight": "CD", "bias": "C"},
    "CosineHead": {"weight": "CD", "logit_scale": ""},
    "WeightedPromptHead": {"captions": "CKD", "prompt_weights": "CK", "logit_scale": ""},
    "CacheHead": {
        "weight": "CD",
        "logit_scale": "",
        "keys": "MD",
        "values": "MC",
        "alpha": "",
        "beta": "",
    },
    "AdaptedHead": {"weight": "CD", "bias": "C", "means": "CD", "variances": "CD"},
}


@dataclass(frozen=True)
class HeadFile:
    """Hold what the file of a head holds.

    Attributes:
        kind: the name of the head's class.
        tensors: the head's own, by name.
        labels: C names.
        provenance: how the head was made, for people.
        scale: of a `LinearHead`; see `Head.scale`.
        beside: digests of what the head was saved with, by name. Files of version 0.1.0 have none.
        calibration: of the classifier with this head; None if it is not calibrated.
    """

    kind: str
    tensors: Mapping[str, Tensor]
    labels: list[str]
    provenance: dict[str, Any]
    scale: float | None = None
    beside: dict[str, str] = field(default_factory=dict[str, str])
    calibration: Calibration | None = None


def write_head_file(file: HeadFile, path: str | os.PathLike[str]) -> None:
    """Write a head's file, whole or not at all.

    Raises:
        ConfigError: if the provenance holds what JSON cannot.
        OutputError: if the file cannot be written.
    """
    about: dict[str, Any] = {
        "head": file.kind,
        "labels": file.labels,
        "provenance": file.provenance,
        "scale": file.scale,
        "beside": file.beside,
    }
    tensors = dict(file.tensors)
    if file.calibration is not None:
        more, about["calibration"] = calibration_parts(file.calibration)
        tensors |= more
    try:
        text = bytearray(json.dumps(about).encode())
    except (TypeError, ValueError) as error:
        raise ConfigError(f"what a head's file says of it must be JSON: {error}") from error
    packed = torch.frombuffer(text, dtype=torch.uint8)
    write_weights({**tensors, _ABOUT: packed}, path)


def read_head_file(path: str | os.PathLike[str]) -> HeadFile:
    """Read a head's file, of this version or of 0.1.0, and check every part of it.

    Raises:
        CheckpointNotFoundError: if there is no such file.
        CorruptCheckpointError: if it is damaged, or holds no head.
    """
    tensors = read_weights(path)
    about = _read_about(Path(path), tensors)
    calibration = take_calibration(tensors)
    try:
        classes = _check_tensors(_typed(about, "head", str), tensors)
        file = HeadFile(
            kind=about["head"],
            tensors=tensors,
            labels=_texts(_typed(about, "labels", list)),
            provenance=_typed(about, "provenance", dict),
            scale=_scale(about),
            beside={name: str(digest) for name, digest in about.get("beside", {}).items()},
            calibration=_calibration(calibration, about, classes),
        )
    except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise CorruptCheckpointError(f"{path} is no head that clipkit saved ({error})") from error
    if len(file.labels) != classes:
        raise CorruptCheckpointError(
            f"{path} has {number_of(len(file.labels), 'label')} for {number_of_classes(classes)}"
        )
    return file


def _read_about(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Take the JSON out of the tensors, or read it from the header, where 0.1.0 wrote it."""
    packed = tensors.pop(_ABOUT, None)
    if packed is not None:
        text = packed.numpy().tobytes() if packed.dtype == torch.uint8 else b""
        return parse_json(text, f"{path}, {_ABOUT},", error=CorruptCheckpointError)
    from safetensors import SafetensorError, safe_open

    try:
        opened: Any = safe_open(path, "pt")  # it has no types
        with opened as file:
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise CorruptCheckpointError(f"{path} is no head that clipkit saved ({error})") from error
    if "clipkit" not in metadata:
        raise CorruptCheckpointError(f"{path} is no head that clipkit saved (it has no labels)")
    problem = f"{path} is no head that clipkit saved: its header"
    return parse_json(metadata["clipkit"], problem, error=CorruptCheckpointError)


def _calibration(
    tensors: dict[str, Tensor], about: dict[str, Any], classes: int
) -> Calibration | None:
    if "calibration" not in about and not tensors:
        return None
    return read_calibration(tensors, _typed(about, "calibration", dict), classes)


def _typed(about: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(about[name], kind):
        raise TypeError(f"its {name} is {about[name]!r:.60}")
    return about[name]


def _texts(values: list[Any]) -> list[str]:
    wrong = [value for value in values if not isinstance(value, str)]
    if wrong:
        raise TypeError(f"one of its labels is {wrong[0]!r:.60}")
    return values


def _scale(about: dict[str, Any]) -> float | None:
    """Return a head's scale. Version 0.1.0 had it in the provenance, and no key for it."""
    scale = about["scale"] if "scale" in about else about["provenance"].get("scale")
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise ValueError(f"its scale is {scale!r:.60}")
    return float(scale)


def _check_tensors(kind: str, tensors: Mapping[str, Tensor]) -> int:
    """Return the number of classes, or raise a builtin error unless the tensors are a head's."""
    if kind not in SHAPES:
        raise ValueError(f"it is a {kind!r:.60}")
    shapes = SHAPES[kind]
    if shapes.keys() != tensors.keys():
        raise ValueError(f"it has {', '.join(sorted(tensors))}, not {', '.join(sorted(shapes))}")
    lengths: dict[str, int] = {}
    for name, axes in shapes.items():
        tensor = tensors[name]
        fits = tensor.is_floating_point() and len(axes) == tensor.ndim
        sizes = tuple(tensor.shape)
        for axis, size in zip(axes, sizes, strict=False):
            fits = fits and size > 0 and lengths.setdefault(axis, size) == size
        if not fits:
            raise ValueError(f"its {name} is {tensor.dtype} of shape {sizes}")
        numbers = tensor.float()  # not every dtype can be asked whether it is finite
        factor = numbers.exp() if name == "logit_scale" else numbers
        if not factor.isfinite().all():
            raise ValueError(f"its {name} is not finite")
    return lengths["C"]
