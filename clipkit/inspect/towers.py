"""Run the image towers up to any place, for images of any size.

Position embeddings are resized to the grid of the images. All of it lets gradients through.
"""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from clipkit.checkpoints.resize import resize_positions
from clipkit.errors import ConfigError, ImageError
from clipkit.models.kernels import apply_linear, linear
from clipkit.models.layers import Attention, ResidualAttentionBlock
from clipkit.models.resnet import AttentionPool2d, ModifiedResNet
from clipkit.models.two_towers import TwoTowers
from clipkit.models.vision_transformer import VisionTransformer

Grid = tuple[int, int]  # rows and columns
RESNET_STRIDE = 32  # pixels of a side for one place of the map that the attention pool takes


def image_tower_of(model: object, caller: str) -> VisionTransformer | ModifiedResNet:
    """Return the image tower of a CLIP.

    Args:
        model: what the caller was given.
        caller: the function's name, for the message.

    Raises:
        ConfigError: for anything else, and for an image tower that is not clipkit's.
    """
    if not isinstance(model, TwoTowers):
        raise ConfigError(
            f"{caller} looks into a clipkit.CLIP, not a {type(model).__name__}: "
            "clipkit.CLIP.from_pretrained(name) loads one"
        )
    visual: object = model.visual
    if not isinstance(visual, VisionTransformer | ModifiedResNet):
        raise _unknown("visual", visual, "VisionTransformer or ModifiedResNet")
    return visual


def is_vit(visual: nn.Module) -> TypeGuard[VisionTransformer]:
    """Return whether an image tower is a vision transformer, and no ResNet."""
    return isinstance(visual, VisionTransformer)


def vit_of(visual: nn.Module) -> VisionTransformer:
    """Return an image tower that is a vision transformer, or raise `ConfigError`."""
    if not isinstance(visual, VisionTransformer):
        raise _unknown("visual", visual, "VisionTransformer")
    return visual


def resnet_of(visual: nn.Module) -> ModifiedResNet:
    """Return an image tower that is a ResNet, or raise `ConfigError`."""
    if not isinstance(visual, ModifiedResNet):
        raise _unknown("visual", visual, "ModifiedResNet")
    return visual


def pool_of(visual: nn.Module) -> AttentionPool2d:
    """Return the attention pool of a ResNet, or raise `ConfigError` if it was replaced."""
    pool = resnet_of(visual).attnpool
    if not isinstance(pool, AttentionPool2d):
        raise _unknown("visual.attnpool", pool, "AttentionPool2d")
    return pool


def grid_of(visual: nn.Module, images: Tensor) -> Grid:
    """Return the rows and columns of the grid into which a tower cuts images.

    That is the grid of a vision transformer's patches, and of the map that the attention pool of a
    ResNet takes. Pixels left over at the right and bottom edge are not seen.

    Args:
        visual: the image tower.
        images: (N, 3, H, W), any float dtype, any device.

    Raises:
        ImageError: for any other shape, an integer dtype, or images smaller than a patch.
        ConfigError: if the tower is not clipkit's.
    """
    _check_any_images(images)
    size = images.shape[2], images.shape[3]
    grid = _grid_at(visual, size)
    if 0 in grid:
        smallest = _smallest_side(visual)
        raise ImageError(
            f"images of {size[0]} x {size[1]} pixels are smaller than a patch: this tower needs at "
            f"least {smallest} x {smallest}, so resize them first"
        )
    return grid


def cell_of(visual: nn.Module) -> int:
    """Return the side in pixels of what one place of a tower's grid stands for."""
    if isinstance(visual, ModifiedResNet):
        return RESNET_STRIDE
    return vit_of(visual).conv1.kernel_size[0]


def patch_and_stride(visual: VisionTransformer) -> tuple[int, int]:
    """Return the side of a patch, and the steps from one to the next, in pixels.

    Some set a smaller stride than a patch, for denser maps, and some as one number.
    """
    stride: object = visual.conv1.stride
    return visual.conv1.kernel_size[0], stride if isinstance(stride, int) else visual.conv1.stride[
        0
    ]


def embed_any_size(visual: nn.Module, images: Tensor) -> Tensor:
    """Return the tokens that the first block of a vision transformer takes, for any size.

    At the tower's own size they are those of the tower, bit for bit.

    Args:
        visual: the image tower.
        images: preprocessed, (N, 3, H, W), any float dtype, any device; H and W at least a patch.

    Returns:
        (N, 1 + rows x columns, W): the class token, then the patches row by row; on the tower's
        device and in its dtype.

    Raises:
        ImageError: for any other shape, an integer dtype, or images smaller than a patch.
        ConfigError: if the tower is no vision transformer.
    """
    visual = vit_of(visual)
    grid = grid_of(visual, images)
    weight = visual.conv1.weight
    patches = visual.conv1(images.to(weight.device, weight.dtype))  # (N, W, rows, columns)
    patches = patches.flatten(2).transpose(1, 2)  # (N, W, patches) -> (N, patches, W)
    class_token = visual.class_embedding.to(patches.dtype).expand(images.shape[0], 1, -1)
    x = torch.cat([class_token, patches], dim=1)  # (N, 1 + patches, W)
    positions = _positions(visual, visual.positional_embedding, grid)
    return visual.ln_pre(x + positions.to(patches.dtype))


def tokens_before(visual: nn.Module, images: Tensor, block: int) -> Tensor:
    """Return the tokens that a block of a vision transformer takes, for images of any size.

    Args:
        visual: the image tower.
        images: as in `embed_any_size`.
        block: its number, from 0; or from -1 for the last, backwards.

    Returns:
        (N, 1 + rows x columns, W), on the tower's device and in its dtype.

    Raises:
        ImageError: as `embed_any_size`.
        ConfigError: if there is no such block, or the tower is no vision transformer.
    """
    transformer = vit_of(visual).transformer
    number = block_number(len(transformer.resblocks), block)
    x = embed_any_size(visual, images)
    return x if number == 0 else transformer.run_to(x, number - 1)


def tokens_after(visual: nn.Module, images: Tensor, block: int) -> Tensor:
    """Return the tokens after a block. Arguments, shapes and errors are as in `tokens_before`."""
    transformer = vit_of(visual).transformer
    number = block_number(len(transformer.resblocks), block)
    return transformer.run_to(embed_any_size(visual, images), number)


def block_number(count: int, block: object) -> int:
    """Return the number of a block from 0, given from 0 or from -1 backwards.

    Raises:
        ConfigError: if there is no such block among `count`.
    """
    if type(block) is not int or not -count <= block < count:
        raise ConfigError(
            f"there is no block {block!r} among {count}: pass 0 to {count - 1}, or -1 to {-count} "
            "counted from the last"
        )
    return block % count


def block_of(visual: nn.Module, block: int) -> ResidualAttentionBlock:
    """Return a block of a vision transformer by its number, from 0 or from -1 backwards."""
    blocks = vit_of(visual).transformer.resblocks
    module = blocks[block_number(len(blocks), block)]
    if not isinstance(module, ResidualAttentionBlock):
        raise _unknown(f"block {block}", module, "ResidualAttentionBlock")
    return module


def split_qkv(attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values that an attention makes of tokens.

    Low-rank changes from `clipkit.lora` are in them.

    Args:
        attention: of a block, as in `visual.transformer.resblocks[-1].attn`.
        x: tokens that are normed by the block's `ln_1`, (N, L, W).

    Returns:
        q, k and v, each (N, heads, L, W / heads).

    Raises:
        ConfigError: if the module is no attention of clipkit's.
    """
    if not isinstance(attention, Attention):
        raise _unknown("attn", attention, "Attention")
    qkv = linear(x, attention.in_proj_weight, attention.in_proj_bias)  # (N, L, W) -> (N, L, 3W)
    if attention.change is not None:
        qkv = qkv + attention.change(x)
    q, k, v = qkv.chunk(3, dim=-1)
    heads = attention.num_heads
    return split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)


def feature_map(visual: nn.Module, images: Tensor, stage: int = -1) -> Tensor:
    """Return the map after a stage of a ResNet, for images of any size.

    Args:
        visual: the image tower.
        images: preprocessed, (N, 3, H, W), any float dtype, any device.
        stage: 0 to 3, or -1 for the last, which the attention pool takes.

    Returns:
        (N, C, rows, columns), on the tower's device and in its dtype.

    Raises:
        ImageError: for any other shape, an integer dtype, or images smaller than a place of the
            map.
        ConfigError: if there is no such stage, or the tower is no ResNet.
    """
    resnet = resnet_of(visual)
    grid_of(resnet, images)
    weight = resnet.conv1.weight
    return resnet.run_to(images.to(weight.device, weight.dtype), stage)


def pool_tokens(visual: nn.Module, features: Tensor) -> Tensor:
    """Return the tokens of a ResNet's attention pool: the mean of a map, then its places.

    The pool's position embeddings are resized to the map and added.

    Args:
        visual: the image tower.
        features: a map from `feature_map`, (N, C, rows, columns).

    Returns:
        (N, 1 + rows x columns, C). The first token is the pool's one query.

    Raises:
        ConfigError: if the tower is no ResNet, or has no attention pool.
    """
    pool = pool_of(visual)
    grid = features.shape[2], features.shape[3]
    x = features.flatten(2).transpose(1, 2)  # (N, C, rows, columns) -> (N, places, C)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # (N, 1 + places, C)
    return x + _positions(visual, pool.positional_embedding, grid).to(x.dtype)


def split_pool_qkv(pool: AttentionPool2d, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries, keys and values that an attention pool makes of its tokens.

    The pool itself has the query of the first token alone.

    Args:
        pool: of a ResNet.
        x: from `pool_tokens`, (N, L, C).

    Returns:
        q, k and v, each (N, heads, L, C / heads).
    """
    q, k, v = (apply_linear(layer, x) for layer in (pool.q_proj, pool.k_proj, pool.v_proj))
    heads = pool.num_heads
    return split_heads(q, heads), split_heads(k, heads), split_heads(v, heads)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split each token into its heads: (N, L, W) -> (N, heads, L, W / heads)."""
    count, length, width = x.shape
    return x.reshape(count, length, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads side by side: (N, heads, L, W / heads) -> (N, L, W)."""
    return x.transpose(1, 2).flatten(2)


def _check_any_images(images: object) -> None:
    """Raise `ImageError` unless `images` is floating and of shape (N, 3, H, W)."""
    needed = "images must be a float tensor of shape (N, 3, H, W), not "
    if not isinstance(images, Tensor):
        raise ImageError(
            f"{needed}{type(images).__name__}: torch.stack([model.preprocess(image), ...]) makes "
            "one of images"
        )
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ImageError(
            f"{needed}{images.dtype} of {tuple(images.shape)}: pass images through "
            "model.preprocess, and add the batch axis by unsqueeze(0)"
        )


def _grid_at(visual: nn.Module, size: tuple[int, int]) -> Grid:
    """Return the grid of images of a size in pixels; 0 where they are smaller than a patch."""
    height, width = size
    if isinstance(visual, ModifiedResNet):
        # The map is halved five times: the first time an odd side rounds up, then down.
        return (height + 1) // RESNET_STRIDE, (width + 1) // RESNET_STRIDE
    patch, stride = patch_and_stride(vit_of(visual))
    return max(0, (height - patch) // stride + 1), max(0, (width - patch) // stride + 1)


def _smallest_side(visual: nn.Module) -> int:
    """Return the side of the smallest image in pixels of which there is a grid."""
    if isinstance(visual, ModifiedResNet):
        return RESNET_STRIDE - 1
    return vit_of(visual).conv1.kernel_size[0]


def _positions(visual: nn.Module, positions: Tensor, grid: Grid) -> Tensor:
    """Return position embeddings resized to a grid, (1 + rows x columns, W)."""
    own = _own_grid(visual, len(positions) - 1)
    return resize_positions(positions, own, grid)


def _own_grid(visual: nn.Module, places: int) -> Grid:
    """Return the grid of a tower's own position embeddings.

    Raises:
        ConfigError: if it cannot be told from the tower's resolution.
    """
    resolution = resnet_of(visual).resolution if not is_vit(visual) else visual.resolution
    candidates = [_grid_at(visual, resolution)]
    if is_vit(visual):  # with a stride of its own, but the positions of the checkpoint
        patch = visual.conv1.kernel_size[0]
        candidates.append((resolution[0] // patch, resolution[1] // patch))
    for rows, columns in candidates:
        if rows * columns == places:
            return rows, columns
    rows, columns = candidates[-1]
    raise ConfigError(
        f"the image tower has positions for {places} places, but its resolution of "
        f"{resolution[0]} x {resolution[1]} pixels makes a grid of {rows} x {columns}: load the "
        "checkpoint with resolution=..., which resizes the positions"
    )


def _unknown(name: str, found: object, wanted: str) -> ConfigError:
    """Return the error for a part of a model that is not what clipkit built."""
    return ConfigError(
        f"{name} is of the class {type(found).__name__}, and {wanted} is needed here: put the "
        "model's own back, or load the checkpoint anew"
    )
