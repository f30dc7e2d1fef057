"""Encode many images or texts, in batches and with a progress bar."""

from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit.data.pictures import Images, ImageSet, Transform
from clipkit.data.views import Views, check_views
from clipkit.encode.batches import encode_batches
from clipkit.encode.eval_view import eval_view
from clipkit.encode.features import Features, join, refuse_skipped
from clipkit.encode.image_encoder import ImageEncoder, ImageModel, Precision
from clipkit.errors import ConfigError
from clipkit.tokenizer import Tokenizer
from clipkit.words import check_texts

# The more texts there are in a batch, the more prefixes they share. The text tower bounds the
# memory by itself.
TEXT_BATCH = 4096


class EncodesTexts(Protocol):
    """Describe a model that encodes texts and has a tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def encode_text(self, text: Tensor, /) -> Tensor:
        """Turn token ids (N, L) into (N, D)."""
        ...


def embed_images(
    model: ImageModel,
    images: Images,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
    views: int = 1,
) -> Tensor:
    """Return the normalized features of images, each of which must be readable.

    The model's modes and statistics stay as they are, also while it encodes. Each process encodes
    all images by itself. To leave out images that cannot be read, use `extract_features`.

    Args:
        model: what encodes, with a preprocessing of its own.
        images: as in `extract_features`.
        batch_size, workers, progress: as in `extract_features`.
        views: how often an image is seen, always in the same ways: 1 as it is; 2 with its mirror
            image; 10 in its four corners and its middle, and their mirror images. The features of
            the views are averaged, and scaled to unit length again.

    Returns:
        (N, D) float32 on the CPU, each of unit length, in the order of the images; those of a
        folder come in the order of `list_images(folder)`.

    Raises:
        ConfigError: if there are none, or `views` is another number, or above 1 for a DataLoader,
            which prepares images by itself.
        DataError: if there is no such folder.
        ImageError: if one cannot be read. The message names it.

    Example:
        similarity = embed_images(model, ["cat.jpg"]) @ embed_texts(model, ["a cat"]).T
    """
    stream = stream_features(
        model, images, batch_size=batch_size, workers=workers, progress=progress, views=views
    )
    parts: list[Features] = []
    with closing(stream):  # its worker processes end when an error does
        for part in stream:
            refuse_skipped(part.skipped)
            parts.append(part)
    return join(parts).features


def stream_features(
    model: ImageModel,
    images: Images,
    *,
    transform: Transform | None = None,
    batch_size: int = 64,
    workers: int = 0,
    precision: Precision | None = None,
    normalize: bool = True,
    progress: bool = False,
    views: int = 1,
) -> Generator[Features, None, None]:
    """Yield the features of each batch as soon as it is encoded.

    Images that cannot be read are left out and named in `Features.skipped`.

    Args:
        model, images, transform, batch_size, workers, precision, normalize, progress: as in
            `extract_features`.
        views: as in `embed_images`.

    Raises:
        ConfigError, DataError: if there are no images, or no such folder, or arguments do not fit.

    Example:
        for part in stream_features(model, "photos"):
            print(part.paths, part.features.shape)
    """
    encode = ImageEncoder(model, precision=precision, normalize=normalize)
    image_set = prepare_images(model, images, transform, batch_size, workers, views)
    return encode_batches(encode, image_set, list(image_set.chunks), progress=progress)


def embed_texts(model: EncodesTexts, texts: Iterable[str], *, truncate: bool = False) -> Tensor:
    """Return the normalized features of texts, without a gradient.

    Args:
        model: what encodes, with a tokenizer.
        texts: N strings: a list, a column of a table, a generator and the like, in the order in
            which they are iterated.
        truncate: cut texts that are too long, in place of an error.

    Returns:
        (N, D) float32 on the CPU, each of unit length.

    Raises:
        ConfigError: if there are none, or one that is not in a list.
        TokenizerError: if one is no string, or is too long, unless `truncate`.

    Example:
        features = embed_texts(model, ["a photo of a cat", "a photo of a dog"])
    """
    if isinstance(texts, str):
        shown = texts if len(texts) <= 60 else texts[:57] + "..."
        raise ConfigError(
            f"embed_texts takes a list of texts. A single one goes in it: [{shown!r}]"
        )
    strings = check_texts(texts)
    if not strings:
        raise ConfigError("embed_texts needs at least one text, and there is none")
    tokenizer, view = model.tokenizer, eval_view(model)
    parts: list[Tensor] = []
    for start in range(0, len(strings), TEXT_BATCH):
        tokens = tokenizer(strings[start : start + TEXT_BATCH], truncate=truncate)
        with torch.no_grad():
            features = view.encode_text(tokens)
        parts.append(F.normalize(features.float(), dim=-1))
    return torch.cat(parts).cpu()


def prepare_images(
    model: ImageModel,
    images: Images,
    transform: Transform | None,
    batch_size: int,
    workers: int,
    views: int = 1,
) -> ImageSet:
    """Return the images with a transform: the given one, or else the model's own preprocessing.

    A DataLoader prepares images by itself.

    Raises:
        ConfigError: if there is no transform, or `views` is impossible.
        ConfigError, DataError: as `ImageSet`.
    """
    check_views(views)
    given: object = images
    if transform is None and not isinstance(given, DataLoader):
        transform = getattr(model, "preprocess", None)
        if transform is None:
            raise ConfigError(
                f"{type(model).__name__} has no preprocessing of its own: give its transform"
            )
    image_set = ImageSet(images, transform, batch_size, workers)
    if views > 1:
        if image_set.transform is None:
            raise ConfigError(
                f"views={views} prepares images in several ways, and a DataLoader gives them "
                "prepared: pass its data set, or leave views out"
            )
        image_set.transform = Views(image_set.transform, views)
    return image_set


def prepare_batch(model: ImageModel, images: Images, most: int | None = None) -> Tensor:
    """Return images as the model's preprocessing prepares them, in one tensor.

    Args:
        model, images: as in `embed_images`.
        most: of more images so many are taken, at even distances.

    Returns:
        (N, 3, H, W) on the CPU, of the preprocessing's dtype, with its gradients if it has any.

    Raises:
        ConfigError, DataError, ImageError: as `embed_images`.
    """
    image_set = prepare_images(model, images, None, batch_size=1, workers=0)
    order = image_set.order
    step = 1 if most is None else -(-len(order) // most)
    batch = image_set.collate([image_set[index] for index in order[::step]])
    refuse_skipped(batch.skipped)
    assert batch.images is not None  # nothing was skipped, and an image set is never empty
    return batch.images
