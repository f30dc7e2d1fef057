"""The symmetric contrastive loss of CLIP (2103.00020, figure 3)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.errors import ConfigError

MAX_LOGIT_SCALE = 100.0  # the paper clips the temperature here, "to prevent scaling the logits by more than 100"


def clip_loss(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Mean cross-entropy of finding each image's text and each text's image among the batch, in float32.

    Args:
        image_features: (N, D), need not be normalised.
        text_features: (N, D), row i belongs to image i.
        logit_scale: scalar, the logarithm of the inverse temperature; clipped so that its exponential is at most 100.

    Returns:
        Scalar float32.

    Raises:
        ConfigError: if the two are not of one (N, D) shape.
    """
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ConfigError(
            "clip_loss needs image and text features of one shape (N, D), not "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    with torch.autocast(image_features.device.type, enabled=False):
        image_features = F.normalize(image_features.float(), dim=-1)
        text_features = F.normalize(text_features.float(), dim=-1)
        # A training loop that clips the parameter leaves it at float32(log 100), which is a hair above log 100: the
        # clamp leaves room for that, or it would stop the gradient there and the temperature could never come back.
        scale = logit_scale.float().clamp(max=math.log(MAX_LOGIT_SCALE) + 1e-6).exp()
        logits = scale * image_features @ text_features.T  # (N, N)
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
