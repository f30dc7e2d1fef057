"""Extract the features of large sets of images: into files to go on from, shared by processes."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from clipkit import distributed
from clipkit.data.classes import classes_of
from clipkit.data.pictures import Chunk, Images, ImageSet, Transform
from clipkit.encode.batches import encode_batches
from clipkit.encode.embed import prepare_images
from clipkit.encode.feature_files import check_count, read_features, write_features
from clipkit.encode.features import Features, join
from clipkit.encode.fingerprints import Fingerprints
from clipkit.encode.image_encoder import ImageEncoder, ImageModel, Precision, autocast_around
from clipkit.errors import ConfigError, DataError
from clipkit.files import check_output, lock, remove_leftovers
from clipkit.plurals import number_of

_Value = TypeVar("_Value")


def extract_features(
    model: ImageModel,
    images: Images,
    out: str | os.PathLike[str] | None = None,
    *,
    transform: Transform | None = None,
    batch_size: int = 64,
    workers: int = 0,
    precision: Precision | None = None,
    normalize: bool = True,
    progress: bool = False,
    shared: bool = False,
    views: int = 1,
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
        out: a .safetensors file to write, which all processes of a group must see, and no others
            may write at that time. A finished file is only read. A list is known again by paths and
            sizes of files, or by pixels; anything else, and the transform, by three samples.
            Nothing about them may be random.
        transform: from an upright RGB PIL image to (3, H, W); the model's own preprocessing if not
            given.
        batch_size: images encoded at once, at most 1024. A DataLoader's own is taken instead.
        workers: processes that read and prepare; 0 for threads of this one, which also
            encode on a CPU. Only files by clipkit's own preprocessing come in threads.
        precision: "bfloat16" or "float16" for autocast to it, "float32" for none; None to compute
            as the weights are, and as an autocast around the call says.
        normalize: scale each feature to unit length.
        progress: whether to show a bar.
        shared: share the work among the processes of the torch.distributed group that there is.
            All of them must call it alike, and all get the whole result. Shares differ in length,
            so a model that is sharded itself (FSDP) would wait for ever. Without it each process
            works by itself, and needs an `out` of its own.
        views: how often each image is seen, 1, 2 or 10, as in `embed_images`.

    Returns:
        The features, with labels if there are any, and the path or index of each row.

    Raises:
        OutputError: if `out` cannot be written, or another process is writing it.
        ConfigError: if there are no images, the arguments cannot be used together, or there is no
            group to share the work.
        DataError: if there is no such folder, if no image can be read, if `out` was made with other
            weights, images or options, or if the processes of a group differ in those.

    Example:
        found = extract_features(model, "photos", out="photos.safetensors", workers=4)
        print(found.features.shape, found.paths[0], found.skipped)
    """
    processes = _processes(shared)
    # What fails in one process must end all, or the others would wait for it for ever.
    encode = processes.in_all(lambda: ImageEncoder(model, precision=precision, normalize=normalize))
    image_set = processes.in_all(
        lambda: prepare_images(model, images, transform, batch_size, workers, views)
    )
    settings: dict[str, Any] = {"precision": precision, "normalize": normalize}
    if precision is None:
        settings |= autocast_around(encode.device)
    fingerprints = Fingerprints(model, image_set, settings)
    chunks = list(image_set.chunks)
    first = processes.rank == 0
    with ExitStack() as held:
        files = processes.in_all(lambda: _open_files(out, fingerprints, held if first else None))
        done = processes.in_all(lambda: files.read(chunks) if files and first else {})
        todo = _plan(chunks, done, fingerprints, processes)
        done |= processes.in_all(
            lambda: _encode(encode, image_set, todo, files, [*done], progress=progress and first)
        )
        result = replace(_collect(done, processes), class_names=classes_of(images))
        # None returns, and perhaps calls again, before the file is whole.
        processes.in_all(lambda: files.finish(result) if files and first else None)
    return result


def load_features(path: str | os.PathLike[str]) -> Features:
    """Read a file that `extract_features` wrote, in this version or in 0.1.0.

    Raises:
        DataError: if something else wrote it.
        CheckpointError: if it is missing or broken.

    Example:
        features = load_features("photos.safetensors")
    """
    return read_features(path)[0]


@dataclass(frozen=True)
class _Processes:
    """Know the processes that share the work. By itself this one has all of it."""

    rank: int = 0
    count: int = 1

    def gather(self, value: _Value) -> list[_Value]:
        """Return the value of each process, in the order of ranks."""
        return distributed.gather_objects(value) if self.count > 1 else [value]

    def in_all(self, action: Callable[[], _Value]) -> _Value:
        """Return what an action gives here, and raise in all processes if it fails in one."""
        return distributed.in_all(action) if self.count > 1 else action()


def _processes(shared: bool) -> _Processes:
    if not shared:
        return _Processes()
    if not dist.is_initialized():
        raise ConfigError(
            "shared=True shares the work among the processes of a torch.distributed group, and "
            "there is none: call torch.distributed.init_process_group first, or leave it out"
        )
    return _Processes(distributed.rank(), distributed.world_size())


def _open_files(
    out: str | os.PathLike[str] | None, fingerprints: Fingerprints, held: ExitStack | None
) -> "_Files | None":
    """Return the files to write and read, if there are to be any.

    Args:
        out: the finished file.
        fingerprints: of what it must have been made of.
        held: holds the files for this process alone; None if another process does that.
    """
    if out is None:
        return None
    files = _Files(out, fingerprints)
    if held is not None:
        files.hold(held)
    return files


class _Files:
    """Keep features in a file, and while it is not finished in one file for each chunk.

    Args:
        out: the finished file.
        fingerprints: of what it must have been made of.

    Raises:
        OutputError: if it is not there, and cannot be written.
        ConfigError: if the model cannot be known again.
    """

    def __init__(self, out: str | os.PathLike[str], fingerprints: Fingerprints) -> None:
        if not isinstance(out, str | os.PathLike) or os.fspath(out) == "":
            raise ConfigError(f"out must name a .safetensors file, not {out!r:.99}")
        self.target = Path(out)
        self.folder = Path(f"{os.fspath(out)}.parts")
        self.fingerprints = fingerprints
        if not os.path.isfile(self.target):
            check_output(self.target)
            check_output(self.folder, "folder")
        _ = fingerprints.by_name  # so that a model that cannot be known again is refused at once

    def hold(self, held: ExitStack) -> None:
        """Hold what is not finished for this process alone, and clean up after killed ones."""
        if os.path.isfile(self.target):
            return  # it is only read
        held.callback(self._remove_empty_folder)
        held.enter_context(lock(self.folder))
        remove_leftovers(self.target)

    def _remove_empty_folder(self) -> None:
        with suppress(OSError):  # it is gone, or chunks are in it
            self.folder.rmdir()

    def read(self, chunks: Sequence[Chunk]) -> dict[Chunk, Features]:
        """Return what is there already: the whole as one chunk, or the chunks that are done.

        Raises:
            DataError: if it is damaged, or was made of something else.
        """
        whole = _whole(chunks)
        if self.target.exists():
            return {whole: self._load(self.target, whole, self.target)}
        files = {chunk: self._part(chunk) for chunk in chunks}
        return {
            chunk: self._load(file, chunk, self.folder)
            for chunk, file in files.items()
            if file.exists()
        }

    def write_part(self, chunk: Chunk, features: Features) -> None:
        """Keep the features of a chunk until the whole is finished."""
        write_features(features, self._part(chunk), self.fingerprints.by_name)

    def finish(self, features: Features) -> None:
        """Write the whole, unless it is there, and remove the chunks."""
        if not self.target.exists():
            write_features(features, self.target, self.fingerprints.by_name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, chunk: Chunk) -> Path:
        start, stop = chunk
        return self.folder / f"{start}-{stop}.safetensors"

    def _load(self, file: Path, chunk: Chunk, to_delete: Path) -> Features:
        features, known, is_old = read_features(file)
        here = self.fingerprints.by_name_in_0_1_0 if is_old else self.fingerprints.by_name
        names = [*here, *(known.keys() - here.keys())]
        differing = [name for name in names if known.get(name) != here.get(name)]
        if not differing:
            check_count(features, _size(chunk), file)
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


def _size(chunk: Chunk) -> int:
    """Return the number of images in a chunk."""
    start, stop = chunk
    return stop - start


def _whole(chunks: Sequence[Chunk]) -> Chunk:
    return 0, chunks[-1][1]


def _plan(
    chunks: Sequence[Chunk],
    done: dict[Chunk, Features],
    fingerprints: Fingerprints,
    processes: _Processes,
) -> list[Chunk]:
    """Return the chunks that this process has to encode.

    Raises:
        DataError: if the processes would encode different things.
    """
    missing = [chunk for chunk in chunks if not done.keys() & {chunk, _whole(chunks)}]
    if processes.count == 1:
        return missing
    here = processes.in_all(lambda: fingerprints.by_name)
    plans = processes.gather((here, missing))
    if any(there != here for there, _ in plans):
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
    before: Sequence[Chunk],
    *,
    progress: bool,
) -> dict[Chunk, Features]:
    """Encode chunks, and write each as soon as it is done if there are files.

    Args:
        encode: turns prepared images into features.
        image_set: the images.
        chunks: those to encode.
        files: to write to.
        before: the chunks that were encoded before, for the bar.
        progress: whether to show a bar.
    """
    done: dict[Chunk, Features] = {}
    images = sum(map(_size, before))
    batches = encode_batches(encode, image_set, chunks, progress=progress, done=images)
    with closing(batches) as stream:
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
            f"none of {number_of(len(result.skipped), 'image')} can be read; of the first: "
            f"{problem}"
        )
    return result
