"""Two towers and a temperature: what of CLIP is numbers (2103.00020).

`clipkit.CLIP` adds what belongs to the weights: tokenizer, preprocessing, loading and saving.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError
from clipkit.models.build import build_text, build_visual
from clipkit.models.changes import has_changes
from clipkit.models.inputs import check_config, check_embeddings, check_images, check_tokens
from clipkit.models.kernels import PackedWeight
from clipkit.moved import MODEL, moved

if TYPE_CHECKING:
    from typing_extensions import Self


class TwoTowers(nn.Module):
    """Encode images and texts into one space, and compare them.

    Args:
        config: what to build. Its weights are drawn as in the paper.

    Attributes:
        config: as it was given.
        visual: the image tower.
        text: the text tower.
        logit_scale: the logarithm of the inverse temperature, a scalar.
        is_optimized: whether this is a copy from `CLIP.optimize`.
        optimizations: what was done to such a copy, in words for people.
    """

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        self.visual = build_visual(config.vision, config.embed_dim)
        self.text = build_text(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # 0.07 is the paper's
        self.is_optimized = False
        self.optimizations: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the weights."""
        # A replica of nn.DataParallel has no parameters(), only the attributes.
        return self.visual.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return self.visual.conv1.weight.device

    @property
    def context_length(self) -> int:
        """Return the length of the longest row of token ids, start and end included."""
        return self.config.text.context_length

    @property
    def vocab_size(self) -> int:
        """Return the number of token ids."""
        return self.config.text.vocab_size

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Return image features.

        Args:
            image: preprocessed, (N, 3, H, W), any float dtype, any device.
            normalize: scale each feature to unit length.

        Returns:
            (N, D), on the model's device and in its dtype.

        Raises:
            ImageError: for any other shape, or an integer dtype.
        """
        check_images(image, self.visual.resolution)
        features = self.visual(image.to(self.device, self.dtype))
        if normalize:
            return F.normalize(features, dim=-1)
        # A CUDA graph would write its next result over this one.
        return features.clone() if self.is_optimized else features

    def encode_text(
        self,
        text: Tensor,
        normalize: bool = False,
        *,
        embeddings: Tensor | None = None,
        shared: int = 0,
    ) -> Tensor:
        """Return text features, read at the end-of-text token of each row.

        What follows that token has no influence.

        Args:
            text: ids from the model's tokenizer, (N, L) int64 or int32, L at most `context_length`,
                any device.
            normalize: scale each feature to unit length.
            embeddings: of the tokens, (N, L, W), in the place of `text.token_embedding(text)`, for
                prompts that are learned. Gradients flow to them. Positions are added here, and of
                `text` only the ends are read.
            shared: how many embeddings at the beginning all rows have in common, as learned
                contexts are. They are computed once, and their gradients come together in the first
                row, so rows must be made of the same tensor there.

        Returns:
            (N, D), on the model's device and in its dtype.

        Raises:
            TokenizerError: for any other shape or dtype, ids outside the vocabulary, or rows that
                do not share what they should (values are not looked at while a graph is recorded).
        """
        check_tokens(text, self.config.text)
        if embeddings is not None:
            check_embeddings(embeddings, text, self.config.text.width, "encode_text")
        features = self.text(text, embeddings, shared or None)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled cosine similarities of every image with every text.

        Args:
            image: preprocessed, (N, 3, H, W).
            text: token ids, (M, L).

        Returns:
            logits_per_image (N, M) and logits_per_text (M, N), float32 whatever the model's dtype,
            under autocast too. A softmax over the last axis gives probabilities.

        Raises:
            ImageError, TokenizerError: as `encode_image` and `encode_text`.
            ConfigError: if the features are of different widths, as after a change of a tower.
        """
        image_features = self.encode_image(image)
        text_features = self.encode_text(text)
        logits_per_image = scaled_cosines(image_features, text_features, self.logit_scale)
        return logits_per_image, logits_per_image.T

    def train(self, mode: bool = True) -> "Self":
        """Set the mode of all modules, but for batch norms where low-rank changes are trained.

        Their statistics are no low-rank change, and would drift.
        """
        super().train(mode)
        if mode and has_changes(self):
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def check_original(self, verb: str) -> None:
        """Raise `ConfigError` for a copy from `optimize`, which cannot do what `verb` says."""
        if self.is_optimized:
            done = ", ".join(self.optimizations) or "unchanged on this device"
            raise ConfigError(f"this is an inference-only copy ({done}): {verb} the model it is of")

    def __getattr__(self, name: str) -> Any:
        """Say where a name of OpenAI's is, if there is no such attribute."""
        if name in MODEL:
            raise moved("a clipkit model", name, MODEL)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a name of OpenAI's that nothing here would look at."""
        if name in MODEL:
            raise moved("a clipkit model", name, MODEL)
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Self":
        """Move or cast the weights: `to`, `half`, `cuda` and the like all come through here."""
        if not any(type(weight) is PackedWeight for weight in self.parameters()):
            return super()._apply(fn, recurse)
        weight = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if (weight.device, weight.dtype) != (self.device, self.dtype):
            raise ConfigError(
                f"packed weights stay {self.dtype} on the CPU: move or cast the model it is of"
            )
        return self


@torch.fx.wrap  # a symbolic trace records no contexts, so it is to call this as a whole
def scaled_cosines(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """Return the cosines of all pairs times exp(logit_scale), (N, M) float32, without autocast.

    Args:
        image_features: (N, D).
        text_features: (M, D).
        logit_scale: ().

    Raises:
        ConfigError: if the features are of different widths.
    """
    if image_features.shape[-1] != text_features.shape[-1]:
        raise ConfigError(
            f"image features of width {image_features.shape[-1]} cannot be compared with text "
            f"features of width {text_features.shape[-1]}: a projection was taken away or replaced"
        )
    with torch.autocast(image_features.device.type, enabled=False):
        image_features = F.normalize(image_features.float(), dim=-1)
        text_features = F.normalize(text_features.float(), dim=-1)
        return logit_scale.float().exp() * image_features @ text_features.T
