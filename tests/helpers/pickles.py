"""Make pickles and archives by hand, sound and hostile ones."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_tensor_v2


class Call:
    """Pickle as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> Any:
        return self.function, self.args


class Storage:
    """Pickle as a reference to the record data/`key`."""

    def __init__(self, numel: Any, key: str = "0", dtype: Any = torch.FloatStorage) -> None:
        self.pid = ("storage", dtype, key, "cpu", numel)


class ArchivePickler(pickle.Pickler):
    """Write storages as torch does."""

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Storage) else None


def tensor_of(storage: Any, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> Call:
    """Return what pickles as a tensor of a storage."""
    hooks: OrderedDict[str, Any] = OrderedDict()
    return Call(_rebuild_tensor_v2, storage, offset, size, stride, False, hooks)


def as_module(cls: Any, **state: Any) -> Any:
    """Return an instance of a class with these attributes."""
    module = cls()
    module.__dict__.update(state)
    return module


def write_archive(
    path: Path, root: Any, records: dict[str, bytes] | None = None, protocol: int = 2
) -> None:
    """Write a TorchScript archive. Its record data/0 holds 1, 2, 3 and 4 as float32.

    Args:
        path: the file.
        root: the object to pickle, or the bytes of its pickle.
        records: more records, or others in place of the usual ones.
        protocol: of the pickle.
    """
    if isinstance(root, bytes):
        pickled = root
    else:
        buffer = io.BytesIO()
        ArchivePickler(buffer, protocol).dump(root)
        pickled = buffer.getvalue()
    usual = {
        "data.pkl": pickled,
        "constants.pkl": b"\x80\x02).",
        "version": b"3\n",
        "data/0": struct.pack("<4f", 1, 2, 3, 4),
        "data/1": b"\0" * 99,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (usual | (records or {})).items():
            archive.writestr(f"toy/{name}", content)
