"""Activations computed again in the backward pass instead of kept: for batches and models larger than memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from clipkit.models.layers import ResidualAttentionBlock
from clipkit.models.resnet import Bottleneck


def recompute(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """`function(*inputs)`, keeping only the inputs until the backward pass. Random numbers are drawn alike both times.

    The running statistics of the batch norms in `function`, a module or a method of one, are updated only once.
    """
    owner = getattr(function, "__self__", function)
    norms = (
        [m for m in owner.modules() if isinstance(m, _BatchNorm)]
        if isinstance(owner, nn.Module)
        else []
    )
    if not norms:  # torch.compile knows no contexts
        return checkpoint(function, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
    contexts = lambda: (nullcontext(), _untracked(norms))  # noqa: E731
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportReturnType]


@contextmanager
def _untracked(norms: list[_BatchNorm]) -> Iterator[None]:
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


def cached_features(
    encode: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int | None
) -> Tensor:
    """Features of a batch larger than memory, with exact gradients (gradient caching, 2101.06983).

    One chunk at a time is encoded and its activations dropped; the loss sees the features of all of them; the backward
    pass encodes each chunk again. Twice the forward passes, the memory of one chunk, and the same gradients as without.

    Args:
        encode: `model.encode_image`, `model.encode_text` or another function of one tensor.
        inputs: (N, ...).
        chunk: rows encoded at once, the last chunk may be smaller; None for all, with nothing cached. Batch norms in
            training mode see a chunk as their batch, here as in any accumulation of gradients.

    Returns:
        (N, D), to be passed to a loss and through `backward()` as if it came from `encode(inputs)`.
    """
    if chunk is None or len(inputs) <= chunk:
        return encode(inputs)
    return torch.cat([recompute(encode, part) for part in inputs.split(chunk)])


def checkpoint_blocks(model: nn.Module) -> None:
    """Keep only the inputs of each transformer block and bottleneck of a model until the backward pass."""
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock | Bottleneck):
            block.__dict__["forward"] = partial(
                recompute, block.forward
            )  # stands before the method


def keep_blocks(model: nn.Module) -> None:
    """Undo `checkpoint_blocks`."""
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock | Bottleneck):
            block.__dict__.pop("forward", None)
