"""Contrastive losses: CLIP's (2103.00020, figure 3) and SigLIP's (2303.15343).

Both see N pairs and score all N x N combinations. Few pairs take the plain formula. From `TILE`
scores on, and across processes, the scores are made in tiles of rows and made again in the backward
pass, so memory grows with N and not with its square (the idea of 2410.17243). Values and gradients
are the same.

Across processes each rank passes its own M pairs and a process group, and N is M times the ranks:
the same M on every rank. The loss is that of all pairs, equal on every rank, and its gradients are
right once they are averaged over the ranks, as DistributedDataParallel does.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from clipkit.distributed import gather, sum_over_ranks
from clipkit.errors import ConfigError

# The paper clips the temperature here, "to prevent scaling the logits by more than 100".
MAX_LOGIT_SCALE = 100.0
TILE = 2**23  # scores held at once: 32 MiB of float32


def clip_logit_scale_(logit_scale: Tensor) -> None:
    """Bring the temperature's logarithm back to at most log 100, in place.

    It is to be called after each step of an optimizer.
    """
    with torch.no_grad():
        logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return the mean cross-entropy of finding each image's text and each text's image in a batch.

    Args:
        image_features: (N, D), any float dtype, of any length.
        text_features: (N, D), row i belongs to image i.
        logit_scale: scalar, the logarithm of the inverse temperature. It counts as at most log 100.
        group: the processes that share the batch; None for this one alone.

    Returns:
        Scalar float32, computed in float32.

    Raises:
        ConfigError: if the two are not of one shape (N, D) with N at least 1.

    Example:
        >>> pairs = torch.eye(2)
        >>> round(clip_loss(pairs, pairs, torch.tensor(1.0)).item(), 4)  # log(1 + exp(-e))
        0.0639
    """
    _check_shapes("clip_loss", image_features, text_features)
    with torch.autocast(image_features.device.type, enabled=False):
        images = F.normalize(image_features.float(), dim=-1)  # (N, D)
        texts = F.normalize(text_features.float(), dim=-1)  # (N, D)
        # A training loop that clips the parameter leaves it at float32(log 100), a hair above
        # log 100. The clamp leaves room for that: it would stop the gradient there, and the
        # temperature could never come back.
        limit = math.log(MAX_LOGIT_SCALE) + 1e-6
        scale = logit_scale.float().clamp(max=limit).exp().reshape(())
        if group is None and len(images) ** 2 <= TILE:
            return _plain_clip_loss(images, texts, scale)
        share = _TiledClipLoss.apply(images, gather(texts, group), scale, group)
        return sum_over_ranks(cast(Tensor, share), group)


def _plain_clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Return the loss of unit features (N, D), all scores at once: a scalar."""
    logits = scale * images @ texts.T  # (N, N)
    labels = torch.arange(len(logits), device=logits.device)  # image i belongs to text i
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class _TiledClipLoss(torch.autograd.Function):
    """Compute this rank's share of the loss, tile by tile.

    It has its own images (M, D) and all texts (N, D), with its own texts among them. The matching
    score of each row is subtracted from the row, and that of each column from the column: small
    losses keep their digits so.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, group: dist.ProcessGroup | None
    ) -> Tensor:
        first = _first_row(images, group)
        own = slice(first, first + len(images))
        matching = scale * (images * texts[own]).sum(dim=1)  # (M,)
        all_matching = gather(matching, group)  # (N,)
        by_image = images.new_empty(len(images))  # (M,) logarithms of the softmax denominators
        by_text = images.new_full((len(texts),), -torch.inf)  # (N,) the same of the columns
        ctx.tiles = _tiles(len(images), len(texts), first)
        for tile, diagonal in ctx.tiles:
            logits = _logits(images[tile], texts, scale, matching[tile], diagonal)  # (rows, N)
            by_image[tile] = (logits - matching[tile, None]).logsumexp(dim=1)
            by_text = torch.logaddexp(by_text, logits.sub_(all_matching).logsumexp(dim=0))
        if group is not None:
            by_text = _logsumexp_over_ranks(by_text, group)  # each text meets all ranks' images
        ctx.save_for_backward(images, texts, scale, matching, all_matching, by_image, by_text)
        return (by_image.sum() + by_text[own].sum()) / (2 * len(texts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, texts, scale, matching, all_matching, by_image, by_text = ctx.saved_tensors
        grad_images = torch.empty_like(images)  # (M, D)
        grad_texts = torch.zeros_like(texts)  # (N, D)
        grad_scale = torch.zeros_like(scale)
        with torch.autocast(images.device.type, enabled=False):
            for tile, diagonal in ctx.tiles:
                logits = _logits(images[tile], texts, scale, matching[tile], diagonal)  # (rows, N)
                # The slope of 2N times the loss by logit: softmax over the texts, plus softmax over
                # the images, less 2 where image and text match.
                score = logits - matching[tile, None]
                slope = (score - by_image[tile, None]).exp_()
                grad_scale += score.mul_(slope).sum()
                score = torch.sub(logits, all_matching, out=logits)
                by_column = torch.sub(score, by_text).exp_()
                grad_scale += score.mul_(by_column).sum()
                slope += by_column
                slope.diagonal(diagonal).sub_(2)
                grad_images[tile] = slope @ texts
                grad_texts.addmm_(slope.T, images[tile])
        grad = grad / (2 * len(texts))
        grad_images.mul_(grad * scale)
        grad_texts.mul_(grad * scale)
        return grad_images, grad_texts, grad_scale * grad / scale, None


def _tiles(images: int, texts: int, first: int) -> list[tuple[slice, int]]:
    """Return slices of rows with up to `TILE` scores, and the column where each diagonal starts."""
    rows = max(1, TILE // texts)
    return [(slice(start, start + rows), first + start) for start in range(0, images, rows)]


def _logits(
    images: Tensor, texts: Tensor, scale: Tensor, matching: Tensor, diagonal: int
) -> Tensor:
    """Return scores (rows, N) with exactly `matching` on the diagonal: products round otherwise."""
    logits = scale * images @ texts.T
    logits.diagonal(diagonal).copy_(matching)
    return logits


def _logsumexp_over_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return log(sum of exp(x) over the ranks), element by element, on every rank."""
    highest = x.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group)
    total = (x - highest).exp()
    dist.all_reduce(total, dist.ReduceOp.SUM, group)
    return highest + total.log()


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    logit_bias: Tensor | float = -10.0,
) -> Tensor:
    """Return SigLIP's loss: is this image the match of this text, asked of each combination alone.

    Args:
        image_features, text_features, logit_scale, group: as in `clip_loss`, but the scale is not
            clipped.
        logit_bias: added to every logit, because most combinations do not match. SigLIP starts at
            -10, with a scale of log 10, and trains both.

    Returns:
        Scalar float32: the sum over the combinations, divided by the number of pairs.

    Raises:
        ConfigError: as `clip_loss`.

    Example:
        >>> pairs = torch.eye(2)
        >>> loss = sigmoid_loss(pairs, pairs, torch.tensor(0.0), logit_bias=0.0)
        >>> round(loss.item(), 4)  # log(1 + exp(-1)) + log(2)
        1.0064
    """
    _check_shapes("sigmoid_loss", image_features, text_features)
    with torch.autocast(image_features.device.type, enabled=False):
        images = F.normalize(image_features.float(), dim=-1)  # (M, D)
        own_texts = F.normalize(text_features.float(), dim=-1)  # (M, D)
        texts = gather(own_texts, group)  # (N, D)
        first = _first_row(images, group)
        scale = logit_scale.float().exp()

        def score(part: Tensor, texts: Tensor) -> Tensor:
            logits = scale * part @ texts.T + logit_bias  # (rows, N)
            return F.softplus(logits).sum()

        # -log sigmoid(logit) = softplus(logit) - logit for a match, softplus(logit) for the others.
        matching = texts[first : first + len(images)]  # (M, D)
        total = -(scale * (images * matching).sum(dim=-1) + logit_bias).sum()
        tiles = cast("Sequence[Tensor]", images.split(max(1, TILE // len(texts))))
        for tile in tiles:
            total = total + checkpoint(
                score, tile, texts, use_reentrant=False, preserve_rng_state=False
            )
        return sum_over_ranks(total / len(texts), group)


def _first_row(x: Tensor, group: dist.ProcessGroup | None) -> int:
    """Return where this rank's rows start among those of all ranks."""
    return 0 if group is None else dist.get_rank(group) * len(x)


def _check_shapes(name: str, images: Tensor, texts: Tensor) -> None:
    if images.ndim != 2 or images.shape != texts.shape or len(images) == 0:
        raise ConfigError(
            f"{name} needs image and text features of one shape (N, D) with N at least 1, not "
            f"{tuple(images.shape)} and {tuple(texts.shape)}"
        )
