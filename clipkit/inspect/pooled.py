"""Turn pooled tokens into features, and take gradients of a cosine, for all that explains.

No gradient is left at any parameter: `torch.autograd.grad` returns those that are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipkit.inspect.attention import softmax_of
from clipkit.inspect.towers import (
    embed_any_size,
    feature_map,
    is_vit,
    merge_heads,
    pool_of,
    pool_tokens,
    split_pool_qkv,
    split_qkv,
)
from clipkit.models.kernels import apply_linear
from clipkit.models.layers import ResidualAttentionBlock
from clipkit.models.text_transformer import TextTransformer
from clipkit.models.two_towers import scaled_cosines
from clipkit.models.vision_transformer import VisionTransformer

# From pooled tokens (N, W) before the last norm, or from what a pool gathers, to features (N, D).
Finish = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Passed:
    """Hold what happens in a block, each a part of one graph.

    Attributes:
        q, k, v: (N, heads, L, W / heads).
        weights: the softmax, (N, heads, L, L) float32.
        gathered: what each token gathers by it, before the projection, (N, L, W).
        tokens: after the block, (N, L, W).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weights: Tensor
    gathered: Tensor
    tokens: Tensor


def pass_block(block: ResidualAttentionBlock, x: Tensor) -> Passed:
    """Return what happens in a block to tokens (N, L, W)."""
    q, k, v = split_qkv(block.attn, block.ln_1(x))
    weights = softmax_of(q, k, causal=block.attn.causal)
    gathered = merge_heads(weights.to(v.dtype) @ v)
    x = x + apply_linear(block.attn.out_proj, gathered)
    return Passed(q, k, v, weights, gathered, x + block.mlp(block.ln_2(x)))


def pass_blocks(
    blocks: Sequence[ResidualAttentionBlock], x: Tensor, at: int, finish: Finish, other: Tensor
) -> tuple[list[Passed], Tensor]:
    """Return what happens in the last blocks of a tower, and the cosine in the end, as one graph.

    Args:
        blocks: the last ones of a tower.
        x: the tokens that the first of them takes, (1, L, W), as a constant.
        at: the position of the token that becomes the feature.
        finish: makes a feature of it.
        other: the feature of the other tower, (1, D).
    """
    # Whether or not the weights are frozen, there is to be a graph.
    x = x.detach().requires_grad_()
    passed: list[Passed] = []
    with torch.enable_grad():
        for block in blocks:
            passed.append(pass_block(block, x))
            x = passed[-1].tokens
        return passed, cosines(finish(x[:, at]), other)


def finish_vit(visual: VisionTransformer) -> Finish:
    """Return what makes features of the class token, or of all, after the last block."""

    def finish(x: Tensor) -> Tensor:
        x = visual.ln_post(x)
        return x if visual.proj is None else x @ visual.proj  # (..., W) -> (..., D)

    return finish


def finish_text(text: TextTransformer) -> Finish:
    """Return what makes features of the end of text after the last block."""

    def finish(x: Tensor) -> Tensor:
        x = text.ln_final(x)
        return x if text.text_projection is None else x @ text.text_projection

    return finish


def pool_features(visual: nn.Module, features: Tensor) -> Tensor:
    """Return what a ResNet's attention pool makes of a map of any size.

    (N, C, rows, columns) -> (N, D)
    """
    pool = pool_of(visual)
    q, k, v = split_pool_qkv(pool, pool_tokens(visual, features))
    gathered = merge_heads(softmax_of(q[:, :, :1], k).to(v.dtype) @ v)  # (N, 1, C)
    return apply_linear(pool.c_proj, gathered[:, 0])


def encode_any_size(visual: nn.Module, images: Tensor) -> Tensor:
    """Return image features of images of any size: (N, 3, H, W) -> (N, D).

    At the tower's own size it is the tower itself that computes them.
    """
    if tuple(images.shape[2:]) == getattr(visual, "resolution", None):
        return visual(images)
    if is_vit(visual):
        return finish_vit(visual)(visual.transformer(embed_any_size(visual, images), at=0))
    return pool_features(visual, feature_map(visual, images))


def cosines(features: Tensor, others: Tensor) -> Tensor:
    """Return the cosines of features (N, D) with others (M, D): (N, M) float32."""
    unit = torch.zeros((), dtype=torch.float32, device=features.device)  # a temperature of 1
    return scaled_cosines(features, others.to(features.device), unit)


def gradients(cosine: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a cosine for each input, in float32.

    Args:
        cosine: of any shape with one number.
        inputs: what it was computed from.
    """
    with torch.enable_grad():
        total = cosine.sum()
    return [gradient.float() for gradient in torch.autograd.grad(total, list(inputs))]


def gradient_at(start: Tensor, finish: Finish, other: Tensor) -> Tensor:
    """Return the gradient of the cosine of `finish(start)` and `other` at `start`, in float32.

    Args:
        start: of any shape; it is taken as a constant.
        finish: from it to a feature (1, D).
        other: the feature of the other tower, (1, D).
    """
    leaf = start.detach().requires_grad_()
    with torch.enable_grad():
        cosine = cosines(finish(leaf), other)
    return gradients(cosine, [leaf])[0]
