"""Read and write weight files, running no code of theirs.

`read_weights` tells the format from the bytes, never from the file's name:

    safetensors                     memory-mapped
    torch.save, zip                 memory-mapped, through torch's weights-only unpickler
    torch.save before torch 1.6     read into memory, through torch's weights-only unpickler
    TorchScript archive             memory-mapped; see `read_torchscript`
    *.safetensors.index.json        the shards of a transformers checkpoint, each one of the above

Mapped tensors are read from disk when they are touched, and writing to them changes neither the file nor other
readers. The file must not be overwritten in place while they live; `write_weights` replaces it instead, so a
checkpoint may be saved over the file that it was loaded from.
"""

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from clipkit.checkpoints.unpickle import InertUnpickler, read_torchscript, refuse_unsafe
from clipkit.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError

# Where training loops put the weights: Lightning and open_clip, then the usual names of hand-written loops.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# DistributedDataParallel, torch.compile and Lightning modules wrap a module and so prefix all its names.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# What training loops store beside the weights.
_BOOKKEEPING = frozenset(
    "args best_acc config epoch global_step hyper_parameters iteration loss lr_scheduler name optimizer "
    "optimizer_state_dict optimizer_states scaler scheduler step".split()
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a weight file by name, on the CPU, in the dtypes that the file holds.

    Wrappers and prefixes of training loops are removed (`unwrap_state_dict`). Raises `CheckpointNotFoundError`,
    `CorruptCheckpointError` when the file is damaged or is no checkpoint, and `UnsafeCheckpointError` when a
    pickle asks for anything but tensors.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointNotFoundError(f"There is no file {path}")
    if path.is_dir():
        raise CheckpointNotFoundError(f"{path} is a folder; name the weight file in it")
    with path.open("rb") as file:
        head = file.read(512)
    kind, read = _recognise(path, head)
    try:
        content = read(path)
    except CheckpointError:
        raise
    except (
        Exception
    ) as error:  # damaged bytes make zipfile, pickle, torch and safetensors raise nearly anything
        raise _corrupt(
            path, f"cannot be read as {kind} ({type(error).__name__}: {error})"
        ) from error
    try:
        return unwrap_state_dict(content)
    except CorruptCheckpointError as error:
        raise _corrupt(path, str(error), "Save the model's state_dict() alone.") from error


def unwrap_state_dict(obj: Any) -> dict[str, Tensor]:
    """Find the state dict in what a training loop saved; the argument is never changed.

    It may lie under "state_dict", "model_state_dict" or "model" (also nested). Prefixes that all names share are
    removed. Tensors share memory with those given and require no gradient. Raises `CorruptCheckpointError` when there
    are no tensors, or entries that are neither tensors nor known bookkeeping such as "epoch".
    """
    for _ in range(4):  # deeper than training loops nest; a pickled dict may also contain itself
        if isinstance(obj, Mapping):
            obj = next((obj[key] for key in _WRAPPERS if isinstance(obj.get(key), Mapping)), obj)
    if not isinstance(obj, Mapping):
        raise CorruptCheckpointError(
            f"holds a {type(obj).__name__}, not a state dict of named tensors"
        )
    state = {name: value for name, value in obj.items() if name not in _BOOKKEEPING}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CorruptCheckpointError(
                f"has an entry {name!r} that is a {type(value).__name__}, not a tensor"
            )
    if not state:
        raise CorruptCheckpointError("holds no tensors")
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value.detach() for name, value in state.items()}


def shard_names(index: str | os.PathLike[str]) -> list[str]:
    """File names of the shards that a transformers index (`model.safetensors.index.json`) lists, beside itself.

    Raises `CorruptCheckpointError` when the index is no such thing or points outside its folder.
    """
    try:
        names = sorted(set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()))
        if any(Path(name).name != name or name in (".", "..") or "\\" in name for name in names):
            raise ValueError("a shard lies outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(
            Path(index), f"is no index of weight shards ({type(error).__name__}: {error})"
        ) from error
    return names


def _corrupt(
    path: Path, reason: str, remedy: str = "Delete it and download or copy it again."
) -> CheckpointError:
    return CorruptCheckpointError(f"{path} ({path.stat().st_size:,} bytes) {reason}. {remedy}")


def _recognise(path: Path, head: bytes) -> tuple[str, Callable[[Path], Any]]:
    """Name of the format and its reader, from the file's first bytes."""
    if not head:
        raise _corrupt(path, "is empty")
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        raise _corrupt(
            path, "is a git-lfs pointer, not the weights", "Fetch them with `git lfs pull`."
        )
    if head.lstrip()[:1] == b"<":
        raise _corrupt(path, "is a web page, not a checkpoint: the address or the access was wrong")
    if head.startswith(b"PK\x03\x04"):
        return "a torch archive", _read_zip
    if (
        head.startswith(b"{") and 0 not in head[:8]
    ):  # the length that opens a safetensors file has zeros there
        return "an index of shards", _read_shards
    if head[8:9] == b"{":
        return "safetensors", _read_safetensors
    return "a torch pickle", _read_legacy


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _read_shards(path: Path) -> Any:
    tensors: dict[str, Tensor] = {}
    for name in shard_names(path):
        if not (path.parent / name).exists():
            raise CheckpointNotFoundError(f"{path} lists the shard {name}, which is not beside it")
        shard = read_weights(path.parent / name)
        if twice := tensors.keys() & shard.keys():
            raise ValueError(f"{sorted(twice)[0]} is in more than one shard")
        tensors |= shard
    return tensors


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [
            name
            for name in archive.namelist()
            if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(pickles) != 1:
            raise ValueError(f"a zip file with {len(pickles)} data.pkl, where one belongs")
        root = pickles[0].removesuffix("data.pkl")
        records = {info.filename.removeprefix(root): info for info in archive.infolist()}
        for name, info in records.items():
            # Mapping needs the plain bytes, and torch writes no others; what expands may expand without end.
            if (
                name.startswith(("data.pkl", "data/", "byteorder"))
                and info.compress_type != zipfile.ZIP_STORED
            ):
                raise ValueError(
                    f"the record {name} is compressed; save the weights anew with torch.save"
                )
        if "constants.pkl" not in records:
            # torch takes files of this name for safetensors, and maps only files that it is given by name
            return _torch_load(
                path, io.BytesIO(archive.read(pickles[0])), mmap=path.suffix != ".safetensors"
            )
        if "byteorder" in records and archive.read(records["byteorder"]) != sys.byteorder.encode():
            raise ValueError("written on a machine of the other byte order")
        root_module = InertUnpickler(io.BytesIO(archive.read(pickles[0])), path).load()
    return dict(read_torchscript(path, records, root_module))


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        if file.peek(1)[:1] != b"\x80":  # opens every pickle that torch writes
            refuse_unsafe(file, path)
            raise ValueError("neither safetensors nor anything that torch.save writes")
        return _torch_load(path, file, mmap=False)


def _torch_load(path: Path, pickles: BinaryIO, *, mmap: bool) -> Any:
    """torch.load for tensors alone; `pickles` are the file's pickles, to name what they ask for if torch refuses."""
    try:
        with path.open("rb") as file:
            return torch.load(
                path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap
            )
    except Exception as error:
        pickles.seek(0)
        refuse_unsafe(pickles, path)
        if isinstance(
            error, pickle.UnpicklingError
        ):  # torch's own words advise to load it unsafely
            raise ValueError(
                "malformed, or not of pickle protocol 2, which is torch.save's own"
            ) from error
        raise
