"""Activations that are computed again in the backward pass instead of kept.

It takes up to a third more time, and leaves room for batches and models that would not fit.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from clipkit.models.layers import ResidualAttentionBlock
from clipkit.models.resnet import Bottleneck


def recompute(function: Callable[..., Tensor], *inputs: Any, **named_inputs: Any) -> Tensor:
    """Return what a function makes of inputs, and keep only the inputs until the backward pass.

    Random numbers are drawn alike both times, and running statistics of batch norms are updated the
    first time alone.

    Args:
        function: a module, a method of one, or another function of tensors.
        inputs, named_inputs: for the function.
    """
    norms = _batch_norms(function)
    if not norms:  # torch.compile knows no contexts, and needs none here
        return checkpoint(function, *inputs, **named_inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _without_statistics(norms)

    return checkpoint(function, *inputs, **named_inputs, use_reentrant=False, context_fn=contexts)


def _batch_norms(function: Callable[..., Tensor]) -> list[_BatchNorm]:
    """Return the batch norms of a module, or of the module that a method belongs to."""
    owner = getattr(function, "__self__", function)
    if not isinstance(owner, nn.Module):
        return []
    return [module for module in owner.modules() if isinstance(module, _BatchNorm)]


@contextmanager
def _without_statistics(norms: list[_BatchNorm]) -> Generator[None]:
    """Keep batch norms in training mode from updating their running statistics."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = counter


def cached_features(
    encode: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int | None
) -> Tensor:
    """Return features of a batch larger than memory, with exact gradients (2101.06983).

    One chunk at a time is encoded and its activations are dropped. The loss sees the features of
    all chunks, and the backward pass encodes each chunk again. It takes two forward passes and the
    memory of one chunk.

    Args:
        encode: `model.encode_image`, `model.encode_text` or another function of one tensor.
        inputs: (N, ...).
        chunk: rows that are encoded at once, the last chunk may be smaller; None for all, with
            nothing computed twice. Batch norms in training mode take a chunk for their batch, here
            as in any accumulation of gradients.

    Returns:
        (N, D), for a loss, as if it came from `encode(inputs)`.

    Example:
        features = cached_features(model.encode_image, images, chunk=64)
        clip_loss(features, texts, model.logit_scale).backward()
    """
    if chunk is None or len(inputs) <= chunk:
        return encode(inputs)
    parts = cast("Sequence[Tensor]", inputs.split(chunk))
    return torch.cat([recompute(encode, part) for part in parts])


def recompute_blocks(model: nn.Module) -> None:
    """Recompute each transformer block and bottleneck of a model: their inputs alone are kept."""
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock | Bottleneck):
            # An attribute of the object comes before the method of its class.
            block.__dict__["forward"] = partial(recompute, block.forward)


def keep_blocks(model: nn.Module) -> None:
    """Undo `recompute_blocks`."""
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock | Bottleneck):
            block.__dict__.pop("forward", None)
