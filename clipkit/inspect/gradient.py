"""Explain by gradients at one place: Grad-ECLIP (2502.18816) and Grad-CAM (1610.02391).

Grad-ECLIP looks at the last attention, by which one token gathers what the feature is made of. A
token counts for as much as its value agrees with the gradient, channel by channel, weighted by how
much its key is like the query. It is the cosine of both that weights, stretched to 0 to 1: the
softmax lets a few tokens through, and the map would be of those.

Grad-CAM looks at the last map of a ResNet. A channel counts for its mean gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.inspect.attention import blocks_of, embed_ids, softmax_of
from clipkit.inspect.pooled import (
    Finish,
    finish_text,
    finish_vit,
    gradient_at,
    gradients,
    pass_blocks,
    pool_features,
)
from clipkit.inspect.towers import (
    Grid,
    feature_map,
    grid_of,
    is_vit,
    merge_heads,
    pool_of,
    pool_tokens,
    split_pool_qkv,
    tokens_before,
)
from clipkit.models.kernels import apply_linear
from clipkit.models.layers import ResidualAttentionBlock
from clipkit.models.text_transformer import TextTransformer


@dataclass(frozen=True)
class Gathering:
    """Hold how one token gathers from L others, all heads side by side.

    Attributes:
        query: (W,) of that token.
        keys, values: (L, W) of the others.
        gradient: (W,) of the cosine, at what the token gathers.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    gradient: Tensor


def grad_eclip(gathering: Gathering) -> Tensor:
    """Return how much each token speaks for the cosine: (L,) float32, not negative."""
    likeness = F.cosine_similarity(gathering.keys.float(), gathering.query.float(), dim=-1)  # (L,)
    span = likeness.max() - likeness.min()
    # Of tokens that are all alike, as of a single one, none is to count less than another.
    weights = (likeness - likeness.min()) / span if span > 0 else torch.ones_like(likeness)
    agreement = (gathering.gradient * gathering.values.float()).sum(dim=-1)  # (L, W) -> (L,)
    return weights * F.relu(agreement)


def grad_eclip_image(visual: nn.Module, image: Tensor, text_features: Tensor) -> Tensor:
    """Return the map of an image by Grad-ECLIP: of a ViT's last block, or a ResNet's pool.

    Args:
        visual: the image tower.
        image: (1, 3, H, W).
        text_features: (1, D).

    Returns:
        (rows, columns) float32.
    """
    gathering, grid = _gather_in_image(visual, image, text_features)
    return grad_eclip(gathering).reshape(grid)  # (places,) -> (rows, columns)


def grad_eclip_text(text: TextTransformer, ids: Tensor, image_features: Tensor) -> Tensor:
    """Return the values of the tokens of a text by Grad-ECLIP, summed over the blocks.

    The end of text gathers words in every block. By the last, what it needs of them it may have.

    Args:
        text: the text tower.
        ids: from the start to the end of text, (1, L) int64.
        image_features: (1, D).

    Returns:
        (L - 2,) float32, without start and end.
    """
    with torch.no_grad():
        x = embed_ids(text, ids)  # (1, L, W)
    at = ids.shape[1] - 1
    blocks, finish = blocks_of(text.transformer), finish_text(text)
    gatherings = _gather_in_blocks(blocks, x, at, slice(1, at), finish, image_features)
    return torch.stack([grad_eclip(gathering) for gathering in gatherings]).sum(dim=0)


def grad_cam(visual: nn.Module, image: Tensor, text_features: Tensor) -> Tensor:
    """Return the map of an image by Grad-CAM on the last stage of a ResNet.

    Arguments and result are those of `grad_eclip_image`.
    """
    with torch.no_grad():
        features = feature_map(visual, image)  # (1, C, rows, columns)
    gradient = gradient_at(features, lambda x: pool_features(visual, x), text_features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (1, C, 1, 1)
    return F.relu((weights * features.float()).sum(dim=1))[0]


def _gather_in_image(
    visual: nn.Module, image: Tensor, text_features: Tensor
) -> tuple[Gathering, Grid]:
    """Return how the pooled token gathers from the places of an image, and their grid."""
    grid = grid_of(visual, image)
    if not is_vit(visual):
        return _gather_in_pool(visual, image, text_features), grid
    with torch.no_grad():
        x = tokens_before(visual, image, -1)  # (1, L, W)
    last = blocks_of(visual.transformer)[-1:]
    patches = slice(1, None)
    found = _gather_in_blocks(last, x, 0, patches, finish_vit(visual), text_features)
    return found[0], grid


def _gather_in_blocks(
    blocks: Sequence[ResidualAttentionBlock],
    x: Tensor,
    at: int,
    others: slice,
    finish: Finish,
    other: Tensor,
) -> list[Gathering]:
    """Return how the token `at` gathers from others in each of the last blocks of a tower.

    Arguments are those of `pass_blocks`; `others` are the tokens that are asked about.
    """
    passed, cosine = pass_blocks(blocks, x, at, finish, other)
    found = gradients(cosine, [part.gathered for part in passed])  # (1, L, W) each
    return [
        Gathering(
            query=merge_heads(part.q.detach())[0, at],
            keys=merge_heads(part.k.detach())[0, others],
            values=merge_heads(part.v.detach())[0, others],
            gradient=gradient[0, at],
        )
        for part, gradient in zip(passed, found, strict=True)
    ]


def _gather_in_pool(visual: nn.Module, image: Tensor, text_features: Tensor) -> Gathering:
    """Return how the mean of a ResNet's map gathers from its places."""
    pool = pool_of(visual)
    with torch.no_grad():
        q, k, v = split_pool_qkv(pool, pool_tokens(visual, feature_map(visual, image)))
        gathered = merge_heads(softmax_of(q[:, :, :1], k).to(v.dtype) @ v)[:, 0]  # (1, C)
    gradient = gradient_at(gathered, lambda x: apply_linear(pool.c_proj, x), text_features)
    return Gathering(
        query=merge_heads(q)[0, 0],
        keys=merge_heads(k)[0, 1:],
        values=merge_heads(v)[0, 1:],
        gradient=gradient[0],
    )
