"""Features of large sets of images, in files to go on from, shared among processes."""

import hashlib
import json
import os
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from clipkit import distributed
from clipkit.checkpoints.weights import read_weights
from clipkit.data.pictures import Images, Transform
from clipkit.encode.embed import Features, _stream, image_set, join
from clipkit.errors import ConfigError, DataError
from clipkit.files import write_weights

_INFO = "clipkit_features"  # names the JSON in our files: bytes of a tensor, for a header ends at 100 MB


def extract_features(
    model: nn.Module,
    images: Images,
    *,
    out: str | os.PathLike[str] | None = None,
    transform: Transform | None = None,
    batch_size: int = 64,
    workers: int = 0,
    precision: str | None = None,
    normalize: bool = True,
    progress: bool = False,
    shared: bool = False,
) -> Features:
    """Features of pictures, without those that cannot be read.

    With `shared=True`, in an existing torch.distributed group, all processes call it alike, each encodes a share, and all get the whole. Shares differ in length, so
    a model sharded by FSDP would wait for ever; `embed_images` takes it.

    Args:
        model: a CLIP, or any module from (N, 3, H, W) to (N, D). It is in eval mode meanwhile.
        images: a folder, with the folders in it; a list or data set of paths, PIL images or tensors as `Preprocess`
            takes them, or of tuples (image, label, ...); or a DataLoader of preprocessed batches (N, 3, H, W) or
            tuples (batch, labels, ...), of which the order, the collating and the workers are used.
        out: a .safetensors file to write, where all processes see it. Work that was cut short goes on where it was; a
            finished file is only read. A list is known by paths and sizes of files, or by pixels; anything else, and
            the transform, by three samples, so nothing about them may be random.
        transform: maps an upright RGB PIL image to (3, H, W); the model's own preprocessing if not given.
        batch_size: pictures encoded at once, at most 1024. A DataLoader's own goes before it.
        workers: processes that read and preprocess; 0 for none.
        precision: "bfloat16" or "float16" for autocast to it, "float32" for none; None to compute as the weights are.
        normalize: scale each feature to unit length.
        progress: whether to show a bar.

    Raises:
        ConfigError: if there are no images, or the arguments cannot be used together.
        DataError: if no image can be read, if `out` was made with other weights, images or options, or if the
            processes differ in those.
    """
    if shared and not dist.is_initialized():
        raise ConfigError("shared=True needs an existing torch.distributed group of processes")
    rank, world = (distributed.rank(), distributed.world_size()) if shared else (0, 1)

    def gather(value: Any) -> list[Any]:
        return distributed.gather_objects(value) if shared else [value]

    pictures = image_set(model, images, transform, batch_size, workers)
    target, first, made_of = Path(out) if out else None, rank == 0, {}
    settings: Any = {"precision": precision, "normalize": normalize}
    if target or shared:
        made_of = {
            "weights": digest(getattr(model, "visual", model), getattr(model, "config", None)),
            "images or transform": pictures.digest(),
        } | settings
    whole, done = (0, max(stop for _, stop in pictures.chunks)), {}
    parts = {
        (start, stop): Path(f"{out}.parts", f"{start}-{stop}.safetensors")
        for start, stop in pictures.chunks
    }
    if target and first:
        files = {whole: target} if target.exists() else parts
        done = {
            chunk: load_features(file, made_of) for chunk, file in files.items() if file.exists()
        }
    plans = gather(
        (made_of, [chunk for chunk in pictures.chunks if not done.keys() & {chunk, whole}])
    )
    if any(other != made_of for other, _ in plans):
        raise DataError(
            "the processes hold different models or images, or a DataLoader or transform that is random"
        )
    # As the first process saw it: another may look when files are being written already.
    todo = plans[0][1][rank::world]
    with closing(_stream(model, pictures, todo, **settings, progress=progress and first)) as stream:
        for chunk in todo:
            done[chunk] = join([next(stream) for _ in pictures.chunks[chunk]])
            if target:
                _write(done[chunk], parts[chunk], made_of)
    done = {chunk: part for share in gather(done) for chunk, part in share.items()}
    result = join([done[chunk] for chunk in sorted(done)])
    if not result.paths:
        raise DataError(
            f"none of {len(result.skipped)} images can be read; of the first: {result.skipped[0][1]}"
        )
    if target and first:
        if not target.exists():
            _write(result, target, made_of)
        shutil.rmtree(f"{out}.parts", ignore_errors=True)
    gather(None)  # none returns, and perhaps calls again, before the file is whole
    return result


def load_features(path: str | os.PathLike[str], made_of: dict[str, Any] | None = None) -> Features:
    """Read a file that `extract_features` wrote. Raises `DataError` for another, or if it was not `made_of` these."""
    tensors = read_weights(path)
    if not {"features", _INFO} <= tensors.keys():
        raise DataError(
            f"{path} was not written by extract_features, and is left as it is: name another file"
        )
    info = json.loads(tensors[_INFO].numpy().tobytes())
    if other := [name for name, value in (made_of or {}).items() if info["made_of"][name] != value]:
        remedy = f"delete {Path(path).parent if Path(path).parent.suffix == '.parts' else path}, or name another file"
        raise DataError(f"{path} was made with other {' and other '.join(other)}: {remedy}")
    return Features(
        tensors["features"],
        tensors.get("labels"),
        info["paths"],
        [(a, b) for a, b in info["skipped"]],
    )


def digest(module: nn.Module, *about: object) -> str:
    """By which weights, and what is said about them, are known again."""
    sha = hashlib.sha256(repr((*about, module)).encode())
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        sha.update(f"{name}{value.dtype}".encode())
        value = value.to_dense() if value.is_mkldnn else value  # as `CLIP.optimize` leaves them
        sha.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _write(features: Features, path: Path, made_of: dict[str, Any]) -> None:
    info = json.dumps(
        {"made_of": made_of, "paths": features.paths, "skipped": features.skipped}
    ).encode()
    tensors = {
        "features": features.features,
        _INFO: torch.frombuffer(bytearray(info), dtype=torch.uint8),
    }
    write_weights(tensors | ({} if features.labels is None else {"labels": features.labels}), path)
