"""Weights and optimizer split over the processes by FSDP2, and gathered again for a checkpoint."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from clipkit import distributed
from clipkit.models.layers import ResidualAttentionBlock
from clipkit.training.config import Precision


def shard(task: nn.Module, whole: nn.Parameter, precision: Precision) -> None:
    """Split a module over the processes, in place.

    Args:
        task: its transformer blocks are gathered one after the other when they compute.
        whole: a scalar of it, which cannot be split; `average_gradient` sees to it.
        precision: of the forward pass. Gradients are summed in float32 either way.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = torch.bfloat16 if precision == "bfloat16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)
    blocks = [m for m in task.modules() if isinstance(m, ResidualAttentionBlock)]
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    fully_shard(task, mp_policy=policy, ignored_params={whole})


def average_gradient(parameter: nn.Parameter) -> None:
    """Average the gradient of a parameter that was left whole over the processes, in place."""
    if parameter.grad is not None:
        dist.all_reduce(parameter.grad.div_(distributed.world_size()))


def gather_weights(task: nn.Module, everywhere: bool = False) -> dict[str, Any]:
    """Return the state dict of a split module with whole tensors. Every process must call it.

    Args:
        task: the module.
        everywhere: give it to every process, on its device; otherwise the first process gets it, on
            the CPU, and the others get an empty one.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
    return get_model_state_dict(task, options=options)


def gather_moments(task: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    """Return the state of optimizers of a split module, as `gather_weights` does the weights."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(task, optimizers, options=options)


def scatter(
    task: nn.Module, optimizers: list[Optimizer], weights: dict[str, Any], moments: dict[str, Any]
) -> None:
    """Load whole weights and optimizer states into a split module. Every process must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        task,
        optimizers,
        model_state_dict=weights,
        optim_state_dict=moments,
        options=StateDictOptions(full_state_dict=True),
    )
