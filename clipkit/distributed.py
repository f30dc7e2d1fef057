"""What a process knows of the others that `torchrun` started, and the two collectives that carry gradients."""

import atexit
import os
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def local_device() -> str | None:
    """The CUDA device that `torchrun` means for this process; None without torchrun or CUDA."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def start(device: torch.device) -> None:
    """Join the processes of `torchrun`, if it started this one, to talk by way of the kind of device that is used."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    atexit.register(
        stop
    )  # or threads that still listen may kill the process at its end, after all is done


def stop() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def group() -> dist.ProcessGroup | None:
    """The group of all processes, or None if this is the only one."""
    return dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None


def rank() -> int:
    """Of this process; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_objects(value: Any) -> list[Any]:
    """What each process has, in order of rank."""
    values = [value] * world_size()
    if group():
        dist.all_gather_object(values, value)
    return values


def gather(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of every rank, in order: (N, ...) -> (ranks x N, ...). Its gradient is summed over the ranks."""
    return x if group is None else cast(Tensor, _Gather.apply(x, group))


def sum_over_ranks(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum, on every rank. Its gradient is multiplied by their number, for DistributedDataParallel to average."""
    return x if group is None else gather(x.reshape(1), group).sum()


class _Gather(torch.autograd.Function):
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
        return total.chunk(dist.get_world_size(ctx.group))[dist.get_rank(ctx.group)], None
