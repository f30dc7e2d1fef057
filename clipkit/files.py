"""Write files whole or not at all, and identify them by their digests."""

import hashlib
import os
import uuid
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor


def write_weights(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors and metadata as safetensors, whole or not at all.

    Args:
        tensors: of any dtype, shape and device, by name. They may share memory.
        path: the file, which is replaced if it exists. Missing folders are made.
        metadata: more entries for the file's header.

    Raises:
        OSError: if the file cannot be written. One that was there is then still there.

    Example:
        write_weights(model.state_dict(), "model.safetensors", {"step": "100"})
    """
    import safetensors.torch

    addresses: set[int] = set()
    dense: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        # The format cannot say that two tensors share memory.
        dense[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    with replacing(path) as partial:
        partial.touch()
        # safetensors narrows the permissions to the owner, so those that the umask grants are
        # restored afterwards.
        mode = partial.stat().st_mode
        # transformers does not read a file that does not name this format.
        about = {"format": "pt", **(metadata or {})}
        safetensors.torch.save_file(dense, partial, metadata=about)
        partial.chmod(mode)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """Give a path to write to. The file there replaces the one at `path` at the end, or not at all.

    An error inside leaves what was at `path` as it was. Missing folders are made.

    Example:
        with replacing("notes.txt") as partial:
            partial.write_text("whole or not at all")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_all(
    folder: str | os.PathLike[str], names: Iterable[str]
) -> Generator[dict[str, Path], None, None]:
    """Give a path to write to for each name. At the end they replace those in `folder` together.

    All files are whole before the first is replaced. An error inside leaves the folder as it was.

    Example:
        with replacing_all("model", ["config.json", "merges.txt"]) as partials:
            partials["config.json"].write_text("{}")
            partials["merges.txt"].write_text("")
    """
    with ExitStack() as stack:
        yield {name: stack.enter_context(replacing(Path(folder) / name)) for name in names}


def sha256(path: str | os.PathLike[str]) -> str:
    """Return a file's SHA-256 digest in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
