"""Make a task ready to be trained: checked, locked in part, with a moving average beside it."""

from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clipkit.clip import CLIP
from clipkit.errors import ConfigError, DataError
from clipkit.models.resnet import ModifiedResNet
from clipkit.training.config import TrainConfig
from clipkit.training.losses import clip_loss
from clipkit.training.optimizer import lock
from clipkit.training.tasks import ONE_PAIR, ContrastiveTask, Task


def check_arguments(task: object, batches: object, config: object, evaluate: object) -> None:
    """Raise `ConfigError` for arguments of a `Trainer` that it cannot use, with what to pass."""
    if not isinstance(task, CLIP | Task):
        raise ConfigError(f"a Trainer trains a CLIP or a Task, not a {type(task).__name__}")
    if not callable(batches):
        raise ConfigError(
            "batches must be a function from a step to an iterator over batches, as "
            f"clipkit.PairBatches is, not a {type(batches).__name__}"
        )
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"config must be a clipkit.TrainConfig, not a {type(config).__name__}")
    if evaluate is not None and not callable(evaluate):
        raise ConfigError(
            f"evaluate must be a function of the model, not a {type(evaluate).__name__}"
        )


def check_task(task: Task, config: TrainConfig, sharded: bool) -> None:
    """Raise `ConfigError` if a task cannot be trained as the config says."""
    is_resnet = isinstance(task.model.visual, ModifiedResNet)
    if any(parameter.dtype != torch.float32 for parameter in task.parameters()):
        raise ConfigError(
            f"training keeps float32 weights, the model has {task.model.dtype}: call model.float()"
        )
    if sharded and (is_resnet or not isinstance(task, ContrastiveTask)):
        raise ConfigError(
            "shard splits a CLIP of two transformers; train a ResNet or a classifier without it"
        )
    if config.compile and is_resnet and (config.recompute or config.micro_batch):
        raise ConfigError("compile does not go with recompute or micro_batch for a ResNet")


def check_pairs(task: Task, batch_size: int | None) -> None:
    """Raise `DataError` if a batch of all processes is a single pair, of which nothing is learned.

    Args:
        task: to train.
        batch_size: of all processes; None if it is not known before the first batch.
    """
    is_contrastive = isinstance(task, ContrastiveTask) and task.loss is clip_loss
    if is_contrastive and batch_size == 1:
        raise DataError(ONE_PAIR)


def prepare_task(task: Task, config: TrainConfig) -> None:
    """Lock what is not trained, and set what the forward pass depends on, in place."""
    if config.image_blocks is not None:
        lock(task.model.visual, config.image_blocks)
    if config.text_blocks is not None:
        lock(task.model.text, config.text_blocks)
    task.micro_batch = config.micro_batch
    if isinstance(task.model.visual, ModifiedResNet):
        # Convolutions are faster with the channels last in memory. torch's stub lacks the case.
        task.model.visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def start_average(task: Task, decay: float | None) -> AveragedModel | None:
    """Return an exponential moving average of the weights of a task; None without a decay."""
    if decay is None:
        return None
    average: Any = get_ema_multi_avg_fn(decay)  # pyright: ignore[reportUnknownVariableType]
    return AveragedModel(task, multi_avg_fn=average, use_buffers=True)
