"""Read a checkpoint of training, and check all that is in it before any of it is used."""

import json
import math
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from clipkit.errors import TrainingError
from clipkit.files import check_file

# The entries of a checkpoint, and their types.
_ENTRIES: dict[str, tuple[type, ...]] = {
    "config": (dict,),
    "identity": (list,),
    "task": (dict,),
    "optimizers": (list, dict),  # a dict if the weights were split over processes
    "average": (dict, type(None)),  # None without an average
    "step": (int,),
    "losses": (int, float),
    "counted": (int,),
    "skipped": (int,),
}
_COUNTS = ("step", "counted", "skipped")


def read_state(checkpoint: Path, *, thorough: bool) -> dict[str, Any]:
    """Return what a checkpoint of training holds.

    Args:
        checkpoint: the file.
        thorough: compare every byte with the file's own check sums, which takes about a second for
            a gigabyte.

    Raises:
        TrainingError: if it cannot be read, is damaged, or is something else.
    """
    try:
        state = _load(checkpoint, thorough)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:  # torch would advise to load it unsafely
        raise unusable(checkpoint, "it is malformed, or holds more than tensors") from error
    except Exception as error:  # damaged bytes make zipfile and torch raise nearly anything
        reason = (str(error) or type(error).__name__).split("\n")[0]
        raise unusable(checkpoint, f"{reason:.200}") from error
    if problem := _problem_of_entries(state):
        raise unusable(checkpoint, problem)
    return cast("dict[str, Any]", state)


def unusable(checkpoint: Path, reason: str) -> TrainingError:
    """Make the error that says why a checkpoint cannot be resumed, and what to do."""
    return TrainingError(
        f"{checkpoint} cannot be resumed ({reason}): remove it, or give another out"
    )


def _load(checkpoint: Path, thorough: bool) -> object:
    check_file(checkpoint)
    with zipfile.ZipFile(checkpoint) as archive:
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise ValueError("it is compressed, which torch.save does not do")
        if thorough and (record := archive.testzip()) is not None:
            raise ValueError(f"its record {record} was changed since it was written")
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)


def _problem_of_entries(state: object) -> str:
    """Return what is wrong with the entries of a checkpoint, or an empty text."""
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}, not the state of a training"
    entries = cast("dict[str, Any]", state)
    for name, kinds in _ENTRIES.items():
        if name not in entries:
            return f"it has no entry {name!r}"
        if not isinstance(entries[name], kinds) or isinstance(entries[name], bool):
            return f"its entry {name!r} is a {type(entries[name]).__name__}"
    if any(not 0 <= entries[name] < 2**63 for name in _COUNTS):
        return "it counts steps or images below 0, or beyond all bounds"
    if not math.isfinite(entries["losses"]):
        return "its sum of losses is not finite"
    identity = cast("list[object]", entries["identity"])
    if [type(part) for part in identity] != [dict, str, str]:
        return "its identity is malformed"
    if not isinstance(entries.get("start", ""), str):
        return "its start is malformed"
    try:
        json.dumps([entries["config"], identity])
    except (TypeError, ValueError, RecursionError):
        return "its config or identity holds more than plain values"
    return ""


def problem_of_tensors(found: Mapping[str, object], expected: Mapping[str, object]) -> str:
    """Return how tensors differ from others in name, shape or dtype, or an empty text."""
    there = {name: _kind_of(value) for name, value in found.items()}
    here = {name: _kind_of(value) for name, value in expected.items()}
    for name in (*here, *there):
        if there.get(name) != here.get(name):
            return f"{name} is {there.get(name, 'missing')}, not {here.get(name, 'there at all')}"
    return ""


def _kind_of(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def problem_of_moments(found: object, optimizers: Sequence[Optimizer]) -> str:
    """Return how the states of optimizers differ from what these take, or an empty text."""
    states = cast("list[object]", found) if isinstance(found, list) else []
    if len(states) != len(optimizers):
        return "it has the state of other optimizers"
    for state, optimizer in zip(states, optimizers, strict=True):
        entries = cast("dict[str, object]", state) if isinstance(state, dict) else {}
        if not _fit_groups(entries.get("param_groups"), optimizer):
            return "an optimizer had other parameters, or its settings are malformed"
        if not _fit_moments(entries.get("state"), optimizer):
            return "what an optimizer keeps does not fit its parameters"
    return ""


def _fit_groups(found: object, optimizer: Optimizer) -> bool:
    """Return whether these are groups of the same parameters, with settings of the same types."""
    own = cast("list[dict[str, Any]]", optimizer.state_dict()["param_groups"])
    groups = cast("list[object]", found) if isinstance(found, list) else []
    if len(groups) != len(own):
        return False
    for here, group in zip(own, groups, strict=True):
        there = cast("dict[str, Any]", group) if isinstance(group, dict) else {}
        if here["params"] != there.get("params"):
            return False
        # Versions of torch add settings, and give them a value where a file has none.
        if any(_differ(here[name], there[name]) for name in here.keys() & there.keys()):
            return False
    return True


def _differ(here: object, there: object) -> bool:
    """Return whether a setting of an optimizer is of another type than it may be."""
    if isinstance(here, int | float):
        return not isinstance(there, int | float | Tensor | None)
    if isinstance(here, tuple):
        parts = cast("tuple[object, ...]", there) if isinstance(there, tuple) else ()
        return [type(part) for part in cast("tuple[object, ...]", here)] != [*map(type, parts)]
    return False


def _fit_moments(found: object, optimizer: Optimizer) -> bool:
    """Return whether these are kept of parameters that an optimizer has. AdamW's are known."""
    if not isinstance(found, dict):
        return False
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, kept in cast("dict[object, object]", found).items():
        if index not in range(len(parameters)) or not isinstance(kept, dict):
            return False
        if isinstance(optimizer, AdamW):
            moments = cast("dict[str, object]", kept)
            if not _are_moments(moments, parameters[cast(int, index)]):
                return False
    return True


def _are_moments(kept: dict[str, object], parameter: Tensor) -> bool:
    """Return whether these are what AdamW keeps of a parameter."""
    shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size([])}
    found = {name: kept.get(name) for name in shapes}
    return all(
        isinstance(value, Tensor) and value.shape == shapes[name] for name, value in found.items()
    )
