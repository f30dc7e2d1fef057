"""Encode many images or texts: in batches, with worker processes and a progress bar."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clipkit.data.pictures import ImageBatch, Images, ImageSet, Transform
from clipkit.data.views import Views, check_views
from clipkit.encode.eval_view import eval_view
from clipkit.errors import ConfigError, ImageError
from clipkit.plurals import number_of_classes
from clipkit.tokenizer import Tokenizer
from clipkit.words import check_texts

# The more texts there are in a batch, the more prefixes they share. The text tower bounds the
# memory by itself.
TEXT_BATCH = 4096

Precision: TypeAlias = Literal["bfloat16", "float16", "float32"]
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class EncodesImages(Protocol):
    """Describe a model that encodes images and knows how to prepare them."""

    @property
    def preprocess(self) -> Transform: ...

    def encode_image(self, image: Tensor, /) -> Tensor:
        """Turn (N, 3, H, W) into (N, D)."""
        ...


class EncodesTexts(Protocol):
    """Describe a model that encodes texts and has a tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def encode_text(self, text: Tensor, /) -> Tensor:
        """Turn token ids (N, L) into (N, D)."""
        ...


# A module that has no `encode_image` maps (N, 3, H, W) to (N, D) itself.
ImageModel: TypeAlias = EncodesImages | nn.Module


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Hold the features of M images, in the order in which the images were given.

    Attributes:
        features: (M, D) float32, on the CPU.
        labels: (M,) int64, or None where no integers came with the images.
        paths: the path of each of the M images, or the index of one that has no path. Row i of
            `features` belongs to `paths[i]`.
        skipped: path or index of each image that could not be read, and why. They have no row.
        class_names: the names of each label, if they are of a data set that has names for them;
            see `classes_of`.
    """

    features: Tensor
    labels: Tensor | None
    paths: list[str]
    skipped: list[tuple[str, str]]
    class_names: dict[int, list[str]] | None = None

    def __len__(self) -> int:
        """Return the number of rows, M."""
        return len(self.paths)

    def __repr__(self) -> str:
        parts = [" x ".join(map(str, self.features.shape))]
        if self.labels is not None:
            classes = cast("list[int]", self.labels.unique().tolist())
            parts.append(f"labels: {number_of_classes(len(classes))}")
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
        return f"Features({', '.join(parts)})"


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
            if part.skipped:
                name, problem = part.skipped[0]
                raise ImageError(problem if name in problem else f"image {name}: {problem}")
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
    model = eval_view(model)
    parts: list[Tensor] = []
    for start in range(0, len(strings), TEXT_BATCH):
        tokens = model.tokenizer(strings[start : start + TEXT_BATCH], truncate=truncate)
        with torch.no_grad():
            features = model.encode_text(tokens)
        parts.append(F.normalize(features.float(), dim=-1))
    return torch.cat(parts).cpu()


def join(parts: Sequence[Features]) -> Features:
    """Return the parts one after the other. Labels of some of the rows alone are left out."""
    # A part in which all is skipped has neither a width nor labels.
    sound = [part for part in parts if part.paths]
    labels = [part.labels for part in sound if part.labels is not None]
    return Features(
        features=torch.cat([part.features for part in sound]) if sound else _no_features(),
        labels=torch.cat(labels) if sound and len(labels) == len(sound) else None,
        paths=[path for part in parts for path in part.paths],
        skipped=[problem for part in parts for problem in part.skipped],
    )


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


def image_tower(model: ImageModel) -> nn.Module | None:
    """Return the module that computes the features of images, if the model has one or is one."""
    tower = getattr(model, "visual", model)
    return tower if isinstance(tower, nn.Module) else None


def autocast_around(device: torch.device) -> dict[str, str]:
    """Return the dtype of an autocast that is on around the call, by name; nothing without one.

    Example:
        with torch.autocast("cpu", torch.bfloat16):
            autocast_around(torch.device("cpu"))  # {"autocast": "torch.bfloat16"}
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return {}
    return {"autocast": str(torch.get_autocast_dtype(kind))}


class ImageEncoder:
    """Turn batches of prepared images into features, by a model in eval mode.

    Args:
        model, precision, normalize: as in `extract_features`.

    Attributes:
        device: where the model computes.

    Raises:
        ConfigError: if the weights cannot be used in this precision.
    """

    def __init__(
        self, model: ImageModel, *, precision: Precision | None = None, normalize: bool = True
    ) -> None:
        tower = image_tower(model)
        none = torch.empty(0, dtype=torch.float32, device="cpu")
        weight = none if tower is None else next(tower.parameters(), none)
        _check_precision(precision, weight.dtype)
        view: Any = eval_view(model)
        self.device = weight.device
        self._dtype = weight.dtype
        self._encode: Callable[[Tensor], object] = getattr(view, "encode_image", view)
        self._precision = precision
        self._normalize = normalize

    def __call__(self, images: Tensor) -> Tensor:
        """Turn (n, 3, H, W), or (n, V, 3, H, W) with V views of each, into (n, D) float32.

        They come on the CPU.

        Raises:
            ConfigError: if the model makes anything else of them.
        """
        if images.ndim == 5:
            return self._average(images)
        is_cuda = self.device.type == "cuda"  # its copies run beside the arithmetic
        images = images.to(self.device, non_blocking=is_cuda).to(self._dtype)
        with torch.no_grad(), self._autocast():
            features = self._encode(images)
        features = _check_features(features, len(images)).float()
        return (F.normalize(features, dim=-1) if self._normalize else features).cpu()

    def _average(self, images: Tensor) -> Tensor:
        """Return the mean feature of the views of each image, (n, V, 3, H, W) -> (n, D)."""
        # One view after the other, so that the memory is that of a batch of images.
        mean = torch.stack([self(view) for view in images.unbind(dim=1)]).mean(dim=0)
        return F.normalize(mean, dim=-1) if self._normalize else mean

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision is None:
            return nullcontext()  # an autocast around the call stays as it is
        half = _HALVES.get(self._precision)
        return torch.autocast(self.device.type, half, enabled=half is not None)


def encode_batches(
    encode: ImageEncoder,
    image_set: ImageSet,
    chunks: Sequence[tuple[int, int]],
    *,
    progress: bool = False,
    done: int = 0,
) -> Generator[Features, None, None]:
    """Yield the features of each batch of some chunks of the images.

    Args:
        encode: turns prepared images into features.
        image_set: the images.
        chunks: those to encode.
        progress: whether to show a bar.
        done: images of the same work that were encoded before, for the bar.
    """
    from tqdm import tqdm

    batches = [list(batch) for chunk in chunks for batch in image_set.chunks[chunk]]
    loader = DataLoader(
        image_set,
        batch_sampler=batches,
        num_workers=image_set.workers,
        collate_fn=image_set.collate,
        pin_memory=encode.device.type == "cuda",
    )
    total = done + sum(map(len, batches))
    with tqdm(total=total, initial=done, unit="image", disable=not progress) as bar:
        for batch in _on_cpu(cast("Iterable[ImageBatch]", loader)):  # torch types it by the item
            bar.update(len(batch.names) + len(batch.skipped))
            features = _no_features() if batch.images is None else encode(batch.images)
            yield Features(features, batch.labels, batch.names, batch.skipped)


def _on_cpu(loader: Iterable[ImageBatch]) -> Iterator[ImageBatch]:
    """Yield the batches of a DataLoader, which makes tensors on the default device of torch."""
    with torch.device("cpu"):
        batches = iter(loader)
    while True:
        with torch.device("cpu"):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _no_features() -> Tensor:
    """Return the features of no image, (0, 0), wherever torch puts new tensors by default."""
    return torch.empty(0, 0, dtype=torch.float32, device="cpu")


def _check_precision(precision: Precision | None, dtype: torch.dtype) -> None:
    if precision is None or precision in _HALVES:
        return
    if precision != "float32" or dtype != torch.float32:
        raise ConfigError(
            "precision must be None, bfloat16, float16 or, of float32 weights, float32; "
            f"not {precision}"
        )


def _check_features(features: object, count: int) -> Tensor:
    """Return a model's features of `count` images, or raise `ConfigError` if not (count, D)."""
    if isinstance(features, Tensor) and features.ndim == 2 and len(features) == count:
        return features
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    raise ConfigError(
        f"of {count} images a model must make ({count}, D), not {type(features).__name__} {shape}"
    )
