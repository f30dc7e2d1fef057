"""Rename a state dict in place as it is loaded into a model, whichever layout it is in."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from clipkit.checkpoints.layouts import to_canonical
from clipkit.checkpoints.nesting import unwrap_state_dict
from clipkit.errors import CorruptCheckpointError, UnsupportedCheckpointError


def rename_incoming(state_dict: dict[str, Any], prefix: str, names: Iterable[str]) -> None:
    """Give the weights of a model their canonical names, in place.

    What is no whole CLIP in a known layout is left as it is: torch then reports the names that are
    missing and unexpected, or ignores them with `strict=False`.

    Args:
        state_dict: torch's own copy of what `load_state_dict` was given. Its tensors are not
            changed.
        prefix: of the model's names where it is a part of another module; "" where it is not.
        names: the canonical names that the model has.

    Raises:
        StateDictMismatchError: if two names mean the same weight, or q, k and v are not all there.

    Example:
        >>> state_dict = {"visual.proj": Tensor([1]), "text_projection": Tensor([2])}
        >>> rename_incoming(state_dict, "", ["visual.proj", "text.text_projection"])
        >>> sorted(state_dict)
        ['text.text_projection', 'visual.proj']
    """
    given = {
        name.removeprefix(prefix): value
        for name, value in state_dict.items()
        if name.startswith(prefix)
    }
    if not given.keys() - set(names):
        return
    if not all(isinstance(value, Tensor) for value in given.values()):
        return
    try:
        renamed = to_canonical(unwrap_state_dict(given))
    except (CorruptCheckpointError, UnsupportedCheckpointError):
        return
    for name in given:
        del state_dict[prefix + name]
    state_dict.update({prefix + name: value for name, value in renamed.items()})
