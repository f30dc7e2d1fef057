"""Read labeled images: folders named by classes, and tables of captions."""

import csv
import json
import os
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np

from clipkit.data.folders import check_folder, is_hidden, list_images
from clipkit.errors import ConfigError, DataError
from clipkit.files import address_scheme, check_file, spell_path
from clipkit.plurals import number_of, number_of_classes
from clipkit.prompts import TEMPLATES, Templates, refuse_names_alike, render

PATH_COLUMNS = ("path", "image", "filepath", "file_name", "filename", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")

_SHORT = reprlib.Repr()  # for messages: rows may be long, or nest deeply
_SHORT.maxstring = 80


@dataclass(frozen=True, repr=False)
class Pairs:
    """Hold images with their captions, and with their classes if they have any.

    Attributes:
        files: N paths.
        captions: N lists. Training draws one caption of an image's list each time.
        labels: N indices of `class_names`, or None.
        class_names: a name for each label, or None.

    Raises:
        DataError: if the lengths differ, or a label has no class name.

    Example:
        pairs = Pairs([Path("a.jpg")], [["a photo of a cat."]], [0], ["cat"])
    """

    files: list[Path]
    captions: list[list[str]]
    labels: list[int] | None = None
    class_names: list[str] | None = None

    def __post_init__(self) -> None:
        count = len(self.files)
        if len(self.captions) != count:
            raise DataError(
                f"{number_of(count, 'file')} must have as many lists of captions, not "
                f"{len(self.captions)}"
            )
        if self.labels is None:
            return
        if len(self.labels) != count:
            raise DataError(
                f"{number_of(count, 'file')} must have as many labels, not {len(self.labels)}"
            )
        if self.labels and self.class_names is not None:
            low, high = min(self.labels), max(self.labels)
            if low < 0 or high >= len(self.class_names):
                raise DataError(
                    f"labels must count from 0 through {len(self.class_names)} class names, but "
                    f"run from {low} to {high}"
                )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __repr__(self) -> str:
        captions = sum(map(len, self.captions))
        parts = [number_of(len(self), "image"), number_of(captions, "caption")]
        if self.labels is not None:
            parts.append(number_of_classes(len(self.class_names or set(self.labels))))
        return f"Pairs({', '.join(parts)})"

    def select(self, indices: Sequence[int]) -> "Pairs":
        """Return the images at these indices, in the order of the indices."""
        return Pairs(
            [self.files[index] for index in indices],
            [self.captions[index] for index in indices],
            None if self.labels is None else [self.labels[index] for index in indices],
            self.class_names,
        )

    def split(self, held_out: int, seed: int = 0) -> tuple["Pairs", "Pairs"]:
        """Return all but `held_out` images, and those, which are drawn at random."""
        order: list[int] = np.random.default_rng(seed).permutation(len(self)).tolist()
        return self.select(sorted(order[held_out:])), self.select(sorted(order[:held_out]))


def read_folder(root: str | os.PathLike[str], templates: Templates = TEMPLATES) -> Pairs:
    """Read a folder of class folders: the images in `root/golden_retriever/` are of that class.

    The class names are the folders' own. Captions have spaces in place of their underscores: "a
    photo of a golden retriever." Hidden files and folders are left out, as in `list_images`, and so
    are folders without images.

    Args:
        root: the folder.
        templates: the captions of a class are these with its name filled in.

    Returns:
        Images in the order of class and path, with labels and class names.

    Raises:
        DataError: if there is no such folder, or no folder with an image in it.
        ConfigError: if `render` refuses the templates, or the names of two folders differ in
            underscores and spaces alone.

    Example:
        pairs = read_folder("photos", ["a photo of a {}."])
    """
    found: list[tuple[str, list[Path]]] = []
    root = spell_path(root, "a folder of class folders")
    for folder in sorted(check_folder(root).glob("*/")):
        files = [] if is_hidden(folder.name) else list_images(folder)
        if files:
            found.append((folder.name, files))
    if not found:
        raise DataError(f"{root} holds no folders of images: one folder for each class is needed")
    class_names, prompts = render([name for name, _ in found], templates)
    _refuse_names_alike(class_names, root)
    return Pairs(
        files=[file for _, files in found for file in files],
        captions=[own for own, (_, files) in zip(prompts, found, strict=True) for _ in files],
        labels=[label for label, (_, files) in enumerate(found) for _ in files],
        class_names=class_names,
    )


def _refuse_names_alike(class_names: Sequence[str], root: str | os.PathLike[str]) -> None:
    """Raise `ConfigError` that names the folders if two names differ in underscores alone."""
    try:
        refuse_names_alike(class_names)
    except ConfigError as error:
        raise ConfigError(f"the folders of {root}: {error}") from error


def read_table(table: str | os.PathLike[str]) -> Pairs:
    """Read a table of captions: a `.csv` or `.tsv` with a header, or a `.jsonl`.

    Each row has a path, relative to the table, and one or more captions. The columns have names
    from `PATH_COLUMNS` and `CAPTION_COLUMNS`, in any case. Rows with the same path become one
    image. A table whose header shows tabs, commas or semicolons is read by them, whatever the
    file's name ends with.

    Raises:
        DataError: if the file is missing, it is no such table, or a row lacks a path or a caption,
            or has an address in place of a path.

    Example:
        pairs = read_table("photos/captions.csv")
    """
    table = Path(spell_path(table, "a table"))
    captions_of_paths: dict[str, list[str]] = {}
    for number, record in enumerate(_read_records(table), start=1):
        path = _value(record, PATH_COLUMNS)
        captions = captions_of(record)
        # A caption with commas and without quotes spills over into a column without a name.
        spilled = isinstance(record, dict) and None in record
        if not isinstance(path, str) or not path.strip() or not captions or spilled:
            raise DataError(
                f"row {number} of {table} needs a path (a column named {', '.join(PATH_COLUMNS)}) "
                f"and a caption ({', '.join(CAPTION_COLUMNS)}), in quotes if there are commas in "
                f"it, but is {_SHORT.repr(record)}"
            )
        _check_path(path, table, number)
        captions_of_paths.setdefault(path, []).extend(captions)
    if not captions_of_paths:
        raise DataError(f"{table} holds no rows under its header")
    files = [table.parent / path for path in captions_of_paths]
    return Pairs(files, list(captions_of_paths.values()))


def _check_path(path: str, table: Path, number: int) -> None:
    """Raise `DataError` if the path of a row is an address, or no path at all."""
    if "\0" in path:
        raise DataError(f"row {number} of {table} has a null byte in its path {path!r}")
    scheme = address_scheme(path)
    if scheme is not None and not os.path.exists(table.parent / path):
        raise DataError(
            f"row {number} of {table} has an address ({scheme}:) in place of a path, {path!r}: "
            "download the images, and write their paths"
        )


def _read_records(table: Path) -> list[Any]:
    """Return the rows of a table, dicts if all is well with them."""
    suffix = table.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise DataError(f"{table} is no .csv, .tsv or .jsonl file")
    try:
        check_file(table)
        with table.open(encoding="utf-8-sig", newline="") as file:
            if suffix == ".jsonl":
                return [_parse(line) for line in file if line.strip()]
            return _read_rows(file, "\t" if suffix == ".tsv" else ",")
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {table}: {error}") from error


def _read_rows(lines: Iterator[str], usual: str) -> list[dict[str | Any, str | Any]]:
    """Return the rows under a header, with its names in lower case.

    Args:
        lines: of the table.
        usual: what separates columns, if the header does not show anything else.
    """
    header = next(lines, "")
    for delimiter in (usual, "\t", ",", ";"):
        plain = {_plain(name) for row in csv.reader([header], delimiter=delimiter) for name in row}
        if plain & {*PATH_COLUMNS} and plain & {*CAPTION_COLUMNS}:
            break
    else:
        delimiter = usual
    reader = csv.DictReader(
        chain([header], lines),
        delimiter=delimiter,
        skipinitialspace=f"{delimiter} " in header,  # as between "path, caption"
    )
    reader.fieldnames = [_plain(name) for name in reader.fieldnames or []]
    return list(reader)


def _plain(name: str) -> str:
    return name.strip().lower()


def _parse(line: str) -> Any:
    """Return what a line of JSON holds, or the line itself if it is broken.

    The line is then refused by its number, while JSON's own error would call each line the first.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def _value(record: Any, columns: Sequence[str]) -> Any:
    """Return the value in the first of the columns that the record has, or None."""
    if not isinstance(record, dict):
        return None
    fields = cast("dict[str, Any]", record)
    for column in columns:
        if column in fields:
            return fields[column]
    plain = {_plain(name): value for name, value in fields.items() if isinstance(name, str)}
    return next((plain[column] for column in columns if column in plain), None)


def captions_of(record: Any) -> list[str]:
    """Return the captions of a record: a text, or a list of texts, in one of `CAPTION_COLUMNS`.

    If they are missing, empty or anything else, there are none.
    """
    value = _value(record, CAPTION_COLUMNS)
    captions = cast("list[Any]", value) if isinstance(value, list) else [value]
    if all(isinstance(caption, str) and caption.strip() for caption in captions):
        return captions
    return []


def read_pairs(data: str | os.PathLike[str], templates: Templates = TEMPLATES) -> Pairs:
    """Read a table, a folder with a table named in `TABLES`, or a folder of class folders.

    Args:
        data: the table or the folder.
        templates: of the captions of class folders; tables have captions of their own.

    Returns:
        The pairs. Those of a table have neither labels nor class names.

    Raises:
        DataError, ConfigError: as `read_folder` and `read_table`.

    Example:
        pairs = read_pairs("photos")  # photos/cat/*.jpg, or photos/captions.csv
    """
    spelled = spell_path(data, "data")
    if not os.path.exists(spelled):
        if scheme := address_scheme(spelled):
            raise DataError(
                f"{spelled!r} is an address ({scheme}:), no path: download the images first"
            )
        raise DataError(f"there is no file or folder {spelled or repr(spelled)}")
    data = Path(data)
    if not data.is_dir():
        return read_table(data)
    tables = [data / name for name in TABLES if (data / name).is_file()]
    return read_table(tables[0]) if tables else read_folder(data, templates)
