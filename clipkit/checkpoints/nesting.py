"""Find the one CLIP in what a training program saved, at whatever depth and under whatever name.

Programs wrap a model in mappings ({"state_dict": ...}, {"net": ...}, {"epoch": 3, "module": ...})
and in modules that put a prefix before every name ("model.", "module.clip_model."). Neither is
guessed from a list: all names are written out, from the outermost mapping to the tensor, and the
prefix is the one below which both towers of a CLIP lie.
"""

import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from clipkit.checkpoints.layouts import is_beside
from clipkit.errors import CorruptCheckpointError, UnsupportedCheckpointError

_LOG = logging.getLogger("clipkit")

# Training loops put the weights here: Lightning and open_clip first, then the usual names of
# hand-written loops.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# DistributedDataParallel, torch.compile and Lightning wrap a module and so prefix all its names.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Training loops store these beside the weights.
_BOOKKEEPING = frozenset(
    "args best_acc config epoch global_step hyper_parameters iteration loss lr_scheduler name "
    "optimizer optimizer_state_dict optimizer_states scaler scheduler step".split()
)

# The names by which both towers are found, in OpenAI's names or in transformers'.
_IMAGE = ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight")
_TEXT = (
    "token_embedding.weight",
    "text.token_embedding.weight",
    "text_model.embeddings.token_embedding.weight",
)
# These bounds only stop files that are made to exhaust us.
_MAX_DEPTH = 16
_MAX_ENTRIES = 200_000
# The keys of a checkpoint of `clipkit train`. It may hold the weights and their moving average;
# the model of the run is the average then.
_OWN_TRAINING = frozenset(("config", "identity", "task", "optimizers", "average"))


def find_clip(content: object) -> dict[str, Tensor] | None:
    """Return the tensors of the CLIP in what a file holds, by their names inside of it.

    What lies beside it (heads, metrics, prompt learners, the state of optimizers) is left aside,
    and a line of the log "clipkit" says so.

    Args:
        content: nested dicts and lists of tensors and anything else. It is not changed.

    Returns:
        Tensors that share memory with those given and need no gradient; None if nothing in the
        file has the names of both towers.

    Raises:
        UnsupportedCheckpointError: if the file has several CLIPs that differ, as for a model and
            its moving average. The message lists them.
        CorruptCheckpointError: if it nests without end.

    Example:
        >>> clip = {"visual.conv1.weight": torch.ones(1), "token_embedding.weight": torch.ones(1)}
        >>> saved = {"net": {f"model.{name}": value for name, value in clip.items()}, "epoch": 3}
        >>> sorted(find_clip(saved))
        ['token_embedding.weight', 'visual.conv1.weight']
    """
    if not isinstance(content, dict | list | tuple):
        return None
    outer = cast("dict[Any, Any] | list[Any] | tuple[Any, ...]", content)
    tensors = dict(_tensors(outer))
    prefixes = _prefixes(tensors)
    if not prefixes:
        return None
    prefix = _choose(prefixes, tensors, outer)
    inside = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
    found = {name: value for name, value in inside.items() if not is_beside(name)}
    taken = {f"{prefix}{name}" for name in found}
    _report(prefix, [name for name in tensors if name not in taken])
    return {name: value.detach() for name, value in found.items()}


def entries_of(mapping: object) -> list[tuple[Any, Any]]:
    """Return the entries of a dict from a pickle, which may have an attribute called `items`."""
    plain = cast("Any", dict)
    return list(plain.items(mapping))


def _tensors(outer: object) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts and lists, in their order, by names joined with dots."""
    entries = 0
    pending: list[tuple[str, int, object]] = [("", 0, outer)]
    while pending:
        name, depth, value = pending.pop()
        entries += 1
        if depth > _MAX_DEPTH or entries > _MAX_ENTRIES:
            raise CorruptCheckpointError("nests without end")
        if isinstance(value, Tensor):
            yield name, value
        else:
            pending += [
                (f"{name}.{key}" if name else str(key), depth + 1, inner)
                for key, inner in reversed(_children(value))
                if isinstance(key, str | int) and isinstance(inner, Tensor | dict | list | tuple)
            ]


def _children(value: object) -> list[tuple[Any, Any]]:
    """Return what lies in a dict by its keys, or in a list by its positions."""
    if isinstance(value, dict):
        return entries_of(cast("object", value))
    return list(enumerate(cast("list[Any]", value)))


def _prefixes(names: dict[str, Tensor]) -> list[str]:
    """Return the prefixes below which both towers lie."""
    found: list[str] = []
    for name in names:
        for image in _IMAGE:
            prefix = name.removesuffix(image)
            is_there = name.endswith(image) and (not prefix or prefix.endswith("."))
            if is_there and any(f"{prefix}{text}" in names for text in _TEXT):
                found.append(prefix)
    return found


def _choose(
    prefixes: list[str],
    tensors: dict[str, Tensor],
    outer: dict[Any, Any] | list[Any] | tuple[Any, ...],
) -> str:
    """Return the prefix to take. Raise `UnsupportedCheckpointError` if several CLIPs differ."""
    if isinstance(outer, dict) and outer.keys() >= _OWN_TRAINING:
        averages = [prefix for prefix in prefixes if prefix.startswith("average.")]
        prefixes = averages or prefixes
    first = prefixes[0]
    if all(_same(first, other, tensors) for other in prefixes[1:]):
        return first
    shown = ", ".join(repr(prefix.rstrip(".") or "(no prefix)") for prefix in prefixes[:8])
    kept = prefixes[1]
    raise UnsupportedCheckpointError(
        f"it holds {len(prefixes)} CLIPs that differ: {shown}. Keep the one that you want: read "
        "the file with torch.load(file, weights_only=True), pick its tensors (for "
        f"{kept.rstrip('.')!r} those of the names that begin so) and torch.save them alone"
    )


def _same(one: str, other: str, tensors: dict[str, Tensor]) -> bool:
    """Return whether the tensors below two prefixes are the same, in the same memory or not."""
    first = {n.removeprefix(one): t for n, t in tensors.items() if n.startswith(one)}
    second = {n.removeprefix(other): t for n, t in tensors.items() if n.startswith(other)}
    common = [name for name in first if name in second]
    return all(
        first[name].data_ptr() == second[name].data_ptr() or torch.equal(first[name], second[name])
        for name in common
        if first[name].layout == second[name].layout == torch.strided
        and not first[name].is_quantized
        and not second[name].is_quantized
    )


def _report(prefix: str, left: list[str]) -> None:
    """Say in the log what lies beside the CLIP."""
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        _LOG.warning(
            "took the CLIP under %r and left %d other tensors aside: %s%s",
            prefix.rstrip(".") or "(no prefix)",
            len(left),
            ", ".join(left[:5]),
            more,
        )


def unwrap_state_dict(obj: object) -> dict[str, Tensor]:
    """Find the state dict in what a training loop saved; the argument is never changed.

    A whole CLIP is found wherever it lies (see `find_clip`). Other weights may lie under
    "state_dict", "model_state_dict" or "model" (also nested), and lose the prefixes that all names
    share.

    Returns:
        The tensors by name. They share memory with those given and require no gradient.

    Raises:
        CorruptCheckpointError: if there are no tensors, or entries that are neither tensors nor
            known bookkeeping such as "epoch".

    Example:
        >>> import torch
        >>> list(unwrap_state_dict({"state_dict": {"module.a": torch.ones(2)}, "epoch": 3}))
        ['a']
    """
    clip = find_clip(obj)
    if clip is not None:
        return clip
    found = _unwrap(obj)
    if not isinstance(found, dict):
        raise CorruptCheckpointError(
            f"holds a {type(found).__name__}, not a state dict of named tensors"
        )
    state: dict[str, Tensor] = {}
    for name, value in entries_of(cast("object", found)):
        if name in _BOOKKEEPING:
            continue
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CorruptCheckpointError(
                f"has an entry {name!r} that is a {type(value).__name__}, not a tensor"
            )
        state[name] = value.detach()
    if not state:
        raise CorruptCheckpointError("holds no tensors")
    return _without_prefixes(state)


def _unwrap(obj: object) -> object:
    """Return the innermost mapping under the names that training loops give to the weights."""
    for _ in range(4):  # deeper than training loops nest; a pickled dict may also contain itself
        if not isinstance(obj, dict):
            return obj
        wrapper = cast("dict[Any, Any]", obj)
        inner = (wrapper[key] for key in _WRAPPERS if isinstance(dict.get(wrapper, key), dict))
        obj = next(inner, wrapper)
    return obj


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the known prefixes that all names share, however many are nested."""
    while True:
        shared = [p for p in _PREFIXES if all(name.startswith(p) for name in state)]
        if not shared:
            return state
        state = {name.removeprefix(shared[0]): value for name, value in state.items()}
