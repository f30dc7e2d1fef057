"""Look at what a vision transformer has learned: filters, positions, and how far attention looks.

These are the figures of the paper that brought vision transformers (2010.11929, figure 7).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.clip import CLIP
from clipkit.data.pictures import Images
from clipkit.encode.eval_view import eval_view
from clipkit.errors import ConfigError
from clipkit.inspect.attention import Chosen, blocks_of, choose, weights_by_layer
from clipkit.inspect.prepared import prepare_batch
from clipkit.inspect.towers import (
    embed_any_size,
    grid_of,
    image_tower_of,
    is_vit,
    patch_and_stride,
)
from clipkit.models.vision_transformer import VisionTransformer

COMPONENTS = 28  # as many as the paper shows


@torch.no_grad()
def patch_filters(model: CLIP, components: int | None = COMPONENTS) -> Tensor:
    """Return the filters of the patch embedding as small color images.

    Args:
        model: a CLIP with a vision transformer.
        components: how many principal components of the filters to return, the strongest first;
            None for the filters themselves.

    Returns:
        (components or W, size, size, 3) float32 on the CPU, from 0 to 1, each stretched by itself.
        0.5 stands for no weight.

    Raises:
        ConfigError: if the image tower is a ResNet, or there are not so many components.

    Example:
        tiles = patch_filters(model)  # (28, 32, 32, 3) of ViT-B/32
    """
    visual = _vit_of(model, "patch_filters")
    size = visual.conv1.kernel_size[0]
    weight = visual.conv1.weight.detach()
    if weight.is_mkldnn:  # packed by `optimize`
        weight = weight.to_dense()
    filters = weight.float().cpu().flatten(1)  # (W, 3 x size x size)
    if components is not None:
        most = min(filters.shape)
        if type(components) is not int or not 1 <= components <= most:
            raise ConfigError(f"components must be 1 to {most} or None, not {components!r}")
        centered = filters - filters.mean(dim=0)
        decomposed = cast("tuple[Tensor, ...]", torch.linalg.svd(centered, full_matrices=False))
        directions = decomposed[2]  # (most, 3 x size x size), the strongest first
        filters = directions[:components]
        # A component has no sign of its own: its strongest weight is to be positive.
        strongest = filters.abs().argmax(dim=1, keepdim=True)
        filters = filters * filters.gather(1, strongest).sign()
    least = torch.finfo(torch.float32).tiny
    stretched = filters / filters.abs().amax(dim=1, keepdim=True).clamp(min=least)
    tiles = (0.5 + 0.5 * stretched).view(-1, 3, size, size)
    return tiles.permute(0, 2, 3, 1).contiguous()  # (n, 3, size, size) -> (n, size, size, 3)


@torch.no_grad()
def position_similarity(model: CLIP) -> Tensor:
    """Return the cosine of each patch's position embedding with that of each other.

    Args:
        model: a CLIP with a vision transformer.

    Returns:
        (rows, columns, rows, columns) float32 on the CPU: `similarity[3, 4]` is the map of the
        patch in row 3 and column 4.

    Raises:
        ConfigError: if the image tower is a ResNet, or its positions do not fit its resolution.

    Example:
        similarity = position_similarity(model)  # (7, 7, 7, 7) of ViT-B/32
    """
    visual = _vit_of(model, "position_similarity")
    patch = visual.conv1.kernel_size[0]  # whatever the stride: these are the checkpoint's positions
    rows, columns = visual.resolution[0] // patch, visual.resolution[1] // patch
    positions = visual.positional_embedding.detach().float().cpu()[1:]  # without the class token's
    if len(positions) != rows * columns:
        raise ConfigError(
            f"the image tower has positions for {len(positions)} patches, and its resolution makes "
            f"{rows} x {columns}: load the checkpoint with resolution=..., which resizes them"
        )
    positions = F.normalize(positions, dim=1)
    with torch.autocast("cpu", enabled=False):
        return (positions @ positions.T).view(rows, columns, rows, columns)


@torch.no_grad()
def attention_distance(
    model: CLIP, images: "Tensor | Images", layers: Chosen = None, heads: Chosen = None
) -> Tensor:
    """Return how far from a patch lies what it attends to, by layer and head, in pixels.

    It is the mean distance between centers of patches, weighted by attention, over all patches and
    images. The class token has no place and is left out, as a query and as a key.

    Args:
        model: a CLIP with a vision transformer.
        images: as in `attention_maps`. The memory for them is that of one layer's maps.
        layers, heads: as in `attention_maps`.

    Returns:
        (layers, heads) float32 on the CPU, in pixels of the prepared images.

    Raises:
        ConfigError: if the image tower is a ResNet, or there is no such layer or head.
        ImageError: as `attention_maps`.

    Example:
        distance = attention_distance(model, images)  # (12, 12) of ViT-B/16
    """
    visual = _vit_of(eval_view(model), "attention_distance")
    images = prepare_batch(model, images)
    blocks = blocks_of(visual.transformer)
    numbers = choose(layers, len(blocks), "layer")
    head_numbers = choose(heads, blocks[0].attn.num_heads, "head")
    x = embed_any_size(visual, images)
    far = _distances(visual, images).to(x.device)  # (patches, patches)
    found: dict[int, Tensor] = {}
    for number, weights in weights_by_layer(blocks, x, numbers, head_numbers):
        among = weights[:, :, 1:, 1:]  # (N, heads, patches, patches)
        mean = (among * far).sum(dim=-1) / among.sum(dim=-1)  # (N, heads, patches)
        found[number] = mean.mean(dim=(0, 2)).float().cpu()
    return torch.stack([found[number] for number in numbers])


def _distances(visual: VisionTransformer, images: Tensor) -> Tensor:
    """Return the distance in pixels of each patch from each other, (patches, patches) float32."""
    rows, columns = grid_of(visual, images)
    _, stride = patch_and_stride(visual)
    places = torch.cartesian_prod(
        torch.arange(rows, dtype=torch.float32, device="cpu"),
        torch.arange(columns, dtype=torch.float32, device="cpu"),
    )  # (patches, 2), row by row
    return stride * torch.cdist(places, places)


def _vit_of(model: CLIP, caller: str) -> VisionTransformer:
    visual = image_tower_of(model, caller)
    if not is_vit(visual):
        raise ConfigError(
            f"{caller} looks at the patches of a vision transformer, and this image tower is a "
            "ResNet: attention_maps and explain take both"
        )
    return visual
