"""Read and write the manifest of a `UsearchStore`, which says which files belong together."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipkit.errors import DataError
from clipkit.files import read_json, write_json

MANIFEST = "store.json"

_FORMAT = "clipkit usearch store"
_VERSION = 1
_OWN = ("graph-*.usearch", "names-*.safetensors", ".*.tmp")


@dataclass(frozen=True)
class GraphState:
    """Describe one state of a store.

    Attributes:
        state: counts the states from 1; 0 before the first.
        width: of the features, D.
        count: of the features.
        following: the next key to give.
        graph: the file of the graph.
        graph_bytes: its size. What was cut off must not be mapped.
        names: the file of the names.
        mark: what the caller knows the content by.
    """

    state: int
    width: int
    count: int
    following: int
    graph: str
    graph_bytes: int
    names: str
    mark: str

    @classmethod
    def read(cls, folder: Path) -> "GraphState | None":
        """Return the present state of the store in a folder, or None if there is none.

        Raises:
            DataError: if its manifest is damaged or of a later version.
        """
        path = folder / MANIFEST
        if not path.exists():
            return None
        values = read_json(path)
        if values.pop("format", None) != _FORMAT or values.pop("version", None) != _VERSION:
            raise DataError(
                f"{path} is not the manifest of a store, or of another version of clipkit"
            )
        if not _is_sound(values, dict(cls.__annotations__)):
            raise DataError(f"{path} is damaged: delete the folder and fill the store again")
        return cls(**values)

    def write(self, folder: Path) -> None:
        """Go over to this state, in one step."""
        values = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        write_json(values, folder / MANIFEST)

    def remove_others(self, folder: Path) -> None:
        """Remove files of other states. Readers that have mapped them keep what they mapped."""
        for pattern in _OWN:
            for path in folder.glob(pattern):
                if path.name not in (self.graph, self.names):
                    with suppress(OSError):  # Windows removes no file that is mapped
                        path.unlink()


def _is_sound(values: dict[str, Any], kinds: dict[str, type]) -> bool:
    """Return whether values have the names and types of a state, and name files of its folder."""
    if values.keys() != kinds.keys():
        return False
    if any(type(value) is not kinds[name] for name, value in values.items()):
        return False
    numbers = ("state", "width", "count", "following", "graph_bytes")
    names = (values["graph"], values["names"])
    return all(values[name] >= 0 for name in numbers) and all(
        Path(name).name == name for name in names
    )
