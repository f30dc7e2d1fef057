"""Batches from WebDataset tar shards: a stream, where `clipkit.training.batches` knows its images.

The stream is a pipeline of iterators: stored samples, shuffled samples, decoded samples, batches.
"""

import hashlib
import importlib
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipkit import distributed
from clipkit.data.decode import image_suffixes
from clipkit.data.labelled import captions_of
from clipkit.data.pictures import Transform
from clipkit.errors import DataError
from clipkit.files import parse_json
from clipkit.tokenizer import Tokenizer
from clipkit.training.batches import (
    TRIES,
    Augment,
    Batch,
    Sample,
    check_count,
    collate,
    leave_process_group,
    prepare,
    share_of,
)
from clipkit.training.tars import check_shards, expand_shards, files_of


@dataclass(frozen=True)
class ShardBatches:
    """Make batches from WebDataset tar shards, read as a stream.

    Shards are drawn with replacement, and their samples pass a shuffle buffer. A sample is an image
    (`.jpg`, `.png`, `.webp`, ...) with a `.txt`, or with a `.json` that holds a caption or several
    under one of `CAPTION_COLUMNS`. Every process and worker draws for itself, from the seed and the
    step that it starts at: a resumed run goes on with fresh draws, not with those that an
    uninterrupted one would have seen.

    Args:
        urls: paths of shards, with braces for many: "data/{000..127}.tar"; or addresses that begin
            with https://; or a list of such. Every other scheme is refused, and nothing is run.
        batch_size, preprocess, tokenizer, augment, workers, seed: as in `PairBatches`.
        buffer: samples to shuffle among.

    Raises:
        DataError: if `urls` are no such shards, or `batch_size`, `workers` or `buffer` is no count.

    Example:
        batches = ShardBatches("data/{000..127}.tar", 256, model.preprocess, model.tokenizer)
        images, tokens = next(batches(0)).inputs  # (256, 3, H, W), (256, L)
    """

    urls: str | Sequence[str]
    batch_size: int
    preprocess: Transform
    tokenizer: Tokenizer
    augment: Augment | None = Augment()
    workers: int = 0
    seed: int = 0
    buffer: int = 2000

    def __post_init__(self) -> None:
        check_shards(self.urls)
        for name, least in (("batch_size", 1), ("buffer", 1), ("workers", 0), ("seed", 0)):
            check_count(name, getattr(self, name), least=least)

    @property
    def identity(self) -> str:
        """Return a digest of all that decides what comes: a trainer knows these batches again."""
        about = (self.urls, self.batch_size, self.augment, self.seed)
        return hashlib.sha256(repr(about).encode(errors="surrogateescape")).hexdigest()

    def __call__(self, step: int) -> Iterator[Batch]:
        """Return the batches of this process, from a step on, without end.

        Raises:
            DataError: if the webdataset package is missing, or the braces in `urls` are wrong.
        """
        if not find_spec("webdataset"):
            raise DataError(
                "tar shards need the webdataset package: pip install 'clipkit-torch[train]'"
            )
        loader: DataLoader[Any] = DataLoader(
            _Stream(self, step),
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=leave_process_group,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


class _Stream(IterableDataset[Batch]):
    """Yield this process's share of each batch, as a worker process reads it.

    Args:
        source: what to read.
        step: to start at.
    """

    def __init__(self, source: ShardBatches, step: int) -> None:
        self.source = source
        self.shards = expand_shards(source.urls)
        # A worker does not know the other ranks, so they are asked for here.
        self.seeds = [source.seed, step, distributed.rank()]
        self.share = share_of(source.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        samples = _Reader(self.source, self.shards, self._draw_seed()).samples()
        while True:
            yield collate(list(islice(samples, self.share)))

    def _draw_seed(self) -> int:
        """Return a seed that each run, step, rank and worker has for itself."""
        worker = get_worker_info()
        seeds = [*self.seeds, worker.id if worker else 0]
        return int(np.random.SeedSequence(seeds).generate_state(1)[0])


class _Reader:
    """Turn shards into samples, and keep why some were skipped until the next sample takes it on.

    Args:
        source: how to read.
        shards: what to read.
        seed: of the shards drawn, the shuffling, the crops and the captions.
    """

    def __init__(self, source: ShardBatches, shards: Sequence[str], seed: int) -> None:
        self.source = source
        self.shards = shards
        self.rng = random.Random(seed)
        self.skipped: list[str] = []
        self.suffixes = image_suffixes()
        # webdataset has no types, and is not known before it runs.
        self.webdataset: Any = importlib.import_module("webdataset")

    def samples(self) -> Iterator[Sample]:
        """Yield samples without end."""
        buffer = self.source.buffer
        shuffle = self.webdataset.shuffle(buffer, initial=buffer, rng=self.rng)
        return self._decoded(shuffle(self._stored()))

    def _stored(self) -> Iterator[dict[str, Any]]:
        """Yield the samples of shards as bytes by ending, shard after shard.

        Raises:
            DataError: if too many shards in a row hold none.
        """
        group = self.webdataset.tariterators.group_by_keys
        empty_in_a_row = 0
        shard = ""
        while empty_in_a_row < TRIES:
            shard = self.rng.choice(self.shards)
            empty_in_a_row += 1
            for sample in group(self._files_of(shard), handler=self._skip):
                empty_in_a_row = 0
                yield sample
        reason = self.skipped[-1] if self.skipped else shard
        raise DataError(f"{TRIES} shards in a row hold no samples. {reason}")

    def _files_of(self, shard: str) -> Iterator[dict[str, Any]]:
        """Yield the files of a shard, as far as it can be read."""
        try:
            yield from files_of(shard)
        except DataError as error:
            self._skip(error)

    def _decoded(self, stored: Iterator[dict[str, Any]]) -> Iterator[Sample]:
        """Yield what can be used of stored samples.

        Raises:
            DataError: if too many in a row cannot.
        """
        unusable_in_a_row = 0
        for fields in stored:
            try:
                sample = self._decode(fields)
            except ValueError as error:  # ImageError is one, and so is what broken JSON raises
                self._skip(DataError(f"{fields['__url__']}, {fields['__key__']}: {error}"))
                unusable_in_a_row += 1
                if unusable_in_a_row == TRIES:
                    raise DataError(
                        f"{TRIES} samples in a row cannot be used. {self.skipped[-1]}"
                    ) from error
                continue
            unusable_in_a_row = 0
            self.skipped = []
            yield sample

    def _decode(self, fields: dict[str, Any]) -> Sample:
        """Return a sample from its bytes. Raises `ValueError` if it cannot be used."""
        images = [data for ending, data in fields.items() if f".{ending}" in self.suffixes]
        captions = _captions(fields)
        if not images or not captions:
            raise DataError("it needs an image and a caption")
        source = self.source
        image = prepare(io.BytesIO(images[0]), source.preprocess, source.augment, self.rng)
        tokens = source.tokenizer(self.rng.choice(captions), truncate=True)[0]
        return Sample(image, tokens, fields["__key__"], self.skipped)

    def _skip(self, error: Exception) -> bool:
        """Keep why something was skipped, and tell webdataset to go on."""
        self.skipped.append(str(error.args[0] if error.args else error))
        return True


def _captions(fields: dict[str, Any]) -> list[str]:
    """Return the captions of a sample, from its `.txt` or else its `.json`, if it has any."""
    if "txt" in fields:
        return captions_of({"text": fields["txt"].decode()})
    if "json" in fields:
        return captions_of(parse_json(fields["json"], "its .json"))
    return []
