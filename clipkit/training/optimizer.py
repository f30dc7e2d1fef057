"""Choose the weights to train and their rates: locked towers, AdamW by layers, clipping."""

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.optim import AdamW, Optimizer

from clipkit.errors import ConfigError
from clipkit.plurals import number_of

# Parameters of a tower that stand behind its blocks, by the first part of their names.
_AFTER_BLOCKS = {"ln_post", "proj", "ln_final", "text_projection", "attnpool"}
_BLOCK_OF_TRANSFORMER = re.compile(r"transformer\.resblocks\.(\d+)\.")  # counted from 0
_STAGE_OF_RESNET = re.compile(r"layer(\d+)\.")  # counted from 1


def count_blocks(tower: nn.Module) -> int:
    """Return the number of transformer blocks, or of a ResNet's four stages, in a tower."""
    transformer = getattr(tower, "transformer", None)
    return 4 if transformer is None else len(transformer.resblocks)


def depth(name: str, blocks: int) -> int:
    """Return how far from the input of its tower a parameter stands.

    Args:
        name: of the parameter within its tower.
        blocks: the tower's, from `count_blocks`. The blocks of a ResNet are its four stages.

    Returns:
        0 before the blocks, 1 to `blocks` in one of them, and `blocks` + 1 behind them.

    Example:
        >>> depth("conv1.weight", 12), depth("transformer.resblocks.0.ln_1.bias", 12)
        (0, 1)
        >>> depth("layer4.0.bn1.weight", 4), depth("attnpool.q_proj.weight", 4)
        (4, 5)
    """
    if match := _BLOCK_OF_TRANSFORMER.match(name):
        return int(match[1]) + 1
    if match := _STAGE_OF_RESNET.match(name):
        return int(match[1])
    return blocks + 1 if name.split(".")[0] in _AFTER_BLOCKS else 0


def check_blocks(tower: nn.Module, train_blocks: int) -> None:
    """Raise `ConfigError` if a tower does not have so many blocks to train."""
    blocks = count_blocks(tower)
    if not 0 <= train_blocks <= blocks:
        raise ConfigError(
            f"this {type(tower).__name__} has {number_of(blocks, 'block')}: {train_blocks} of them "
            "cannot be trained"
        )


def lock(tower: nn.Module, train_blocks: int) -> None:
    """Train only the last blocks of a tower and what stands behind them; with 0 nothing of it.

    Raises:
        ConfigError: if it has fewer blocks.
    """
    check_blocks(tower, train_blocks)
    blocks = count_blocks(tower)
    last_locked = blocks - train_blocks
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(train_blocks > 0 and depth(name, blocks) > last_locked)


def train_mode(module: nn.Module) -> None:
    """Put a module in training mode; batch norms with locked weights keep their statistics."""
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
    """Return an AdamW of all parameters that are not locked.

    Args:
        module: a CLIP, or a task that holds one.
        lr: the highest rate.
        weight_decay: decay of matrices. Norms, biases and the temperature do not decay, as in CLIP
            (2103.00020, table 18).
        layer_decay: factor on the rate from block to block towards the input of each tower.
        betas: decay rates of the two moments.

    Raises:
        ConfigError: if everything is locked.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("everything is locked: nothing is left to train")
    factors = _layer_factors(module, layer_decay)

    # Parameters of one rate and one decay make a group. Matrices and embeddings decay; vectors and
    # scalars, which are biases, norms and the temperature, do not.
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        rate = lr * factors.get(name, 1.0)
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)

    rows = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    return AdamW(rows, lr=lr, betas=betas, eps=1e-6, fused=True)


def _layer_factors(module: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return the factor on the rate of each parameter of a tower, by its name in `module`.

    It is 1 behind the last block, and falls by `layer_decay` from there to the input.
    """
    factors: dict[str, float] = {}
    # torch leaves this type open.
    modules = cast("Iterable[tuple[str, nn.Module]]", module.named_modules())
    for prefix, tower in modules:
        if not hasattr(tower, "output_dim"):
            continue  # it is no tower
        blocks = count_blocks(tower)
        for name, _ in tower.named_parameters():
            steps_to_output = blocks + 1 - depth(name, blocks)
            factors[f"{prefix}.{name}"] = layer_decay**steps_to_output
    return factors


def clip_gradients(module: nn.Module, limit: float | None) -> Tensor:
    """Scale all gradients down to a joint norm of at most `limit`, if there is a limit.

    Returns:
        The norm that they had before, a float32 scalar.
    """
    trained = [p for p in module.parameters() if p.grad is not None]
    # torch does not mix tensors that FSDP2 has split with whole ones.
    split = [p for p in trained if hasattr(p, "full_tensor")]
    whole = [p for p in trained if not hasattr(p, "full_tensor")]
    kinds = [kind for kind in (split, whole) if kind]
    norms = [_joint_norm(kind) for kind in kinds]
    norm = norms[0]
    if len(norms) > 1:
        norm = cast(Tensor, torch.linalg.vector_norm(torch.stack(norms)))
    if limit is not None:
        for kind in kinds:
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm


def _joint_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of the gradients of parameters that are all split, or all whole: a scalar."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = cast(Any, nn.utils.get_total_norm(gradients))
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
