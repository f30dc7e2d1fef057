"""Join the other processes that `torchrun` started, and exchange values with them."""

import atexit
import gc
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.errors import ClipkitError

T = TypeVar("T")
ANY_CARD = torch.device("cuda")  # it has no index, and so equals none of "cuda:0", "cuda:1", ...


def local_card(device: torch.device) -> torch.device:
    """Return this process's own card for "cuda" without an index, and any other device as it is.

    torchrun starts one process for each card of a machine, and tells it which by LOCAL_RANK.
    """
    rank = os.environ.get("LOCAL_RANK")
    if device != ANY_CARD or rank is None:
        return device
    return torch.device("cuda", int(rank))


def is_launched() -> bool:
    """Return whether `torchrun`, or a launcher that sets what it sets, started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def start(device: torch.device) -> None:
    """Join the processes that `torchrun` started, if it started this one and there is no group yet.

    Every process must call it, and waits until all have. They then talk by NCCL on CUDA, and by
    Gloo elsewhere.

    Args:
        device: what this process computes on; each process needs a card of its own.
    """
    if not is_launched() or dist.is_initialized():
        return
    # Functions of this module hold the group that is there as it is imported, for ever.
    importlib.import_module("torch.distributed.nn.functional")
    if device.type == "cuda":
        card = local_card(device)
        if card == ANY_CARD:  # a launcher without LOCAL_RANK shows each process one card alone
            card = torch.device("cuda", torch.cuda.current_device())
        torch.cuda.set_device(card)
        dist.init_process_group("nccl", device_id=card)
    else:
        dist.init_process_group("gloo")
    atexit.register(_end)


def _end() -> None:
    """Leave the other processes as Python ends, and let go of all that holds the group.

    A thread of the group that is there yet, and asks for Python, aborts the process at times.
    """
    stop()
    # The error that ended the program holds the frames that it went through, and what is in them.
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
    gc.collect()


def stop() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def group() -> dist.ProcessGroup | None:
    """Return the group of all processes, or None if this is the only one."""
    return dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None


def rank() -> int:
    """Return the number of this process in the group, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes in the group, 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this is the one process that writes files and prints.

    Before there is a group, the launcher's variables decide: processes that do the same work side
    by side must not write the same files.
    """
    if dist.is_initialized() or not is_launched():
        return rank() == 0
    return int(os.environ["RANK"]) == 0


def gather_objects(value: T) -> list[T]:
    """Return the value of each process, in order of rank. Every process must call it."""
    values = [value] * world_size()
    if group() is not None:
        dist.all_gather_object(values, value)
    return values


def in_all(action: Callable[[], T]) -> T:
    """Return what an action gives in this process, and raise in all processes if it fails in one.

    Otherwise the others would wait for ever for the one that failed. Every process must call it.

    Raises:
        what the action raised, where it failed. Elsewhere the same error if it is a ClipkitError,
        and a RuntimeError that tells of it if it is any other.

    Example:
        state = in_all(lambda: read_state(path))
    """
    failure: Exception | None = None
    value: T | None = None
    try:
        value = action()
    except Exception as error:
        failure = error
    failures = gather_objects(None if failure is None else _for_others(failure))
    if failure is not None:
        raise failure
    for other in failures:
        if other is not None:
            raise other
    return cast(T, value)


def _for_others(error: Exception) -> Exception:
    """Return an error that can be sent to other processes, which may know fewer classes."""
    if isinstance(error, ClipkitError):
        return type(error)(str(error))
    return RuntimeError(f"process {rank()} failed: {error!r}")


def gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the rows of every rank, in order: (N, ...) -> (ranks x N, ...).

    The gradient of a row is the sum of the gradients that all ranks have for it.
    """
    return x if group is None else cast(Tensor, _Gather.apply(x, group))


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the sum of a scalar over the ranks, on every rank.

    Its gradient is multiplied by the number of ranks, for DistributedDataParallel divides by it.
    """
    if group is None:
        return x
    values = gather(x.reshape(1), group)  # () -> (1,) -> (ranks,)
    return values.sum()


class _Gather(torch.autograd.Function):
    """Gather rows in the forward pass; sum and share out their gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [
            torch.empty_like(x, memory_format=torch.contiguous_format)
            for _ in range(dist.get_world_size(group))
        ]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        own = total.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)]
        return own, None
