"""Decide on which device and in which dtype a model is put."""

from collections.abc import Iterable

import torch
from torch import Tensor

from clipkit import distributed
from clipkit.errors import ConfigError


def decide_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, or CUDA if there is one: under torchrun the process's own card.

    Args:
        device: a device, or its name; None lets clipkit decide.

    Raises:
        ConfigError: for a device that is of no use here.
    """
    decided = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        decided = distributed.local_card(torch.device(decided))
        torch.empty(0, device=decided)
    except Exception as error:  # torch has no type of its own for this
        raise ConfigError(
            f"there is no device {str(decided)!r} here ({error}): pass 'cpu' or None"
        ) from error
    return decided


def decide_dtype(
    dtype: torch.dtype | None, device: torch.device, weights: Iterable[Tensor]
) -> torch.dtype:
    """Return the dtype asked for, or the one that suits a device.

    That is float32 on a CPU and on MPS. On CUDA it is the weights' own half precision, and float16
    for weights in float32.

    Args:
        dtype: a floating-point dtype; None lets clipkit decide.
        device: where the weights will be.
        weights: as they are in the checkpoint.
    """
    if dtype is not None:
        return dtype
    if device.type != "cuda":
        return torch.float32
    halves = (w.dtype for w in weights if w.dtype in (torch.float16, torch.bfloat16))
    return next(halves, torch.float16)
