"""The result of one step: what all processes made of it, and whether training can go on."""

import math
import signal
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit import distributed
from clipkit.errors import TrainingError

_NAMES_IN_MESSAGES = 8


class StepResult(NamedTuple):
    """Say what all processes together made of one step."""

    loss: float  # the mean
    norm: float  # of the gradients, before they were clipped
    skipped: int  # images
    stop: signal.Signals | None  # the signal that one of the processes got


def join_results(
    loss: Tensor, norm: Tensor, skipped: int, stop: signal.Signals | None
) -> StepResult:
    """Join what each process knows of a step, in one transfer. Every process must call it.

    Args:
        loss: of this process, a scalar.
        norm: of the gradients, a scalar.
        skipped: images that this process could not read.
        stop: the signal that this process got, if it got one.
    """
    counts = [float(skipped), float(stop == signal.SIGTERM), float(stop == signal.SIGINT)]
    values = torch.stack([loss.detach().float(), norm])
    report = torch.cat([values, torch.tensor(counts, device=values.device)])  # (5,)
    if distributed.group() is not None:
        dist.all_reduce(report)
    total_loss, total_norm, all_skipped, terminated, interrupted = cast(
        "list[float]", report.tolist()
    )
    joined = None
    if terminated:
        joined = signal.SIGTERM
    elif interrupted:
        joined = signal.SIGINT
    world = distributed.world_size()
    return StepResult(total_loss / world, total_norm / world, int(all_skipped), joined)


def refuse_what_is_not_finite(result: StepResult, step: int, names: Sequence[str]) -> None:
    """Raise `TrainingError` if the loss or a gradient of a step is not finite.

    Args:
        result: of the step.
        step: its number.
        names: of the images that this process had, for the message.
    """
    if math.isfinite(result.loss + result.norm):
        return
    images = ", ".join(names[:_NAMES_IN_MESSAGES]) or "unnamed images"
    if len(names) > _NAMES_IN_MESSAGES:
        images += ", ..."
    raise TrainingError(
        f"step {step}: the loss is {result.loss} and the gradient's norm {result.norm}. "
        f"The weights and the checkpoint are from before it. Process {distributed.rank()} had "
        f"{images}. Try a lower lr, a longer warm_up or precision='float32'"
    )
