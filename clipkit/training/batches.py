"""Training data: pictures with captions, from folders or tables, as batches that depend on the step alone.

A trainer asks for batches by calling `batches(step)`, and gets an iterator over that step and all that follow. For
these nothing else decides what comes, neither the number of workers nor an interruption, so a resumed run sees the same
batches. A picture that cannot be read is named in the batch, and another takes its place.
"""

import hashlib
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit import distributed
from clipkit.data.labelled import Pairs
from clipkit.data.preprocess import Preprocess, read_image
from clipkit.errors import ConfigError, DataError, ImageError
from clipkit.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

TRIES = 100  # pictures in a row that cannot be read before that is an error


class Batch(NamedTuple):
    """What one process gets for one step; `inputs` are what a task takes, images and token ids or labels."""

    inputs: tuple[Tensor, ...]
    names: Sequence[str] = ()  # of its pictures, for messages
    skipped: Sequence[str] = ()  # pictures that could not be read, and why


Batches = Callable[[int], Iterator[Batch]]


@dataclass(frozen=True)
class Augment:
    """A random crop of at least `area` of the picture, squashed to the input's size, and mirrored half of the time.

    Of a picture longer than 4:3 it is the share of a random part of that shape, lest all be squeezed. CLIP trains with
    crops alone (2103.00020, section 2.4), for "left" and "right" are words.
    """

    area: float = 0.9
    mirror: bool = False

    def __post_init__(self) -> None:
        if (
            not isinstance(self.area, int | float)
            or not 0 < self.area <= 1
            or not isinstance(self.mirror, bool)
        ):
            raise ConfigError(
                f"Augment needs an area above 0 and up to 1, and mirror true or false, not {self}"
            )

    def __call__(self, image: "Image", preprocess: Preprocess, rng: random.Random) -> Tensor:
        """The picture, cropped and preprocessed: (3, H, W) float32."""
        from PIL.Image import Transpose

        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)) / 2)
        area = rng.uniform(self.area, 1)
        wide = min(
            max(math.sqrt(area) * ratio, area), 1
        )  # neither this share of a side nor the other exceeds 1
        bounds = (
            min(image.width, round(image.height * 4 / 3)),
            min(image.height, round(image.width * 4 / 3)),
        )
        width, height = (
            round(part * side) or 1 for part, side in zip((wide, area / wide), bounds, strict=True)
        )
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        image = image.crop((left, top, left + width, top + height))
        if self.mirror and rng.random() < 0.5:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        return replace(preprocess, config=replace(preprocess.config, resize_mode="squash"))(image)


@dataclass(frozen=True)
class PairBatches:
    """Batches of `Pairs`: every epoch in a new order, that spreads the pictures of each class evenly over it.

    Args:
        pairs: what to draw from.
        batch_size: of all processes together; what is left of an epoch beyond full batches is not used in it.
        preprocess, tokenizer: of the model. Without a tokenizer the labels take the place of token ids.
        augment: how pictures vary; None for not at all.
        workers: processes that read ahead; 0 for none.
        seed: of all that is random.
    """

    pairs: Pairs
    batch_size: int
    preprocess: Preprocess
    tokenizer: Tokenizer | None
    augment: Augment | None = Augment()
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= len(self.pairs):
            raise DataError(
                f"batch_size {self.batch_size} must be from 1 to the {len(self.pairs)} pictures"
            )
        if self.tokenizer is None and self.pairs.labels is None:
            raise DataError(
                "these pictures have no classes: give a tokenizer to train on their captions"
            )
        check_workers(self.workers)

    @property
    def identity(self) -> str:
        """A digest of all that decides what comes, by which a trainer knows the batches again."""
        digest = hashlib.sha256(
            repr((self.pairs.labels, self.batch_size, self.augment, self.seed)).encode()
        )
        known: dict[
            int, bytes
        ] = {}  # the pictures of a class share one list of captions, perhaps 80 of them
        for file, captions in zip(self.pairs.files, self.pairs.captions, strict=True):
            if id(captions) not in known:
                known[id(captions)] = hashlib.sha256(
                    repr(captions).encode(errors="surrogateescape")
                ).digest()
            digest.update(f"{file}\0".encode(errors="surrogateescape") + known[id(captions)])
        return digest.hexdigest()

    def __call__(self, step: int) -> Iterator[Batch]:
        """The batches of this process, from a step on, without end."""
        share_of(self.batch_size)
        samples = _Samples(self)
        return iter(
            DataLoader(
                samples,
                batch_sampler=self._indices(step),  # pyright: ignore[reportArgumentType]
                num_workers=self.workers,
                collate_fn=collate,
                worker_init_fn=own_group,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=4 if self.workers else None,
            )
        )

    def _indices(self, step: int) -> Iterator[list[tuple[int, int]]]:
        """For each step this process's pictures, each with the seed of what is random about it."""
        per_epoch, share = len(self.pairs) // self.batch_size, share_of(self.batch_size)
        first = distributed.rank() * share
        while True:
            epoch, within = divmod(step, per_epoch)
            order = self._order(np.random.default_rng([self.seed, epoch]))
            for batch in order[: per_epoch * self.batch_size].reshape(per_epoch, -1)[
                within:, first : first + share
            ]:
                seed = (self.seed << 64) + (step << 32)
                yield [(int(index), seed + place) for place, index in enumerate(batch, start=first)]
                step += 1

    def _order(self, rng: "np.random.Generator") -> np.ndarray:
        """Indices in random order; with classes, each at its even pace: one of each in turn, if all are as large."""
        order = rng.permutation(len(self.pairs))
        if self.pairs.labels is None:
            return order
        labels = np.array(self.pairs.labels)[order]
        grouped = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[grouped], labels[grouped])
        places = np.empty(len(order))  # of each within its class, 0 to 1
        sizes = np.bincount(labels)[labels[grouped]]
        places[grouped] = (np.arange(len(order)) - starts + rng.random(len(order))) / sizes
        return order[np.argsort(places, kind="stable")]


class _Samples(Dataset):
    """(index, seed) -> (image, tokens or label, name, skipped)."""

    def __init__(self, source: PairBatches) -> None:
        self.source = source

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, Tensor, str, list[str]]:
        index, seed = place
        source, pairs, skipped = self.source, self.source.pairs, []
        for _ in range(TRIES):
            rng = random.Random(seed)
            try:
                image = prepare(pairs.files[index], source.preprocess, source.augment, rng)
            except ImageError as error:
                skipped.append(str(error))
                index = (index + 1) % len(pairs)
                continue
            if source.tokenizer is None:
                target = torch.tensor(pairs.labels[index])  # pyright: ignore[reportOptionalSubscript]
            else:
                target = source.tokenizer(rng.choice(pairs.captions[index]), truncate=True)[0]
            return image, target, str(pairs.files[index]), skipped
        raise DataError(f"{TRIES} pictures in a row cannot be read. The last one: {skipped[-1]}")


def prepare(
    file: Any, preprocess: Preprocess, augment: Augment | None, rng: random.Random
) -> Tensor:
    """A picture as training sees it: (3, H, W) float32."""
    image = read_image(file)
    return preprocess(image) if augment is None else augment(image, preprocess, rng)


def share_of(batch_size: int) -> int:
    """The pairs of each process."""
    if batch_size % distributed.world_size():
        raise DataError(
            f"batch_size {batch_size} must be a multiple of the {distributed.world_size()} processes"
        )
    return batch_size // distributed.world_size()


def own_group(worker: int) -> None:
    """Signals to the trainer's process group are the trainer's: torchrun stops workers too, before it can save."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)


def check_workers(workers: Any) -> None:
    """Raise `DataError` unless it is a count."""
    if not isinstance(workers, int) or workers < 0:
        raise DataError(f"workers must be an integer of at least 0, not {workers!r}")


def collate(samples: list[tuple[Tensor, Tensor, str, list[str]]]) -> Batch:
    """Image, target, name and what was skipped before it, of each."""
    images, targets, names, skipped = zip(*samples, strict=True)
    return Batch(
        (torch.stack(images), torch.stack(targets)),
        names,
        [reason for some in skipped for reason in some],
    )
