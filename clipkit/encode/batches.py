"""Read, prepare and encode images in batches, several things at a time."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from threading import Event
from typing import TypeAlias, cast

import torch
from torch.utils.data import DataLoader

from clipkit.data.pictures import ImageBatch, ImageSet, Item
from clipkit.data.preprocess import Preprocess
from clipkit.data.views import Views
from clipkit.encode.features import Features, join, no_features
from clipkit.encode.image_encoder import ImageEncoder
from clipkit.threads import (
    computing_threads,
    images_at_once,
    in_order,
    reading_ahead,
    sharing_threads,
)

_Batches: TypeAlias = Sequence[Sequence[int]]
Way: TypeAlias = Callable[[ImageEncoder, ImageSet, _Batches], Generator[Features, None, None]]


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

    batches = [batch for chunk in chunks for batch in image_set.chunks[chunk]]
    total = done + sum(map(len, batches))
    encoded = choose_way(encode, image_set, len(batches))(encode, image_set, batches)
    bar = tqdm(total=total, initial=done, unit="image", disable=not progress)
    with bar, closing(encoded):
        for features in encoded:
            bar.update(len(features.paths) + len(features.skipped))
            yield features


def choose_way(encode: ImageEncoder, image_set: ImageSet, batches: int) -> Way:
    """Return the fastest way to encode so many batches.

    Processes, if they are asked for, and this thread alone for what threads might not share. Else
    threads, which read and prepare while the model encodes, where that is on a device of its own.
    On a CPU it would take the threads' processors away. There each thread encodes what it has read.
    """
    if image_set.workers or not _threads_can_read(image_set):
        return _by_loader
    threads = computing_threads()
    if threads > 1 and batches >= 2 * threads and encode.takes_threads:
        return _side_by_side
    return _read_ahead


def _threads_can_read(image_set: ImageSet) -> bool:
    """Return whether images are files that our own preprocessing reads, which holds no state."""
    transform = image_set.transform
    if isinstance(transform, Views):
        transform = transform.preprocess
    return type(transform) is Preprocess and image_set.holds_files


def _side_by_side(
    encode: ImageEncoder, image_set: ImageSet, batches: _Batches
) -> Generator[Features, None, None]:
    """Yield the features of batches. Each thread reads and encodes whole ones, part by part."""
    count = computing_threads()
    is_over = Event()  # after Ctrl-C nobody waits for the rest of a batch

    def work(batch: Sequence[int]) -> Features:
        size = images_at_once(len(batch), count)
        starts = range(0, len(batch), size)
        return join(
            [
                _encode(encode, image_set, [image_set[i] for i in batch[start : start + size]])
                for start in starts
                if not is_over.is_set()
            ]
        )

    with sharing_threads(count) as threads:
        try:
            yield from in_order(threads, work, batches, ahead=count + 1)
        finally:
            is_over.set()


def _read_ahead(
    encode: ImageEncoder, image_set: ImageSet, batches: _Batches
) -> Generator[Features, None, None]:
    """Yield the features of batches, while threads read and prepare the images of the next."""
    order = [index for batch in batches for index in batch]
    with reading_ahead(computing_threads(), image_set.__getitem__, order) as items:
        for batch in batches:
            yield _encode(encode, image_set, [next(items) for _ in batch])


def _by_loader(
    encode: ImageEncoder, image_set: ImageSet, batches: _Batches
) -> Generator[Features, None, None]:
    """Yield the features of batches, which processes prepare, or this thread in turn."""
    loader = DataLoader(
        image_set,
        batch_sampler=[list(batch) for batch in batches],
        num_workers=image_set.workers,
        collate_fn=image_set.collate,
        pin_memory=encode.device.type == "cuda",
    )
    for batch in _on_cpu(cast("Iterable[ImageBatch]", loader)):  # torch types it by the item
        yield _encode_batch(encode, batch)


def _encode(encode: ImageEncoder, image_set: ImageSet, items: list[Item]) -> Features:
    """Return the features of images that were read."""
    with torch.device("cpu"):
        batch = image_set.collate(items)
    return _encode_batch(encode, batch)


def _encode_batch(encode: ImageEncoder, batch: ImageBatch) -> Features:
    features = no_features() if batch.images is None else encode(batch.images)
    return Features(features, batch.labels, batch.names, batch.skipped)


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
