"""Write files whole or not at all."""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipkit.files.output import check_output, typed_write_errors

if TYPE_CHECKING:
    from torch import Tensor

_KEPT = 40  # characters of a name that the name of its unfinished file has too


def write_weights(
    tensors: "Mapping[str, Tensor]",
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors and metadata as safetensors, whole or not at all.

    Args:
        tensors: of any dtype, shape and device, by name. They may share memory.
        path: the file, which is replaced if it exists. Missing folders are made.
        metadata: more entries for the file's header.

    Raises:
        OutputError: if the file cannot be written. One that was there is then still there.

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


def write_json(values: object, path: str | os.PathLike[str]) -> None:
    """Write plain values as JSON, whole or not at all.

    Args:
        values: what JSON can hold, without numbers that are not finite.
        path: the file, which is replaced if it exists. Missing folders are made.

    Raises:
        OutputError: if it cannot be written. One that was there is then still there.

    Example:
        write_json({"accuracy": 0.9}, "report.json")
    """
    text = json.dumps(values, indent=1, allow_nan=False)
    with replacing(path) as partial:
        partial.write_text(f"{text}\n", "utf-8")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[Path, None, None]:
    """Give a path to write to. The file there replaces the one at `path` at the end, or not at all.

    An error inside leaves what was at `path` as it was. Missing folders are made.

    Raises:
        OutputError: if the file cannot be written, with the reason and a remedy. It takes the place
            of what the system, safetensors and torch.save raise then.

    Example:
        with replacing("notes.txt") as partial:
            partial.write_text("whole or not at all")
    """
    path = Path(path)
    check_output(path)
    # A part of the name is enough to recognize it, and a longer one might be too long.
    partial = path.with_name(f".{path.name[:_KEPT]}.{uuid.uuid4().hex}.tmp")
    with typed_write_errors(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while they wrote a file left beside it.

    Call it only while no other process may write the file, as under a lock.
    """
    path = Path(path)
    if len(path.name) > _KEPT:  # another file may have the same beginning
        return
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.tmp")
    for beside in path.parent.glob(".*.tmp"):
        if leftover.fullmatch(beside.name):
            with contextlib.suppress(OSError):
                beside.unlink()
