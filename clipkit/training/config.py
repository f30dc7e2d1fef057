"""How to train: one frozen, checked dataclass, which run files and checkpoints hold too."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from clipkit.errors import ConfigError
from clipkit.fields import build, check_choice, check_sizes, is_number

Precision = Literal["float32", "bfloat16"]

# The ranges of the numbers, ends included.
_RANGES = {
    "lr": (0, 10),
    "weight_decay": (0, 10),
    "layer_decay": (1e-6, 1),
    "clip_grad": (1e-9, 1e9),
    "ema": (0, 1),
}
_COUNTS = ("log_every", "save_every", "evaluate_every", "warm_up", "seed")
_BLOCKS = ("image_blocks", "text_blocks")
_SWITCHES = ("recompute", "compile", "shard")
_MOST = 1 << 53  # of a count: the largest that a float holds exactly
_MAY_BE_NONE = ("clip_grad", "ema", "warm_up", *_BLOCKS)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Say how to train. The defaults are for training from scratch, after 2103.00020, table 18.

    Args:
        steps: steps of the optimizer, all in all.
        lr: the highest learning rate. It is reached after `warm_up` steps, and then falls to 0 as
            half a cosine.
        weight_decay: decoupled decay of weight matrices; norms, biases and the temperature have
            none.
        betas: AdamW's two decay rates.
        warm_up: steps; None for 2,000, or a tenth of `steps` if that is less. `warm_up_steps` says
            how many they are.
        layer_decay: factor on the rate from block to block towards the input of each tower; 1 for
            none.
        clip_grad: the highest norm of all gradients together; None for any.
        image_blocks, text_blocks: train only so many last blocks of a tower, 0 to lock all of it;
            None leaves it as it is.
        micro_batch: pairs that a process encodes at once. Larger batches are encoded in parts, with
            exact gradients, except that a batch norm takes each part for its batch.
        precision: of the forward pass. Weights, optimizer and loss are float32 either way.
        recompute: compute the insides of each block again in the backward pass, which saves the
            memory to keep them.
        ema: decay of an exponential moving average of the weights, which is then evaluated and
            saved in their place; None for no average.
        compile: use torch.compile.
        shard: split weights and optimizer over the processes (FSDP2) instead of copying them to
            each (DDP).
        log_every, save_every, evaluate_every: steps between two rows of the log, two checkpoints,
            two evaluations; 0 for at the end alone.
        seed: of all that is random.

    Raises:
        ConfigError: if a value is impossible.

    Example:
        >>> config = TrainConfig(steps=1000, lr=1e-4)
        >>> config.warm_up_steps
        100
    """

    steps: int
    lr: float = 5e-4
    weight_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    warm_up: int | None = None
    layer_decay: float = 1.0
    clip_grad: float | None = 1.0
    image_blocks: int | None = None
    text_blocks: int | None = None
    micro_batch: int | None = None
    precision: Precision = "float32"
    recompute: bool = False
    ema: float | None = None
    compile: bool = False
    shard: bool = False
    log_every: int = 50
    save_every: int = 1000
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_sizes(self, "steps", largest=_MOST)
        if self.micro_batch is not None:
            check_sizes(self, "micro_batch", largest=_MOST)
        check_choice(self, "precision", ("float32", "bfloat16"))
        for name in _SWITCHES:
            check_choice(self, name, (True, False))
        for name in (*_COUNTS, *_BLOCKS):
            self._check_count(name)
        for name in _RANGES:
            self._check_range(name)
        self._check_betas()
        object.__setattr__(self, "betas", tuple(self.betas))  # JSON has lists
        if self.ema is not None and self.shard:
            raise ConfigError("TrainConfig.ema averages whole weights: it does not go with shard")

    def _check_count(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and name in _MAY_BE_NONE:
            return
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"TrainConfig.{name} must be an integer of at least 0, not {value!r}")
        if value > _MOST:
            raise ConfigError(f"TrainConfig.{name} must be at most {_MOST:,}, not {value:,}")

    def _check_range(self, name: str) -> None:
        value = getattr(self, name)
        low, high = _RANGES[name]
        if value is None and name in _MAY_BE_NONE:
            return
        if not is_number(value) or not low <= cast(float, value) <= high:
            raise ConfigError(
                f"TrainConfig.{name} must be a number from {low:g} to {high:g}, not {value!r}"
            )

    def _check_betas(self) -> None:
        betas = cast(object, self.betas)
        numbers = cast("Sequence[object]", betas) if isinstance(betas, list | tuple) else ()
        in_range = [isinstance(beta, int | float) and 0 <= beta < 1 for beta in numbers]
        if in_range != [True, True]:
            raise ConfigError(
                f"TrainConfig.betas must be two numbers from 0 to below 1, not {betas!r}"
            )

    @property
    def warm_up_steps(self) -> int:
        """Return the steps of the warm-up: `warm_up` or, if that is None, what fits `steps`."""
        return min(2000, self.steps // 10) if self.warm_up is None else self.warm_up

    def rate_factor(self, step: int) -> float:
        """Return the share of the full learning rate at a step, counted from 0."""
        return cosine(step, self.steps, self.warm_up_steps)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Read the JSON form; version 0.1.0 called `recompute` gradient_checkpointing.

        Raises:
            ConfigError: if a field is unknown, missing, given by both names, or impossible.
        """
        values = dict(values)
        if "gradient_checkpointing" in values:
            if "recompute" in values:
                raise ConfigError(
                    "TrainConfig: gradient_checkpointing is the old name of recompute: give one"
                )
            values["recompute"] = values.pop("gradient_checkpointing")
        return build(cls, values)


def cosine(step: int, steps: int, warm_up: int) -> float:
    """Return the share of the full learning rate at a step, counted from 0.

    It rises in a straight line over the warm-up, and then falls to 0 as half a cosine.

    Example:
        >>> [round(cosine(step, 6, 2), 2) for step in range(6)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warm_up:
        return (step + 1) / warm_up
    angle = math.pi * (step - warm_up) / max(1, steps - warm_up)
    return 0.5 * (1 + math.cos(angle))
