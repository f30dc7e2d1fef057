"""Rename a state dict in place as it is loaded into a model, whichever layout it is in."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from clipkit.checkpoints.layouts import IGNORED, OPENAI_TEXT, Layout, rename
from clipkit.errors import StateDictMismatchError

_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile


def rename_incoming(state_dict: dict[str, Any], prefix: str, names: Collection[str]) -> None:
    """Give the weights of a model their canonical names, in place.

    What has no place in the tables keeps its name, but for a wrapper's, so that parts of a subclass
    are loaded and torch reports what is missing and unexpected.

    Args:
        state_dict: torch's own copy of what `load_state_dict` was given. Its tensors are not
            changed.
        prefix: of the model's names where it is a part of another module; "" where it is not.
        names: those that the model has.

    Raises:
        StateDictMismatchError: if two names mean the same weight, or q, k and v are not all there.

    Example:
        >>> state_dict = {"module.visual.proj": Tensor([1]), "module.text_projection": Tensor([2])}
        >>> rename_incoming(state_dict, "", ["visual.proj", "text.text_projection"])
        >>> sorted(state_dict)
        ['text.text_projection', 'visual.proj']
    """
    own = [key for key in state_dict if key.startswith(prefix)]
    if {key.removeprefix(prefix) for key in own} <= set(names):
        return
    given: dict[str, Tensor] = {}
    for key in own:
        name = _unwrapped(key.removeprefix(prefix), names)
        if not isinstance(state_dict[key], Tensor):
            continue
        if name in given:
            raise StateDictMismatchError(
                f"two entries of the state dict mean {name!r}; the second is {key!r}"
            )
        value = state_dict.pop(key)
        if name in names or not IGNORED.fullmatch(name):
            given[name] = value
    renamed = rename(given, _layout(given))
    state_dict.update({prefix + name: value for name, value in renamed.items()})


def names_of_weights(module: nn.Module) -> set[str]:
    """Return the names of a module's parameters and buffers.

    They are not those of its `state_dict()`, which a program's hooks may change.
    """
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return names | {name for name, _ in module.named_buffers(remove_duplicate=False)}


def _unwrapped(name: str, names: Collection[str]) -> str:
    """Return a name without the prefixes of wrappers, unless the model has it."""
    while name not in names and name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


def _layout(names: Collection[str]) -> Layout:
    """Return the layout of a whole model or of a part of one."""
    if any(name.startswith(("vision_model.", "text_model.")) for name in names):
        return "transformers"
    return "openai" if any(name.startswith(OPENAI_TEXT) for name in names) else "canonical"
