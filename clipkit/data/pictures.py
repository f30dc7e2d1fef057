"""Read images by index, from a folder, a list, a data set or a DataLoader."""

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, uint8
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    default_collate,  # pyright: ignore[reportUnknownVariableType]
)

from clipkit.data.arrays import is_array_image
from clipkit.data.decode import Readable, image_suffixes, is_encoded, read_image
from clipkit.data.folders import list_images
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.fields import read_count

if TYPE_CHECKING:
    from PIL.Image import Image

# What gives images: a folder, with the folders in it; a list, a column of a table, a set, a
# generator or a data set of paths, PIL images, files' bytes, NumPy images or tensors, or of tuples
# (image, label, ...) or mappings with "image" and "label"; an array of NumPy images (N, h, w, 3);
# or a DataLoader of prepared batches.
Images: TypeAlias = "str | os.PathLike[str] | Iterable[Any] | Dataset[Any] | DataLoader[Any]"
Transform: TypeAlias = Callable[[Any], Tensor]  # from an image, as an item has it, to (3, H, W)
_Merge: TypeAlias = Callable[[list[Any]], Any]  # from samples to a batch of them
Chunk: TypeAlias = tuple[int, int]  # the position of its first image, and of the next chunk's

# A chunk has this many images. Work that is cut short loses one chunk at most, and processes that
# share work take chunks in turn.
CHUNK = 1024

# What broken files raise in data sets that open them by themselves. Pillow's errors are OSErrors,
# but for some about PNG.
_UNREADABLE = (ImageError, OSError, SyntaxError, struct.error)


class Item(NamedTuple):
    """Hold one image as it was read: its path or index, and what `ImageSet.collate` takes."""

    name: str
    sample: Any  # (3, H, W), or a tuple of that and a label, or what a DataLoader's data set gives
    problem: str = ""  # why it could not be read; the sample is None then


class ImageBatch(NamedTuple):
    """Hold prepared images of a batch, and what could not be read."""

    images: Tensor | None  # (n, 3, H, W), floating, on the CPU; None if n is 0
    labels: Tensor | None  # (n,) int64, or None without labels
    names: list[str]  # n paths or indices
    skipped: list[tuple[str, str]]  # path or index of each image that could not be read, and why


class _Indexed(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class ImageSet(Dataset[Item]):
    """Read images by index, and prepare them in whichever process asks.

    Args:
        images: a folder, a list, a data set or a DataLoader, as `extract_features` takes them.
        transform: from an upright RGB PIL image, or whatever else an item is, to (3, H, W). A
            `Preprocess` gets paths and PIL images as they are. None for a DataLoader, which
            prepares images itself.
        batch_size: images in a batch. A DataLoader's own is taken instead.
        workers: processes to read in. A DataLoader's own number is taken instead.

    Attributes:
        chunks: for each chunk its batches, as lists of indices. Nothing but the batch size decides
            the bounds. Whoever computes a chunk therefore gets the same bits.
        workers: as above.

    Raises:
        ConfigError: if there is no image, or the arguments cannot be used together.
        DataError: if there is no such folder.

    Example:
        images = ImageSet("photos", model.preprocess, batch_size=32)
    """

    def __init__(
        self,
        images: Images,
        transform: Transform | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        batch_size = read_count("batch_size", batch_size, 1)
        workers = read_count("workers", workers, 0)
        if isinstance(images, DataLoader):
            loader = cast("DataLoader[Any]", images)
            order = _order_of_loader(loader, transform)
            source = cast(_Indexed, loader.dataset)
            merge = cast(_Merge, loader.collate_fn)
            batch_size = loader.batch_size or batch_size
            workers = loader.num_workers
        elif transform is None:
            raise ConfigError("images that are not prepared by a DataLoader need a transform")
        else:
            source = _as_indexed(images)
            order = range(len(source))
            merge = cast(_Merge, default_collate)
        if not order:
            raise ConfigError(
                f"encoding needs at least one image, and there is none in {images!r:.99}"
            )
        self.source = source
        self.transform = transform
        self.workers = workers
        self.chunks = _chunks_of(order, batch_size)
        self._merge = merge

    @property
    def holds_files(self) -> bool:
        """Return whether all images are paths, or the bytes of files, which threads can share."""
        items = _as_sequence(self.source)
        return items is not None and all(map(_is_file, items))

    @property
    def order(self) -> list[int]:
        """Return the indices of all images in the order of the chunks."""
        return [index for chunk in self.chunks.values() for batch in chunk for index in batch]

    def __getitem__(self, index: int) -> Item:
        """Read and prepare one image.

        A file that cannot be read gives a problem. What would go wrong with all other items alike,
        such as a type that the transform does not take, is raised.
        """
        try:
            item = self.source[index]
        except _UNREADABLE as error:
            return Item(str(index), None, str(error) or repr(error))
        if self.transform is None:
            return Item(str(index), item)
        image, label = _split(item)
        path = _as_path(image)
        name = str(index) if path is None else path
        try:
            prepared = _prepare(image, self.transform)
        except _UNREADABLE as error:
            if not _is_readable(image):
                raise ImageError(f"image {name}: {error}") from error
            return Item(name, None, str(error) or repr(error))
        return Item(name, prepared if label is None else (prepared, label))

    def collate(self, items: list[Item]) -> ImageBatch:
        """Make a batch of the images that could be read.

        Raises:
            DataError: if what a DataLoader gives is not ready for an image tower.
        """
        sound = [item for item in items if not item.problem]
        names = [item.name for item in sound]
        skipped = [(item.name, item.problem) for item in items if item.problem]
        if not sound:
            return ImageBatch(None, None, names, skipped)
        merged = self._merge([item.sample for item in sound])
        images, *others = _as_sequence(merged) or (merged,)
        images = _check_prepared(images, len(names))
        labels = _labels_in(others, len(names))
        # The DataLoader pins memory on the CPU, while a transform may work on CUDA.
        return ImageBatch(images.cpu(), labels, names, skipped)

    def fingerprint(self, *, as_in_0_1_0: bool = False) -> str:
        """Return a digest by which the same images, prepared alike, are known again.

        It covers the order, what is in a list (paths and sizes of files, or pixels), and the first,
        the middle and the last image as they are prepared. Those three stand for the transform and
        for a data set, which have no names to be known by.

        Args:
            as_in_0_1_0: write the labels of the three as version 0.1.0 did, in words of torch.
        """
        order = self.order
        digest = hashlib.sha256(repr(order).encode())
        if getattr(self.transform, "reduced_jpegs", False):  # which the three may not show
            digest.update(b"reduced JPEGs")
        for item in _as_sequence(self.source) or ():
            digest.update(_bytes_of_item(item))
        samples = self.collate([self[order[i]] for i in (0, len(order) // 2, -1)])
        labels: Tensor | list[int] | None = samples.labels
        if labels is not None and not as_in_0_1_0:
            labels = cast("list[int]", labels.tolist())
        digest.update(repr((samples.names, labels)).encode(errors="surrogateescape"))
        if samples.images is not None:
            digest.update(tensor_bytes(samples.images))
        return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor of any dtype, shape and device, in the order of its elements."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)  # (...) -> (n,)
    return flat.view(uint8).numpy().data


def _as_indexed(images: Images) -> _Indexed:
    """Return what `images` holds, by its place from 0, in the order in which it is iterated.

    A column of a table looks things up by its labels, and a set or a generator by nothing at all.
    Only a data set, which may be larger than memory, is asked for each item when it is needed.

    Raises:
        ConfigError: for a single image, a table of several columns, or what holds no items.
    """
    if isinstance(images, str | os.PathLike):
        return list_images(images)
    if is_encoded(images) or hasattr(images, "getbands") or is_array_image(images):
        raise ConfigError(f"a single image goes in a list, [image], not {images!r:.99} by itself")
    given: object = images
    if isinstance(given, Mapping) or hasattr(given, "columns"):
        raise ConfigError(
            f"a {type(images).__name__} holds more than images: pass the images alone: the column "
            "of a table, table['path'], or list(mapping.values())"
        )
    if isinstance(images, list | tuple | Tensor | Dataset):
        return cast(_Indexed, images)
    by_label = hasattr(images, "iloc")  # as a column of pandas
    if not by_label and hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        return cast(_Indexed, images)
    if isinstance(images, Iterable):
        return list(cast("Iterable[Any]", images))
    raise ConfigError(
        "images must be a folder, a list or another collection, a data set or a DataLoader, not "
        f"{images!r:.99}"
    )


def _order_of_loader(loader: DataLoader[Any], transform: Transform | None) -> list[int]:
    """Return the indices of a DataLoader's images in its order, or raise `ConfigError`."""
    batches = cast("Sequence[list[int]] | None", loader.batch_sampler)
    is_stream = isinstance(loader.dataset, IterableDataset)
    is_share = isinstance(loader.sampler, DistributedSampler)
    if transform is not None or is_stream or is_share or batches is None:
        raise ConfigError(
            "a DataLoader must know its batches by index and prepare them itself: give it no "
            "IterableDataset, batch_size=None or DistributedSampler (work is shared out here), and "
            "no transform beside it"
        )
    return [index for batch in batches for index in batch]


def _chunks_of(order: Sequence[int], batch_size: int) -> dict[Chunk, list[Sequence[int]]]:
    """Cut indices into chunks of `CHUNK`, and each of them into batches."""
    chunks: dict[Chunk, list[Sequence[int]]] = {}
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        chunks[start, start + len(chunk)] = batches
    return chunks


def _as_sequence(value: Any) -> Sequence[Any] | None:
    return cast("Sequence[Any]", value) if isinstance(value, tuple | list) else None


def _as_path(value: Any) -> str | None:
    return os.fspath(cast("str | os.PathLike[str]", value)) if _is_path(value) else None


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _is_file(item: Any) -> bool:
    """Return whether an item is a path or the bytes of a file, or a tuple that begins with one."""
    row = _as_sequence(item)
    image = row[0] if row else item
    return _is_path(image) or isinstance(image, bytes)


def _split(item: Any) -> tuple[Any, Any]:
    """Return the image of an item, and its label if that is an integer or a tensor."""
    if isinstance(item, Mapping):  # as data sets of the hub have them
        item = _as_row(cast("Mapping[str, Any]", item))
    row = _as_sequence(item)
    if row is None:
        return item, None
    image, *others = row
    if others and _is_image(others[0]):
        raise DataError(
            f"an item must be an image, or a tuple of an image and its label, not of two images: "
            f"{row!r:.99}. Pass all images in one list"
        )
    return image, _as_label(others[0]) if others else None


def _is_image(value: Any) -> bool:
    """Return whether this can be an image and no label. A text is a file's name if it ends so."""
    if isinstance(value, str):
        return os.path.splitext(value)[1].lower() in image_suffixes()
    if isinstance(value, Tensor | np.ndarray):
        return cast("Tensor | NDArray[Any]", value).ndim == 3
    return isinstance(value, os.PathLike) or is_encoded(value) or hasattr(value, "getbands")


def _as_label(value: Any) -> Any:
    """Return an integer or a tensor as it is, and a single integer of an array; else None."""
    if isinstance(value, Tensor | np.ndarray) and value.shape in ((), (1,)):
        value = cast("Tensor | NDArray[Any]", value).reshape(-1)[0]  # () or (1,) -> ()
    return value if isinstance(value, Integral | Tensor) else None


def _as_row(item: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the image of a mapping, and its label if it has one."""
    image = next((item[key] for key in ("image", "img") if key in item), None)
    if image is None:
        raise DataError(
            f"a mapping must have its image under 'image' or 'img', not {sorted(item)!r:.99}"
        )
    label = item.get("label")
    return (image,) if label is None else (image, label)


def _is_readable(image: Any) -> bool:
    """Return whether this is read from a file, which may be broken, however late."""
    from PIL.Image import Image

    return isinstance(image, str | os.PathLike | Image) or is_encoded(image)


def _prepare(image: Any, transform: Transform) -> Tensor:
    """Return the image as the transform prepares it, decoded first for any but a `Preprocess`."""
    if _is_readable(image) and not isinstance(transform, Preprocess):
        image = read_for(transform, image).convert("RGB")
    return transform(image)


def read_for(transform: Transform, image: Readable) -> "Image":
    """Return an image as a transform wants it read: by its own `read_source`, if it has one."""
    read: Callable[[Readable], Image] = getattr(transform, "read_source", read_image)
    return read(image)


def _check_prepared(images: Any, count: int) -> Tensor:
    """Return the images, or raise `DataError` if they are not `count` rows of a float tensor."""
    if isinstance(images, Tensor) and images.is_floating_point() and len(images) == count:
        return images
    found = type(images).__name__
    if isinstance(images, Tensor):
        found = f"{images.dtype} of {tuple(images.shape)}"
    raise DataError(
        f"a batch of {count} prepared images must be as many rows of a float tensor, or a tuple "
        f"that begins with one, not {found}"
    )


def _labels_in(others: Sequence[Any], count: int) -> Tensor | None:
    """Return what stands beside the images as (count,) int64, or None if that is no label."""
    labels = others[0] if others else None
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.is_floating_point():
        return None
    return labels.long()


def _bytes_of_item(item: Any) -> bytes:
    """Return what tells an item of a list from others: path and size of its file, or pixels."""
    if isinstance(item, Mapping):
        item = _as_row(cast("Mapping[str, Any]", item))
    row = _as_sequence(item)
    if row is not None:
        return b"".join(map(_bytes_of_item, row))
    path = _as_path(item)
    if path is not None:
        size = os.path.getsize(path) if os.path.exists(path) else None
        return f"{item} {size}\0".encode(errors="surrogateescape")
    if isinstance(item, Tensor):
        return bytes(tensor_bytes(item))
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(cast("bytes", item))
    if is_encoded(item):
        return b""  # an open file has no name, and its bytes would have to be read twice
    try:
        array = np.asarray(item)
    except _UNREADABLE:
        return b""
    # An array of objects holds nothing but their addresses, which differ from run to run.
    return repr(item).encode() if array.dtype == object else array.tobytes()
