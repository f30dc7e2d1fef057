"""Extract the features of large sets of images: into files to go on from, shared by processes."""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from clipkit import distributed
from clipkit.checkpoints.weights import read_weights
from clipkit.data.pictures import Chunk, Images, ImageSet, Transform
from clipkit.encode.embed import (
    Features,
    ImageEncoder,
    ImageModel,
    Precision,
    encode_batches,
    image_tower,
    join,
    prepare_images,
)
from clipkit.encode.fingerprints import fingerprint, fingerprint_0_1_0
from clipkit.errors import ConfigError, DataError
from clipkit.files import write_weights

# The tensor in our files that holds JSON as bytes. The header of the format, where text would go,
# ends at 100 MB.
_INFO = "clipkit_features"

# The version of that JSON. Files of 0.1.0 have none, and fingerprints made another way.
_FORMAT = 2

_Value = TypeVar("_Value")


def extract_features(
    model: ImageModel,
    images: Images,
    *,
    out: str | os.PathLike[str] | None = None,
    transform: Transform | None = None,
    batch_size: int = 64,
    workers: int = 0,
    precision: Precision | None = None,
    normalize: bool = True,
    progress: bool = False,
    shared: bool = False,
) -> Features:
    """Return the features of images, without those that cannot be read.

    The model's modes and statistics stay as they are, also while it encodes. Work that was cut
    short goes on where it was, if it has a file.

    Args:
        model: a CLIP, or any module from (N, 3, H, W) to (N, D) together with a transform.
        images: a folder, with the folders in it, in the order of `list_images(folder)`; a list or
            data set of paths, PIL images or tensors as `Preprocess` takes them, or of tuples
            (image, label, ...); or a DataLoader of prepared batches (N, 3, H, W) or tuples (batch,
            labels, ...), which gives the order, the collating and the workers.
        out: a .safetensors file to write, which all processes of a group must see. A finished file
            is only read. A list is known again by paths and sizes of files, or by pixels; anything
            else, and the transform, by three samples. Nothing about them may be random.
        transform: from an upright RGB PIL image to (3, H, W); the model's own preprocessing if not
            given.
        batch_size: images encoded at once, at most 1024. A DataLoader's own is taken instead.
        workers: processes that read and prepare; 0 for none.
        precision: "bfloat16" or "float16" for autocast to it, "float32" for none; None to compute
            as the weights are, and as an autocast around the call says.
        normalize: scale each feature to unit length.
        progress: whether to show a bar.
        shared: share the work among the processes of the torch.distributed group that there is.
            All of them must call it alike, and all get the whole result. Shares differ in length,
            so a model that is sharded itself (FSDP) would wait for ever. Without it each process
            works by itself, and needs an `out` of its own.

    Returns:
        The features, with labels if there are any, and the path or index of each row.

    Raises:
        ConfigError: if there are no images, the arguments cannot be used together, or there is no
            group to share the work.
        DataError: if there is no such folder, if no image can be read, if `out` was made with other
            weights, images or options, or if the processes of a group differ in those.

    Example:
        found = extract_features(model, "photos", out="photos.safetensors", workers=4)
        print(found.features.shape, found.paths[0], found.skipped)
    """
    processes = _processes(shared)
    encode = ImageEncoder(model, precision=precision, normalize=normalize)
    image_set = prepare_images(model, images, transform, batch_size, workers)
    made_of = _MadeOf(model, image_set, {"precision": precision, "normalize": normalize})
    files = None if out is None else _Files(out, made_of)
    first = processes.rank == 0

    done = files.read(list(image_set.chunks)) if files and first else {}
    todo = _plan(list(image_set.chunks), done, made_of, processes)
    done |= _encode(encode, image_set, todo, files, progress=progress and first)
    result = _collect(done, processes)
    if files and first:
        files.finish(result)
    processes.gather(None)  # none returns, and perhaps calls again, before the file is whole
    return result


def load_features(path: str | os.PathLike[str]) -> Features:
    """Read a file that `extract_features` wrote, in this version or in 0.1.0.

    Raises:
        DataError: if something else wrote it.
        CheckpointError: if it is missing or broken.

    Example:
        features = load_features("photos.safetensors")
    """
    return _read(path)[0]


@dataclass(frozen=True)
class _Processes:
    """Know the processes that share the work. By itself this one has all of it."""

    rank: int = 0
    count: int = 1

    def gather(self, value: _Value) -> list[_Value]:
        """Return the value of each process, in the order of ranks."""
        return distributed.gather_objects(value) if self.count > 1 else [value]


def _processes(shared: bool) -> _Processes:
    if not shared:
        return _Processes()
    if not dist.is_initialized():
        raise ConfigError(
            "shared=True shares the work among the processes of a torch.distributed group, and "
            "there is none: call torch.distributed.init_process_group first, or leave it out"
        )
    return _Processes(distributed.rank(), distributed.world_size())


class _MadeOf:
    """Say what features are made of, by fingerprints that are only computed when asked for."""

    def __init__(self, model: ImageModel, image_set: ImageSet, settings: dict[str, Any]) -> None:
        self._model = model
        self._image_set = image_set
        self._settings = settings

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Return the fingerprints and the options by name."""
        tower = image_tower(self._model)
        if tower is None:
            raise ConfigError(
                f"{type(self._model).__name__} is no torch module, and its weights cannot be known "
                "again: leave out= and shared= away"
            )
        weights = fingerprint(tower, getattr(self._model, "config", None))
        return self._named(weights, self._image_set.fingerprint())

    @cached_property
    def parts_in_0_1_0(self) -> dict[str, Any]:
        """Return what version 0.1.0 would have written in place of `parts`."""
        tower = image_tower(self._model)
        assert tower is not None  # `parts` are asked for first
        weights = fingerprint_0_1_0(tower, getattr(self._model, "config", None))
        return self._named(weights, self._image_set.fingerprint(as_in_0_1_0=True))

    def _named(self, weights: str, images: str) -> dict[str, Any]:
        return {"weights": weights, "images or transform": images, **self._settings}


class _Files:
    """Keep features in a file, and while it is not finished in one file for each chunk.

    Args:
        out: the finished file.
        made_of: what it must have been made of.
    """

    def __init__(self, out: str | os.PathLike[str], made_of: _MadeOf) -> None:
        if os.fspath(out) == "":
            raise ConfigError("out must name a .safetensors file, and is an empty text")
        self.target = Path(out)
        self.folder = Path(f"{os.fspath(out)}.parts")
        self.made_of = made_of
        _ = made_of.parts  # so that a model that cannot be known again is refused at once

    def read(self, chunks: Sequence[Chunk]) -> dict[Chunk, Features]:
        """Return what is there already: the whole as one chunk, or the chunks that are done.

        Raises:
            DataError: if it was made of something else.
        """
        whole = _whole(chunks)
        if self.target.exists():
            return {whole: self._load(self.target, self.target)}
        files = {chunk: self._part(chunk) for chunk in chunks}
        return {
            chunk: self._load(file, self.folder) for chunk, file in files.items() if file.exists()
        }

    def write_part(self, chunk: Chunk, features: Features) -> None:
        """Keep the features of a chunk until the whole is finished."""
        _write(features, self._part(chunk), self.made_of.parts)

    def finish(self, features: Features) -> None:
        """Write the whole, unless it is there, and remove the chunks."""
        if not self.target.exists():
            _write(features, self.target, self.made_of.parts)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, chunk: Chunk) -> Path:
        start, stop = chunk
        return self.folder / f"{start}-{stop}.safetensors"

    def _load(self, file: Path, to_delete: Path) -> Features:
        features, info = _read(file)
        is_old = "format" not in info
        parts = self.made_of.parts_in_0_1_0 if is_old else self.made_of.parts
        differing = [name for name, value in parts.items() if info["made_of"][name] != value]
        if not differing:
            return features
        message = (
            f"{file} was made with other {' and other '.join(differing)}: delete {to_delete}, or "
            "name another file"
        )
        if is_old:
            message += (
                ". Version 0.1.0 wrote it, and knew weights and labels by how torch printed them, "
                "which changes with torch's version. If they are the same, load_features reads it"
            )
        raise DataError(message)


def _whole(chunks: Sequence[Chunk]) -> Chunk:
    return 0, chunks[-1][1]


def _plan(
    chunks: Sequence[Chunk],
    done: dict[Chunk, Features],
    made_of: _MadeOf,
    processes: _Processes,
) -> list[Chunk]:
    """Return the chunks that this process has to encode.

    Raises:
        DataError: if the processes would encode different things.
    """
    missing = [chunk for chunk in chunks if not done.keys() & {chunk, _whole(chunks)}]
    if processes.count == 1:
        return missing
    plans = processes.gather((made_of.parts, missing))
    if any(parts != made_of.parts for parts, _ in plans):
        raise DataError(
            "the processes hold different models or images, or a DataLoader or transform that is "
            "random"
        )
    # The first process says what is missing. Others may look when files are being written already.
    _, missing = plans[0]
    return missing[processes.rank :: processes.count]


def _encode(
    encode: ImageEncoder,
    image_set: ImageSet,
    chunks: Sequence[Chunk],
    files: _Files | None,
    *,
    progress: bool,
) -> dict[Chunk, Features]:
    """Encode chunks, and write each as soon as it is done if there are files."""
    done: dict[Chunk, Features] = {}
    with closing(encode_batches(encode, image_set, chunks, progress=progress)) as stream:
        for chunk in chunks:
            done[chunk] = join([next(stream) for _ in image_set.chunks[chunk]])
            if files:
                files.write_part(chunk, done[chunk])
    return done


def _collect(done: dict[Chunk, Features], processes: _Processes) -> Features:
    """Join the chunks of all processes in order.

    Raises:
        DataError: if not a single image could be read.
    """
    chunks: dict[Chunk, Features] = {}
    for share in processes.gather(done):
        chunks.update(share)
    result = join([chunks[chunk] for chunk in sorted(chunks)])
    if not result.paths:
        _, problem = result.skipped[0]
        raise DataError(
            f"none of {len(result.skipped)} images can be read; of the first: {problem}"
        )
    return result


def _read(path: str | os.PathLike[str]) -> tuple[Features, dict[str, Any]]:
    """Return the features in a file, and the JSON beside them."""
    tensors = read_weights(path)
    if not {"features", _INFO} <= tensors.keys():
        raise DataError(
            f"{path} was not written by extract_features, and is left as it is: name another file"
        )
    try:
        info: dict[str, Any] = json.loads(tensors[_INFO].numpy().tobytes())
        skipped = [(name, problem) for name, problem in info["skipped"]]
        features = Features(tensors["features"], tensors.get("labels"), info["paths"], skipped)
        is_sound = len(features.features) == len(features.paths) and "made_of" in info
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!r}. Delete it and make it again") from error
    if not is_sound:
        raise DataError(f"{path} is damaged: its parts do not match. Delete it and make it again")
    return features, info


def _write(features: Features, path: Path, made_of: dict[str, Any]) -> None:
    """Write features and what they are made of, all or nothing."""
    info = {
        "format": _FORMAT,
        "made_of": made_of,
        "paths": features.paths,
        "skipped": features.skipped,
    }
    text = bytearray(json.dumps(info).encode())
    tensors = {"features": features.features, _INFO: torch.frombuffer(text, dtype=torch.uint8)}
    if features.labels is not None:
        tensors["labels"] = features.labels
    write_weights(tensors, path)
