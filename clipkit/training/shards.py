"""Training data from WebDataset tar shards: a stream, where `clipkit.training.batches` has pictures by index."""

import importlib
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clipkit import distributed
from clipkit.data.labelled import captions_of
from clipkit.data.preprocess import IMAGE_SUFFIXES, Preprocess
from clipkit.errors import DataError
from clipkit.tokenizer import Tokenizer
from clipkit.training.batches import (
    TRIES,
    Augment,
    Batch,
    check_workers,
    collate,
    own_group,
    prepare,
    share_of,
)


@dataclass(frozen=True)
class ShardBatches:
    """Batches from WebDataset tar shards, read as a stream: shards drawn with replacement, then a shuffle buffer.

    A sample is a picture (`.jpg`, `.png`, `.webp`, ...) with a `.txt`, or a `.json` that holds a caption or several
    under one of `CAPTION_COLUMNS`. Every process and worker draws for itself, from the seed and the step that it starts
    at: a resumed run goes on with fresh draws, not with those that an uninterrupted one would have seen.

    Args:
        urls: paths or addresses of shards, with braces for many: "data/{000..127}.tar".
        batch_size, preprocess, tokenizer, augment, workers, seed: as in `PairBatches`.
        buffer: samples to shuffle among.
    """

    urls: str | Sequence[str]
    batch_size: int
    preprocess: Preprocess
    tokenizer: Tokenizer
    augment: Augment | None = Augment()
    workers: int = 0
    seed: int = 0
    buffer: int = 2000

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise DataError(f"batch_size must be an integer of at least 1, not {self.batch_size!r}")
        check_workers(self.workers)

    def __call__(self, step: int) -> Iterator[Batch]:
        """The batches of this process, from a step on, without end. `DataError` without the webdataset package."""
        if not find_spec("webdataset"):
            raise DataError(
                "tar shards need the webdataset package: pip install 'clipkit-torch[train]'"
            )
        loader = DataLoader(
            _Stream(self, step),
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=own_group,
            pin_memory=torch.cuda.is_available(),
        )
        return iter(loader)


class _Stream(IterableDataset):
    def __init__(self, source: ShardBatches, step: int) -> None:
        self.source, self.seeds = source, [source.seed, step, distributed.rank()]
        self.share = share_of(source.batch_size)  # asked here: a worker need not know the others

    def __iter__(self) -> Iterator[Batch]:
        webdataset: Any = importlib.import_module(
            "webdataset"
        )  # whose names are not known before it runs
        source, worker = self.source, get_worker_info()
        seed = int(
            np.random.SeedSequence([*self.seeds, worker.id if worker else 0]).generate_state(1)[0]
        )
        rng, skipped = random.Random(seed), []

        def skip(error: Exception) -> bool:
            skipped.append(str(error))
            return True

        def stored() -> Iterator[dict[str, Any]]:
            barren = 0  # shards in a row without a sample
            for shard in webdataset.ResampledShards(
                source.urls, seed=seed, worker_seed=lambda: 0, deterministic=True
            ):
                barren += 1
                for sample in webdataset.tarfile_to_samples(handler=skip)([shard]):
                    barren = 0
                    yield sample
                if barren == TRIES:
                    raise DataError(
                        f"{TRIES} shards in a row hold no samples. {(skipped or [shard['url']])[-1]}"
                    )

        def read() -> Iterator[tuple[Tensor, Tensor, str, list[str]]]:
            unusable = 0  # samples in a row
            for sample in webdataset.shuffle(source.buffer, initial=source.buffer, rng=rng)(
                stored()
            ):
                try:
                    picture = next(
                        (v for k, v in sample.items() if f".{k}" in IMAGE_SUFFIXES), None
                    )
                    text = {"text": sample["txt"].decode()} if "txt" in sample else None
                    captions = captions_of(text or json.loads(sample.get("json", "0")))
                    if picture is None or not captions:
                        raise DataError("it needs a picture and a caption")
                    image = prepare(io.BytesIO(picture), source.preprocess, source.augment, rng)
                except ValueError as error:  # of which ImageError and broken JSON are kinds
                    skip(DataError(f"{sample['__url__']}, {sample['__key__']}: {error}"))
                    unusable += 1
                    if unusable == TRIES:
                        raise DataError(
                            f"{TRIES} samples in a row cannot be used. {skipped[-1]}"
                        ) from error
                    continue
                reasons, unusable = skipped[:], 0
                skipped.clear()
                yield (
                    image,
                    source.tokenizer(rng.choice(captions), truncate=True)[0],
                    sample["__key__"],
                    reasons,
                )

        samples = read()
        while True:
            yield collate(list(islice(samples, self.share)))
