"""Make dense maps of features in the space of the texts, without training.

An image tower is trained for one feature of an image. Three papers read its last attention in other
ways, so that each patch says what is where it is:

- MaskCLIP (2112.01071) lets each patch attend to itself alone: its value is what counts.
- ClearCLIP (2407.12442) compares queries with queries, and leaves out the block's residual and MLP.
- NACLIP (2404.08181) compares keys with keys, and adds a Gaussian of the distance between patches.

A ResNet's attention pool is such a last attention too, without residual and MLP. Its query is the
mean of the map; here each place of the map asks for itself. MaskCLIP suits it: its keys were never
trained to be compared with each other, and `examples/mosaics.py` shows the difference.
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.data.pictures import Images
from clipkit.encode.eval_view import eval_view
from clipkit.errors import ConfigError
from clipkit.inspect import towers
from clipkit.inspect.pooled import finish_vit
from clipkit.inspect.prepared import prepare_batch
from clipkit.inspect.towers import Grid
from clipkit.models.kernels import apply_linear
from clipkit.models.two_towers import TwoTowers
from clipkit.models.vision_transformer import VisionTransformer

Method: TypeAlias = Literal["neighbors", "values", "queries", "raw"]
METHODS: tuple[Method, ...] = get_args(Method)

# From images as the tower takes them (n, 3, H, W), and the rows and columns of its grid, to how
# much each place is to gather from each other place, (n, places, places), nowhere negative.
Affinity: TypeAlias = Callable[[Tensor, Grid], Tensor]

GAUSSIAN_STD = 5.0  # patches, as in NACLIP


def dense_features(
    model: TwoTowers,
    images: "Tensor | Images",
    method: Method | None = None,
    after_block: int | None = None,
    *,
    affinity: Affinity | None = None,
) -> Tensor:
    """Return a map of features of each image, in the space of the texts.

    Images may be of any size, oblong too: position embeddings are resized to the grid. Gradients
    flow, so put `torch.no_grad()` around it if you need none. Batch norms and dropout are in eval
    mode.

    Args:
        model: with a vision transformer or a ResNet.
        images: preprocessed, (N, 3, H, W), any float dtype, any device; or what `embed_images`
            takes, prepared by `model.preprocess` and encoded in one batch.
        method: "neighbors" is NACLIP, "values" MaskCLIP and "queries" ClearCLIP. "raw" is the map
            before pooling: the patch tokens after the last block without norm, or the map that a
            ResNet's attention pool takes; it is not in the space of the texts. If not given, it is
            "neighbors" for a vision transformer and "values" for a ResNet.
        after_block: of "raw", after which block, from 0, or from -1 for the last, backwards. For a
            ResNet it is the number of a stage, 0 to 3.
        affinity: gives weights of another model in the place of the attention's. They are divided
            by their sum over each row. It goes with "neighbors", or without a method.

    Returns:
        (N, D, rows, columns), on the model's device and in its dtype, not normalized; for "raw" the
        tower's width in the place of D.

    Raises:
        ConfigError: for an unknown method, a block that is not there or would be ignored, a
            model that is no CLIP, or affinities of another shape.
        ImageError: for images of another shape or dtype, or smaller than a patch.

    Example:
        maps = clipkit.inspect.dense_features(model, images)  # (1, 512, 14, 14) of ViT-B/16
        texts = clipkit.zero_shot_weights(model, ["cat", "grass"])
        cosines = torch.einsum("ndhw,cd->nchw", torch.nn.functional.normalize(maps, dim=1), texts)
    """
    towers.image_tower_of(model, "dense_features")
    check_method(method, after_block, affinity)
    images = prepare_batch(model, images)
    visual = towers.image_tower_of(eval_view(model), "dense_features")
    if method == "raw":
        return _raw_map(visual, images, -1 if after_block is None else after_block)
    grid = towers.grid_of(visual, images)
    weights = None if affinity is None else _affinities(affinity, images, grid)
    if method is None:
        method = "neighbors" if isinstance(visual, VisionTransformer) else "values"
    if isinstance(visual, VisionTransformer):
        tokens = _read_block(visual, images, method, weights)
    else:
        tokens = _read_pool(visual, images, method, weights)
    return _as_map(tokens, grid)


def check_method(method: object, after_block: object, affinity: object) -> None:
    """Raise `ConfigError` unless a method is known, and the other arguments go with it.

    None is the method that suits the tower.
    """
    if method is not None and method not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if after_block is not None and method != "raw":
        raise ConfigError(
            f"after_block={after_block!r} is of raw maps, and method={method!r} reads the last "
            'attention: pass method="raw" for the map after a block'
        )
    if affinity is not None and not callable(affinity):
        raise ConfigError(
            f"affinity must be a function of images and their grid, not {affinity!r:.60}: pass one "
            "that returns the weights of each place"
        )
    if affinity is not None and method not in (None, "neighbors"):
        raise ConfigError(
            f"affinity would be ignored by method={method!r}: leave method out, or affinity"
        )


def gaussian_of_distances(grid: Grid, std: float = GAUSSIAN_STD) -> Tensor:
    """Return a Gaussian of the distance between each two places of a grid.

    Args:
        grid: its rows and columns.
        std: standard deviation in places.

    Returns:
        (places, places) float64 on the CPU, row by row: 1 for a place with itself.
    """
    rows, columns = (_gaussian_of_line(side, std) for side in grid)
    return torch.kron(rows, columns)


def _gaussian_of_line(count: int, std: float) -> Tensor:
    places = torch.arange(count, dtype=torch.float64, device="cpu")
    return torch.exp(-((places[:, None] - places) ** 2) / (2 * std**2))  # (count, count)


def _raw_map(visual: nn.Module, images: Tensor, block: int) -> Tensor:
    """Return the map after a block or a stage, (N, W, rows, columns)."""
    if isinstance(visual, VisionTransformer):
        grid = towers.grid_of(visual, images)
        return _as_map(towers.tokens_after(visual, images, block)[:, 1:], grid)
    return towers.feature_map(visual, images, block)


def _as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Return tokens as a map: (N, places, D) -> (N, D, rows, columns)."""
    count, _, width = tokens.shape
    return tokens.transpose(1, 2).reshape(count, width, *grid)


def _read_block(
    visual: VisionTransformer, images: Tensor, method: Method, weights: Tensor | None
) -> Tensor:
    """Return what the last block of a vision transformer makes of each patch, (N, places, D)."""
    block = towers.block_of(visual, -1)
    x = towers.tokens_before(visual, images, -1)  # (N, 1 + places, W)
    q, k, v = towers.split_qkv(block.attn, block.ln_1(x))
    grid = towers.grid_of(visual, images)
    gathered = apply_linear(block.attn.out_proj, _gather(q, k, v, grid, method, weights))
    if method == "values":  # the block as it is, but for whom a patch attends to
        gathered = x[:, 1:] + gathered
        gathered = gathered + block.mlp(block.ln_2(gathered))
    return finish_vit(visual)(gathered)


def _read_pool(visual: nn.Module, images: Tensor, method: Method, weights: Tensor | None) -> Tensor:
    """Return what the attention pool of a ResNet makes of each place, (N, places, D)."""
    pool = towers.pool_of(visual)
    features = towers.feature_map(visual, images)
    q, k, v = towers.split_pool_qkv(pool, towers.pool_tokens(visual, features))
    grid = features.shape[2], features.shape[3]
    return apply_linear(pool.c_proj, _gather(q, k, v, grid, method, weights))


def _gather(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, method: Method, weights: Tensor | None
) -> Tensor:
    """Return the values that each place gathers, in all heads side by side.

    The class token of a vision transformer, or the mean of a ResNet's map, comes first. It is
    attended to, as in the papers' programs, and has no place that could be near.

    Args:
        q, k, v: of all tokens, (N, heads, 1 + places, W / heads).
        grid: rows and columns.
        method: as in `dense_features`.
        weights: in the place of attention, (N, places, places), if given.

    Returns:
        (N, places, W).
    """
    places = v[:, :, 1:]  # (N, heads, places, W / heads)
    if weights is not None:
        return towers.merge_heads(weights.to(v)[:, None] @ places)
    if method == "values":
        return towers.merge_heads(places)
    if method == "queries":
        return towers.merge_heads(F.scaled_dot_product_attention(q[:, :, 1:], q, v))
    near = F.pad(gaussian_of_distances(grid), (1, 0)).to(v)  # (places, 1 + places)
    return towers.merge_heads(F.scaled_dot_product_attention(k[:, :, 1:], k, v, attn_mask=near))


def _affinities(affinity: Affinity, images: Tensor, grid: Grid) -> Tensor:
    """Return another model's weights, each row of which sums to 1, (N, places, places)."""
    places = math.prod(grid)
    found = cast(object, affinity(images, grid))
    if not isinstance(found, Tensor) or found.shape != (len(images), places, places):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"affinity must return a tensor {(len(images), places, places)}, for each image a row "
            f"for each of its {grid[0]} x {grid[1]} places, not {shape}"
        )
    weights = found.to(torch.promote_types(found.dtype, torch.float32))
    sums = weights.sum(dim=-1, keepdim=True)
    if not bool((weights >= 0).all() & (sums > 0).all() & sums.isfinite().all()):
        raise ConfigError(
            "affinity must return weights from 0, finite, with one above 0 in each row: take a "
            "softmax of the similarities, or clamp(min=0)"
        )
    return weights / sums
