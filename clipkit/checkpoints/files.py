"""Read and write weight files, running no code of theirs.

`read_weights` tells the format from the bytes, never from the file's name:

    safetensors                     memory-mapped
    torch.save, zip                 memory-mapped, through torch's weights-only unpickler
    torch.save before torch 1.6     read into memory, through torch's weights-only unpickler
    TorchScript archive             memory-mapped; see `_read_torchscript`
    *.safetensors.index.json        the shards of a transformers checkpoint, each one of the above

Mapped tensors are read from disk when they are touched, and writing to them changes neither the file nor other
readers. The file must not be overwritten in place while they live; `write_weights` replaces it instead, so a
checkpoint may be saved over the file that it was loaded from.
"""

import hashlib
import io
import json
import math
import os
import pickle
import struct
import sys
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from clipkit.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError, UnsafeCheckpointError

# Where training loops put the weights: Lightning and open_clip, then the usual names of hand-written loops.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# DistributedDataParallel, torch.compile and Lightning modules wrap a module and so prefix all its names.
_PREFIXES = ("module.", "_orig_mod.", "model.")
# What training loops store beside the weights.
_BOOKKEEPING = frozenset(
    "args best_acc config epoch global_step hyper_parameters iteration loss lr_scheduler name optimizer "
    "optimizer_state_dict optimizer_states scaler scheduler step".split()
)
# OpenAI's own archives, and no others, hold these beside the weights, as tensors or as plain integers.
OPENAI_SCALARS = {"input_resolution", "context_length", "vocab_size"}

# Names in pickles, and what stands for them; a storage is told by its dtype.
_BUILT: dict[str, Any] = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool, "collections.OrderedDict": OrderedDict,
}  # fmt: skip
# Names that pickles of tensors and plain data contain beside those, other storages and dtypes.
_HARMLESS = frozenset(
    "__builtin__.bytearray __builtin__.complex __builtin__.set _codecs.encode builtins.bytearray builtins.complex "
    "builtins.set collections.Counter torch.Size torch.Tensor torch.device torch._tensor._rebuild_from_type_v2 "
    "torch._utils._rebuild_parameter torch._utils._rebuild_parameter_with_state torch._utils._rebuild_tensor "
    "torch._utils._rebuild_tensor_v3 torch.nn.parameter.Parameter torch.serialization._get_layout".split()
)
# A plain CLIP's archive has a few thousand modules and tensors; these bounds only stop archives made to exhaust us.
_MAX_NODES = 100_000
_MAX_NAME = 1_000


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
    except Exception as error:  # damaged bytes make zipfile, pickle, torch and safetensors raise nearly anything
        raise _corrupt(path, f"cannot be read as {kind} ({type(error).__name__}: {error})") from error
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
        raise CorruptCheckpointError(f"holds a {type(obj).__name__}, not a state dict of named tensors")
    state = {name: value for name, value in obj.items() if name not in _BOOKKEEPING}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CorruptCheckpointError(f"has an entry {name!r} that is a {type(value).__name__}, not a tensor")
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
        raise _corrupt(Path(index), f"is no index of weight shards ({type(error).__name__}: {error})") from error
    return names


def write_weights(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and metadata as safetensors, all or nothing (`replacing`)."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    dense = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        dense[name] = tensor.clone() if tensor.data_ptr() in seen else tensor  # the format cannot share memory
        seen.add(tensor.data_ptr())
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # what the umask grants; safetensors narrows it to the owner alone
        save_file(dense, partial, metadata={"format": "pt", **(metadata or {})})  # transformers asks for the format
        partial.chmod(mode)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write, which replaces the one at `path` at the end, or not at all. Missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256(path: str | os.PathLike[str]) -> str:
    """The file's SHA-256 digest in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _corrupt(path: Path, reason: str, remedy: str = "Delete it and download or copy it again.") -> CheckpointError:
    return CorruptCheckpointError(f"{path} ({path.stat().st_size:,} bytes) {reason}. {remedy}")


def _recognise(path: Path, head: bytes) -> tuple[str, Callable[[Path], Any]]:
    """Name of the format and its reader, from the file's first bytes."""
    if not head:
        raise _corrupt(path, "is empty")
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        raise _corrupt(path, "is a git-lfs pointer, not the weights", "Fetch them with `git lfs pull`.")
    if head.lstrip()[:1] == b"<":
        raise _corrupt(path, "is a web page, not a checkpoint: the address or the access was wrong")
    if head.startswith(b"PK\x03\x04"):
        return "a torch archive", _read_zip
    if head.startswith(b"{") and 0 not in head[:8]:  # the length that opens a safetensors file has zeros there
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
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"a zip file with {len(pickles)} data.pkl, where one belongs")
        root = pickles[0].removesuffix("data.pkl")
        records = {info.filename.removeprefix(root): info for info in archive.infolist()}
        for name, info in records.items():
            # Mapping needs the plain bytes, and torch writes no others; what expands may expand without end.
            if name.startswith(("data.pkl", "data/", "byteorder")) and info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"the record {name} is compressed; save the weights anew with torch.save")
        if "constants.pkl" not in records:
            # torch takes files of this name for safetensors, and maps only files that it is given by name
            return _torch_load(path, io.BytesIO(archive.read(pickles[0])), mmap=path.suffix != ".safetensors")
        if "byteorder" in records and archive.read(records["byteorder"]) != sys.byteorder.encode():
            raise ValueError("written on a machine of the other byte order")
        root_module = _InertUnpickler(io.BytesIO(archive.read(pickles[0])), path).load()
    return dict(_read_torchscript(path, records, root_module))


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as file:
        if file.peek(1)[:1] != b"\x80":  # opens every pickle that torch writes
            _refuse_unsafe(file, path)
            raise ValueError("neither safetensors nor anything that torch.save writes")
        return _torch_load(path, file, mmap=False)


def _torch_load(path: Path, pickles: BinaryIO, *, mmap: bool) -> Any:
    """torch.load for tensors alone; `pickles` are the file's pickles, to name what they ask for if torch refuses."""
    try:
        with path.open("rb") as file:
            return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        pickles.seek(0)
        _refuse_unsafe(pickles, path)
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to load it unsafely
            raise ValueError("malformed, or not of pickle protocol 2, which is torch.save's own") from error
        raise


def _refuse_unsafe(file: BinaryIO, path: Path) -> None:
    """Raise `UnsafeCheckpointError` if the pickles in `file` ask for code; any other damage passes."""
    unpickler = _InertUnpickler(file, path)
    try:
        for _ in range(5):  # a file of the old kind is five pickles, and then the storages
            unpickler.load()
    except UnsafeCheckpointError:
        raise
    except Exception:
        return


class _Inert:
    """Whatever a pickle builds that is no tensor: keeps its state and does nothing.

    `__setstate__` is also what keeps a pickle from setting attributes of these classes themselves.
    """

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _TensorSpec(_Inert):
    """A tensor as a pickle describes it: the arguments of `torch._utils._rebuild_tensor_v2`."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


class _InertUnpickler(pickle._Unpickler):  # pure Python: its C twin allocates whatever memo index a pickle names
    """Builds descriptions only: nothing is imported, and nothing but the two classes above is called."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        def readline() -> bytes:
            line = file.readline()
            if not line.endswith(b"\n"):  # else the name of a global that the file's end cuts short looks like another
                raise EOFError("the pickle is cut short")
            return line

        stream: Any = SimpleNamespace(read=file.read, readline=readline)
        super().__init__(stream)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "torch._utils._rebuild_tensor_v2":
            return _TensorSpec
        if full in _BUILT:
            return _BUILT[full]
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
            return _Inert
        if full in _HARMLESS or full.startswith(("__torch__.", "torch.jit._pickle.")):
            return _Inert
        raise UnsafeCheckpointError(
            f"{self.path} asks for {full}, which weights do not need; nothing of it was run. If you trust its "
            "origin, load it with the program that wrote it and save its state_dict() as safetensors."
        )

    def persistent_load(self, pid: Any) -> Any:
        return pid


def _read_torchscript(path: Path, records: dict[str, zipfile.ZipInfo], root: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors below the root module of a TorchScript archive, as OpenAI published its models.

    Such an archive pickles a tree of modules whose classes are its own source code; the state of each is a dict
    of tensors, numbers and further modules. The tree is walked as data and the source is never looked at, so
    plain tensor attributes come along with the parameters and buffers.
    """
    whole: Any = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    nodes, pending = 0, [("", root)]
    with path.open("rb") as file:
        while pending:
            name, node = pending.pop()
            nodes += 1
            if nodes > _MAX_NODES or len(name) > _MAX_NAME:
                raise ValueError("the modules nest without end")
            if isinstance(node, _TensorSpec):
                yield name, _build_tensor(node, file, records, whole)
            elif name in OPENAI_SCALARS and isinstance(node, int):
                yield name, torch.tensor(node)
            elif isinstance(node, _Inert) and isinstance(node.state, dict):
                pending += [(f"{name}.{key}" if name else key, child) for key, child in reversed(node.state.items())]


def _build_tensor(
    spec: _TensorSpec, file: BinaryIO, records: dict[str, zipfile.ZipInfo], whole: torch.UntypedStorage
) -> Tensor:
    """Map the tensor from its record. Raises ValueError for one that reaches beyond it."""
    _, dtype, key, _, numel = spec.storage
    info = records[f"data/{key}"]
    # A record's bytes follow its local header, whose name and padding vary in length (APPNOTE.TXT, section 4.3.7).
    file.seek(info.header_offset)
    magic, name_length, extra_length = struct.unpack("<4s22xHH", file.read(30))
    start = info.header_offset + 30 + name_length + extra_length
    length = numel * dtype.itemsize
    counts = (numel, spec.offset, *spec.size, *spec.stride)
    if magic != b"PK\x03\x04" or min(counts) < 0:
        raise ValueError(f"the record data/{key} is malformed")
    last = spec.offset + sum((n - 1) * step for n, step in zip(spec.size, spec.stride, strict=True))
    if length > info.file_size or start + length > whole.nbytes() or (math.prod(spec.size) and last >= numel):
        raise ValueError(f"a tensor of shape {spec.size} reaches beyond its record data/{key}")
    return torch.empty(0, dtype=dtype).set_(whole[start : start + length], spec.offset, spec.size, spec.stride)
