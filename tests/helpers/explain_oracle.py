"""What a transformer of CLIP does, in float64 NumPy, with a place to nudge whatever happens in it.

Gradients are differences of the cosine when something is nudged, so that no rule of
differentiation is taken from torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit import CLIP
from clipkit.config import TextConfig, ViTConfig
from tests.helpers.numpy_clip import (
    Array,
    Weights,
    activate,
    below,
    embed_patches,
    layer_norm,
    weights_of,
)

Nudge = Callable[[int, str, Array], Array]  # of a block, the name of what is nudged, and itself
STEP = 1e-5


def no_nudge(_block: int, _name: str, array: Array) -> Array:
    return array


@dataclass
class Block:
    """Hold what happens in a block: heads are the first axis of q, k, v and weights."""

    q: Array
    k: Array
    v: Array
    weights: Array
    gathered: Array


@dataclass
class Tower:
    """Hold a tower: its tokens before the first block, and how a feature is made of one."""

    start: Array  # (L, W)
    weights: Weights
    config: ViTConfig | TextConfig
    causal: bool
    at: int
    norm: str
    projection: str

    def run(self, nudge: Nudge = no_nudge) -> tuple[Array, list[Block]]:
        """Return the feature (D,) and what happens in each block."""
        x, blocks = self.start, list[Block]()
        heads = self.config.width // self.config.head_width
        for number in range(self.config.layers):
            w = below(self.weights, f"transformer.resblocks.{number}.")
            h = layer_norm(x, w, "ln_1") @ w["attn.in_proj_weight"].T + w["attn.in_proj_bias"]
            q, k, v = (split(part, heads) for part in np.split(h, 3, axis=1))
            weights = nudge(number, "weights", soften(q, k, self.causal))
            gathered = np.concatenate([weights[i] @ v[i] for i in range(heads)], axis=1)
            gathered = nudge(number, "gathered", gathered)
            x = x + gathered @ w["attn.out_proj.weight"].T + w["attn.out_proj.bias"]
            h = layer_norm(x, w, "ln_2") @ w["mlp.c_fc.weight"].T + w["mlp.c_fc.bias"]
            h = activate(h, self.config.activation)
            x = x + h @ w["mlp.c_proj.weight"].T + w["mlp.c_proj.bias"]
            blocks.append(Block(q, k, v, weights, gathered))
        feature = layer_norm(x, self.weights, self.norm)[self.at] @ self.weights[self.projection]
        return feature, blocks

    def gradient(self, block: int, name: str, other: Array) -> Array:
        """Return the gradient of the cosine with `other` at what a block has by that name."""
        _, blocks = self.run()
        shape = getattr(blocks[block], name).shape
        found = np.zeros(shape)
        for index in np.ndindex(shape):
            ends: list[float] = []
            for step in (STEP, -STEP):
                feature, _ = self.run(self._nudging(block, name, index, step))
                ends.append(cosine(feature, other))
            found[index] = (ends[0] - ends[1]) / (2 * STEP)
        return found

    def _nudging(self, block: int, name: str, index: Any, step: float) -> Nudge:
        def nudge(number: int, what: str, array: Array) -> Array:
            if (number, what) != (block, name):
                return array
            array = array.copy()
            array[index] += step
            return array

        return nudge


def image_tower(model: CLIP, image: Array) -> Tower:
    """Return the vision transformer of a model with an image (3, H, W) of its own size in it."""
    w, config = weights_of(model.visual), model.config.vision
    assert isinstance(config, ViTConfig)
    patches = embed_patches(image, w["conv1.weight"], config.grid)
    x = np.concatenate([w["class_embedding"][None], patches]) + w["positional_embedding"]
    start = layer_norm(x.astype(np.float64), w, "ln_pre")
    return Tower(start, w, config, causal=False, at=0, norm="ln_post", projection="proj")


def text_tower(model: CLIP, ids: list[int]) -> Tower:
    """Return the text tower of a model with a text in it, from its start to its end."""
    w, config = weights_of(model.text), model.config.text
    start = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
    return Tower(
        start.astype(np.float64),
        w,
        config,
        causal=True,
        at=len(ids) - 1,
        norm="ln_final",
        projection="text_projection",
    )


def split(x: Array, heads: int) -> Array:
    """Return heads: (L, W) -> (heads, L, W / heads)."""
    return np.stack(np.split(x, heads, axis=1))


def join(x: Array) -> Array:
    """Return tokens: (heads, L, W / heads) -> (L, W)."""
    return np.concatenate(list(x), axis=1)


def soften(q: Array, k: Array, causal: bool) -> Array:
    """Return the softmax of all heads, query by query: (heads, L, L)."""
    heads, length, width = q.shape
    weights = np.zeros((heads, length, length))
    for head in range(heads):
        for i in range(length):
            seen = slice(0, i + 1 if causal else length)
            scores = np.exp(k[head, seen] @ q[head, i] / math.sqrt(width))
            weights[head, i, seen] = scores / scores.sum()
    return weights


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def grad_eclip(tower: Tower, other: Array, block: int, others: slice) -> Array:
    """Return Grad-ECLIP of one block, channel by channel."""
    _, blocks = tower.run()
    part = blocks[block]
    gradient = tower.gradient(block, "gathered", other)[tower.at]
    query = join(part.q)[tower.at]
    keys, values = join(part.k)[others], join(part.v)[others]
    likeness = np.array([cosine(key, query) for key in keys])
    weights = (likeness - likeness.min()) / (likeness.max() - likeness.min())
    found = np.zeros(len(keys))
    for place in range(len(keys)):
        for channel in range(len(gradient)):
            found[place] += gradient[channel] * values[place, channel] * weights[place]
    return np.maximum(found, 0)


def relevance(tower: Tower, other: Array, scale: float) -> Array:
    """Return what the token that becomes the feature has of each, after all blocks: (L,)."""
    _, blocks = tower.run()
    found = np.eye(len(tower.start))
    for number, part in enumerate(blocks):
        gradient = tower.gradient(number, "weights", other)
        found = found + np.maximum(scale * gradient * part.weights, 0).mean(axis=0) @ found
    return found[tower.at]


def rollout(tower: Tower) -> Array:
    """Return how much of each token reaches each after all blocks: (L, L)."""
    _, blocks = tower.run()
    found = np.eye(len(tower.start))
    for part in blocks:
        mixed = part.weights.mean(axis=0) + np.eye(len(tower.start))
        found = mixed / mixed.sum(axis=1, keepdims=True) @ found
    return found
