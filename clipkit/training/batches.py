"""Batches of images with captions or labels, which depend on the step alone.

A trainer calls `batches(step)`, and gets an iterator over the batch of that step and all that
follow. Neither the number of workers nor an interruption decides what comes, so a resumed run sees
the same batches. An image that cannot be read is named in the batch, and another takes its place.
"""

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit import distributed
from clipkit.data.labelled import Pairs
from clipkit.data.pictures import Transform, read_for
from clipkit.data.preprocess import Preprocess
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES = 100  # images in a row that cannot be read before that is an error
_BATCHES_AHEAD = 4  # that each worker reads


class Batch(NamedTuple):
    """Hold what one process gets for one step.

    Attributes:
        inputs: what a task takes: images (N, 3, H, W) float32, and token ids (N, L) int64 or labels
            (N,) int64, on the CPU.
        names: of the N images, for messages.
        skipped: images that could not be read, and why.

    Example:
        images, tokens = next(PairBatches(pairs, 32, model.preprocess, model.tokenizer)(0)).inputs
    """

    inputs: tuple[Tensor, ...]
    names: Sequence[str] = ()
    skipped: Sequence[str] = ()


Batches = Callable[[int], Iterator[Batch]]


class Sample(NamedTuple):
    """Hold one row of a batch."""

    image: Tensor  # (3, H, W) float32
    target: Tensor  # token ids (L,) int64, or a label () int64
    name: str
    skipped: list[str]  # images that could not be read before this one, and why


@dataclass(frozen=True)
class Augment:
    """Vary images for training: a random crop, squashed to the input's size, perhaps mirrored.

    A crop of an image longer than 4:3 lies in a random part of that shape, because all of a long
    image would be squeezed too much. CLIP trains with crops alone (2103.00020, section 2.4),
    because "left" and "right" are words.

    A preprocessing other than a `Preprocess` gets the crop as it is, as an RGB image, and resizes
    it in its own way.

    Args:
        area: the least share of the image that a crop keeps, above 0 and up to 1.
        mirror: mirror half of the images.

    Raises:
        ConfigError: for other values.

    Example:
        batches = PairBatches(pairs, 64, model.preprocess, None, augment=Augment(0.5, mirror=True))
    """

    area: float = 0.9
    mirror: bool = False

    def __post_init__(self) -> None:
        is_share = isinstance(self.area, int | float) and 0 < self.area <= 1
        if not is_share or not isinstance(self.mirror, bool):
            raise ConfigError(
                f"Augment needs an area above 0 and up to 1, and mirror true or false, not {self}"
            )

    def __call__(self, image: "Image", preprocess: Transform, rng: random.Random) -> Tensor:
        """Return a random part of an image, preprocessed: (3, H, W) float32.

        Args:
            image: is left as it is.
            preprocess: of the model.
            rng: is asked for all that is random.

        Raises:
            ConfigError: if the preprocessing does not make such a tensor.
        """
        from PIL.Image import Transpose

        image = image.crop(self._draw_box(image, rng))
        if self.mirror and rng.random() < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        if isinstance(preprocess, Preprocess):
            squash = replace(preprocess.config, resize_mode="squash")
            preprocess = replace(preprocess, config=squash)
        return apply(preprocess, image)

    def _draw_box(self, image: "Image", rng: random.Random) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom of a random part, in pixels."""
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)) / 2)
        area = rng.uniform(self.area, 1)
        # Neither this share of the width nor that of the height, area / width_share, exceeds 1.
        width_share = min(max(math.sqrt(area) * ratio, area), 1)
        widest = min(image.width, round(image.height * 4 / 3))
        highest = min(image.height, round(image.width * 4 / 3))
        width = round(width_share * widest) or 1
        height = round(area / width_share * highest) or 1
        left = rng.randint(0, image.width - width)
        top = rng.randint(0, image.height - height)
        return left, top, left + width, top + height


def prepare(
    file: "str | os.PathLike[str] | IO[bytes]",
    preprocess: Transform,
    augment: Augment | None,
    rng: random.Random,
) -> Tensor:
    """Return an image as training sees it: (3, H, W) float32.

    Raises:
        ImageError: if it cannot be read.
        ConfigError: if the preprocessing does not make such a tensor.
    """
    image = read_for(preprocess, file)
    if augment is None:
        return apply(preprocess, image)
    return augment(image, preprocess, rng)


def apply(preprocess: Transform, image: "Image") -> Tensor:
    """Return a preprocessed image, (3, H, W) float32 on the CPU.

    A `Preprocess` takes gray and CMYK images as they are; any other function gets them as RGB.
    """
    if isinstance(preprocess, Preprocess):
        return preprocess(image)
    with torch.no_grad():
        prepared = cast(object, preprocess(image.convert("RGB")))
    if not isinstance(prepared, Tensor) or prepared.ndim != 3:
        found = tuple(prepared.shape) if isinstance(prepared, Tensor) else type(prepared).__name__
        raise ConfigError(f"a preprocess must make a tensor (3, H, W) of an image, not {found}")
    return prepared.float().cpu()


@dataclass(frozen=True)
class PairBatches:
    """Make batches of `Pairs`: every epoch in a new order.

    The images of each class are spread evenly over an epoch. Calling it with a step gives an
    iterator over the `Batch`es of this process from that step on, without end.

    Args:
        pairs: what to draw from.
        batch_size: of all processes together. What is left of an epoch beyond full batches is not
            used in it.
        preprocess: of the model: a `Preprocess`, an `nn.Module` or any function from an image to
            (3, H, W) float32.
        tokenizer: of the model; None to give labels in place of token ids.
        augment: how images vary; None for not at all.
        workers: processes that read ahead; 0 for none.
        seed: of all that is random.

    Raises:
        DataError: if there are fewer images than `batch_size`, or no labels though they are needed.

    Example:
        pairs = clipkit.read_table("photos/captions.csv")
        batches = PairBatches(pairs, 32, model.preprocess, model.tokenizer)
        images, tokens = next(batches(0)).inputs  # (32, 3, H, W), (32, L)
    """

    pairs: Pairs
    batch_size: int
    preprocess: Transform
    tokenizer: Tokenizer | None
    augment: Augment | None = Augment()
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("workers", self.workers, least=0)
        check_count("seed", self.seed, least=0)
        if not isinstance(self.batch_size, int) or not 1 <= self.batch_size <= len(self.pairs):
            raise DataError(
                f"batch_size {self.batch_size!r} must be from 1 to the {len(self.pairs)} images"
            )
        if self.tokenizer is None and self.pairs.labels is None:
            raise DataError(
                "these images have no classes: give a tokenizer to train on their captions"
            )

    @property
    def identity(self) -> str:
        """Return a digest of all that decides what comes: a trainer knows these batches again."""
        about = (self.pairs.labels, self.batch_size, self.augment, self.seed)
        digest = hashlib.sha256(repr(about).encode())
        # The images of a class share one list of captions, perhaps 80 of them.
        digests: dict[int, bytes] = {}
        for file, captions in zip(self.pairs.files, self.pairs.captions, strict=True):
            if id(captions) not in digests:
                text = repr(captions).encode(errors="surrogateescape")
                digests[id(captions)] = hashlib.sha256(text).digest()
            digest.update(f"{file}\0".encode(errors="surrogateescape") + digests[id(captions)])
        return digest.hexdigest()

    def __call__(self, step: int) -> Iterator[Batch]:
        """Return the batches of this process, from a step on, without end.

        Raises:
            DataError: if the processes cannot share the batch evenly.
        """
        share_of(self.batch_size)
        loader: DataLoader[Any] = DataLoader(
            _Samples(self),
            batch_sampler=self._indices(step),
            num_workers=self.workers,
            collate_fn=collate,
            worker_init_fn=leave_process_group,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=_BATCHES_AHEAD if self.workers else None,
        )
        return iter(loader)

    def _indices(self, step: int) -> Iterator[list[tuple[int, int]]]:
        """Yield for each step this process's images, with a seed for what is random of each."""
        steps_per_epoch = len(self.pairs) // self.batch_size
        share = share_of(self.batch_size)
        first = distributed.rank() * share
        while True:
            epoch, within = divmod(step, steps_per_epoch)
            order = self._order(np.random.default_rng([self.seed, epoch]))
            used = order[: steps_per_epoch * self.batch_size]
            batches = used.reshape(steps_per_epoch, self.batch_size)
            for batch in batches[within:, first : first + share]:
                seed = (self.seed << 64) + (step << 32)
                yield [(int(index), seed + place) for place, index in enumerate(batch, start=first)]
                step += 1

    def _order(self, rng: "np.random.Generator") -> NDArray[np.int64]:
        """Return all indices in random order, the images of each class at an even pace.

        If all classes are as large, one image of each comes in turn.
        """
        order = rng.permutation(len(self.pairs))
        if self.pairs.labels is None:
            return order
        labels = np.array(self.pairs.labels)[order]
        grouped = np.argsort(labels, kind="stable")
        sorted_labels = labels[grouped]
        # The i-th image of a class of n, both in random order, stands between i/n and (i + 1)/n of
        # the epoch.
        starts = np.searchsorted(sorted_labels, sorted_labels)
        within_class = np.arange(len(order)) - starts
        sizes = np.bincount(labels)[sorted_labels]
        places = np.empty(len(order))
        places[grouped] = (within_class + rng.random(len(order))) / sizes
        return order[np.argsort(places, kind="stable")]


class _Samples(Dataset[Sample]):
    """Read and prepare the image at (index, seed), or the next one that can be read."""

    def __init__(self, source: PairBatches) -> None:
        self.source = source

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        index, seed = place
        source = self.source
        skipped: list[str] = []
        for _ in range(TRIES):
            rng = random.Random(seed)
            file = source.pairs.files[index]
            try:
                image = prepare(file, source.preprocess, source.augment, rng)
            except ImageError as error:
                skipped.append(str(error))
                index = (index + 1) % len(source.pairs)
                continue
            return Sample(image, self._target(index, rng), str(file), skipped)
        raise DataError(f"{TRIES} images in a row cannot be read. The last one: {skipped[-1]}")

    def _target(self, index: int, rng: random.Random) -> Tensor:
        """Return the token ids (L,) of one of an image's captions, or its label ()."""
        pairs = self.source.pairs
        if self.source.tokenizer is not None:
            return self.source.tokenizer(rng.choice(pairs.captions[index]), truncate=True)[0]
        assert pairs.labels is not None  # PairBatches has asked for them
        return torch.tensor(pairs.labels[index])


def share_of(batch_size: int) -> int:
    """Return how many images of a batch each process takes.

    Raises:
        DataError: if they cannot share it evenly.
    """
    if batch_size % distributed.world_size():
        raise DataError(
            f"batch_size {batch_size} must be a multiple of the {distributed.world_size()} "
            "processes"
        )
    return batch_size // distributed.world_size()


def leave_process_group(worker: int) -> None:
    """Keep signals to the trainer's process group from the worker that calls this.

    torchrun and terminals signal the whole group: a worker would stop before the trainer can save.
    """
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)


def check_count(name: str, value: object, *, least: int) -> None:
    """Raise `DataError` unless the value of an option is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{name} must be an integer of at least {least}, not {value!r:.99}")


def collate(samples: Sequence[Sample]) -> Batch:
    """Return N samples as one batch."""
    images = torch.stack([sample.image for sample in samples])  # (N, 3, H, W)
    targets = torch.stack([sample.target for sample in samples])  # (N, L) or (N,)
    names = [sample.name for sample in samples]
    skipped = [reason for sample in samples for reason in sample.skipped]
    return Batch((images, targets), names, skipped)
