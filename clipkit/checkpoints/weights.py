"""Read weight files without running any code of theirs.

`read_weights` tells the format from the bytes, never from the file's name:

    safetensors                     memory-mapped
    torch.save, zip                 memory-mapped, through torch's weights-only unpickler
    torch.save before torch 1.6     read into memory, through torch's weights-only unpickler
    TorchScript archive             memory-mapped; see `read_torchscript`
    *.safetensors.index.json        the shards of a transformers checkpoint, each one of the above

Mapped tensors are read from disk when they are touched. Writing to them changes neither the file
nor other readers. The file must not be overwritten in place while they live. `write_weights`
replaces it instead, so a checkpoint may be saved over the file that it was loaded from.
"""

import errno
import io
import json
import math
import os
import pickle
import re
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from clipkit.checkpoints.nesting import entries_of, find_clip
from clipkit.checkpoints.unpickle import (
    MAX_PICKLE,
    NUMPY_GLOBALS,
    InertUnpickler,
    read_torchscript,
    refuse_unsafe,
    tensor_specs,
)
from clipkit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedCheckpointError,
)

# Training loops put the weights here: Lightning and open_clip first, then the usual names of
# hand-written loops.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# DistributedDataParallel, torch.compile and Lightning wrap a module and so prefix all its names.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# Training loops store these beside the weights.
_BOOKKEEPING = frozenset(
    "args best_acc config epoch global_step hyper_parameters iteration loss lr_scheduler name "
    "optimizer optimizer_state_dict optimizer_states scaler scheduler step".split()
)

# Sound files of other formats, told by the bytes at their beginning, from this position on.
_OTHER_FORMATS = {
    b"GGUF": (0, "a GGUF file of llama.cpp and its kin"),
    b"ggml": (0, "a GGML file"),
    b"lmgg": (0, "a GGML file"),
    b"\x89HDF\r\n\x1a\n": (0, "an HDF5 file, as Keras writes"),
    b"TFL3": (4, "a TensorFlow Lite model"),
    b"\x93NUMPY": (0, "a NumPy array"),
    b"\x1f\x8b": (0, "compressed with gzip"),
    b"ustar": (257, "a tar archive"),
    b"7z\xbc\xaf\x27\x1c": (0, "a 7z archive"),
    b"\xfd7zXZ\x00": (0, "compressed with xz"),
    b"\x28\xb5\x2f\xfd": (0, "compressed with zstandard"),
}
# These formats have no such bytes.
_OTHER_SUFFIXES = {
    ".onnx": "an ONNX graph",
    ".msgpack": "a Flax checkpoint",
    ".keras": "a Keras model",
    ".npz": "an archive of NumPy arrays",
    ".pt2": "an exported program",
}
_OTHER_FORMAT = (
    "clipkit reads safetensors and what torch.save writes: unpack it, or load it with the program "
    "that it is for and save the state_dict() of the torch model"
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Wrappers and prefixes of training loops are removed (see `unwrap_state_dict`).

    Returns:
        The tensors by name, on the CPU, in the dtypes that the file holds.

    Raises:
        CheckpointNotFoundError: if there is no such file, or not every shard of an index.
        CorruptCheckpointError: if the file is damaged or is no checkpoint.
        UnsafeCheckpointError: if a pickle asks for anything but tensors.
        MemoryError: if the weights need more memory than there is.

    Example:
        weights = read_weights("ViT-B-32.pt")
        weights["visual.conv1.weight"].shape  # torch.Size([768, 3, 32, 32])
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointNotFoundError(f"There is no file {path}")
    if path.is_dir():
        raise CheckpointNotFoundError(f"{path} is a folder; name the weight file in it")
    head = _read_head(path)
    kind, read = _recognize(path, head)
    try:
        content = read(path)
    except (CheckpointError, MemoryError):
        raise
    # Damaged bytes make zipfile, pickle, torch and safetensors raise nearly anything.
    except Exception as error:
        if _lacks_memory(error, path):
            raise MemoryError(f"{path} needs more memory than there is: {error}") from error
        raise _corrupt(
            path, f"cannot be read as {kind} ({type(error).__name__}: {error})"
        ) from error
    try:
        return unwrap_state_dict(content)
    except CorruptCheckpointError as error:
        raise _corrupt(path, str(error), "Save the model's state_dict() alone.") from error


def read_run_config(path: Path) -> dict[str, Any] | None:
    """Return the model's config in a checkpoint of `clipkit train`; None for any other file."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
    try:
        return dict(_read_zip(path)["identity"][0])
    except (LookupError, TypeError, ValueError):
        return None


def _read_head(path: Path) -> bytes:
    """Return the first bytes of a regular file, which open() alone does not tell from a pipe."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CorruptCheckpointError(f"{path} is no regular file: pass the weight file's path")
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or error}): give yourself the permission to "
            "read it, or pass the path of a copy"
        ) from error


def unwrap_state_dict(obj: object) -> dict[str, Tensor]:
    """Find the state dict in what a training loop saved; the argument is never changed.

    A whole CLIP is found wherever it lies (see `nesting.find_clip`). Other weights may lie under
    "state_dict", "model_state_dict" or "model" (also nested), and lose the prefixes that all names
    share.

    Returns:
        The tensors by name. They share memory with those given and require no gradient.

    Raises:
        CorruptCheckpointError: if there are no tensors, or entries that are neither tensors nor
            known bookkeeping such as "epoch".

    Example:
        >>> import torch
        >>> list(unwrap_state_dict({"state_dict": {"module.a": torch.ones(2)}, "epoch": 3}))
        ['a']
    """
    clip = find_clip(obj)
    if clip is not None:
        return clip
    found = _unwrap(obj)
    if not isinstance(found, dict):
        raise CorruptCheckpointError(
            f"holds a {type(found).__name__}, not a state dict of named tensors"
        )
    state: dict[str, Tensor] = {}
    for name, value in entries_of(cast("object", found)):
        if name in _BOOKKEEPING:
            continue
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CorruptCheckpointError(
                f"has an entry {name!r} that is a {type(value).__name__}, not a tensor"
            )
        state[name] = value.detach()
    if not state:
        raise CorruptCheckpointError("holds no tensors")
    return _without_prefixes(state)


def _unwrap(obj: object) -> object:
    """Return the innermost mapping under the names that training loops give to the weights."""
    for _ in range(4):  # deeper than training loops nest; a pickled dict may also contain itself
        if not isinstance(obj, dict):
            return obj
        wrapper = cast("dict[Any, Any]", obj)
        inner = (wrapper[key] for key in _WRAPPERS if isinstance(dict.get(wrapper, key), dict))
        obj = next(inner, wrapper)
    return obj


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the known prefixes that all names share, however many are nested."""
    while True:
        shared = [p for p in _PREFIXES if all(name.startswith(p) for name in state)]
        if not shared:
            return state
        state = {name.removeprefix(shared[0]): value for name, value in state.items()}


def shard_names(index: str | os.PathLike[str]) -> list[str]:
    """Return the file names of the shards that a transformers index lists, beside itself.

    Raises `CorruptCheckpointError` if `model.safetensors.index.json` is no such thing or points
    outside its folder.
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


def _lacks_memory(error: Exception, path: Path) -> bool:
    """Return whether reading failed because memory ran out, and not because the file is damaged.

    torch raises a plain RuntimeError that names the bytes. A damaged file may ask for any number of
    them, but nothing in a sound one is larger than the file.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    return asked is not None and int(asked[1]) <= path.stat().st_size


def _corrupt(
    path: Path, reason: str, remedy: str = "Delete it and download or copy it again."
) -> CheckpointError:
    """Make the error that names a damaged file, its size, the reason and the remedy."""
    return CorruptCheckpointError(f"{path} ({path.stat().st_size:,} bytes) {reason}. {remedy}")


def _recognize(path: Path, head: bytes) -> tuple[str, Callable[[Path], Any]]:
    """Return the name of the format and its reader, from the first bytes of the file."""
    if not head:
        raise _corrupt(path, "is empty")
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        raise _corrupt(
            path, "is a git-lfs pointer, not the weights", "Fetch them with `git lfs pull`."
        )
    for magic, (start, name) in _OTHER_FORMATS.items():
        if head[start : start + len(magic)] == magic:
            raise UnsupportedCheckpointError(f"{path} is {name}. {_OTHER_FORMAT}")
    if path.suffix.lower() in _OTHER_SUFFIXES:
        raise UnsupportedCheckpointError(
            f"{path} is {_OTHER_SUFFIXES[path.suffix.lower()]}, by its name. {_OTHER_FORMAT}"
        )
    if head.lstrip()[:1] == b"<":
        raise _corrupt(path, "is a web page, not a checkpoint: the address or the access was wrong")
    if head.startswith(b"PK\x03\x04"):
        return "a torch archive", _read_zip
    # A safetensors file starts with its header's length, and among those eight bytes are zeros.
    if head.startswith(b"{") and 0 not in head[:8]:
        return "an index of shards", _read_shards
    if head[8:9] == b"{":
        return "safetensors", _read_safetensors
    return "a torch pickle", _read_legacy


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(path)


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Read the shards that an index lists, and join them."""
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
    """Read a zip file by torch.save, or a TorchScript archive, which has `constants.pkl` too."""
    with zipfile.ZipFile(path) as archive:
        _refuse_odd_members(archive, path)
        pickle_name = _pickle_name(archive)
        records = _records_below(archive, pickle_name.removesuffix("data.pkl"))
        pickled = archive.read(pickle_name)
        if "constants.pkl" not in records:
            _check_tensors(InertUnpickler(io.BytesIO(pickled), path).load(), records)
            # torch takes a file called *.safetensors for one, unless it gets the open file, and it
            # maps only files that it gets by name.
            return _torch_load(path, io.BytesIO(pickled), mmap=path.suffix != ".safetensors")
        if "byteorder" in records and archive.read(records["byteorder"]) != sys.byteorder.encode():
            raise ValueError("written on a machine of the other byte order")
        root_module = InertUnpickler(io.BytesIO(pickled), path).load()
    return dict(read_torchscript(path, records, root_module))


def _refuse_odd_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ValueError for what torch would read and we would not see.

    torch takes names that differ in case for one, and expands what is compressed.
    """
    names = [info.filename.lower() for info in archive.infolist()]
    if len(set(names)) < len(names):
        raise ValueError("two records of one name")
    for info in archive.infolist():
        if info.file_size > path.stat().st_size:
            raise ValueError(
                f"the record {info.filename} is compressed; save the weights anew with torch.save"
            )
        if info.filename.endswith("/data.pkl") and info.file_size > MAX_PICKLE:
            raise ValueError(f"the pickle of {info.file_size:,} bytes is too large for weights")


def _check_tensors(root: object, records: dict[str, zipfile.ZipInfo]) -> None:
    """Raise ValueError for a tensor that claims more numbers than its record holds."""
    for spec in tensor_specs(root):
        _, dtype, key, *_ = spec.storage
        held = records[f"data/{key}"].file_size // getattr(dtype, "itemsize", 1)
        if not all(type(n) is int and n >= 0 for n in (*spec.size, *spec.stride, spec.offset)):
            raise ValueError("a tensor without a shape")
        if math.prod(spec.size) > held:
            raise ValueError(f"a tensor of shape {spec.size} reaches beyond its record data/{key}")


def _pickle_name(archive: zipfile.ZipFile) -> str:
    """Return the name of the one `data.pkl` of a torch archive, which lies in a folder."""
    pickles = [
        name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(pickles) != 1:
        raise ValueError(f"a zip file with {len(pickles)} data.pkl, where one belongs")
    return pickles[0]


def _records_below(archive: zipfile.ZipFile, folder: str) -> dict[str, zipfile.ZipInfo]:
    """Return the records of a torch archive by their names without the folder."""
    records = {info.filename.removeprefix(folder): info for info in archive.infolist()}
    for name, info in records.items():
        is_read = name.startswith(("data.pkl", "data/", "byteorder"))
        # Mapping needs the plain bytes, and torch writes no others. A compressed record may also
        # expand without end.
        if is_read and info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"the record {name} is compressed; save the weights anew with torch.save"
            )
    return records


def _read_legacy(path: Path) -> Any:
    """Read a file that torch.save wrote before torch 1.6."""
    with path.open("rb") as file:
        if file.peek(1)[:1] != b"\x80":  # opens every pickle that torch writes
            refuse_unsafe(file, path)
            raise ValueError("neither safetensors nor anything that torch.save writes")
        return _torch_load(path, file, mmap=False)


def _torch_load(path: Path, pickles: BinaryIO, *, mmap: bool) -> Any:
    """Call torch.load for tensors alone.

    Args:
        path: the file.
        pickles: the file's pickles. If torch refuses them, they are read to say what they ask for.
        mmap: map the tensors.
    """
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(NUMPY_GLOBALS):
            return torch.load(
                path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap
            )
    except MemoryError:
        raise
    except Exception as error:
        pickles.seek(0)
        refuse_unsafe(pickles, path)
        # torch's own words would advise to load the file unsafely.
        if isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                "malformed, or not of pickle protocol 2, which is torch.save's own"
            ) from error
        raise
