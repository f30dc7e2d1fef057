"""Return the attention of either tower: which token looks at which, layer by layer, head by head.

The maps are the softmax that the tower itself computes. Tokens run up to the deepest layer that is
asked for, and no further.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.data.pictures import Images
from clipkit.encode.eval_view import eval_view
from clipkit.errors import ConfigError
from clipkit.inspect.prepared import prepare_batch
from clipkit.inspect.towers import (
    block_number,
    embed_any_size,
    feature_map,
    image_tower_of,
    is_vit,
    pool_of,
    pool_tokens,
    split_pool_qkv,
    split_qkv,
)
from clipkit.models.inputs import check_tokens
from clipkit.models.layers import Attention, ResidualAttentionBlock, Transformer
from clipkit.models.text_transformer import TextTransformer
from clipkit.words import check_texts

# Numbers of layers or heads, from 0, or from -1 backwards; None for all of them.
Chosen: TypeAlias = int | Sequence[int] | None


@torch.no_grad()
def attention_maps(
    model: CLIP, images: "Tensor | Images", layers: Chosen = None, heads: Chosen = None
) -> Tensor:
    """Return the attention of the image tower, without a gradient.

    Of a vision transformer, token 0 is the class token, and the others are the patches row by row:
    `maps[:, :, :, 0, 1:].unflatten(-1, grid_of(model.visual, images))` is what the class token
    looks at. A ResNet has one layer, its attention pool, with one query: the mean of the map.

    All maps at once are large. Those of one image on all layers of ViT-L/14 take 100 MB.

    Args:
        model: any CLIP.
        images: preprocessed, (N, 3, H, W), any float dtype, any device; of any size from a patch
            on, since position embeddings are resized to it. Or what `embed_images` takes, prepared
            by `model.preprocess` and encoded in one batch.
        layers: a number or several, from 0, or from -1 for the last, backwards; all if not given.
        heads: the same of the heads.

    Returns:
        (N, layers, heads, L, L) float32 on the model's device, in the order that was asked for; of
        a ResNet (N, 1, heads, 1, L). L is 1 + rows x columns. Each row, of the query in the fourth
        axis, sums to 1 over the keys in the last.

    Raises:
        ConfigError: if there is no such layer or head, or no CLIP was given.
        ImageError: for another shape, an integer dtype, images smaller than a patch, or those that
            cannot be read.

    Example:
        maps = attention_maps(model, images, layers=-1)  # (N, 1, 12, 197, 197) of ViT-B/16
        class_to_patches = maps[:, 0, :, 0, 1:]  # (N, 12, 196)
    """
    visual = image_tower_of(eval_view(model), "attention_maps")
    images = prepare_batch(model, images)
    if not is_vit(visual):
        choose(layers, 1, "layer")
        maps = pool_weights(visual, feature_map(visual, images))  # (N, heads, 1, L)
        return maps[:, choose(heads, maps.shape[1], "head")].unsqueeze(1)
    return _maps_of(visual.transformer, embed_any_size(visual, images), layers, heads)


@torch.no_grad()
def text_attention_maps(
    model: CLIP, texts: str | Iterable[str] | Tensor, layers: Chosen = None, heads: Chosen = None
) -> Tensor:
    """Return the attention of the text tower, without a gradient.

    A token looks at itself and at those before it. `token_strings` names them; the feature is read
    at the end of text.

    Args:
        model: any CLIP.
        texts: one text or N of them, or token ids (N, L).
        layers, heads: as in `attention_maps`.

    Returns:
        (N, layers, heads, L, L) float32 on the model's device. L is the length of the ids that were
        given; of texts it is that of the longest, start and end included, and shorter ones are
        filled up behind their end.

    Raises:
        ConfigError: as `attention_maps`.
        TokenizerError: if a text is too long or no string, or the ids do not fit the model.

    Example:
        maps = text_attention_maps(model, "a photo of a cat", layers=-1)  # (1, 1, 8, 7, 7)
    """
    view = eval_view(model)
    text = text_tower_of(view, "text_attention_maps")
    ids = texts if isinstance(texts, Tensor) else _ids_of(model, texts)
    check_tokens(ids, text, "text_attention_maps")
    return _maps_of(text.transformer, embed_ids(text, ids), layers, heads)


def text_tower_of(model: object, caller: str) -> TextTransformer:
    """Return the text tower of a CLIP.

    Args:
        model: what the caller was given.
        caller: the function's name, for the message.

    Raises:
        ConfigError: for anything else, and for a text tower that is not clipkit's.
    """
    text: object = getattr(model, "text", None)
    if not isinstance(model, CLIP) or not isinstance(text, TextTransformer):
        raise ConfigError(
            f"{caller} looks into a clipkit.CLIP with the text tower that it was loaded with, not "
            f"into {type(model).__name__} with {type(text).__name__}: "
            "clipkit.CLIP.from_pretrained(name) loads one"
        )
    return text


def embed_ids(text: TextTransformer, ids: Tensor) -> Tensor:
    """Return the tokens that the first block of a text tower takes: (N, L) -> (N, L, W)."""
    embeddings = text.token_embedding(ids.to(text.positional_embedding.device))
    return embeddings + text.positional_embedding[: ids.shape[1]]


def attention_weights(attention: nn.Module, x: Tensor, heads: Sequence[int]) -> Tensor:
    """Return the softmax that an attention computes, in float32 if not in more.

    Args:
        attention: of a block.
        x: tokens that the block's `ln_1` has normed, (N, L, W).
        heads: numbers of the heads, from 0.

    Returns:
        (N, heads, L, L): each query's weights of the keys, which sum to 1.
    """
    q, k, _ = split_qkv(attention, x)
    causal = isinstance(attention, Attention) and attention.causal
    return softmax_of(q[:, heads], k[:, heads], causal=causal)


def weights_by_layer(
    blocks: Sequence[ResidualAttentionBlock],
    x: Tensor,
    numbers: Sequence[int],
    heads: Sequence[int],
) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each block that is asked for, and its attention, (N, heads, L, L).

    Args:
        blocks: all of a tower.
        x: tokens as the first takes them, (N, L, W). They run to the deepest block that is asked
            for.
        numbers: of the blocks, from 0. Each comes once, and they come in their own order.
        heads: numbers of the heads, from 0.
    """
    for number in range(max(numbers) + 1):
        block = blocks[number]
        if number in numbers:
            yield number, attention_weights(block.attn, block.ln_1(x), heads)
        if number < max(numbers):
            x = block(x, at="all")


def softmax_of(q: Tensor, k: Tensor, *, causal: bool = False) -> Tensor:
    """Return the weights of scaled dot-product attention, in float32 if not in more.

    Args:
        q: (N, heads, Q, width).
        k: (N, heads, L, width).
        causal: hide later keys from each query; Q is L then.

    Returns:
        (N, heads, Q, L).
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(dtype) @ k.to(dtype).transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(dim=-1)


def pool_weights(visual: nn.Module, features: Tensor) -> Tensor:
    """Return the softmax of a ResNet's attention pool: (N, C, rows, columns) -> (N, heads, 1, L).

    L is 1 + rows x columns: the mean of the map, then its places.
    """
    q, k, _ = split_pool_qkv(pool_of(visual), pool_tokens(visual, features))
    return softmax_of(q[:, :, :1], k)


def blocks_of(transformer: Transformer) -> list[ResidualAttentionBlock]:
    """Return the blocks of a transformer, or raise `ConfigError` if one was replaced."""
    blocks: list[ResidualAttentionBlock] = []
    for number, block in enumerate(transformer.resblocks):
        if not isinstance(block, ResidualAttentionBlock):
            raise ConfigError(
                f"block {number} is a {type(block).__name__}, and its attention is not known: put "
                "the model's own back, or load the checkpoint anew"
            )
        blocks.append(block)
    return blocks


def choose(chosen: Chosen, count: int, what: str) -> list[int]:
    """Return numbers from 0 of the layers or heads that were asked for.

    Args:
        chosen: what the caller asked for.
        count: how many there are.
        what: "layer" or "head", for the message.

    Raises:
        ConfigError: if there is no such one, or none was asked for.
    """
    if chosen is None:
        return list(range(count))
    if isinstance(chosen, int):
        return [_number_of(chosen, count, what)]
    if isinstance(chosen, str):  # its letters are no numbers
        raise _no_numbers(chosen, what)
    try:
        numbers = [_number_of(number, count, what) for number in chosen]
    except TypeError:
        raise _no_numbers(chosen, what) from None
    if not numbers:
        raise _no_numbers(chosen, what)
    return numbers


def _number_of(number: object, count: int, what: str) -> int:
    try:
        return block_number(count, number)
    except ConfigError:
        raise ConfigError(
            f"there is no {what} {number!r} among {count}: pass 0 to {count - 1}, or -1 to "
            f"-{count} counted from the last"
        ) from None


def _no_numbers(chosen: object, what: str) -> ConfigError:
    return ConfigError(
        f"{what}s must be a number or a list of numbers, not {chosen!r:.60}: pass -1 for the last, "
        "or leave it out for all"
    )


def _ids_of(model: CLIP, texts: str | Iterable[str]) -> Tensor:
    """Return the token ids of texts, no longer than the longest: (N, L) int64."""
    strings = [texts] if isinstance(texts, str) else check_texts(texts)
    if not strings:
        raise ConfigError("text_attention_maps needs at least one text, and there is none")
    ids = model.tokenizer(strings)
    return ids[:, : max(map(model.tokenizer.count, strings))]


def _maps_of(transformer: Transformer, x: Tensor, layers: Chosen, heads: Chosen) -> Tensor:
    """Return the maps of a transformer: tokens (N, L, W) -> (N, layers, heads, L, L)."""
    blocks = blocks_of(transformer)
    numbers = choose(layers, len(blocks), "layer")
    head_numbers = choose(heads, blocks[0].attn.num_heads, "head")
    count, length = x.shape[:2]
    maps = x.new_empty(
        (count, len(numbers), len(head_numbers), length, length), dtype=torch.float32
    )
    for number, weights in weights_by_layer(blocks, x, numbers, head_numbers):
        places = [place for place, wanted in enumerate(numbers) if wanted == number]
        maps[:, places] = weights.unsqueeze(1).float()
    return maps
