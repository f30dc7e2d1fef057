"""Learned weights of the prompts of each class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.classify.fitting import Fitted, minimize
from clipkit.classify.heads import CosineHead, WeightedPromptHead
from clipkit.errors import ConfigError


def prompt_weights(
    features: Tensor,
    labels: Tensor,
    zero_shot: CosineHead,
    generator: torch.Generator,
    *,
    captions: Tensor,
) -> Fitted:
    """Learn how much each prompt of each class counts, and the temperature.

    It starts at the prompt ensemble (2103.00020, 3.1.4), in which all prompts count alike.
    Minimized by L-BFGS is the cross-entropy with a penalty that holds the weights to 1 / K: half of
    the squared relative change, which is worth as much as one image. Nothing has to be chosen.

    Args:
        features, labels, zero_shot: as in `fit_head`.
        generator: draws nothing; all methods take one.
        captions: (C, K, D), the features of the prompts, as for `WeightedPromptHead`.

    Returns:
        A `WeightedPromptHead`, and no settings.

    Raises:
        ConfigError: if captions do not have the classes and the width of `zero_shot`.
    """
    if captions.ndim != 3 or captions.shape[::2] != zero_shot.weight.shape:
        needed = f"({zero_shot.classes}, K, {zero_shot.width})"
        raise ConfigError(f"captions must have shape {needed}, not {tuple(captions.shape)}")
    head = WeightedPromptHead(captions.to(features.device), zero_shot.logit_scale)
    even = head.prompt_weights.detach().clone()  # (C, K)

    def loss() -> Tensor:
        change = (head.prompt_weights / even - 1).square().sum() / 2
        return F.cross_entropy(head(features), labels) + change / len(labels)

    minimize(loss, list(head.parameters()), iterations=100)
    return head, {}
