"""Pictures of a folder, a list, a data set or a DataLoader: by index, prepared in batches, with names and labels."""

import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    default_collate,
)

from clipkit.data.preprocess import IMAGE_SUFFIXES, Preprocess, read_image
from clipkit.errors import ConfigError, DataError, ImageError

Images: TypeAlias = "str | os.PathLike[str] | Sequence[Any] | Dataset[Any] | DataLoader[Any]"
Transform: TypeAlias = Callable[[Any], Tensor]

CHUNK = (
    1024  # pictures that are lost at most when work is cut short, and that processes take in turn
)
# What broken files raise in data sets that open them by themselves; Pillow's errors are OSError, some of PNG are not.
_UNREADABLE = (ImageError, OSError, SyntaxError, struct.error)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The pictures in a folder and the folders in it, told by their names' endings, sorted."""
    return sorted(
        p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )


class ImageSet(Dataset[Any]):
    """Whatever gives pictures, as samples by index, read and prepared in whichever process asks.

    Args:
        images: a folder, a list, a data set or a DataLoader, as `clipkit.encode.store.extract_features` takes them.
        transform: from an upright RGB PIL image, or whatever else an item is, to (3, H, W).
        batch_size: pictures of a batch; a DataLoader's own goes before it.
        workers: processes to read in; a DataLoader's own goes before it.

    Attributes:
        chunks: by the positions of their first picture and the next one's, `CHUNK` pictures as batches of indices.
            Nothing but the batch size decides the bounds, so that whoever computes them gets the same bits.
        workers: as above.

    Raises:
        ConfigError: if there is no picture, or the arguments cannot be used together.
    """

    def __init__(
        self,
        images: Images,
        transform: Transform | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        self.source: Any = list_images(images) if isinstance(images, str | os.PathLike) else images
        self.transform = transform
        self.merge, self.workers = default_collate, workers
        if isinstance(images, DataLoader):
            loader = cast(Any, images)
            unknown = isinstance(loader.dataset, IterableDataset) or isinstance(
                loader.sampler, DistributedSampler
            )
            if transform is not None or unknown or loader.batch_sampler is None:
                raise ConfigError(
                    "a DataLoader must know its batches by index and prepare them itself: give it no IterableDataset, "
                    "batch_size=None or DistributedSampler (work is shared out here), and no transform beside it"
                )
            order: Any = [index for batch in loader.batch_sampler for index in batch]
            batch_size = loader.batch_size or batch_size
            self.source, self.transform = loader.dataset, None
            self.merge, self.workers = loader.collate_fn, loader.num_workers
        elif self.transform is None:
            raise ConfigError("images that are not prepared by a DataLoader need a transform")
        else:
            order = range(len(self.source))
        if not order or batch_size < 1 or self.workers < 0:
            raise ConfigError(
                f"encoding needs at least one image, and there are {len(order)} in {images!r:.99} (a single file goes "
                f"in a list); a positive batch_size, not {batch_size}; and workers from 0, not {workers}"
            )
        self.chunks: dict[tuple[int, int], list[Sequence[int]]] = {}
        for start in range(0, len(order), CHUNK):
            chunk = order[start : start + CHUNK]
            batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
            self.chunks[start, start + len(chunk)] = batches

    def __getitem__(self, index: int) -> tuple[str, Any, str]:
        """Path or index; what is ready for `collate`; and what is wrong with it, if anything."""
        from PIL.Image import Image

        name, image = str(index), None
        try:
            sample = self.source[index]
            if self.transform is None:
                return name, sample, ""
            image, *rest = sample if isinstance(sample, tuple | list) else (sample,)
            if isinstance(image, str | os.PathLike):
                name = os.fspath(image)
            if isinstance(image, str | os.PathLike | Image) and not isinstance(
                self.transform, Preprocess
            ):
                image = read_image(image).convert("RGB")
            prepared = self.transform(image)
            return (
                name,
                (prepared, rest[0])
                if rest and isinstance(rest[0], Integral | Tensor)
                else prepared,
                "",
            )
        except _UNREADABLE as error:
            if image is not None and not isinstance(image, str | os.PathLike | Image):
                raise  # no broken file, but a type or a layout that the other items will have as well
            return name, None, str(error) or repr(error)

    def collate(
        self, rows: list[tuple[str, Any, str]]
    ) -> tuple[Any, Tensor | None, list[str], list[tuple[str, str]]]:
        """Prepared images (n, 3, H, W) and labels (n,) int64 of what could be read, their names, and what could not.

        Raises:
            DataError: if what a DataLoader gives is not ready for an image tower.
        """
        sound = [(name, sample) for name, sample, problem in rows if not problem]
        names, skipped = (
            [name for name, _ in sound],
            [(name, problem) for name, _, problem in rows if problem],
        )
        if not sound:
            return None, None, names, skipped
        batch = self.merge([sample for _, sample in sound])
        images, *rest = batch if isinstance(batch, tuple | list) else (batch,)
        if (
            not isinstance(images, Tensor)
            or not images.is_floating_point()
            or len(images) != len(names)
        ):
            what = (
                f"{images.dtype} of {tuple(images.shape)}"
                if isinstance(images, Tensor)
                else type(images).__name__
            )
            raise DataError(
                f"a batch of {len(names)} prepared images must be as many rows of a float tensor, or a tuple that "
                f"begins with one, not {what}"
            )
        labels = (
            rest[0]
            if rest and isinstance(rest[0], Tensor) and rest[0].shape == (len(names),)
            else None
        )
        images = images.cpu()  # where the loader pins them; a transform may work on CUDA
        return (
            images,
            None if labels is None or labels.is_floating_point() else labels.long(),
            names,
            skipped,
        )

    def digest(self) -> str:
        """By which the same pictures are known again: what is in a list, and three of them as they are prepared.

        The three stand for a transform and for a data set, which have no names to be known by.
        """
        order = [index for chunk in self.chunks.values() for batch in chunk for index in batch]
        digest = hashlib.sha256(repr(order).encode())
        for item in self.source if isinstance(self.source, list | tuple) else ():
            digest.update(_known_by(item))
        images, labels, names, _ = self.collate([self[order[i]] for i in (0, len(order) // 2, -1)])
        digest.update(repr((names, labels)).encode(errors="surrogateescape"))
        digest.update(b"" if images is None else images.numpy().tobytes())
        return digest.hexdigest()


def _known_by(item: Any) -> bytes:
    """Paths and the sizes of their files; pixels and numbers."""
    if isinstance(item, tuple | list):
        return b"".join(map(_known_by, item))
    if isinstance(item, str | os.PathLike):
        return f"{item} {os.path.getsize(item) if os.path.exists(item) else None}\0".encode(
            errors="surrogateescape"
        )
    try:
        return np.asarray(item).tobytes()
    except _UNREADABLE:
        return b""
