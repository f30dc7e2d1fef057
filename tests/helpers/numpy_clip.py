"""CLIP in float64 NumPy, written from the paper (2103.00020), one sample at a time; loops where they are clearer."""

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.config import Activation, TextConfig, ViTConfig

Array = np.ndarray[Any, np.dtype[np.float64]]


def layer_norm(x: Array, w: dict[str, Array], name: str) -> Array:
    variance = ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[
        f"{name}.bias"
    ]


def activate(x: Array, activation: Activation) -> Array:
    if activation == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attend(q: Array, k: Array, v: Array, heads: int, causal: bool = False) -> Array:
    """q (L, W), k and v (M, W) -> (L, W), head by head and query by query."""
    out, size = np.zeros_like(q), q.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(q)):
            seen = slice(0, i + 1 if causal else len(k))
            scores = k[seen, part] @ q[i, part] / math.sqrt(size)
            weights = np.exp(scores) / np.exp(scores).sum()
            out[i, part] = weights @ v[seen, part]
    return out


def transformer(
    x: Array, w: dict[str, Array], config: ViTConfig | TextConfig, causal: bool
) -> Array:
    heads = config.width // config.head_width
    for i in range(config.layers):
        block = {key.removeprefix(f"resblocks.{i}."): value for key, value in w.items()}
        h = (
            layer_norm(x, block, "ln_1") @ block["attn.in_proj_weight"].T
            + block["attn.in_proj_bias"]
        )
        h = attend(*np.split(h, 3, axis=1), heads=heads, causal=causal)
        x = x + h @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
        h = layer_norm(x, block, "ln_2") @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
        x = (
            x
            + activate(h, config.activation) @ block["mlp.c_proj.weight"].T
            + block["mlp.c_proj.bias"]
        )
    return x


def weights_of(module: nn.Module) -> dict[str, Array]:
    return {key: value.detach().numpy() for key, value in module.state_dict().items()}


def below(w: dict[str, Array], prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): value for key, value in w.items() if key.startswith(prefix)}


def encode_text(model: CLIP, tokens: Tensor) -> Array:
    w, config = weights_of(model.text), model.config.text
    rows = []
    for ids in tokens.numpy():
        x = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
        x = transformer(x, below(w, "transformer."), config, causal=True)
        rows.append(layer_norm(x, w, "ln_final")[list(ids).index(max(ids))] @ w["text_projection"])
    return np.stack(rows)


def encode_image(model: CLIP, images: Tensor) -> Array:
    w, config = weights_of(model.visual), model.config.vision
    assert isinstance(config, ViTConfig)
    rows = []
    for image in images.numpy():
        p = config.patch_size
        patches = [
            [
                (image[:, r * p : r * p + p, c * p : c * p + p] * kernel).sum()
                for kernel in w["conv1.weight"]
            ]
            for r in range(config.grid[0])
            for c in range(config.grid[1])
        ]
        x = (
            np.concatenate([w["class_embedding"][None], np.array(patches)])
            + w["positional_embedding"]
        )
        x = layer_norm(x, w, "ln_pre")
        x = transformer(x, below(w, "transformer."), config, causal=False)
        rows.append(layer_norm(x, w, "ln_post")[0] @ w["proj"])
    return np.stack(rows)
