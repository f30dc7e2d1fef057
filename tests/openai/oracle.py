"""Compute what OpenAI's models do in float64 NumPy, from the names of their weights alone.

Written from the paper (2103.00020), one sample at a time, without any of the modules under test.
"""

import numpy as np
from torch import Tensor, nn

from tests.helpers.numpy_clip import Array, Weights, attend, below, embed_patches, layer_norm

HEAD = 64  # channels of a head


def weights_of(module: nn.Module) -> Weights:
    """Return the weights of a module in float64 by name."""
    return {key: value.double().numpy() for key, value in module.state_dict().items()}


def quick_gelu(x: Array) -> Array:
    """Return OpenAI's approximation of GELU."""
    return x / (1 + np.exp(-1.702 * x))


def run_block(x: Array, w: Weights, causal: bool = False) -> Array:
    """Return the tokens (L, W) after a block."""
    h = layer_norm(x, w, "ln_1") @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]
    h = attend(*np.split(h, 3, axis=1), heads=x.shape[1] // HEAD, causal=causal)
    x = x + h @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
    h = layer_norm(x, w, "ln_2") @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
    return x + quick_gelu(h) @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]


def run_blocks(x: Array, w: Weights, causal: bool = False) -> Array:
    """Return the tokens (L, W) after all blocks of a transformer."""
    for number in range(len({key.split(".")[1] for key in w})):
        x = run_block(x, below(w, f"resblocks.{number}."), causal)
    return x


def text_feature(w: Weights, ids: list[int]) -> Array:
    """Return the feature (D,) of one row of token ids."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    x = run_blocks(x, below(w, "transformer."), causal=True)
    return layer_norm(x, w, "ln_final")[ids.index(max(ids))] @ w["text_projection"]


def vit_feature(w: Weights, image: Array) -> Array:
    """Return the feature (D,) of one image (3, H, W) by a vision transformer."""
    kernels = w["conv1.weight"]
    rows = image.shape[1] // kernels.shape[-1]
    x = np.concatenate([w["class_embedding"][None], embed_patches(image, kernels, (rows, rows))])
    x = layer_norm(x + w["positional_embedding"], w, "ln_pre")
    return layer_norm(run_blocks(x, below(w, "transformer.")), w, "ln_post")[0] @ w["proj"]


def convolve(x: Array, kernels: Array, stride: int = 1) -> Array:
    """Return (out, H / stride, W / stride) of (in, H, W), with a border of zeros."""
    size = kernels.shape[-1]
    border = size // 2
    x = np.pad(x, ((0, 0), (border, border), (border, border)))
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    out = [
        [
            np.tensordot(kernels, x[:, top : top + size, left : left + size], axes=3)
            for left in range(0, width, stride)
        ]
        for top in range(0, height, stride)
    ]
    return np.moveaxis(np.array(out), -1, 0)  # (rows, columns, out) -> (out, rows, columns)


def batch_norm(x: Array, w: Weights, name: str) -> Array:
    """Return x (C, H, W) by the statistics that were stored."""
    std = np.sqrt(w[f"{name}.running_var"] + 1e-5)
    scale = w[f"{name}.weight"] / std
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def average(x: Array, size: int) -> Array:
    """Return (C, H / size, W / size): the mean of each square."""
    channels, height, width = x.shape
    # (C, H, W) -> (C, rows, size, columns, size)
    return x.reshape(channels, height // size, size, width // size, size).mean((2, 4))


def step(x: Array, w: Weights, number: int, stride: int = 1) -> Array:
    """Return x after a convolution with its norm, the `number`th of a block or of the stem."""
    return batch_norm(convolve(x, w[f"conv{number}.weight"], stride), w, f"bn{number}")


def bottleneck(x: Array, w: Weights, stride: int) -> Array:
    """Return a map after a bottleneck."""
    out = np.maximum(step(x, w, 1), 0)
    out = average(np.maximum(step(out, w, 2), 0), stride)
    if "downsample.0.weight" in w:
        x = average(x, stride)
        x = batch_norm(convolve(x, w["downsample.0.weight"]), w, "downsample.1")
    return np.maximum(step(out, w, 3) + x, 0)


def pool(x: Array, w: Weights) -> Array:
    """Return the feature (D,) of a map (C, H, W): its mean attends to itself and all positions."""
    x = x.reshape(len(x), -1).T  # (C, H, W) -> (H x W, C)
    x = np.concatenate([x.mean(0, keepdims=True), x]) + w["positional_embedding"]
    q, k, v = (x @ w[f"{part}_proj.weight"].T + w[f"{part}_proj.bias"] for part in "qkv")
    pooled = attend(q[:1], k, v, heads=x.shape[1] // HEAD)
    return (pooled @ w["c_proj.weight"].T + w["c_proj.bias"])[0]


def resnet_feature(w: Weights, image: Array) -> Array:
    """Return the feature (D,) of one image (3, H, W) by a ResNet."""
    x = np.maximum(step(image, w, 1, stride=2), 0)
    x = np.maximum(step(x, w, 2), 0)
    x = average(np.maximum(step(x, w, 3), 0), 2)
    for stage in (1, 2, 3, 4):
        blocks = len({key.split(".")[1] for key in w if key.startswith(f"layer{stage}.")})
        for number in range(blocks):
            stride = 2 if stage > 1 and number == 0 else 1
            x = bottleneck(x, below(w, f"layer{stage}.{number}."), stride)
    return pool(x, below(w, "attnpool."))


def image_features(visual: nn.Module, images: Tensor) -> Array:
    """Return the features of images by either tower: (N, 3, H, W) -> (N, D)."""
    w = weights_of(visual)
    feature = vit_feature if "proj" in w else resnet_feature
    return np.stack([feature(w, image) for image in images.double().numpy()])


def text_features(model: nn.Module, ids: Tensor) -> Array:
    """Return the features of rows of token ids: (N, L) -> (N, D)."""
    w = weights_of(model)
    return np.stack([text_feature(w, row) for row in ids.tolist()])


def logits(images: Array, texts: Array, scale: float) -> Array:
    """Return scaled cosines (N, M) of features (N, D) and (M, D)."""
    images = images / np.linalg.norm(images, axis=1, keepdims=True)
    return scale * images @ (texts / np.linalg.norm(texts, axis=1, keepdims=True)).T
