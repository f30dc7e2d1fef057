"""Classifier heads: modules from features (N, D) of unit length to logits (N, C), in float32.

A head keeps tensors under the names of its constructor's arguments, so that `saved_heads` has one
function that saves every kind of head and one that loads it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.errors import ConfigError


class Head(nn.Module):
    """Map image features (N, D) of unit length to logits (N, C).

    Heads compute in float32, whatever the dtype of the features and of their own weights, and
    under autocast too: half precision would blur classes that differ by little.

    Attributes:
        classes: C, the number of classes.
        width: D, the width of the features.

    Example:
        head = clipkit.ImageClassifier.zero_shot("tiny", ["cat", "dog"]).head
        logits = head(model.embed_images(["photo.jpg"]))  # (1, 2)
    """

    classes: int
    width: int

    @property
    def scale(self) -> float | None:
        """Return the factor that multiplies zero-shot cosines inside the logits.

        Logits of a new class are comparable with the others if they are its cosines times this
        factor. None if the head's logits have a scale of their own.
        """
        return None

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (N, C) float32 of features (N, D), any float dtype, of unit length.

        Raises:
            ConfigError: if the features have another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.width:
            raise ConfigError(
                f"this head needs features of shape (N, {self.width}), not {tuple(features.shape)}"
            )
        with torch.autocast(features.device.type, enabled=False):
            return self.logits(features.float())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Head":
        """Move the weights, and leave them in float32 when the module around them is cast.

        Heads compute in float32 anyway, and what float16 cannot hold would become NaN.
        """

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of float32 features (N, D); each kind of head has its formula."""
        raise NotImplementedError

    def to_linear(self) -> "LinearHead":
        """Return the same function as one linear layer, in memory of its own.

        Raises:
            ConfigError: if the head is not linear in the features.
        """
        raise ConfigError(
            f"{type(self).__name__} is not linear in the features, as this needs it: take a "
            "classifier fitted by another method, such as 'anchored', and not yet adapted"
        )

    def add_zero_shot(self, weight: Tensor) -> "Head":
        """Return a head that has zero-shot classes behind its own, in memory of its own.

        Args:
            weight: (M, D), one vector of unit length per new class.

        Returns:
            A head of C + M classes. The first C logits are those of this head, the others are
            cosines times `scale`.

        Raises:
            ConfigError: if `scale` is None.
        """
        if self.scale is None:
            raise ConfigError(
                "this head has logits of a scale of its own, which zero-shot logits of new "
                "classes cannot be compared with"
            )
        linear = self.to_linear()
        rows = torch.cat([linear.weight, self.scale * weight.float().to(linear.weight.device)])
        return LinearHead(rows, F.pad(linear.bias, (0, len(weight))), self.scale)


class LinearHead(Head):
    """Classify by one linear layer: logits = x W^T + bias.

    Args:
        weight: (C, D).
        bias: (C,); zeros if not given.
        scale: see `Head.scale`.

    Example:
        >>> head = LinearHead(torch.eye(2), torch.tensor([0.5, 0.0]))
        >>> head(torch.tensor([[0.0, 1.0]])).tolist()
        [[0.5, 1.0]]
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, scale: float | None = None
    ) -> None:
        super().__init__()
        if bias is None:
            bias = weight.new_zeros(len(weight))
        self.classes, self.width = weight.shape
        self.weight = nn.Parameter(own(weight))
        self.bias = nn.Parameter(own(bias))
        self._scale = scale

    @classmethod
    def from_zero_shot(cls, weight: Tensor, logit_scale: Tensor) -> "LinearHead":
        """Return the zero-shot classifier: text features (C, D) times exp(logit_scale), no bias."""
        return CosineHead(weight, logit_scale).to_linear()

    @property
    def scale(self) -> float | None:
        """Return the number that was given; see `Head.scale`."""
        return self._scale

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of float32 features (N, D)."""
        return F.linear(features, self.weight.float(), self.bias.float())

    def to_linear(self) -> "LinearHead":
        """Return a copy."""
        return LinearHead(self.weight, self.bias, self.scale)


class CosineHead(Head):
    """Classify zero-shot: cosine similarity to one vector per class, times exp(logit_scale).

    Args:
        weight: (C, D), rows of unit length, as `zero_shot_weights` returns them.
        logit_scale: (), the logarithm of the factor.

    Example:
        >>> head = CosineHead(torch.eye(2), torch.tensor(0.0))  # times exp(0)
        >>> head(torch.tensor([[0.0, 1.0]])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, weight: Tensor, logit_scale: Tensor) -> None:
        super().__init__()
        self.classes, self.width = weight.shape
        self.weight = nn.Parameter(own(weight))
        self.logit_scale = nn.Parameter(own(logit_scale))

    @property
    def scale(self) -> float:
        """Return exp(logit_scale); see `Head.scale`."""
        return self.logit_scale.float().exp().item()

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of float32 features (N, D).

        The weights are scaled, not the products, and a bias of zeros is added: so `to_linear` gives
        the same bits.
        """
        scaled = self._scaled_weight()
        return F.linear(features, scaled, scaled.new_zeros(self.classes))

    def to_linear(self) -> LinearHead:
        """Return the scaled weights as a linear layer."""
        return LinearHead(self._scaled_weight(), scale=self.scale)

    def add_zero_shot(self, weight: Tensor) -> "CosineHead":
        """Return a `CosineHead` of C + M classes; see `Head.add_zero_shot`."""
        return CosineHead(_below(self.weight, weight), self.logit_scale)

    def _scaled_weight(self) -> Tensor:
        return self.weight.float() * self.logit_scale.float().exp()  # (C, D)


class WeightedPromptHead(Head):
    """Hold each class as a weighted sum of its prompts' features; the weights can be learned.

    logits = exp(logit_scale) x V^T, where row c of V is the sum of prompt_weights[c, k] times
    captions[c, k], scaled to unit length.

    Args:
        captions: (C, K, D), of unit length; rows of zeros where a class has fewer than K prompts.
        logit_scale: (), the logarithm of the factor.
        prompt_weights: (C, K); 1 / K if not given, which makes the prompt ensemble.

    Example:
        >>> captions = torch.eye(4).view(2, 2, 4)  # two prompts of each of two classes
        >>> WeightedPromptHead(captions, torch.tensor(0.0)).prompt_weights.tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """

    captions: Tensor

    def __init__(
        self, captions: Tensor, logit_scale: Tensor, prompt_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.classes, prompts, self.width = captions.shape
        if prompt_weights is None:
            prompt_weights = captions.new_full(
                (self.classes, prompts), 1 / prompts, dtype=torch.float32
            )
        self.register_buffer("captions", own(captions))
        self.prompt_weights = nn.Parameter(own(prompt_weights))
        self.logit_scale = nn.Parameter(own(logit_scale))

    @property
    def scale(self) -> float:
        """Return exp(logit_scale); see `Head.scale`."""
        return self.logit_scale.float().exp().item()

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of float32 features (N, D)."""
        return F.linear(features, self._scaled_weight())

    def to_linear(self) -> LinearHead:
        """Return the classes' scaled vectors as a linear layer."""
        return LinearHead(self._scaled_weight(), scale=self.scale)

    def _scaled_weight(self) -> Tensor:
        mixed = torch.einsum("ck,ckd->cd", self.prompt_weights.float(), self.captions.float())
        return F.normalize(mixed, dim=-1) * self.logit_scale.float().exp()  # (C, D)


class CacheHead(Head):
    """Add the logits of similar support images to zero-shot ones: Tip-Adapter (2111.03930).

    logits = exp(logit_scale) x W^T + alpha exp(-beta (1 - x keys^T)) values

    Args:
        weight: (C, D), as for `CosineHead`.
        logit_scale: (), the logarithm of the factor.
        keys: (M, D), features of the support images.
        values: (M, C), their labels, one-hot.
        alpha: (), how much the cache counts.
        beta: (), how near a support image must be to count.

    Example:
        >>> one = torch.tensor(1.0)
        >>> head = CacheHead(torch.eye(2), one, torch.eye(2), torch.eye(2), alpha=one, beta=one)
        >>> head(torch.eye(2)).argmax(dim=1).tolist()
        [0, 1]
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
        self.register_buffer("weight", own(weight))
        self.register_buffer("logit_scale", own(logit_scale))
        self.register_buffer("values", own(values))
        self.register_buffer("alpha", own(alpha))
        self.register_buffer("beta", own(beta))
        self.keys = nn.Parameter(own(keys))

    @property
    def scale(self) -> float:
        """Return exp(logit_scale); see `Head.scale`."""
        return self.logit_scale.float().exp().item()

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (N, C) of float32 features (N, D)."""
        scaled = self.weight.float() * self.logit_scale.float().exp()  # (C, D)
        nearness = features @ self.keys.float().T - 1  # (N, M), at most 0
        affinity = (self.beta.float() * nearness).exp() @ self.values.float()  # (N, C)
        return features @ scaled.T + self.alpha.float() * affinity

    def add_zero_shot(self, weight: Tensor) -> "CacheHead":
        """Return a `CacheHead` of C + M classes; see `Head.add_zero_shot`.

        No support image belongs to the new classes.
        """
        return CacheHead(
            _below(self.weight, weight),
            self.logit_scale,
            self.keys,
            F.pad(self.values, (0, len(weight))),  # (M, C) -> (M, C + new)
            self.alpha,
            self.beta,
        )


def own(tensor: Tensor) -> Tensor:
    """Return a float32 copy that shares neither memory nor history with what was given.

    It is contiguous, as what is loaded from a file is: another order in memory gives other bits.
    """
    return tensor.detach().float().clone(memory_format=torch.contiguous_format)


def _below(own: Tensor, new: Tensor) -> Tensor:
    """Return (C + M, D) float32: the head's own vectors (C, D), then the new ones (M, D)."""
    return torch.cat([own.detach().float(), new.float().to(own.device)])
