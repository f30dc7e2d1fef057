"""Check what the encoders are given, before a kernel fails on it and explains nothing."""

import torch
from torch import Tensor

from clipkit.errors import ImageError, TokenizerError
from clipkit.models.kernels import values_are_known


def check_images(image: Tensor, resolution: tuple[int, int]) -> None:
    """Raise `ImageError` unless `image` is floating and of shape (N, 3, height, width).

    Args:
        image: what `encode_image` was given.
        resolution: (height, width) in pixels.
    """
    height, width = resolution
    has_shape = image.ndim == 4 and image.shape[1:] == (3, height, width)
    if not has_shape or not image.is_floating_point():
        raise ImageError(
            f"encode_image needs a float tensor of shape (N, 3, {height}, {width}), not "
            f"{image.dtype} of {tuple(image.shape)}: pass images through model.preprocess, and add "
            "the batch axis by unsqueeze(0)"
        )


def check_tokens(text: Tensor, context_length: int, vocab_size: int) -> None:
    """Raise `TokenizerError` unless `text` holds token ids of shape (N, 1 to `context_length`).

    The ids themselves are not looked at while a graph is recorded.

    Args:
        text: what `encode_text` was given.
        context_length: length of the longest row.
        vocab_size: how many tokens there are.
    """
    has_shape = text.ndim == 2 and 1 <= text.shape[1] <= context_length
    if not has_shape or text.dtype not in (torch.int64, torch.int32):
        raise TokenizerError(
            f"encode_text needs int64 or int32 token ids of shape (N, 1 to {context_length}), not "
            f"{text.dtype} of {tuple(text.shape)}: make them with model.tokenizer(texts)"
        )
    if text.shape[0] == 0 or not values_are_known(text):
        return
    low, high = (int(bound) for bound in text.aminmax())
    if low < 0 or high >= vocab_size:  # on CUDA the look-up would kill the process
        raise TokenizerError(
            f"token ids run from {low} to {high}, but this model knows 0 to {vocab_size - 1}: use "
            "the tokenizer that belongs to it, model.tokenizer"
        )
