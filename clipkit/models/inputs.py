"""Check what the encoders are given, before a kernel fails on it and explains nothing."""

import torch
from torch import Tensor

from clipkit.config import CLIPConfig, TextConfig
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.models.kernels import values_are_known


def check_config(config: object) -> None:
    """Raise `ConfigError` unless this is a `CLIPConfig`, from which a model can be built."""
    if not isinstance(config, CLIPConfig):
        raise ConfigError(
            f"a CLIP is built from a clipkit.CLIPConfig, not {_describe(config)}: "
            "CLIP.from_pretrained(name) loads one"
        )


def check_images(image: object, resolution: tuple[int, int]) -> None:
    """Raise `ImageError` unless `image` is floating and of shape (N, 3, height, width).

    Args:
        image: what `encode_image` was given.
        resolution: (height, width) in pixels.
    """
    height, width = resolution
    needed = f"encode_image needs a float tensor of shape (N, 3, {height}, {width}), not "
    if not isinstance(image, Tensor):
        raise ImageError(
            f"{needed}{_describe(image)}: model.embed_images([...]) takes paths and images, and "
            "model.preprocess(image) makes one of them a tensor"
        )
    has_shape = image.ndim == 4 and image.shape[1:] == (3, height, width)
    if not has_shape or not image.is_floating_point():
        raise ImageError(
            f"{needed}{image.dtype} of {tuple(image.shape)}: pass images through model.preprocess, "
            "and add the batch axis by unsqueeze(0)"
        )


def check_tokens(text: object, config: TextConfig) -> None:
    """Raise `TokenizerError` unless `text` holds token ids that a text tower can read.

    The ids themselves are not looked at while a graph is recorded.

    Args:
        text: what `encode_text` was given.
        config: of the tower.
    """
    length = config.context_length
    needed = f"encode_text needs int64 or int32 token ids of shape (N, 1 to {length}), not "
    if not isinstance(text, Tensor):
        raise TokenizerError(
            f"{needed}{_describe(text)}: model.embed_texts([...]) takes texts, and "
            "model.tokenizer(texts) makes token ids of them"
        )
    has_shape = text.ndim == 2 and 1 <= text.shape[1] <= length
    if not has_shape or text.dtype not in (torch.int64, torch.int32):
        raise TokenizerError(
            f"{needed}{text.dtype} of {tuple(text.shape)}: make them with model.tokenizer(texts)"
        )
    if text.shape[0] > 0 and values_are_known(text):
        _check_ids(text, config)


def _check_ids(text: Tensor, config: TextConfig) -> None:
    """Raise `TokenizerError` for ids that the model does not know, and for rows without an end."""
    low, high = (int(bound) for bound in text.aminmax())
    last = config.vocab_size - 1
    if low < 0 or high > last:  # on CUDA the look-up would kill the process
        raise TokenizerError(
            f"token ids run from {low} to {high}, but this model knows 0 to {last}: use "
            "the tokenizer that belongs to it, model.tokenizer"
        )
    if config.end_of_text is None:
        return
    has_end = (text == config.end_of_text).any(dim=1)  # (N,)
    if not bool(has_end.all()):
        row = int(has_end.int().argmin())
        raise TokenizerError(
            f"row {row} of the token ids has no end of text, which is {config.end_of_text} in this "
            "model: make them with model.tokenizer(texts)"
        )


def _describe(value: object) -> str:
    """Return the type of a value, and the beginning of how it prints."""
    shown = " ".join(repr(value)[:60].split())
    return f"{type(value).__name__} {shown}"
