"""Encode the queries and images of an index by a CLIP."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from clipkit.clip import CLIP
from clipkit.data.pictures import ImageSet, Transform
from clipkit.encode.embed import EncodesTexts, embed_images, embed_texts
from clipkit.encode.image_encoder import EncodesImages, ImageEncoder
from clipkit.errors import ConfigError, ImageError, TokenizerError
from clipkit.search.store import Floats


class EncodesBoth(EncodesImages, EncodesTexts, Protocol):
    """Describe a model that encodes both images and texts."""


SearchModel: TypeAlias = CLIP | EncodesBoth


class TextEncoder:
    """Turn texts into features of unit length, float32 NumPy arrays.

    Args:
        model: a `TextTower`, or whatever encodes texts.

    Example:
        TextEncoder(model).texts(["a cat", "a dog"])  # (2, D)
    """

    def __init__(self, model: EncodesTexts) -> None:
        self._model = model

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return the features of texts, (n, D).

        Raises:
            TokenizerError: if one is too long.
        """
        try:
            return embed_texts(self._model, texts).numpy()
        except TokenizerError as error:
            problem = str(error).replace(", or pass truncate=True to cut it", "")
            raise TokenizerError(f"the query cannot be used: {problem}") from error


class ModelEncoder:
    """Turn texts and images into features of unit length, float32 NumPy arrays.

    Args:
        model: a CLIP, or whatever encodes as one does.

    Attributes:
        model: as above.

    Raises:
        ConfigError: if the model does not encode images.

    Example:
        ModelEncoder(model).texts(["a cat", "a dog"])  # (2, D)
    """

    def __init__(self, model: SearchModel) -> None:
        given: object = model
        if not hasattr(given, "encode_image"):
            raise ConfigError(
                f"model must be a CLIP, not {given!r:.99}: load one by "
                'clipkit.CLIP.from_pretrained("ViT-B/32")'
            )
        self.model = model
        self._encode = ImageEncoder(model)

    @property
    def takes_threads(self) -> bool:
        """Return whether several threads may encode at once."""
        return self._encode.takes_threads

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return the features of texts, (n, D)."""
        return TextEncoder(self.model).texts(texts)

    def images(self, images: Sequence[Any]) -> Floats:
        """Return the features of images, (n, D): paths, PIL images or the bytes of files."""
        return embed_images(self.model, list(images)).numpy()

    def prepare(self, content: bytes) -> Tensor:
        """Return an image as the tower takes it, (3, H, W), from the bytes of a file.

        Raises:
            ImageError: if it cannot be read.
        """
        transform: Transform = self.model.preprocess
        item = ImageSet([content], transform)[0]
        if item.problem:
            raise ImageError(item.problem)
        return item.sample

    def encode(self, prepared: Sequence[Tensor]) -> Floats:
        """Return the features of prepared images, (n, D)."""
        features = self._encode(torch.stack(list(prepared)))
        return np.ascontiguousarray(features.numpy())
