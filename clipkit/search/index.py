"""Build an index of images, keep it up to date, and search it: the room's front door."""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias, cast

import numpy as np

from clipkit.errors import ConfigError, DataError, OutputError
from clipkit.fields import read_count
from clipkit.files import lock, spell_path
from clipkit.plurals import number_of
from clipkit.search.approximate import open_graph
from clipkit.search.collection import Collection
from clipkit.search.encoder import Encoder
from clipkit.search.entries import Entries
from clipkit.search.filling import NO_CHANGES, Changes, Filling
from clipkit.search.manifest import FOLDER, MANIFEST, Manifest
from clipkit.search.model_encoder import ModelEncoder, SearchModel
from clipkit.search.probe import check_images, write_probe
from clipkit.search.reading import choose_workers
from clipkit.search.scan import Scan, absolute_paths, check_folder_has_images, check_list
from clipkit.search.store import Store

if TYPE_CHECKING:
    from tqdm import tqdm

Paths: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"
Workers: TypeAlias = 'int | Literal["auto"]'

_FIRST = "entries-1.safetensors"


class Index(Collection):
    """Find images by texts, by other images, and by sums of both.

    Example:
        model = clipkit.CLIP.from_pretrained("ViT-B/32")
        index = Index.build("photos", model)  # the first time; after that it only updates
        print(index.search("a cat in jeans"))
        print(index.search("2 * dog - indoor + rex.jpg", k=3))
    """

    _keeps_graph = False  # whether to search in a graph in the index's own folder

    @classmethod
    def build(
        cls,
        images: Paths,
        model: SearchModel,
        out: str | os.PathLike[str] | None = None,
        *,
        model_name: str = "",
        workers: Workers = "auto",
        batch_size: int = 64,
        exclude: Sequence[str] = (),
        include_hidden: bool = False,
        progress: bool = False,
    ) -> "Index":
        """Build an index, or bring one that is there up to date.

        A process that is killed loses the last few seconds at most, and the next call goes on where
        it was. Images that cannot be read are left out, and are listed in `index.skipped`.

        Args:
            images: a folder, or paths of images. A path at which there is nothing is listed in
                `index.skipped`, as an image that cannot be read; that of an image which goes away
                later is forgotten by `update`.
            model: a CLIP.
            out: the folder of the index. If not given it is `.clipkit` in the folder of the images,
                and moves along with it.
            model_name: by which `clipkit search` can load the model again, such as "ViT-B/32".
            workers: threads. Those of a CPU read and encode a batch each, with their share of the
                processors; for other devices they read ahead. "auto" for as many as there are
                processors, at most 8.
            batch_size: images encoded at once.
            exclude: patterns of names or paths that are left out, such as "thumbnails" or "*.gif".
            include_hidden: whether hidden files and folders are searched, too.
            progress: whether to show a bar.

        Raises:
            ConfigError: if there is no image, the index is of another model or folder, `out` is
                missing for a list, or `workers` or `batch_size` is impossible.
            DataError: if there is no such folder, nothing at any path of the list, or the index is
                damaged.
            OutputError: if the index cannot be written, another process is writing it, or its
                folder is removed meanwhile.
        """
        encoder = ModelEncoder(model)
        root, paths = _take_apart(images)
        _check_options(root, model_name, exclude, include_hidden)  # before anything is written
        choose_workers(workers)
        read_count("batch_size", batch_size, 1)
        folder = _place_of_index(root, out)
        _check_images(root, paths, exclude, include_hidden)
        with lock(folder):
            _prepare(folder, encoder, root, model_name, exclude, include_hidden)
        index = cls(folder, encoder)
        index._checked.add("images")
        index.update(paths, workers=workers, batch_size=batch_size, progress=progress)
        return index

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        model: SearchModel | None = None,
        *,
        store: 'Store | Literal["usearch"] | None' = None,
    ) -> "Index":
        """Open an index as it is on the disk.

        Args:
            folder: of the index, or of the images that it lies in.
            model: the one that built it; without one, only images of the index and texts that were
                asked before can be searched for.
            store: where to search; exactly, in the index's own files, if not given. "usearch" for
                approximately, in a graph that is kept in the index's folder: the first time it is
                made, which takes minutes for a million images, and `update` keeps it up to date.
                Or a store that was filled by `copy_to`.

        Raises:
            ConfigError: if `store` is another text, or "usearch" and it is missing.
            DataError: if there is no index, or it is damaged.
            OutputError: if the graph has to be changed, and cannot be written.
        """
        encoder = None if model is None else ModelEncoder(model)
        if not isinstance(store, str):
            return cls(folder, encoder, store)
        if store != "usearch":
            raise ConfigError(f'store must be "usearch" or a store, not {store!r:.99}')
        index = cls(folder, encoder)
        index._keeps_graph = True
        index._refresh_graph()
        return index

    def update(
        self,
        images: Iterable[str | os.PathLike[str]] | None = None,
        *,
        workers: Workers = "auto",
        batch_size: int = 64,
        progress: bool = False,
    ) -> Changes:
        """Bring the index up to date with its files, and return what was changed.

        A file is taken as it was if its size and time are. One of another name is known again by
        its content, and is not encoded again.

        Args:
            images: of an index of a list: the new list, as in `build`. The old one if not given.
            workers, batch_size, progress: as in `build`.

        Raises:
            ConfigError: if there are new images and no model, or the model is another one.
            DataError: if the folder is gone, or empty where it was not.
            OutputError: if the index cannot be written, another process is writing it, or its
                folder is removed meanwhile.
        """
        batch_size = read_count("batch_size", batch_size, 1)
        Manifest.read(self.folder)  # or the lock would bring a folder back that was removed
        with ExitStack() as held:
            try:
                held.enter_context(lock(self.folder))
            except OutputError:
                # A full disk, or one that is only read, matters where something is to be written.
                if self._is_current(images):
                    return NO_CHANGES
                raise
            self._read()  # another process may have written meanwhile
            scan = self.scan(images)
            if scan.is_clean:
                self.manifest.remove_others(self.folder)  # what a process left that was killed
                self._refresh_graph()
                return NO_CHANGES
            encoder = self._encoder_of(scan)
            filling = Filling(self.folder, self.manifest, self.entries, scan)
            with _bar(scan, progress) as bar:
                changes = filling.run(
                    encoder,
                    workers=choose_workers(workers),
                    batch_size=batch_size,
                    tell=bar.update,
                )
            self._read()
        self._refresh_graph()
        return changes

    def _is_current(self, images: Iterable[str | os.PathLike[str]] | None) -> bool:
        """Return whether there is nothing to update."""
        self._read()
        return self.scan(images).is_clean and not self._keeps_graph

    def copy_to(self, store: Store, *, remove_others: bool = False, progress: bool = False) -> None:
        """Add all features to a store, under the paths of the images below the folder.

        Args:
            store: such as `UsearchStore` or `PostgresStore`. Open the index with it afterwards.
            remove_others: whether to remove what the store has beyond the index, such as images
                that went away since the last copy, so that it ends equal to the index. If not,
                that stays, for other programs may have put it there.
            progress: whether to show a bar.

        Raises:
            DataError: if the store does not find all that it has, so that others are left in it.
        """
        from tqdm import tqdm

        with tqdm(total=len(self), unit="image", disable=not progress) as bar:
            for names, features in self.memory.blocks():
                store.add(names, features)
                bar.update(len(names))
        if remove_others and len(store) > len(self):
            _remove_others(store, self.memory.width, set(self.names))

    def _refresh_graph(self) -> None:
        """Bring the graph up to date with the index, if there is one."""
        if self._keeps_graph:
            self._store = open_graph(self.folder, self.memory, self.entries)

    def _encoder_of(self, scan: Scan) -> ModelEncoder | None:
        """Return the model if there is anything to encode, and check that it is the index's."""
        if not scan.todo:
            return None
        if not isinstance(self._encoder, ModelEncoder):
            raise ConfigError(
                f"there {'is' if len(scan.todo) == 1 else 'are'} "
                f"{number_of(len(scan.todo), 'image')} to encode, which needs a model: open the "
                "index with one, Index.open(folder, model)"
            )
        self._check_once("images", self._encoder)
        return self._encoder


def _remove_others(store: Store, width: int, names: set[str]) -> None:
    """Remove all names from a store but some. A search for as many as it has finds them."""
    query = np.zeros((1, width), np.float32)
    query[0, 0] = 1
    (hits,) = store.search(query, len(store))
    store.remove([hit.name for hit in hits if hit.name not in names])
    if len(store) > len(names):
        raise DataError(
            f"the store still has {number_of(len(store) - len(names), 'image')} beyond the index: "
            "its search does not find all that it has"
        )


def _bar(scan: Scan, progress: bool) -> "tqdm[NoReturn]":
    """Return a bar for the images to read, which tells images a second and the time left."""
    from tqdm import tqdm

    return tqdm(total=len(scan.todo), unit="image", disable=not progress)


def _path_of(given: object, name: str) -> Path:
    """Return a path. An empty text, such as a variable that is not set, is none."""
    spelled = spell_path(given, name, error=ConfigError)
    if not spelled:
        raise ConfigError(f"{name} is an empty text: pass '.' for the working directory")
    return Path(spelled)


def _place_of_index(root: Path | None, out: str | os.PathLike[str] | None) -> Path:
    """Return the folder of an index of a folder, or of a list if `root` is None."""
    if out is not None:
        return _path_of(out, "out, the folder of an index,")
    if root is None:
        raise ConfigError("an index of a list of images needs a folder of its own: out=")
    return root / FOLDER


def _check_options(
    root: Path | None, model_name: object, exclude: object, include_hidden: object
) -> None:
    """Raise `ConfigError` for what a manifest could not hold."""
    if root is None and (exclude or include_hidden):
        raise ConfigError(
            "exclude and include_hidden would be ignored, for they are of folders, and this is "
            "a list of images: leave them out"
        )
    if not isinstance(model_name, str):
        raise ConfigError(f"model_name must be a text, not {model_name!r:.99}")
    is_list = isinstance(exclude, list | tuple | set)
    patterns = cast("list[object]", list(exclude)) if is_list else [None]  # pyright: ignore
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ConfigError(
            f"exclude must be a list of patterns, which are texts, not {exclude!r:.99}"
        )
    if not isinstance(include_hidden, bool):
        raise ConfigError(f"include_hidden must be True or False, not {include_hidden!r:.99}")


def _take_apart(images: Paths) -> tuple[Path | None, list[str] | None]:
    """Return the folder, or absolute paths of a list."""
    if isinstance(images, str | os.PathLike):
        return _path_of(images, "the folder of the images"), None
    return None, absolute_paths(images)


def _check_images(
    root: Path | None, paths: list[str] | None, exclude: Sequence[str], include_hidden: bool
) -> None:
    """Raise `ConfigError` or `DataError` if there is no image, before an index is made of it."""
    if root is not None:
        check_folder_has_images(root, exclude, include_hidden)
    elif not paths:
        raise ConfigError("an index needs at least one image, and there is none in the list")
    else:
        check_list(paths)


def _prepare(
    folder: Path,
    encoder: Encoder,
    root: Path | None,
    model_name: str,
    exclude: Sequence[str],
    include_hidden: bool,
) -> None:
    """Make an empty index if there is none, or check that it is of this model and folder."""
    spelled = _spell_root(folder, root)
    if not (folder / MANIFEST).exists():
        _refuse_foreign(folder)
        width = write_probe(encoder, folder)
        Entries.of([]).write(folder / _FIRST)
        new = Manifest(1, model_name, width, spelled, list(exclude), include_hidden, _FIRST, [])
        new.write(folder)
        return
    manifest = Manifest.read(folder)
    check_images(encoder, folder)
    if _resolved(folder, manifest.root) != _resolved(folder, spelled):
        raise ConfigError(
            f"the index in {folder} is of {manifest.root or 'a list of images'}, not of "
            f"{root or 'a list'}: give another out="
        )
    changed = replace(
        manifest,
        model=model_name or manifest.model,
        exclude=list(exclude),
        include_hidden=include_hidden,
    )
    if changed != manifest:
        changed.write(folder)


def _refuse_foreign(folder: Path) -> None:
    """Raise `ConfigError` for a folder with other files than a build that was killed leaves."""
    left = re.compile(r"\..*|(?:entries-\d+|features-\d+|model)\.safetensors")
    for path in folder.iterdir():
        if not left.fullmatch(path.name):
            raise ConfigError(
                f"{folder} holds other files, such as {path.name!r:.99}, and an index needs a "
                "folder of its own: give another out="
            )


def _spell_root(folder: Path, root: Path | None) -> str | None:
    """Return the folder of the images, relative if the index lies in it and so moves with it."""
    if root is None:
        return None
    inside = os.path.abspath(folder.parent) == os.path.abspath(root)
    return ".." if inside else os.path.abspath(root)


def _resolved(folder: Path, root: str | None) -> str | None:
    return None if root is None else os.path.realpath(os.path.join(folder, root))
