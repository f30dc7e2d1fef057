"""How to train: the config, locked towers, parameter groups with layer-wise decay, the schedule."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW, Optimizer

from clipkit.config import check_choice, check_positive
from clipkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. The defaults are for training from scratch, after 2103.00020, table 18.

    Args:
        steps: of the optimiser.
        lr: the highest rate; reached after `warm_up` steps, then falling to 0 as half a cosine.
        warm_up: steps; by default 2,000, or a tenth of all if that is less.
        weight_decay: decoupled; not on norms, biases and the temperature.
        layer_decay: factor on the rate from block to block towards the input of each tower; 1 for none.
        clip_grad: highest norm of all gradients together; None for any.
        image_blocks, text_blocks: train only so many last blocks of a tower, 0 to lock it; None leaves it as it is.
        micro_batch: pairs of a process encoded at once; a larger batch is accumulated, with exact gradients but for
            batch norms, to which what is encoded at once is the batch.
        precision: of the forward pass; weights, optimiser and loss are float32 either way.
        gradient_checkpointing: compute the insides of each block again in the backward pass instead of keeping them.
        ema: decay of an exponential moving average of the weights, which is then what is evaluated and saved.
        compile: use torch.compile.
        shard: split weights and optimiser over the processes (FSDP2) instead of copying them to each (DDP).
        log_every, save_every, evaluate_every: steps; 0 for never.
        seed: of all that is random.
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
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    ema: float | None = None
    compile: bool = False
    shard: bool = False
    log_every: int = 50
    save_every: int = 1000
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(self, "steps", *(["micro_batch"] if self.micro_batch is not None else []))
        check_choice(self, "precision", ("float32", "bfloat16"))
        for name in ("gradient_checkpointing", "compile", "shard"):
            check_choice(self, name, (True, False))
        if self.warm_up is None:
            object.__setattr__(self, "warm_up", min(2000, self.steps // 10))
        for name in (
            "log_every",
            "save_every",
            "evaluate_every",
            "warm_up",
            "seed",
            "image_blocks",
            "text_blocks",
        ):
            value = getattr(self, name)
            if value is None and name.endswith("_blocks"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigError(
                    f"TrainConfig.{name} must be an integer of at least 0, not {value!r}"
                )
        ranges = {
            "lr": (0, 10),
            "weight_decay": (0, 10),
            "layer_decay": (1e-6, 1),
            "clip_grad": (1e-9, 1e9),
        }
        for name, (low, high) in {**ranges, "ema": (0, 1)}.items():
            value = getattr(self, name)
            if value is None and name in ("clip_grad", "ema"):
                continue
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(
                    f"TrainConfig.{name} must be a number from {low:g} to {high:g}, not {value!r}"
                )
        betas = self.betas
        numbers = isinstance(betas, list | tuple) and all(
            isinstance(b, int | float) and 0 <= b < 1 for b in betas
        )
        if not numbers or len(betas) != 2:
            raise ConfigError(
                f"TrainConfig.betas must be two numbers from 0 to below 1, not {betas!r}"
            )
        object.__setattr__(self, "betas", tuple(betas))
        if self.ema is not None and self.shard:
            raise ConfigError("TrainConfig.ema averages whole weights: it does not go with shard")


_AFTER_BLOCKS = {"ln_post", "proj", "ln_final", "text_projection", "attnpool"}


def depth(name: str, blocks: int) -> int:
    """How far from the input of its tower a parameter stands: 0 before the blocks, 1 to `blocks`, and one more.

    The blocks of a ResNet are its four stages.
    """
    if match := re.match(r"(?:transformer\.resblocks\.|layer)(\d+)\.", name):
        return int(match[1]) + (not name.startswith("layer"))
    return blocks + 1 if name.split(".")[0] in _AFTER_BLOCKS else 0


def count_blocks(tower: nn.Module) -> int:
    """Transformer blocks or ResNet stages of a tower."""
    transformer = getattr(tower, "transformer", None)
    return 4 if transformer is None else len(transformer.resblocks)


def lock(tower: nn.Module, train_blocks: int) -> None:
    """Train only the last blocks of a tower, and its projection with them; or nothing of it (0).

    Raises:
        ConfigError: if it has fewer blocks.
    """
    blocks = count_blocks(tower)
    if not 0 <= train_blocks <= blocks:
        raise ConfigError(
            f"this {type(tower).__name__} has {blocks} blocks: {train_blocks} of them cannot be trained"
        )
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(train_blocks > 0 and depth(name, blocks) > blocks - train_blocks)


def train_mode(module: nn.Module) -> None:
    """Training mode, but for batch norms whose weights are locked: their statistics stay too."""
    module.train()
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.affine and not norm.weight.requires_grad:
            norm.eval()


def adamw(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    betas: tuple[float, float],
) -> Optimizer:
    """AdamW without decay on norms, biases and other vectors and scalars, as in CLIP (2103.00020, table 18).

    With `layer_decay` below 1 the rate of each tower falls by that factor from block to block towards its input.
    """
    towers = {name: tower for name, tower in module.named_modules() if hasattr(tower, "output_dim")}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = 1.0
        for prefix, tower in towers.items():
            if name.startswith(prefix + "."):
                blocks = count_blocks(tower)
                scale = layer_decay ** (blocks + 1 - depth(name.removeprefix(prefix + "."), blocks))
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((lr * scale, decay), []).append(parameter)
    if not groups:
        raise ConfigError("everything is locked: nothing is left to train")
    rows = [
        {"params": members, "lr": rate, "weight_decay": decay}
        for (rate, decay), members in groups.items()
    ]
    return AdamW(rows, lr=lr, betas=betas, eps=1e-6, fused=True)


def cosine(step: int, steps: int, warm_up: int) -> float:
    """The share of the full rate at a step: a linear warm-up, then half a cosine down to 0."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def clip_gradients(module: nn.Module, limit: float | None) -> Tensor:
    """Scale all gradients down to a joint norm of at most `limit`, if any. The norm that they had, a scalar."""
    with_gradient = [p for p in module.parameters() if p.grad is not None]
    split = [
        p for p in with_gradient if hasattr(p, "full_tensor")
    ]  # FSDP2's, which torch does not mix with whole ones
    kinds = [
        kind
        for kind in (split, [p for p in with_gradient if not hasattr(p, "full_tensor")])
        if kind
    ]
    norms: list[Any] = [
        nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds
    ]
    norms = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    if limit is not None:
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm
