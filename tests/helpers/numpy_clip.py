"""CLIP in float64 NumPy, written from the paper (2103.00020).

It takes one sample at a time, and loops where loops are clearer.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.config import Activation, TextConfig, ViTConfig

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = dict[str, Array]


def layer_norm(x: Array, w: Weights, name: str) -> Array:
    """Return x (..., W) with mean 0 and variance 1 over its last axis, scaled and shifted."""
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered**2).mean(-1, keepdims=True)
    return centered / np.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def activate(x: Array, activation: Activation) -> Array:
    """Return an activation of each number of x."""
    if activation == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(q: Array, k: Array, v: Array, heads: int, causal: bool = False) -> Array:
    """Return what each query attends to, head by head and query by query.

    q is (L, W), k and v are (M, W); the result is (L, W).
    """
    out = np.zeros_like(q)
    size = q.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(q)):
            seen = slice(0, i + 1 if causal else len(k))
            scores = k[seen, part] @ q[i, part] / math.sqrt(size)
            weights = np.exp(scores) / np.exp(scores).sum()
            out[i, part] = weights @ v[seen, part]
    return out


def transform(x: Array, w: Weights, config: ViTConfig | TextConfig, causal: bool) -> Array:
    """Return the tokens (L, W) after all blocks."""
    heads = config.width // config.head_width
    for i in range(config.layers):
        block = below(w, f"resblocks.{i}.")
        h = layer_norm(x, block, "ln_1")
        h = h @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]  # (L, 3W)
        h = attend(*np.split(h, 3, axis=1), heads=heads, causal=causal)
        x = x + h @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
        h = layer_norm(x, block, "ln_2")
        h = activate(h @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"], config.activation)
        x = x + h @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return x


def weights_of(module: nn.Module) -> Weights:
    """Return the weights of a module in float64 by name."""
    return {key: value.detach().numpy() for key, value in module.state_dict().items()}


def below(w: Weights, prefix: str) -> Weights:
    """Return the weights with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in w.items() if key.startswith(prefix)}


def encode_text(model: CLIP, tokens: Tensor) -> Array:
    """Return the text features of token ids: (N, L) -> (N, D)."""
    w, config = weights_of(model.text), model.config.text
    rows: list[Array] = []
    for ids in tokens.numpy():
        x = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
        x = transform(x, below(w, "transformer."), config, causal=True)
        end = list(ids).index(max(ids))
        rows.append(layer_norm(x, w, "ln_final")[end] @ w["text_projection"])
    return np.stack(rows)


def embed_patches(image: Array, kernels: Array, grid: tuple[int, int]) -> Array:
    """Return the embedding of each patch: (3, H, W) -> (patches, W)."""
    size = kernels.shape[-1]
    patches: list[list[float]] = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, left = row * size, column * size
            patch = image[:, top : top + size, left : left + size]
            patches.append([float((patch * kernel).sum()) for kernel in kernels])
    return np.array(patches)


def encode_image(model: CLIP, images: Tensor) -> Array:
    """Return the features of images by a vision transformer: (N, 3, H, W) -> (N, D)."""
    w, config = weights_of(model.visual), model.config.vision
    assert isinstance(config, ViTConfig)
    rows: list[Array] = []
    for image in images.numpy():
        patches = embed_patches(image, w["conv1.weight"], config.grid)
        x = np.concatenate([w["class_embedding"][None], patches]) + w["positional_embedding"]
        x = layer_norm(x, w, "ln_pre")
        x = transform(x, below(w, "transformer."), config, causal=False)
        rows.append(layer_norm(x, w, "ln_post")[0] @ w["proj"])
    return np.stack(rows)
