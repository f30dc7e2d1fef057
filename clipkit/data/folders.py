"""Find the images in folders, and tell them from what systems leave there."""

import fnmatch
import os
import re
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from clipkit.data.decode import image_suffixes
from clipkit.errors import ConfigError, DataError

# What operating systems, file servers and archives leave beside images, in lower case.
_LEFTOVERS = frozenset(
    (
        *("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("lost+found", "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
        *("__pycache__", "node_modules"),
    )
)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or a leftover of a system.

    Example:
        is_hidden(".ipynb_checkpoints"), is_hidden("._cat.jpg"), is_hidden("__MACOSX")  # all True
    """
    return name.startswith(".") or name.lower() in _LEFTOVERS


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder as a path, or raise `DataError` if it is none.

    An empty text is no folder: it would become the working directory.
    """
    if os.fspath(folder) == "":
        raise DataError("an empty text names no folder. '.' is the working directory")
    path = Path(folder)
    try:
        if path.is_dir():
            return path
        exists = path.exists()
    except (OSError, ValueError) as error:  # the name is too long, or holds a null byte
        raise DataError(f"{os.fspath(folder)!r:.300} names no folder: {error}") from error
    if exists:
        raise DataError(f"{path} is no folder. A single file goes in a list")
    raise DataError(f"there is no folder or file {str(path)!r}: check its spelling")


def list_images(
    folder: str | os.PathLike[str],
    *,
    exclude: Sequence[str] = (),
    include_hidden: bool = False,
) -> list[Path]:
    """Return the images in a folder and in the folders below it, sorted by path.

    They are told by the endings of their names. Hidden files and folders are left out (see
    `is_hidden`). The folder itself may be hidden. Links to folders are followed, and no folder is
    listed twice, so links may also go round in circles.

    The rows of features of a folder come in this order.

    Args:
        folder: where to look.
        exclude: patterns as in a shell, such as "thumbnails", "*.gif" or "2019/*". What they match
            is left out with all that is below it: a name by itself, or a path below the folder.
        include_hidden: whether to look in hidden folders and for hidden files, too.

    Raises:
        ConfigError: if `exclude` is a single text.
        DataError: if there is no such folder.

    Example:
        files = list_images("photos", exclude=["thumbnails"])
    """
    files = find_files(folder, image_suffixes(), exclude=exclude, include_hidden=include_hidden)
    return sorted(files)


def find_files(
    folder: str | os.PathLike[str],
    suffixes: Container[str],
    *,
    exclude: Sequence[str] = (),
    include_hidden: bool = False,
) -> Iterator[Path]:
    """Yield the files of some endings in a folder and in the folders below it, in any order.

    Args:
        folder: where to look.
        suffixes: endings of names, such as ".jpg", in lower case.
        exclude, include_hidden: as in `list_images`.

    Raises:
        ConfigError, DataError: as `list_images`, when the first file is asked for.
    """
    if isinstance(exclude, str):  # its letters would be the patterns
        raise ConfigError(f"exclude must be a list of patterns, such as [{exclude!r:.99}]")
    root = check_folder(folder)
    is_left_out = _left_out(root, exclude, include_hidden)
    for parent, files in _walk(root, is_left_out):
        for name in files:
            path = Path(parent, name)
            is_wanted = path.suffix.lower() in suffixes
            if is_wanted and not is_left_out(parent, name) and path.is_file():
                yield path


def _left_out(
    root: Path, exclude: Sequence[str], include_hidden: bool
) -> Callable[[str, str], bool]:
    """Return a function that says of a folder and a name in it whether that is left out."""
    if not exclude:
        return lambda parent, name: is_hidden(name) and not include_hidden
    patterns = re.compile("|".join(map(fnmatch.translate, exclude)))

    def is_left_out(parent: str, name: str) -> bool:
        if is_hidden(name) and not include_hidden:
            return True
        path = Path(parent, name).relative_to(root).as_posix()
        return patterns.match(name) is not None or patterns.match(path) is not None

    return is_left_out


def _walk(root: Path, is_left_out: Callable[[str, str], bool]) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder that is not left out once, with the names of its files.

    A folder that lies below the root and is linked too comes by its own path, not by the link's.
    """
    seen: set[str] = set()
    starts = [str(root)]
    while starts:
        links: list[str] = []
        for start in starts:
            for parent, folders, files in os.walk(start, onerror=_refuse_unreadable):
                real = os.path.realpath(parent)
                shown = [name for name in folders if not is_left_out(parent, name)]
                folders[:] = [] if real in seen else shown  # os.walk enters these, and no links
                if real in seen:
                    continue
                seen.add(real)
                links += [
                    path for name in shown if os.path.islink(path := os.path.join(parent, name))
                ]
                yield parent, files
        starts = sorted(links)


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(f"a folder cannot be listed, so its images would be missing: {error}")
