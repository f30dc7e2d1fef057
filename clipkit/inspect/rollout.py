"""Follow attention through all layers of a vision transformer (Abnar and Zuidema, 2005.00928)."""

import torch
from torch import Tensor

from clipkit.clip import CLIP
from clipkit.data.pictures import Images
from clipkit.encode.eval_view import eval_view
from clipkit.errors import ConfigError
from clipkit.inspect.attention import blocks_of, weights_by_layer
from clipkit.inspect.prepared import prepare_batch
from clipkit.inspect.towers import embed_any_size, image_tower_of, is_vit


@torch.no_grad()
def rollout(model: CLIP, images: "Tensor | Images") -> Tensor:
    """Return how much of each patch reaches each token after the last layer.

    In each layer a token keeps one half of itself and takes the other half from those that it
    attends to, by the mean of the heads. It knows nothing of a text, so that all texts get the same
    map.

    Args:
        model: a CLIP with a vision transformer.
        images: as in `attention_maps`.

    Returns:
        (N, L, L) float32 on the model's device. Each row, of a token after the last layer, sums to
        1 over the tokens before the first; row 0 is the class token's.

    Raises:
        ConfigError: if the image tower is a ResNet.
        ImageError: as `attention_maps`.

    Example:
        to_patches = rollout(model, images)[:, 0, 1:]  # (N, rows x columns)
    """
    visual = image_tower_of(eval_view(model), "rollout")
    if not is_vit(visual):
        raise ConfigError(
            "rollout follows attention from layer to layer, and a ResNet has one layer of it: "
            "attention_maps returns that, and explain(method='grad_cam') explains"
        )
    x = embed_any_size(visual, prepare_batch(model, images))
    blocks = blocks_of(visual.transformer)
    identity = torch.eye(x.shape[1], dtype=torch.float32, device=x.device)  # (L, L)
    reached = identity.expand(len(x), -1, -1)  # (N, L, L)
    every_layer, every_head = range(len(blocks)), range(blocks[0].attn.num_heads)
    for _, weights in weights_by_layer(blocks, x, every_layer, every_head):
        with torch.autocast(x.device.type, enabled=False):
            reached = (weights.mean(dim=1) + identity) / 2 @ reached
    return reached
