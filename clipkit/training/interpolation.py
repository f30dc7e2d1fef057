"""Interpolate between the weights of two modules."""

import copy
from typing import TypeVar, overload

from torch import Tensor, nn

from clipkit.classify.heads import Head, LinearHead
from clipkit.errors import ConfigError

M = TypeVar("M", bound=nn.Module)


@overload
def interpolate_weights(first: Head, second: Head, alpha: float) -> LinearHead: ...
@overload
def interpolate_weights(first: M, second: M, alpha: float) -> M: ...
def interpolate_weights(first: nn.Module, second: nn.Module, alpha: float) -> nn.Module:
    """Return a new module with weights between those of two modules (WiSE-FT, 2109.01903).

    Args:
        first, second: modules of the same weights, for example a zero-shot model and the same model
            fine-tuned; or two heads, each of which becomes a `LinearHead` first. The result is a
            copy of the second, and has its dtype.
        alpha: 0 gives the first, 1 the second.

    Raises:
        ConfigError: if alpha is not from 0 to 1, or the weights do not match.

    Example:
        model = interpolate_weights(zero_shot_model, tuned_model, alpha=0.5)
    """
    check_alpha(alpha)
    if isinstance(first, Head) and isinstance(second, Head):
        return _interpolate_heads(first.to_linear(), second.to_linear(), alpha)
    between = copy.deepcopy(second)
    between.load_state_dict(_mix(first.state_dict(), second.state_dict(), alpha))
    return between


def _interpolate_heads(first: LinearHead, second: LinearHead, alpha: float) -> LinearHead:
    mixed = _mix(first.state_dict(), second.state_dict(), alpha)
    scale = None
    if first.scale is not None and second.scale is not None:
        scale = (1 - alpha) * first.scale + alpha * second.scale
    return LinearHead(mixed["weight"], mixed["bias"], scale)


def _mix(first: dict[str, Tensor], second: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return tensors between those of two state dicts; whole numbers are the second's."""
    shapes = {name: value.shape for name, value in first.items()}
    if shapes != {name: value.shape for name, value in second.items()}:
        raise ConfigError("interpolate_weights needs two modules of the same weights")
    return {
        name: first[name].to(value).lerp(value, alpha) if value.is_floating_point() else value
        for name, value in second.items()
    }


def check_alpha(alpha: float) -> None:
    """Raise `ConfigError` unless a place between two modules is from 0 to 1."""
    if not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ConfigError(
            f"alpha must be from 0, for the first weights, to 1, for the second, not {alpha!r}"
        )
