"""Read pickles and TorchScript archives as data, and run nothing of them.

`InertUnpickler` builds a description of what a pickle holds. `read_torchscript` takes such a
description of one of OpenAI's archives and maps the tensors that it names.
"""

import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from clipkit.errors import UnsafeCheckpointError

# OpenAI's own archives, and no others, hold these beside the weights, as tensors or as plain
# integers.
OPENAI_SCALARS = {"input_resolution", "context_length", "vocab_size"}

# The names in pickles that are built, and their stand-ins. A dtype stands for a storage.
_BUILT: dict[str, Any] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "collections.OrderedDict": OrderedDict,
}
# Pickles of tensors and plain data contain these names too, and other storages and dtypes.
_HARMLESS = frozenset(
    (
        "__builtin__.bytearray",
        "__builtin__.complex",
        "__builtin__.set",
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch._tensor._rebuild_from_type_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v3",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
    )
)
# The modules of a TorchScript archive, and NumPy's numbers from both of its generations.
_HARMLESS_BEGINNINGS = (
    "__torch__.",
    "torch.jit._pickle.",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
# The archive of a plain CLIP has a few thousand modules and tensors. These bounds only stop
# archives that are made to exhaust us.
_MAX_NODES = 100_000
# A state dict with the state of its optimizer takes some 100,000 opcodes.
_MAX_OPCODES = 2_000_000
MAX_PICKLE = 64 << 20  # bytes
_MAX_NAME = 1_000


def refuse_unsafe(file: BinaryIO, path: Path) -> None:
    """Raise `UnsafeCheckpointError` if the pickles in `file` ask for code.

    Any other damage passes, for the caller to report.
    """
    unpickler = InertUnpickler(file, path)
    try:
        for _ in range(5):  # a file of the old kind is five pickles, and then the storages
            unpickler.load()
    except UnsafeCheckpointError:
        raise
    except Exception:
        return


def _numpy_globals() -> list[Any]:
    """Return what NumPy's plain numbers are pickled with: two functions and the number types.

    They make a number of the given bytes, and none of them calls anything that a pickle names. An
    array of objects could; it is made by another function.
    """
    kinds = (np.float64, np.float32, np.float16, np.int64, np.int32, np.int16, np.int8, np.bool_)
    scalar: Any = np.float64(0).__reduce__()[0]
    found: list[Any] = [np.dtype, *(type(np.dtype(kind)) for kind in kinds)]
    # NumPy 1 and 2 have the function under these two names. Files of both are read.
    return [*found, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


NUMPY_GLOBALS = _numpy_globals()


def tensor_specs(root: object) -> list["_TensorSpec"]:
    """Return the descriptions of all tensors in what `InertUnpickler` built.

    Raises:
        ValueError: if the pickle nests without end.
    """
    found: list[_TensorSpec] = []
    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if len(seen) > _MAX_OPCODES:
            raise ValueError("the pickle nests without end")
        if isinstance(node, _TensorSpec):
            found.append(node)
        elif isinstance(node, dict):
            pending += dict.values(cast("dict[Any, Any]", node))
        elif isinstance(node, list | tuple):
            pending += cast("list[Any]", node)
        elif isinstance(node, _Inert):
            pending += [node.state, node.arguments]
    return found


class _Inert:
    """Keep the state of what a pickle builds, and do nothing.

    It stands for everything but tensors. A pickle may also ask to set the state of one of these
    classes themselves. That finds `__setstate__` too, and fails because there is no instance, so
    no pickle can change the classes.
    """

    state: Any = None
    arguments: tuple[Any, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _TensorSpec(_Inert):
    """Describe a tensor by the arguments of `torch._utils._rebuild_tensor_v2` in a pickle."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        self.storage = storage
        self.offset = offset
        self.size = size
        self.stride = stride


def _refuse_bytearray(_: object) -> None:
    """Raise ValueError in place of making room for as many bytes as a pickle announces."""
    raise ValueError("the pickle holds a bytearray, which weights do not need")


def _bytes_left(file: BinaryIO) -> int:
    """Return how many bytes a file has after its position."""
    here = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(here)
    return end - here


# It derives from the unpickler in pure Python, because the one in C allocates memory for whatever
# memo index a pickle names.
class InertUnpickler(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage]
    """Build descriptions only: import nothing, and call nothing but the two classes above."""

    dispatch = dict(pickle._Unpickler.dispatch)  # pyright: ignore
    dispatch[pickle.BYTEARRAY8[0]] = _refuse_bytearray

    def __init__(self, file: BinaryIO, path: Path) -> None:
        def readline() -> bytes:
            line = file.readline()
            # The name of a global that the file's end cuts short looks like another name.
            if not line.endswith(b"\n"):
                raise EOFError("the pickle is cut short")
            return line

        left = _bytes_left(file)
        opcodes = 0

        def read(size: int) -> bytes:
            nonlocal opcodes
            opcodes += size == 1
            # Python would make room for as many bytes as the pickle announces.
            if size > left or opcodes > _MAX_OPCODES:
                raise ValueError("the pickle asks for more than the file holds")
            return file.read(size)

        stream: Any = SimpleNamespace(read=read, readline=readline)
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a global. Raise `UnsafeCheckpointError` if it has none."""
        full = f"{module}.{name}"
        if full == "torch._utils._rebuild_tensor_v2":
            return _TensorSpec
        if full in _BUILT:
            return _BUILT[full]
        if module == "torch" and (
            name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return _Inert
        if full in _HARMLESS or full.startswith(_HARMLESS_BEGINNINGS):
            return _Inert
        raise UnsafeCheckpointError(
            f"{self.path} asks for {full}, which weights do not need; nothing of it was run. If "
            "you trust its origin, load it with the program that wrote it and save its "
            "state_dict() as safetensors."
        )

    def persistent_load(self, pid: object) -> object:
        """Return the description of a storage as it stands in the pickle."""
        return pid


def read_torchscript(
    path: Path, records: dict[str, zipfile.ZipInfo], root: object
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and tensors below the root module of a TorchScript archive, OpenAI's format.

    Such an archive pickles a tree of modules, with its own source code as their classes. The state
    of each is a dict of tensors, numbers and further modules. The tree is walked as data and the
    source is never looked at, so plain tensor attributes come along with the parameters and
    buffers.

    Args:
        path: the archive.
        records: its records, by their names below the archive's one folder.
        root: the description of the root module that `InertUnpickler` built.

    Raises:
        ValueError: if the modules nest without end, or a tensor is malformed.
    """
    whole: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    nodes = 0
    pending: list[tuple[str, object]] = [("", root)]
    with path.open("rb") as file:
        while pending:
            name, node = pending.pop()
            nodes += 1
            if nodes > _MAX_NODES or len(name) > _MAX_NAME:
                raise ValueError("the modules nest without end")
            if isinstance(node, _TensorSpec):
                yield name, _build_tensor(node, file, records, whole)
            elif name in OPENAI_SCALARS and isinstance(node, int):
                yield name, torch.tensor(node, device="cpu")
            elif isinstance(node, _Inert) and isinstance(node.state, dict):
                state = cast("dict[Any, Any]", node.state)
                pending += [
                    (f"{name}.{key}" if name else key, child)
                    for key, child in reversed(state.items())
                ]


def _build_tensor(
    spec: _TensorSpec,
    file: BinaryIO,
    records: dict[str, zipfile.ZipInfo],
    whole: Any,
) -> Tensor:
    """Map a tensor from its record. Raise ValueError if it reaches beyond the record.

    Args:
        spec: what the pickle says of the tensor.
        file: the archive, open for reading.
        records: the archive's records.
        whole: the archive's bytes, mapped: an UntypedStorage, which torch types in part only.
    """
    _, dtype, key, _, numel = spec.storage
    info = records[f"data/{key}"]
    # The bytes of a record follow its local header. That ends with a name and padding, which vary
    # in length (APPNOTE.TXT, section 4.3.7).
    file.seek(info.header_offset)
    magic, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    start = info.header_offset + 30 + name_length + extra_length
    length = numel * dtype.itemsize
    counts = (numel, spec.offset, *spec.size, *spec.stride)
    if magic != b"PK\x03\x04" or min(counts) < 0:
        raise ValueError(f"the record data/{key} is malformed")
    last = spec.offset + sum((n - 1) * step for n, step in zip(spec.size, spec.stride, strict=True))
    if (
        length > info.file_size
        or start + length > whole.nbytes()
        or (math.prod(spec.size) and last >= numel)
    ):
        raise ValueError(f"a tensor of shape {spec.size} reaches beyond its record data/{key}")
    record = whole[start : start + length]
    return torch.empty(0, dtype=dtype, device="cpu").set_(
        record, spec.offset, spec.size, spec.stride
    )
