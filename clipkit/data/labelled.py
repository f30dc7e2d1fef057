"""Labelled images: folders named by classes, and tables of captions."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.data.pictures import list_images
from clipkit.errors import DataError
from clipkit.prompts import TEMPLATES, Templates, render

PATH_COLUMNS = ("path", "image", "filepath", "file_name", "filename", "image_path")
CAPTION_COLUMNS = ("caption", "captions", "text", "title")
TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class Pairs:
    """Pictures and, for each, its captions, of which one is drawn at random each time; and its class, if it has one."""

    files: list[Path]
    captions: list[list[str]]
    labels: list[int] | None = None
    class_names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: Sequence[int]) -> "Pairs":
        """Those of the indices, in their order."""
        labels = None if self.labels is None else [self.labels[i] for i in indices]
        files, captions = [self.files[i] for i in indices], [self.captions[i] for i in indices]
        return Pairs(files, captions, labels, self.class_names)

    def split(self, held_out: int, seed: int = 0) -> tuple["Pairs", "Pairs"]:
        """All but `held_out` random pictures, and those."""
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(sorted(order[held_out:])), self.select(sorted(order[:held_out]))


def read_folder(root: Path, templates: Templates = TEMPLATES) -> Pairs:
    """Class folders: `root/golden_retriever/*.jpg` are captioned by the templates around "golden retriever".

    Returns:
        The pairs, with the class names that their labels count through.

    Raises:
        DataError: if there is no folder with a picture.
        ConfigError: for templates that `render` refuses, or two folders of one class name.
    """
    found = [(folder, list_images(folder)) for folder in sorted(root.glob("*/"))]
    found = [(folder.name.replace("_", " "), files) for folder, files in found if files]
    if not found:
        raise DataError(f"{root} holds no folders of pictures: one folder for each class is needed")
    names, prompts = render([name for name, _ in found], templates)
    captions = [own for own, (_, files) in zip(prompts, found, strict=True) for _ in files]
    labels = [label for label, (_, files) in enumerate(found) for _ in files]
    return Pairs([file for _, files in found for file in files], captions, labels, names)


def read_table(table: Path) -> Pairs:
    """A `.csv` or `.tsv` with a header, or a `.jsonl`: in each row a path, relative to the table, and its caption(s).

    The columns go by the names of `PATH_COLUMNS` and `CAPTION_COLUMNS`. Rows of one path are joined.

    Raises:
        DataError: if the file is missing, not such a table, or a row lacks a path or a caption.
    """
    rows: dict[str, list[str]] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".jsonl":
                records = [_record(line) for line in file if line.strip()]
            elif table.suffix in (".csv", ".tsv"):
                records = list(
                    csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",")
                )
            else:
                raise DataError(f"{table} is no .csv, .tsv or .jsonl file")
    except (OSError, ValueError, csv.Error) as error:
        raise (
            error if isinstance(error, DataError) else DataError(f"cannot read {table}: {error}")
        ) from error
    for number, record in enumerate(records, start=1):
        path, captions = _value(record, PATH_COLUMNS), captions_of(record)
        surplus = (
            isinstance(record, dict) and None in record
        )  # of a caption with commas and no quotes
        if not path or not isinstance(path, str) or not captions or surplus:
            raise DataError(
                f"row {number} of {table} needs a path (a column named {', '.join(PATH_COLUMNS)}) and a caption "
                f"({', '.join(CAPTION_COLUMNS)}), in quotes if there are commas in it, but is {record!r}"
            )
        rows.setdefault(path, []).extend(captions)
    if not rows:
        raise DataError(f"{table} holds no rows under its header")
    return Pairs([table.parent / path for path in rows], list(rows.values()))


def _record(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line  # which is then refused by its number; the reader of JSON would call each line the first


def _value(record: Any, columns: Sequence[str]) -> Any:
    return (
        next((record[key] for key in columns if key in record), None)
        if isinstance(record, dict)
        else None
    )


def captions_of(record: Any) -> list[str]:
    """Those of a record, a text or a list of texts; none if they are missing or anything else."""
    captions = _value(record, CAPTION_COLUMNS)
    captions = captions if isinstance(captions, list) else [captions]
    return (
        captions
        if all(isinstance(caption, str) and caption.strip() for caption in captions)
        else []
    )


def read_pairs(data: Path, templates: Templates = TEMPLATES) -> Pairs:
    """A table of captions, a folder that holds one by a name of `TABLES`, or a folder of class folders.

    Returns:
        The pairs; captions that are written out have no class names.
    """
    if data.is_dir():
        table = next((data / name for name in TABLES if (data / name).is_file()), None)
        return read_folder(data, templates) if table is None else read_table(table)
    if not data.exists():
        raise DataError(f"there is no file or folder {data}")
    return read_table(data)
