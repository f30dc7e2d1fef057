"""Read class folders, tell what is left out of them, and check the folder for the result."""

import os
from pathlib import Path

from clipkit import Pairs, distributed, read_folder
from clipkit.classify.folder import HEAD, MODEL, ZERO_SHOT
from clipkit.commands.display import tell, typed, warn
from clipkit.data.decode import image_suffixes
from clipkit.data.folders import is_hidden
from clipkit.errors import DataError, OutputError
from clipkit.files import check_output
from clipkit.plurals import number_of, size_in_words
from clipkit.training.state import CHECKPOINT
from clipkit.visible import visible

RUN = "run"  # the folder in which fine-tuning keeps what it needs to go on
_RESULTS = (HEAD, ZERO_SHOT, MODEL, RUN)  # what fitting and fine-tuning write
_SHOWN = 5  # names in a message


def read_class_folders(data: Path) -> Pairs:
    """Read a folder of class folders, and tell which parts of it hold nothing to learn from.

    Raises:
        DataError: if there is no such folder, or no class folder with an image in it.
    """
    if not os.path.exists(data):  # Path raises an error for a name that is too long
        raise DataError(f"there is no folder {str(data):.300}")
    if not os.path.isdir(data):
        raise DataError(
            f"{data} is a file: a folder with a folder of images for each class is needed"
        )
    pairs = read_folder(data)
    tell_left_out(data, pairs)
    return pairs


def tell_left_out(data: Path, pairs: Pairs) -> None:
    """Tell of class folders without images, and of images that lie in no class folder.

    There is nothing to tell of a table.
    """
    if pairs.class_names is None:
        return
    used = {file.relative_to(data).parts[0] for file in pairs.files}
    entries = [entry for entry in sorted(data.iterdir()) if not is_hidden(entry.name)]
    empty = [entry.name for entry in entries if entry.name not in used and entry.is_dir()]
    suffixes = image_suffixes()
    loose = [
        entry.name for entry in entries if entry.suffix.lower() in suffixes and entry.is_file()
    ]
    if empty:
        warn(f"no images, so no class: {_list(empty)}")
    if loose:
        warn(f"in no class folder, so left out: {_list(loose)}")


def check_result_folder(out: Path) -> None:
    """Check, before any work, that a result can be written to a folder, and tell what it replaces.

    Raises:
        OutputError: if the folder cannot be written, or holds what clipkit did not write.
    """
    check_output(out, "folder")
    is_classifier = (out / HEAD).exists()
    others = [name for name in _names_in(out) if name not in _RESULTS and not is_hidden(name)]
    if others and not is_classifier:
        raise OutputError(
            f"{out} holds other files ({_list(others)}): choose a new or an empty folder"
        )
    if not distributed.is_first():  # each process would say the same
        return
    if is_classifier:
        tell(f"This will replace the classifier in {out}.")
    elif (out / MODEL).exists():
        tell(f"This will replace the model in {out}.")


def print_classifier(out: Path) -> None:
    """Print where a classifier was saved, and how it is used."""
    folder = typed(out)
    print(f"Saved to {folder}; go on with: clipkit classify --classifier {folder} IMAGE ...")


def ways_to_load(model: Path) -> str:
    """Return how a model folder is loaded in Python and on the command line."""
    return f"clipkit.load({str(model)!r}) or --model {typed(model)}"


def tell_size(folder: Path) -> None:
    """Tell how much of the disk a result takes, and what of it may be deleted."""
    message = f"{folder} takes {size_in_words(_size_of(folder))} on disk"
    for part in (folder / RUN, folder / CHECKPOINT):
        if part.exists():
            message += (
                f", {size_in_words(_size_of(part))} of it {part}, which only going on with it needs"
            )
    tell(f"{message}.")


def _size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _names_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _list(names: list[str]) -> str:
    """Return names as a list for people, with the number of those that are too many to show."""
    shown = [visible(name) for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"and {number_of(len(names) - _SHOWN, 'other')}")
    return ", ".join(shown)
