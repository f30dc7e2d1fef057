"""Contrastive losses: CLIP's symmetric cross-entropy (2103.00020, figure 3) and SigLIP's sigmoid loss (2303.15343).

Both see N pairs and score all N x N combinations. Few pairs take the plain formula; from `TILE` scores on, and across
processes, the scores are made in tiles of rows and made again in the backward pass, so that memory grows with N and not
with its square (the idea of 2410.17243). Values and gradients are the same.

Across processes each rank passes its own pairs and a process group. The loss is then that of all pairs, equal on every
rank, and its gradients are right once they are averaged over the ranks, as DistributedDataParallel does. N must be the
same on every rank.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from clipkit.distributed import gather, sum_over_ranks
from clipkit.errors import ConfigError

MAX_LOGIT_SCALE = (
    100.0  # the paper clips the temperature here, "to prevent scaling the logits by more than 100"
)
TILE = 2**23  # scores held at once: 32 MiB of float32


def clip_logit_scale_(logit_scale: Tensor) -> None:
    """Bring the parameter, a logarithm, back to at most log 100: to be called after each step of an optimiser."""
    with torch.no_grad():
        logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Mean cross-entropy of finding each image's text and each text's image among the batch, in float32.

    Args:
        image_features: (N, D), need not be normalised.
        text_features: (N, D), row i belongs to image i.
        logit_scale: scalar, the logarithm of the inverse temperature; clipped so that its exponential is at most 100.
        group: the processes that share the batch; None for this one alone.

    Returns:
        Scalar float32.

    Raises:
        ConfigError: if the two are not of one (N, D) shape with N at least 1.
    """
    _check("clip_loss", image_features, text_features)
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = (F.normalize(x.float(), dim=-1) for x in (image_features, text_features))
        # A training loop that clips the parameter leaves it at float32(log 100), which is a hair above log 100: the
        # clamp leaves room for that, or it would stop the gradient there and the temperature could never come back.
        scale = logit_scale.float().clamp(max=math.log(MAX_LOGIT_SCALE) + 1e-6).exp().reshape(())
        if group is None and len(images) ** 2 <= TILE:
            logits = scale * images @ texts.T  # (N, N)
            labels = torch.arange(len(logits), device=logits.device)
            return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        return sum_over_ranks(
            _TiledClipLoss.apply(images, gather(texts, group), scale, group), group
        )


class _TiledClipLoss(torch.autograd.Function):
    """This rank's share of the loss: its images (M, D) against all texts (N, D), with its own texts among those.

    Each row and each column of scores is taken less its matching score, which keeps the digits of a small loss.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, group: dist.ProcessGroup | None
    ) -> Tensor:
        rows, first = max(1, TILE // len(texts)), _first(images, group)
        matching = scale * (images * texts[first : first + len(images)]).sum(dim=1)  # (M,)
        matching_all = gather(matching, group)  # (N,)
        by_image = images.new_empty(len(images))  # logarithms of the two softmax denominators
        by_text = images.new_full((len(texts),), -torch.inf)
        ctx.tiles = [
            (slice(start, start + rows), first + start) for start in range(0, len(images), rows)
        ]
        for tile, diagonal in ctx.tiles:
            logits = _logits(images[tile], texts, scale, matching[tile], diagonal)
            by_image[tile] = (logits - matching[tile, None]).logsumexp(dim=1)
            by_text = torch.logaddexp(by_text, logits.sub_(matching_all).logsumexp(dim=0))
        if group is not None:  # each text meets the images of every rank
            highest = by_text.clone()
            dist.all_reduce(highest, dist.ReduceOp.MAX, group)
            total = (by_text - highest).exp()
            dist.all_reduce(total, dist.ReduceOp.SUM, group)
            by_text = highest + total.log()
        ctx.save_for_backward(images, texts, scale, matching, matching_all, by_image, by_text)
        return (by_image.sum() + by_text[first : first + len(images)].sum()) / (2 * len(texts))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, texts, scale, matching, matching_all, by_image, by_text = ctx.saved_tensors
        grad_images, grad_texts, grad_scale = (
            torch.empty_like(images),
            torch.zeros_like(texts),
            torch.zeros_like(scale),
        )
        with torch.autocast(images.device.type, enabled=False):
            for tile, diagonal in ctx.tiles:
                logits = _logits(images[tile], texts, scale, matching[tile], diagonal)
                score = logits - matching[tile, None]
                slope = (
                    score - by_image[tile, None]
                ).exp_()  # of 2N x the loss, by logit: first the softmax over texts
                grad_scale += score.mul_(slope).sum()
                score = torch.sub(logits, matching_all, out=logits)
                by_column = torch.sub(score, by_text).exp_()
                grad_scale += score.mul_(by_column).sum()
                slope += by_column
                slope.diagonal(diagonal).sub_(2)
                grad_images[tile] = slope @ texts
                grad_texts.addmm_(slope.T, images[tile])
        grad = grad / (2 * len(texts))
        return (
            grad_images.mul_(grad * scale),
            grad_texts.mul_(grad * scale),
            grad_scale * grad / scale,
            None,
        )


def _logits(
    images: Tensor, texts: Tensor, scale: Tensor, matching: Tensor, diagonal: int
) -> Tensor:
    """Scores (rows, N), whose diagonal is exactly `matching`: a product of matrices rounds otherwise."""
    logits = scale * images @ texts.T
    logits.diagonal(diagonal).copy_(matching)
    return logits


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    logit_bias: Tensor | float = -10.0,
) -> Tensor:
    """SigLIP's loss: each of the N x N combinations is judged by itself, as matching or not, in float32.

    Args:
        image_features, text_features, logit_scale, group: as in `clip_loss`, but the scale is not clipped.
        logit_bias: added to every logit, for most combinations do not match; SigLIP starts at -10, with a scale of
            log 10, and trains both.

    Returns:
        Scalar float32: the sum over the combinations, divided by the number of pairs.

    Raises:
        ConfigError: as `clip_loss`.
    """
    _check("sigmoid_loss", image_features, text_features)
    with torch.autocast(image_features.device.type, enabled=False):
        images, texts = (F.normalize(x.float(), dim=-1) for x in (image_features, text_features))
        first, texts = _first(images, group), gather(texts, group)
        scale = logit_scale.float().exp()

        def score(part: Tensor, texts: Tensor) -> Tensor:
            return F.softplus(scale * part @ texts.T + logit_bias).sum()

        total = -(
            scale * (images * texts[first : first + len(images)]).sum(dim=-1) + logit_bias
        ).sum()
        for part in images.split(max(1, TILE // len(texts))):
            total = total + checkpoint(
                score, part, texts, use_reentrant=False, preserve_rng_state=False
            )
        return sum_over_ranks(total / len(texts), group)


def _first(x: Tensor, group: dist.ProcessGroup | None) -> int:
    """Where this rank's rows start among those of all."""
    return 0 if group is None else dist.get_rank(group) * len(x)


def _check(name: str, images: Tensor, texts: Tensor) -> None:
    if images.ndim != 2 or images.shape != texts.shape or len(images) == 0:
        raise ConfigError(
            f"{name} needs image and text features of one shape (N, D) with N at least 1, not "
            f"{tuple(images.shape)} and {tuple(texts.shape)}"
        )
