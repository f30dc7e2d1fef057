"""CLIP: an image tower, a text tower and a learned temperature (2103.00020)."""

import math
import os
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.models.kernels import recording
from clipkit.models.optimize import check_original
from clipkit.models.resnet import ModifiedResNet
from clipkit.models.text_transformer import TextTransformer
from clipkit.models.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clipkit.preprocess import Preprocess
    from clipkit.tokenizer import Tokenizer


STACK = ("width", "layers", "heads", "mlp_width", "activation")  # what each transformer is made of


def _arguments(config: Any, *names: str) -> dict[str, Any]:
    """Arguments of a tower, which configs have under the same names."""
    return {name: getattr(config, name) for name in names}


def build_visual(config: ViTConfig | ResNetConfig, embed_dim: int) -> VisionTransformer | ModifiedResNet:
    """The image tower that a config describes."""
    if isinstance(config, ResNetConfig):
        return ModifiedResNet(**_arguments(config, "resolution", "layers", "width", "heads"), output_dim=embed_dim)
    return VisionTransformer(**_arguments(config, "resolution", "patch_size", *STACK), output_dim=embed_dim)


def build_text(config: TextConfig, embed_dim: int) -> TextTransformer:
    """The text tower that a config describes."""
    return TextTransformer(**_arguments(config, "context_length", "vocab_size", *STACK), output_dim=embed_dim)


class CLIP(nn.Module):
    """Both towers and the temperature. Images and texts become vectors of one space of width D = `config.embed_dim`.

    Args:
        config: what to build; weights are initialised as in the paper (load published ones with `from_pretrained`).
        tokenizer: the one that belongs to the weights; the standard one if not given.
    """

    def __init__(self, config: CLIPConfig, tokenizer: "Tokenizer | None" = None) -> None:
        super().__init__()
        self.config = config
        self.visual = build_visual(config.vision, config.embed_dim)
        self.text = build_text(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # the paper's initial temperature
        self._tokenizer = tokenizer
        self._preprocess: Preprocess | None = None
        self.optimizations: tuple[str, ...] = ()  # what `optimize` did to this copy

    @classmethod
    def from_pretrained(cls, name_or_path: "str | os.PathLike[str]", **options: Any) -> "CLIP":
        """Load a checkpoint in eval mode. See `clipkit.load` for names, layouts, options and errors."""
        from clipkit.loading import load_model

        return load_model(name_or_path, **options)

    def save_pretrained(self, folder: "str | os.PathLike[str]", **options: Any) -> None:
        """Write weights, config and tokenizer into a folder. See `clipkit.loading.save_pretrained`."""
        from clipkit.loading import save_pretrained

        save_pretrained(self, folder, **options)

    def optimize(self, *, compile: bool = False) -> "CLIP":
        """A copy for inference alone, which does less for the same features, to float noise.

        A ResNet's batch norms are folded into its convolutions, channels come last in memory, and on a CPU a large
        batch goes through in parts, which hooks see. On a CPU where oneDNN computes the linear layers (bfloat16
        weights, and float32 on AMD), their weights are put in its own order, and the activation of an MLP is computed
        with its first layer.

        Args:
            compile: let torch.compile loose on the image tower, on CUDA with CUDA graphs, and pack no weights, which
                gains more on a CPU. The first batch of each size takes a minute or so.

        Returns:
            The copy; `optimizations` says what was done to it. It cannot be saved, exported or optimized again, and
            with packed weights it has no gradients, takes no autocast, and stays as it is in device and dtype.
        """
        from clipkit.models.optimize import optimize

        return optimize(self, compile)

    def embed_images(self, images: Any, **options: Any) -> Tensor:
        """Normalised features of pictures, (N, D) float32 on the CPU. See `clipkit.features.embed_images`."""
        from clipkit.features import embed_images

        return embed_images(self, images, **options)

    def embed_texts(self, texts: "Sequence[str]", **options: Any) -> Tensor:
        """Normalised features of texts, (N, D) float32. See `clipkit.features.embed_texts`."""
        from clipkit.features import embed_texts

        return embed_texts(self, texts, **options)

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer that belongs to the weights, built at first use."""
        if self._tokenizer is None:
            from clipkit.tokenizer import Tokenizer

            tokenizer = Tokenizer(context_length=self.context_length)
            if tokenizer.vocab_size != self.vocab_size:
                raise ConfigError(
                    f"the model has {self.vocab_size} tokens and the standard tokenizer {tokenizer.vocab_size}: "
                    "give CLIP the tokenizer that belongs to its weights"
                )
            self._tokenizer = tokenizer
        self._preprocess: Preprocess | None = None
        return self._tokenizer

    @property
    def preprocess(self) -> "Preprocess":
        """The preprocessing that belongs to the weights; set another, and whatever embeds pictures takes that.

        It is not saved with the model.
        """
        from clipkit.preprocess import Preprocess

        return self._preprocess or Preprocess(self.config.vision.resolution, self.config.preprocess)

    @preprocess.setter
    def preprocess(self, preprocess: "Preprocess") -> None:
        if not callable(preprocess):
            raise ConfigError(f"a model's preprocess is a Preprocess, not {preprocess!r}")
        self._preprocess = preprocess

    def load_state_dict(self, state_dict: "Mapping[str, Any]", strict: bool = True, assign: bool = False) -> Any:
        """As of any module; an inference-only copy raises `ConfigError`, for its weights are others."""
        check_original(self, "load weights into")
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Any, recurse: bool = True) -> "CLIP":
        """What moves and casts a module comes through here."""
        if not any(weight.is_mkldnn for weight in self.parameters()):
            return super()._apply(fn, recurse)
        moved = fn(torch.empty(0, dtype=self.dtype))
        if (moved.device, moved.dtype) != (self.device, self.dtype):
            raise ConfigError(
                f"packed weights stay {self.dtype} on the CPU: move or cast the model that this is a copy of, and "
                "optimize that"
            )
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.visual.parameters(), self.logit_scale).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.visual.parameters(), self.logit_scale).device

    @property
    def context_length(self) -> int:
        """The longest row of token ids, start and end included."""
        return self.config.text.context_length

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.config.text.vocab_size

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Image features.

        Args:
            images: preprocessed, (N, 3, H, W), any float dtype, any device.
            normalize: scale each feature to unit length.

        Returns:
            (N, D), on the model's device and in its dtype.

        Raises:
            ImageError: for any other shape or an integer dtype.
        """
        height, width = self.visual.resolution
        if images.ndim != 4 or images.shape[1:] != (3, height, width) or not images.is_floating_point():
            raise ImageError(
                f"encode_image needs a float tensor of shape (N, 3, {height}, {width}), not {images.dtype} of "
                f"{tuple(images.shape)}: pass pictures through model.preprocess, and add the batch axis by unsqueeze(0)"
            )
        features = self.visual(images.to(self.device, self.dtype))
        if normalize:
            return F.normalize(features, dim=-1)
        return features.clone() if self.optimizations else features  # a CUDA graph writes its next result over this one

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Text features, read at each row's end-of-text token; what follows it has no influence.

        Args:
            tokens: ids from the model's tokenizer, (N, L) int64 or int32, L at most `context_length`, any device.
            normalize: scale each feature to unit length.

        Returns:
            (N, D), on the model's device and in its dtype.

        Raises:
            TokenizerError: for any other shape or dtype, or ids outside the vocabulary (not looked at while a graph is
                recorded).
        """
        integers = tokens.dtype in (torch.int64, torch.int32)
        if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= self.context_length or not integers:
            raise TokenizerError(
                f"encode_text needs int64 or int32 token ids of shape (N, 1 to {self.context_length}), not "
                f"{tokens.dtype} of {tuple(tokens.shape)}: make them with model.tokenizer(texts)"
            )
        if not recording() and tokens.shape[0]:  # on CUDA an id out of range would kill the process
            low, high = (int(bound) for bound in tokens.aminmax())
            if low < 0 or high >= self.vocab_size:
                raise TokenizerError(
                    f"token ids run from {low} to {high}, but this model knows 0 to {self.vocab_size - 1}: "
                    "use the tokenizer that belongs to it, model.tokenizer"
                )
        features = self.text(tokens)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosine similarities of every image with every text, in float32.

        Args:
            images: preprocessed, (N, 3, H, W).
            tokens: ids, (M, L).

        Returns:
            logits_per_image (N, M) and logits_per_text (M, N); a softmax over the last axis gives probabilities.
        """
        image_features, text_features = self.encode_image(images), self.encode_text(tokens)
        with torch.autocast(self.device.type, enabled=False):
            image_features = F.normalize(image_features.float(), dim=-1)
            text_features = F.normalize(text_features.float(), dim=-1)
            logits_per_image = self.logit_scale.float().exp() * image_features @ text_features.T  # (N, M)
        return logits_per_image, logits_per_image.T
