"""Read and write the manifest of an index, the one file that says which others belong to it.

A state of an index is several files. Each is written under a new name and never changed; replacing
the manifest goes from the old state to the new in one step. What no manifest names is left over
from a process that was killed, or from an older state, and is removed by whoever writes next.
"""

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from clipkit.errors import DataError
from clipkit.files import read_json, write_json
from clipkit.search.arrays import check_there

MANIFEST = "manifest.json"
FOLDER = ".clipkit"  # of an index that lies in the folder of its images

_FORMAT = "clipkit index"
_VERSION = 1
_REMEDY = "Delete the folder and build the index again"
_OWN = ("entries-*.safetensors", "features-*.safetensors", ".*.tmp")


@dataclass(frozen=True)
class Manifest:
    """Say what an index is of, and which files hold it.

    Attributes:
        state: counts the states from 1.
        model: the name by which its model can be loaded again; "" if that is not known.
        width: of the features, D.
        root: the folder of the images, from the index's own folder or absolute; None if the images
            were given as a list.
        exclude: patterns of files and folders that are left out.
        include_hidden: whether hidden files and folders are searched too.
        entries: the file of the entries.
        features: the files of the features, one after the other.
    """

    state: int
    model: str
    width: int
    root: str | None
    exclude: list[str]
    include_hidden: bool
    entries: str
    features: list[str]

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest in a folder.

        Raises:
            DataError: if there is no index, or its manifest is damaged or of a later version.
        """
        path = folder / MANIFEST
        if not path.exists():
            raise DataError(
                f"there is no index in {folder}: make one by Index.build(folder, model), or "
                "`clipkit index FOLDER`"
            )
        with telling_remedy():
            values = read_json(path)
        if values.pop("format", None) != _FORMAT:
            raise _damaged(path, "it is not the manifest of an index")
        version = values.pop("version", None)
        if version != _VERSION:
            raise DataError(
                f"{path} is of version {version!r}, and this clipkit reads {_VERSION}: update "
                "clipkit, or delete the folder and build the index again"
            )
        try:
            manifest = cls(**values)
        except TypeError as error:
            raise _damaged(path, error) from error
        _check_types(manifest, path)
        return manifest

    def write(self, folder: Path) -> None:
        """Replace the manifest in a folder.

        Raises:
            OutputError: if it cannot be written, or the folder is not there any more.
        """
        check_there(folder)
        write_json({"format": _FORMAT, "version": _VERSION, **asdict(self)}, folder / MANIFEST)

    def remove_others(self, folder: Path) -> None:
        """Remove files of other states. Readers that have mapped them keep what they mapped."""
        own = {self.entries, *self.features}
        for pattern in _OWN:
            for path in folder.glob(pattern):
                if path.name not in own:
                    with suppress(OSError):  # Windows removes no file that is mapped
                        path.unlink()


@contextmanager
def telling_remedy() -> Generator[None, None, None]:
    """Add to an error about a file of an index what can be done about it."""
    try:
        yield
    except DataError as error:
        if _REMEDY in str(error):
            raise
        raise DataError(f"{error}. {_REMEDY}") from error


def _check_types(manifest: Manifest, path: Path) -> None:
    """Raise `DataError` if a value is of another type than it must be."""
    numbers = (manifest.state, manifest.width)
    texts: list[Any] = [manifest.model, manifest.entries]
    for values in cast("list[Any]", [manifest.features, manifest.exclude]):
        texts += cast("list[Any]", values) if isinstance(values, list) else [None]
    if manifest.root is not None:
        texts.append(manifest.root)
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise _damaged(path, "a count is no positive integer")
    if not all(isinstance(text, str) for text in texts):
        raise _damaged(path, "a name is no text")
    names = [manifest.entries, *manifest.features]
    if any(Path(name).name != name for name in names):
        raise _damaged(path, "it names files outside its folder")


def _damaged(path: Path, problem: object) -> DataError:
    return DataError(f"{path} is damaged: {problem}. {_REMEDY}")
