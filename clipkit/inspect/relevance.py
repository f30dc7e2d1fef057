"""Explain by attention times its gradient, through all layers (Chefer et al., 2103.15679).

What each token has of the others begins as nothing but itself. Each layer adds what its attention
passes on, where that speaks for the logit: `R = R + A R`, with A the mean over the heads of the
positive part of attention times gradient. The logit is the cosine times the model's scale, as in
the paper's program for CLIP: the larger the gradient, the more the products of layers count.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.inspect.attention import blocks_of, embed_ids, softmax_of
from clipkit.inspect.pooled import (
    Finish,
    cosines,
    finish_text,
    finish_vit,
    gradients,
    pass_blocks,
)
from clipkit.inspect.towers import (
    embed_any_size,
    feature_map,
    grid_of,
    is_vit,
    merge_heads,
    pool_of,
    pool_tokens,
    split_pool_qkv,
)
from clipkit.models.kernels import apply_linear
from clipkit.models.layers import ResidualAttentionBlock
from clipkit.models.text_transformer import TextTransformer


def relevance_image(
    visual: nn.Module, image: Tensor, text_features: Tensor, scale: float
) -> Tensor:
    """Return the map of an image: of all blocks of a ViT, or of a ResNet's attention pool.

    Args:
        visual: the image tower.
        image: (1, 3, H, W).
        text_features: (1, D).
        scale: of the model's logits, the inverse of its temperature.

    Returns:
        (rows, columns) float32, not negative.
    """
    grid = grid_of(visual, image)
    if not is_vit(visual):
        return scale * _relevance_in_pool(visual, image, text_features).reshape(grid)
    with torch.no_grad():
        x = embed_any_size(visual, image)
    blocks = blocks_of(visual.transformer)
    found = _relevance(blocks, x, 0, finish_vit(visual), text_features, scale)  # (L, L)
    return found[0, 1:].reshape(grid)  # (places,) -> (rows, columns)


def relevance_text(
    text: TextTransformer, ids: Tensor, image_features: Tensor, scale: float
) -> Tensor:
    """Return the values of the tokens of a text.

    Args:
        text: the text tower.
        ids: from the start to the end of text, (1, L) int64.
        image_features: (1, D).
        scale: as in `relevance_image`.

    Returns:
        (L - 2,) float32, without start and end, not negative.
    """
    with torch.no_grad():
        x = embed_ids(text, ids)
    at = ids.shape[1] - 1
    blocks = blocks_of(text.transformer)
    found = _relevance(blocks, x, at, finish_text(text), image_features, scale)
    return found[at, 1:at]


def _relevance(
    blocks: list[ResidualAttentionBlock],
    x: Tensor,
    at: int,
    finish: Finish,
    other: Tensor,
    scale: float,
) -> Tensor:
    """Return what each token has of each other after the last block, (L, L).

    Args:
        blocks: all of a tower.
        x: tokens as the first takes them, (1, L, W).
        at: the position of the token that becomes the feature.
        finish: makes a feature of it.
        other: the feature of the other tower, (1, D).
        scale: as in `relevance_image`.
    """
    passed, cosine = pass_blocks(blocks, x, at, finish, other)
    maps = [part.weights for part in passed]
    found = torch.eye(x.shape[1], dtype=torch.float32, device=x.device)
    for weights, gradient in zip(maps, gradients(cosine, maps), strict=True):
        kept = (
            scale * F.relu(weights.detach() * gradient).mean(dim=1)[0]
        )  # (1, heads, L, L) -> (L, L)
        found = found + kept @ found
    return found


def _relevance_in_pool(visual: nn.Module, image: Tensor, text_features: Tensor) -> Tensor:
    """Return how much each place of a ResNet's map speaks for the cosine: (rows x columns,)."""
    pool = pool_of(visual)
    with torch.no_grad():
        q, k, v = split_pool_qkv(pool, pool_tokens(visual, feature_map(visual, image)))
        weights = softmax_of(q[:, :, :1], k)  # (1, heads, 1, L)
    leaf = weights.requires_grad_()
    with torch.enable_grad():
        gathered = merge_heads(leaf.to(v.dtype) @ v)[:, 0]  # (1, C)
        cosine = cosines(apply_linear(pool.c_proj, gathered), text_features)
    (gradient,) = gradients(cosine, [leaf])
    return F.relu(leaf.detach() * gradient).mean(dim=1)[0, 0, 1:]
