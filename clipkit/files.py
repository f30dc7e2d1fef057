"""Write files whole or not at all, and know them by their digests."""

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor


def write_weights(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors and metadata as safetensors, all or nothing (`replacing`)."""
    from safetensors.torch import save_file

    seen: set[int] = set()
    dense = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        dense[name] = (
            tensor.clone() if tensor.data_ptr() in seen else tensor
        )  # the format cannot share memory
        seen.add(tensor.data_ptr())
    with replacing(path) as partial:
        partial.touch()
        mode = (
            partial.stat().st_mode
        )  # what the umask grants; safetensors narrows it to the owner alone
        save_file(
            dense, partial, metadata={"format": "pt", **(metadata or {})}
        )  # transformers asks for the format
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
