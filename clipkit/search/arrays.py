"""Write arrays as safetensors and map them from the disk, without torch.

A search whose query is known must not wait for torch, and 100,000 features need not be read before
they are used. A file is eight bytes with the length of a header, the header in JSON, and the bytes
of the arrays (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import DataError, OutputError
from clipkit.files import check_output, replacing

Arrays = dict[str, NDArray[Any]]

_DTYPES = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "U8": "|u1"}
_KINDS = {np.dtype(dtype[1:]): kind for kind, dtype in _DTYPES.items()}
_MAX_HEADER = 1 << 20  # bytes; ours have a few hundred


def write_arrays(arrays: Mapping[str, NDArray[Any]], path: str | os.PathLike[str]) -> None:
    """Write arrays as safetensors, whole or not at all, and wait until they are on the disk.

    They go from their own memory to the file. Only one that is not contiguous is copied before.

    Args:
        arrays: float16, float32, int64 or uint8, by name.
        path: the file, which is replaced if it exists. Its folder must be there: that of an index
            may be removed while it is written, and must not come back with a part of it.

    Raises:
        OutputError: if it cannot be written. One that was there is then still there.
    """
    path = Path(path)
    check_output(path)
    check_there(path.parent)
    # The widest numbers come first, so that each array begins at a multiple of its own width.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        kind = _KINDS[array.dtype]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            whole = np.ascontiguousarray(array).astype(_DTYPES[_KINDS[array.dtype]], copy=False)
            file.write(whole.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def check_there(folder: Path) -> None:
    """Raise `OutputError` if the folder of an index is not there any more."""
    if not folder.is_dir():
        raise OutputError(
            f"the folder {str(folder)!r} was removed while it was written, so nothing is kept of "
            "it: run this again if its images are still there"
        )


def sync(path: Path) -> None:
    """Wait until a file is on the disk: a name must not come before the bytes that it promises."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def map_arrays(path: str | os.PathLike[str]) -> Arrays:
    """Return the arrays of a file by name. They are read from the disk when they are touched.

    They cannot be written to. Removing the file leaves them as they are.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _MAX_HEADER:
                raise ValueError("it does not begin with the length of a header")
            header = json.loads(file.read(length))
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = cast("dict[str, Any]", header)
        values.pop("__metadata__", None)
        data = np.frombuffer(content, np.uint8)[8 + length :]  # (bytes of all arrays,)
        return {name: _array_of(about, data) for name, about in values.items()}
    except FileNotFoundError as error:
        raise DataError(f"{os.fspath(path)} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{os.fspath(path)} is damaged: {error}") from error


def _array_of(about: dict[str, Any], data: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the array that an entry of a header describes."""
    start, end = about["data_offsets"]
    dtype = np.dtype(_DTYPES[about["dtype"]])
    shape = tuple(int(side) for side in about["shape"])
    if not 0 <= start <= end <= len(data) or end - start != dtype.itemsize * math.prod(shape):
        raise ValueError("an array lies beyond its end")
    return data[start:end].view(dtype).reshape(shape)
