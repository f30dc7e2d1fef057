"""Classifier heads: modules from normalised features (N, D) to logits (N, C), in float32.

A head is made of the tensors that it keeps, under the names of its constructor's arguments; so one function saves them
all and one loads them.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.checkpoints.weights import read_weights
from clipkit.errors import ConfigError, CorruptCheckpointError
from clipkit.files import write_weights


class Head(nn.Module):
    """What all heads share: each maps features (N, D) of unit length to logits (N, C)."""

    classes: int
    width: int

    def to_linear(self) -> "LinearHead":
        """The same function as one linear layer, of memory of its own.

        Raises:
            ConfigError: if it is none.
        """
        raise ConfigError(f"a {type(self).__name__} is not linear in the features")

    def _check(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ConfigError(
                f"this head needs features of shape (N, {self.width}), not {tuple(features.shape)}"
            )
        return features.float()


class LinearHead(Head):
    """One linear layer.

    Args:
        weight: (C, D).
        bias: (C,); zeros if not given.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.classes, self.width = weight.shape
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.bias = nn.Parameter(
            weight.new_zeros(self.classes).float()
            if bias is None
            else bias.detach().float().clone()
        )

    @classmethod
    def from_zero_shot(cls, weight: Tensor, logit_scale: Tensor) -> "LinearHead":
        """The zero-shot classifier: text features (C, D) times exp(logit_scale), without bias."""
        return CosineHead(weight, logit_scale).to_linear()

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to (N, C)."""
        return F.linear(self._check(features), self.weight, self.bias)

    def to_linear(self) -> "LinearHead":
        """A copy."""
        return LinearHead(self.weight, self.bias)


class CosineHead(Head):
    """The zero-shot classifier: cosine similarity to one vector per class, times the temperature's inverse.

    Args:
        weight: (C, D), rows of unit length, as `zero_shot_weights` gives them.
        logit_scale: (), the logarithm of the factor.
    """

    def __init__(self, weight: Tensor, logit_scale: Tensor) -> None:
        super().__init__()
        self.classes, self.width = weight.shape
        self.weight = nn.Parameter(weight.detach().float().clone())
        self.logit_scale = nn.Parameter(logit_scale.detach().float().clone())

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to (N, C). Weights are scaled, not products, so that `to_linear` is equal to the bit."""
        return F.linear(
            self._check(features),
            self.weight * self.logit_scale.exp(),
            self.weight.new_zeros(self.classes),
        )

    def to_linear(self) -> LinearHead:
        """Scaled weights, and no bias."""
        return LinearHead(self.weight * self.logit_scale.exp())


class WeightedPromptHead(Head):
    """Each class as the weighted sum of its prompts' features, normalised, with weights that can be learned.

    Args:
        captions: (C, K, D), of unit length; rows of zeros where a class has fewer than K.
        logit_scale: (), the logarithm of the factor.
        prompt_weights: (C, K); alike for all prompts if not given, which is the prompt ensemble.
    """

    captions: Tensor

    def __init__(
        self, captions: Tensor, logit_scale: Tensor, prompt_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.classes, prompts, self.width = captions.shape
        self.register_buffer("captions", captions.detach().float().clone())
        if prompt_weights is None:
            prompt_weights = captions.new_full((self.classes, prompts), 1 / prompts)
        self.prompt_weights = nn.Parameter(prompt_weights.detach().float().clone())
        self.logit_scale = nn.Parameter(logit_scale.detach().float().clone())

    def _weight(self) -> Tensor:
        mixed = torch.einsum("ck,ckd->cd", self.prompt_weights, self.captions)
        return F.normalize(mixed, dim=-1) * self.logit_scale.exp()

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to (N, C)."""
        return F.linear(self._check(features), self._weight())

    def to_linear(self) -> LinearHead:
        """The classes' vectors, scaled."""
        return LinearHead(self._weight())


class CacheHead(Head):
    """Tip-Adapter (2111.03930): zero-shot logits, and those of the support pictures that are alike.

    logits = exp(logit_scale) x W^T + alpha exp(-beta (1 - x keys^T)) values

    Args:
        weight: (C, D), as for `CosineHead`.
        logit_scale: ().
        keys: (M, D), features of the support pictures.
        values: (M, C), their labels, one-hot.
        alpha: (), how much the cache counts.
        beta: (), how near a picture must be to count.
    """

    weight: Tensor
    logit_scale: Tensor
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        weight: Tensor,
        logit_scale: Tensor,
        keys: Tensor,
        values: Tensor,
        alpha: Tensor,
        beta: Tensor,
    ) -> None:
        super().__init__()
        self.classes, self.width = weight.shape
        tensors = {
            "weight": weight,
            "logit_scale": logit_scale,
            "values": values,
            "alpha": alpha,
            "beta": beta,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach().float().clone())
        self.keys = nn.Parameter(keys.detach().float().clone())

    def affinity(self, features: Tensor) -> Tensor:
        """(N, D) to what the cache alone says, (N, C)."""
        return (self.beta * (features @ self.keys.T - 1)).exp() @ self.values

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) to (N, C)."""
        features = self._check(features)
        return features @ (self.weight * self.logit_scale.exp()).T + self.alpha * self.affinity(
            features
        )


HEADS: dict[str, type[Head]] = {
    kind.__name__: kind for kind in (LinearHead, CosineHead, WeightedPromptHead, CacheHead)
}


def save_head(
    head: Head,
    path: str | os.PathLike[str],
    labels: Sequence[str],
    provenance: dict[str, Any] | None = None,
) -> None:
    """Write a head as safetensors, with its labels and where it comes from in the metadata.

    Args:
        head: to write.
        path: of the file; replaced only when its successor is whole.
        labels: C names.
        provenance: what can be told of it, as JSON: model, method, data ...

    Raises:
        ConfigError: if there is not one label per class.
    """
    if len(labels) != head.classes:
        raise ConfigError(
            f"a head of {head.classes} classes needs as many labels, not {len(labels)}"
        )
    about = {"head": type(head).__name__, "labels": list(labels), "provenance": provenance or {}}
    write_weights(head.state_dict(), path, {"clipkit": json.dumps(about)})


def load_head(path: str | os.PathLike[str]) -> tuple[Head, list[str], dict[str, Any]]:
    """What `save_head` wrote: the head in eval mode, its labels and its provenance.

    Raises:
        CheckpointNotFoundError, CorruptCheckpointError: if the file is missing, damaged, or no head.
    """
    from safetensors import SafetensorError, safe_open

    tensors = read_weights(path)
    try:
        with safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {})["clipkit"])
        head = HEADS[known["head"]](**tensors)
        labels, provenance = list(known["labels"]), known["provenance"]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{path} is no head that clipkit saved ({error!r})") from error
    if len(labels) != head.classes:
        raise CorruptCheckpointError(f"{path} has {len(labels)} labels for {head.classes} classes")
    return head.eval(), labels, provenance
