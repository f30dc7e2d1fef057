"""float64 where float32 is too coarse, on devices that have no float64 as well."""

import torch
from torch import Tensor

DEVICES_WITHOUT_FLOAT64 = ("mps",)


def has_float64(device: torch.device) -> bool:
    """Return whether tensors on this device can be float64. Apple's GPUs (MPS) have none."""
    return device.type not in DEVICES_WITHOUT_FLOAT64


def as_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its own device or, where that has no float64, on the CPU.

    What is computed from it stays there; `restored` takes it back.

    Args:
        tensor: numbers of any shape and dtype.

    Example:
        >>> as_float64(torch.tensor([1, 2])).dtype
        torch.float64
    """
    if not has_float64(tensor.device):
        tensor = tensor.cpu()
    return tensor.double()


def restored(result: Tensor, original: Tensor) -> Tensor:
    """Return what was computed in float64 in the dtype and on the device of `original`."""
    return result.to(original.dtype).to(original.device)  # cast first: the device may lack float64
