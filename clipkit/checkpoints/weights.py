"""Read weight files without running any code of theirs.

`read_weights` tells the format from the bytes, never from the file's name:

    safetensors
    torch.save, zip                 through torch's weights-only unpickler
    torch.save before torch 1.6     the same
    TorchScript archive             see `read_torchscript`
    *.safetensors.index.json        the shards of a transformers checkpoint, each one of the above

The tensors are copies in memory, so whatever happens to the file later changes none of them. With
`mapped=True` they stay in the file, and are read from disk when they are touched. Writing to them
then changes neither the file nor other readers, but the file must not be overwritten in place while
they live. (`write_weights` replaces it instead.)
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from clipkit.checkpoints.formats import refuse_other_formats, refuse_zip
from clipkit.checkpoints.nesting import unwrap_state_dict
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

# Threads that read the tensors of one file.
_READERS = 2


def read_weights(path: str | os.PathLike[str], *, mapped: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Wrappers and prefixes of training loops are removed (see `unwrap_state_dict`).

    Args:
        path: the file.
        mapped: leave the tensors in the file where its format allows it. For files that nobody
            overwrites in place.

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
    # os.path says False, where Path raises an error, of a name that is too long.
    if not os.path.exists(path):
        raise CheckpointNotFoundError(f"There is no file {str(path):.300}")
    if os.path.isdir(path):
        raise CheckpointNotFoundError(f"{path} is a folder; name the weight file in it")
    head = _read_head(path)
    kind, read = _recognize(path, head)
    if read is _map_safetensors and not mapped:
        read = _read_safetensors
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
        state = unwrap_state_dict(content)
    except CorruptCheckpointError as error:
        raise _corrupt(path, str(error), "Save the model's state_dict() alone.") from error
    if read in (_map_zip, _map_shards) and not mapped:
        return _copy(state)  # and not the rest of the file, such as an optimizer's state
    return state


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy the memory that tensors lie in. Those that share it still do.

    So the copies take no more memory than the file, however many tensors it makes of its bytes.
    """
    copies: dict[str, Tensor] = {}
    storages: dict[int, torch.UntypedStorage] = {}
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            copies[name] = value  # no weight of a CLIP, as is told later
            continue
        storage = value.untyped_storage()
        if storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = storage.clone()
        copies[name] = torch.empty(0, dtype=value.dtype, device="cpu").set_(
            storages[storage.data_ptr()], value.storage_offset(), value.shape, value.stride()
        )
    return copies


def read_run_config(path: Path) -> dict[str, Any] | None:
    """Return the model's config in a checkpoint of `clipkit train`; None for any other file."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return None
    try:
        return dict(_map_zip(path)["identity"][0])
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
    refuse_other_formats(path, head)
    if head.lstrip()[:1] == b"<":
        raise _corrupt(path, "is a web page, not a checkpoint: the address or the access was wrong")
    if head.startswith(b"PK\x03\x04"):
        return "a torch archive", _map_zip
    # A safetensors file starts with its header's length, and among those eight bytes are zeros.
    if head.startswith(b"{") and 0 not in head[:8]:
        return "an index of shards", _map_shards
    if head[8:9] == b"{":
        return "safetensors", _map_safetensors
    return "a torch pickle", _read_legacy


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors.torch

    return safetensors.torch.load_file(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file straight into memory.

    Copies of a map would take the double for a while, and as much time again as the map's pages
    need. Two threads are as fast as memory is filled at all.
    """
    mapped = _map_safetensors(path)  # nothing is touched, but the header is checked
    begins = _begins(path)
    copies = {name: torch.empty_like(value) for name, value in mapped.items()}

    def fill(name: str) -> None:
        if copies[name].numel() == 0:
            return
        content = copies[name].reshape(-1).view(torch.uint8).numpy().data
        with path.open("rb", buffering=0) as file:
            file.seek(begins[name])
            done = 0
            while done < len(content):
                count = file.readinto(content[done:])
                if not count:
                    raise ValueError("it became shorter while it was read")
                done += count

    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(fill, copies):
            pass  # or its error would be lost
    return copies


def _begins(path: Path) -> dict[str, int]:
    """Return where the bytes of each tensor of a sound safetensors file begin.

    The format is a length of eight bytes, that much JSON, and then the tensors.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return {
        name: 8 + length + about["data_offsets"][0]
        for name, about in header.items()
        if name != "__metadata__"
    }


def _map_shards(path: Path) -> dict[str, Tensor]:
    """Map the shards that an index lists, and join them."""
    tensors: dict[str, Tensor] = {}
    for name in shard_names(path):
        if not (path.parent / name).exists():
            raise CheckpointNotFoundError(f"{path} lists the shard {name}, which is not beside it")
        shard = read_weights(path.parent / name, mapped=True)
        if twice := tensors.keys() & shard.keys():
            raise ValueError(f"{sorted(twice)[0]} is in more than one shard")
        tensors |= shard
    return tensors


def _map_zip(path: Path) -> Any:
    """Map a zip file by torch.save, or a TorchScript archive, which has `constants.pkl` too."""
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
    if not pickles and not any(name.lower().endswith("data.pkl") for name in archive.namelist()):
        refuse_zip(Path(str(archive.filename)))
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
    """Read a file that torch.save wrote before torch 1.6. Such a file cannot be mapped."""
    with path.open("rb") as file:
        opening = file.peek(2)[:2]
        if opening in (b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # torch.save writes protocol 2
            refuse_unsafe(file, path)
            raise UnsupportedCheckpointError(
                f"{path} is a pickle, and not of torch.save: load it with the program that wrote "
                "it, and torch.save the state_dict() of its model"
            )
        if opening[:1] != b"\x80":
            refuse_unsafe(file, path)
            raise _corrupt(
                path,
                "is neither safetensors nor anything that torch.save writes",
                "Pass the path of a weight file. If it should be one, download or copy it again.",
            )
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
