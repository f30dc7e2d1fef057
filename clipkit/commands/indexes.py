"""Open the index of a folder for a command: build it on first use, and bring it up to date."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import exists
from pathlib import Path
from typing import Any, Literal

from clipkit import commands, search
from clipkit.commands.command import path_of
from clipkit.commands.display import is_terminal, tell, tell_skipped, typed, warn
from clipkit.commands.model_options import ModelChoice, add_model
from clipkit.data.folders import check_folder
from clipkit.errors import ConfigError, OutputError
from clipkit.files import check_output
from clipkit.plurals import number_of
from clipkit.search.collection import Collection
from clipkit.search.filling import Changes
from clipkit.search.manifest import FOLDER, MANIFEST, Manifest
from clipkit.search.probe import check_images
from clipkit.search.scan import Scan
from clipkit.search.store import Floats

_FEW = 64  # images, for which no bar is shown


@dataclass(frozen=True, kw_only=True)
class IndexChoice:
    """Hold what the options say of an index.

    Attributes:
        folder: of the images; None for that of the index, or else the working directory.
        index: the index's own folder, if it does not lie in that of the images.
        exclude: patterns of what is left out; None where the index is to keep its own.
        include_hidden: whether hidden files are searched; None likewise.
        no_update: whether the index is taken as it is.
        workers: threads that read images, or "auto".
        choice: of the model.
    """

    folder: Path | None
    index: Path | None
    exclude: list[str] | None
    include_hidden: bool | None
    no_update: bool
    workers: int | Literal["auto"]
    choice: ModelChoice

    @property
    def place(self) -> Path:
        """Return the index's own folder."""
        return self.index if self.index is not None else self.images / FOLDER

    @property
    def images(self) -> Path:
        """Return the folder of the images, for an index that is to be built."""
        return Path(".") if self.folder is None else self.folder


class LateEncoder:
    """Load of a model what a query needs, when it needs it: the text tower, or all of it."""

    def __init__(self, choice: ModelChoice) -> None:
        self._choice = choice
        self._whole: search.ModelEncoder | None = None
        self._texts: search.TextEncoder | None = None

    def texts(self, texts: Sequence[str]) -> Floats:
        """Return the features of texts, (n, D)."""
        if self._whole is not None:
            return self._whole.texts(texts)
        if self._texts is None:
            self._texts = search.TextEncoder(commands.load_text_tower(self._choice))
        return self._texts.texts(texts)

    def images(self, images: Sequence[Any]) -> Floats:
        """Return the features of images, (n, D)."""
        return self.whole().images(images)

    def whole(self) -> "search.ModelEncoder":
        """Return the encoder of the whole model."""
        if self._whole is None:
            model = commands.load_model(self._choice)
            self._whole = search.ModelEncoder(model.optimize())
        return self._whole


def add_index_options(parser: argparse.ArgumentParser) -> None:
    """Add the folder of the images and the options of `IndexChoice`."""
    parser.add_argument(
        "folder",
        nargs="?",
        type=path_of,
        metavar="DIR",
        help="the folder of the images (default: this one, or that of the index at --index)",
    )
    group = parser.add_argument_group("index")
    group.add_argument(
        "--index",
        type=path_of,
        metavar="DIR",
        help="where the index is kept (default: DIR/.clipkit, so that it moves with the images)",
    )
    group.add_argument(
        "--exclude",
        action="append",
        metavar="PATTERN",
        help="leave out files and folders of this name or path, such as '*.gif' or thumbnails; "
        "may be given several times, and is remembered; '' forgets",
    )
    group.add_argument(
        "--include-hidden",
        action=argparse.BooleanOptionalAction,
        help="search hidden files and folders too; it is remembered",
    )
    group.add_argument(
        "--no-update",
        action="store_true",
        help="take the index as it is, without looking for new images",
    )
    group.add_argument(
        "--workers",
        type=_workers_of,
        default="auto",
        metavar="N",
        help="threads that read images (default: as many as there are processors, at most 8)",
    )
    add_model(parser, default="that of the index, or tiny")


def take_index(options: dict[str, Any]) -> None:
    """Put an `IndexChoice` named `source` in the place of the values of its options."""
    names = ("folder", "index", "exclude", "include_hidden", "no_update", "workers")
    chosen = {name: options.pop(name) for name in names}
    if chosen["exclude"] is not None:  # '' forgets
        chosen["exclude"] = [pattern for pattern in chosen["exclude"] if pattern]
    options["source"] = IndexChoice(**chosen, choice=options.pop("choice"))


def open_index(source: IndexChoice, *, must_update: bool = False) -> Collection:
    """Return the index of a folder, built if there is none, and else brought up to date.

    Args:
        source: what the options say.
        must_update: whether it is an error if an index cannot be written. If not, it is taken as it
            is, which is told; and so is which images cannot be read when they are first tried.

    Raises:
        ConfigError: if the index was made by a model without a name, and none is given.
        DataError, OutputError: as `Index.build`.
    """
    if not exists(source.place / MANIFEST):
        if source.no_update:
            raise ConfigError(
                f"there is no index in {source.place} yet: leave --no-update out to build it"
            )
        return _told(_build(source), must_update)
    manifest = Manifest.read(source.place)
    _check_folder(source, manifest)
    encoder = LateEncoder(_with_name(source, manifest))
    if source.choice.model is not None and _name_of(source.choice) != manifest.model:
        check_images(encoder, source.place)  # it may be the same under another name
    if _has_other_settings(source, manifest):
        return _told(_build(source, manifest), must_update)
    collection = Collection(source.place, encoder)
    if source.no_update:
        return collection
    scan = collection.scan()
    if scan.is_clean:
        return collection
    try:
        changes = _update(source, encoder, scan)
    except OutputError as error:
        if must_update:
            raise
        warn(f"the index is searched as it was, since {error}")
        return collection
    updated = Collection(source.place, encoder)
    return _told(updated, must_update or not changes.skipped)


def _told(collection: Collection, is_quiet: bool) -> Collection:
    """Return an index, and tell which images cannot be read unless the command does that itself."""
    if not is_quiet:
        tell_unreadable(collection)
    return collection


def _update(source: IndexChoice, encoder: LateEncoder, scan: Scan) -> Changes:
    """Bring an index up to date with its files, and tell what was changed."""
    check_output(source.place, "folder")  # before a model is loaded
    index = search.Index(source.place, encoder.whole() if scan.todo else None)
    if len(scan.todo) > _FEW:
        tell(f"Indexing {number_of(len(scan.todo), 'new image')}.")
    changes = index.update(workers=source.workers, progress=_has_bar(len(scan.todo)))
    tell_changes(changes)
    return changes


def tell_changes(changes: Changes) -> None:
    """Print what an update did, if it did anything."""
    parts = [
        f"{count:,} {name}"
        for name, count in changes._asdict().items()
        if count and name != "skipped"
    ]
    if parts:
        tell(f"Updated the index: {', '.join(parts)}.")


def tell_unreadable(collection: Collection) -> None:
    """Print which images of an index cannot be read."""
    tell_skipped([f"{path}: {problem}" for path, problem in collection.skipped])


def _build(source: IndexChoice, manifest: Manifest | None = None) -> Collection:
    """Build an index, or bring one up to date that gets other settings."""
    choice = source.choice if manifest is None else _with_name(source, manifest)
    exclude = source.exclude
    include_hidden = source.include_hidden
    if manifest is not None:
        exclude = manifest.exclude if exclude is None else exclude
        include_hidden = manifest.include_hidden if include_hidden is None else include_hidden
    folder = source.images
    if manifest is not None and manifest.root is not None:
        folder = Path(os.path.normpath(source.place / manifest.root))
    check_folder(folder)
    _check_place(source)
    encoder = LateEncoder(choice)
    tell(f"Indexing the images in {folder}; Ctrl-C loses nothing that is done.")
    search.Index.build(
        folder,
        encoder.whole().model,
        source.place,
        model_name=_name_of(choice),
        workers=source.workers,
        exclude=exclude or [],
        include_hidden=bool(include_hidden),
        progress=is_terminal(sys.stderr),
    )
    return Collection(source.place, encoder)


def _check_place(source: IndexChoice) -> None:
    """Raise `OutputError` if an index cannot be written, with the remedy that there is for it."""
    try:
        check_output(source.place, "folder")
    except OutputError as error:
        if source.index is not None:
            raise
        raise OutputError(f"{error}: --index DIR keeps the index elsewhere") from error


def _check_folder(source: IndexChoice, manifest: Manifest) -> None:
    """Raise `ConfigError` if a folder was given, and the index is of another one."""
    if source.folder is None or manifest.root is None:
        return
    own = os.path.realpath(os.path.normpath(source.place / manifest.root))  # it may be a link
    if own != os.path.realpath(check_folder(source.folder)):
        raise ConfigError(
            f"the index in {source.place} is of {own}, not of {source.folder}: leave the folder "
            "out, or give another --index"
        )


def _with_name(source: IndexChoice, manifest: Manifest) -> ModelChoice:
    """Return the choice of the model, which is that of the index if no other was made."""
    if source.choice.model is not None:
        return source.choice
    if not manifest.model:
        raise ConfigError(
            f"the index in {source.place} does not say of which model it is: give --model NAME"
        )
    return replace(source.choice, model=manifest.model)


def _name_of(choice: ModelChoice) -> str:
    """Return the name of a model from wherever the program is started the next time."""
    name = choice.model or "tiny"
    return os.path.abspath(name) if exists(name) else name


def _has_other_settings(source: IndexChoice, manifest: Manifest) -> bool:
    """Return whether options say otherwise than the index what is to be left out."""
    exclude = source.exclude not in (None, manifest.exclude)
    hidden = source.include_hidden not in (None, manifest.include_hidden)
    if (exclude or hidden) and source.no_update:
        raise ConfigError("--exclude and --include-hidden change the index: leave --no-update out")
    return exclude or hidden


def _has_bar(count: int) -> bool:
    return count > _FEW and is_terminal(sys.stderr)


def _workers_of(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{typed(text)} is no number of threads, nor 'auto'")
    return int(text)
