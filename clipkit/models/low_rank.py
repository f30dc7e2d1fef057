"""Low-rank changes of the attention of both towers, for cheap fine-tuning (LoRA, 2106.09685).

A projection W becomes W + scale x up @ down, where `down` (rank, W) and `up` (W, rank) are few
numbers. They alone are trained. CLIP-LoRA (2405.18541) changes the projections of queries, keys and
values in all blocks of both towers; its settings are the defaults.
"""

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Literal, TypeGuard, TypeVar

import torch
from torch import Tensor

from clipkit.errors import ConfigError
from clipkit.models.changes import (
    PROJECTIONS,
    Change,
    ChangedLinear,
    FusedChange,
    Projection,
    has_changes,
)
from clipkit.models.layers import Attention
from clipkit.models.resnet import AttentionPool2d
from clipkit.models.two_towers import TwoTowers

TowerName = Literal["visual", "text"]

TOWERS: tuple[TowerName, ...] = ("visual", "text")

Model = TypeVar("Model", bound=TwoTowers)


def lora(
    model: Model,
    rank: int = 2,
    *,
    alpha: float = 1.0,
    dropout: float = 0.25,
    projections: Sequence[Projection] = PROJECTIONS,
    towers: Sequence[TowerName] = TOWERS,
) -> Model:
    """Return a copy of a model in which only low-rank changes of its attention are trained.

    The changes start at nothing, so the copy computes what the model does. `save_pretrained` and
    `optimize` merge them; `merge_lora` does so too. A ResNet is changed in its attention pool.

    Args:
        model: is not changed.
        rank: of each change; 0 for a copy in which nothing is trained.
        alpha: what multiplies a change is alpha / rank.
        dropout: in training, the share of numbers that is left out before each change.
        projections: which of "q", "k" and "v" to change.
        towers: which of "visual" and "text".

    Returns:
        The copy, of the same class, device and mode. Changes are float32.

    Raises:
        ConfigError: if an argument is impossible, or the model has changes already or comes from
            `optimize`.

    Example:
        model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
        adapted = clipkit.lora(model, rank=2)
        trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    """
    if not isinstance(model, TwoTowers):
        raise ConfigError(f"lora changes a clipkit.CLIP, not a {type(model).__name__}")
    _check(rank, alpha, dropout, projections, towers)
    check_model(model, rank, towers)
    copy = deepcopy(model).requires_grad_(False)
    if rank == 0:
        return copy
    for module in list(_attention_of(copy, towers)):
        # Drawn on the CPU and in float32, so that a seed means the same on every device.
        with torch.device("cpu"):
            changes: dict[Projection, Change] = {
                name: Change(_width(module), rank, alpha / rank, dropout)
                for name in PROJECTIONS
                if name in projections
            }
        for change in changes.values():
            change.train(module.training)
        _attach(module, changes)
    return copy


def check_model(model: TwoTowers, rank: int, towers: Sequence[TowerName] = TOWERS) -> None:
    """Raise `ConfigError` unless `lora` can change a model by this rank, from 0."""
    model.check_original("change")
    if has_changes(model):
        raise ConfigError("the model has low-rank changes already: merge them by merge_lora(model)")
    widths = [_width(module) for module in _attention_of(model, towers)]
    if rank and not widths:
        raise ConfigError(
            f"there is no attention to change in {' and '.join(towers)}: name another tower, or "
            "put an attention pool back"
        )
    if rank > min(widths, default=rank):
        raise ConfigError(f"rank must be at most the width {min(widths)}, not {rank}")


def merge_lora(model: Model) -> Model:
    """Return a copy of a model with its low-rank changes added to its weights.

    Args:
        model: from `lora`, trained since; of any other the copy has the same weights.

    Returns:
        The copy. All of its parameters require gradients.

    Example:
        model = clipkit.merge_lora(adapted)
    """
    copy = deepcopy(model)
    for module in list(copy.modules()):
        if isinstance(module, Attention) and isinstance(module.change, FusedChange):
            _add(module.in_proj_weight, module.change.weight())
            module.change = None
        if isinstance(module, AttentionPool2d):
            _merge_pool(module)
    return copy.requires_grad_(True)


def _width(module: Attention | AttentionPool2d) -> int:
    """Return W, the width of queries, keys and values."""
    if isinstance(module, Attention):
        return module.in_proj_weight.shape[1]
    return module.positional_embedding.shape[1]


def _attention_of(
    model: TwoTowers, towers: Sequence[TowerName]
) -> Iterator[Attention | AttentionPool2d]:
    """Yield the modules of some towers that make queries, keys and values."""
    for tower in towers:
        for module in list(getattr(model, tower).modules()):
            if isinstance(module, Attention | AttentionPool2d):
                yield module


def _attach(module: Attention | AttentionPool2d, changes: dict[Projection, Change]) -> None:
    """Give a module its changes, in place."""
    if isinstance(module, Attention):
        change = FusedChange(changes, _width(module))
        module.change = change.to(module.in_proj_weight.device)
        return
    for name, change in changes.items():
        layer = getattr(module, f"{name}_proj")
        setattr(module, f"{name}_proj", ChangedLinear(layer, change.to(layer.weight.device)))


def _merge_pool(pool: AttentionPool2d) -> None:
    """Put the changes of an attention pool into its layers, in place."""
    for name in PROJECTIONS:
        changed = getattr(pool, f"{name}_proj")
        if isinstance(changed, ChangedLinear):
            _add(changed.layer.weight, changed.change.weight())
            setattr(pool, f"{name}_proj", changed.layer)


def _add(weight: Tensor, change: Tensor) -> None:
    """Add a change to a weight, in place, with one rounding."""
    with torch.no_grad():
        weight.copy_(weight.to(change.dtype) + change)


def _check(
    rank: object,
    alpha: object,
    dropout: object,
    projections: Sequence[str],
    towers: Sequence[str],
) -> None:
    """Raise `ConfigError` for arguments of `lora` that are impossible."""
    if type(rank) is not int or rank < 0:
        raise ConfigError(f"rank must be an integer of at least 0, not {rank!r}")
    if not _is_number(alpha) or not 0 < alpha < math.inf:
        raise ConfigError(f"alpha must be a number above 0, not {alpha!r}")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be a share from 0 to below 1, not {dropout!r}")
    _check_names("projections", projections, PROJECTIONS)
    _check_names("towers", towers, TOWERS)


def _check_names(argument: str, given: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in given if name not in known]
    if isinstance(given, str) or unknown or not given:
        raise ConfigError(f"{argument} must be some of {', '.join(known)}, not {given!r}")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
