"""Check what the encoders are given, before a kernel fails on it and explains nothing."""

from typing import Protocol

import torch
from torch import Tensor
from torch.fx import Proxy

from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.models.kernels import values_are_known


class TextSizes(Protocol):
    """Know which rows of token ids a text tower can read. Its config does, and so does the tower.

    Attributes:
        context_length: the length of the longest row.
        vocab_size: how many ids there are.
        end_of_text: the id at which a row ends; None for its highest id.
    """

    @property
    def context_length(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def end_of_text(self) -> int | None: ...


def check_config(config: object) -> None:
    """Raise `ConfigError` unless this is a `CLIPConfig`, from which a model can be built."""
    if not isinstance(config, CLIPConfig):
        raise ConfigError(
            f"a CLIP is built from a clipkit.CLIPConfig, not {_describe(config)}: "
            "CLIP.from_pretrained(name) loads one"
        )


def check_images(image: object, resolution: tuple[int, int], caller: str = "encode_image") -> None:
    """Raise `ImageError` unless `image` is floating and of shape (N, 3, height, width).

    Args:
        image: what the caller was given.
        resolution: (height, width) in pixels.
        caller: the function's name, for the message.
    """
    height, width = resolution
    needed = f"{caller} needs a float tensor of shape (N, 3, {height}, {width}), not "
    if isinstance(image, Proxy):  # in a symbolic trace there is nothing to check
        return
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


def check_tokens(text: object, sizes: TextSizes, caller: str = "encode_text") -> None:
    """Raise `TokenizerError` unless `text` holds token ids that a text tower can read.

    The ids themselves are not looked at while a graph is recorded.

    Args:
        text: what the caller was given.
        sizes: of the tower.
        caller: the function's name, for the message.
    """
    length = sizes.context_length
    needed = f"{caller} needs int64 or int32 token ids of shape (N, 1 to {length}), not "
    if isinstance(text, Proxy):
        return
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
        _check_ids(text, sizes)


def check_embeddings(embeddings: object, text: Tensor, width: int, caller: str) -> None:
    """Raise `TokenizerError` unless there is a float embedding for each token id.

    Args:
        embeddings: what the caller was given, (N, L, width).
        text: the ids, (N, L).
        width: W of the tower.
        caller: the function's name, for the message.
    """
    if isinstance(embeddings, Proxy) or isinstance(text, Proxy):
        return
    needed = (
        f"{caller} needs float embeddings of shape {(*text.shape, width)}, one for each token id, "
    )
    if not isinstance(embeddings, Tensor):
        raise TokenizerError(f"{needed}not {_describe(embeddings)}")
    if embeddings.shape != (*text.shape, width) or not embeddings.is_floating_point():
        raise TokenizerError(
            f"{needed}not {embeddings.dtype} of {tuple(embeddings.shape)}: begin with "
            "model.text.token_embedding(ids)"
        )


def check_shared(shared: object, embeddings: Tensor | None) -> None:
    """Raise `TokenizerError` unless all rows have so many embeddings in common.

    Args:
        shared: how many, at the beginning of each row.
        embeddings: (N, L, W); None if there are none.
    """
    if isinstance(shared, Proxy) or isinstance(embeddings, Proxy):
        return
    if type(shared) is not int or shared < 0:
        raise TokenizerError(f"shared must be a number of embeddings, from 0, not {shared!r}")
    if shared == 0:
        return
    if embeddings is None:
        raise TokenizerError("shared is of embeddings: ids that rows share are found by themselves")
    if shared > embeddings.shape[1]:
        raise TokenizerError(f"rows of {embeddings.shape[1]} embeddings cannot share {shared}")
    begin = embeddings.detach()[:, :shared]
    if values_are_known(begin) and not torch.equal(begin, begin[:1].expand_as(begin)):
        raise TokenizerError(
            f"the rows differ in their first {shared} embeddings: share fewer, or leave out shared"
        )


def _check_ids(text: Tensor, sizes: TextSizes) -> None:
    """Raise `TokenizerError` for ids that the model does not know, and for rows without an end."""
    low, high = (int(bound) for bound in text.aminmax())
    last = sizes.vocab_size - 1
    if low < 0 or high > last:  # on CUDA the look-up would kill the process
        raise TokenizerError(
            f"token ids run from {low} to {high}, but this model knows 0 to {last}: use "
            "the tokenizer that belongs to it, model.tokenizer"
        )
    if sizes.end_of_text is None:
        return
    has_end = (text == sizes.end_of_text).any(dim=1)  # (N,)
    if not bool(has_end.all()):
        row = int(has_end.int().argmin())
        raise TokenizerError(
            f"row {row} of the token ids has no end of text, which is {sizes.end_of_text} in this "
            "model: make them with model.tokenizer(texts)"
        )


def _describe(value: object) -> str:
    """Return the type of a value, and the beginning of how it prints."""
    shown = " ".join(repr(value)[:60].split())
    return f"{type(value).__name__} {shown}"
