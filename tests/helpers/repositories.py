"""Name the repositories that the tests of names use, and read what was asked of the hub."""

from collections.abc import Callable
from pathlib import Path

from clipkit.checkpoints import registry
from clipkit.checkpoints.save import FolderLayout
from tests.helpers.hub_server import HubServer

REPO = "someone/small-clip"
ROW = "ViT-B/32"
REPO_OF_ROW = registry.MODELS[ROW].hub

LAYOUTS: tuple[FolderLayout, ...] = ("clipkit", "open_clip", "transformers")

# A function that returns the files of a repository or folder in a layout.
Contents = Callable[[FolderLayout], dict[str, bytes]]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files by name, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def asked_for(hub: HubServer) -> list[str]:
    """Return the names of the files asked for, in order.

    The client's second request for a file, which fetches what the first one found, does not count.
    """
    paths = [request.path for request in hub.requests if "/resolve/" in request.path]
    return list(dict.fromkeys(path.rsplit("/", 1)[-1] for path in paths))
