"""Ask an index whatever needs no model: what was asked before, and images that it has.

`Index` stands on it and brings the model. This half imports no torch, which takes longer to import
than a search in 100,000 images.
"""

import math
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ConfigError, DataError
from clipkit.fields import read_count
from clipkit.files import spell_path
from clipkit.prompts import Templates, render
from clipkit.search.arrays import map_arrays
from clipkit.search.duplicates import find_duplicates, of_several_files
from clipkit.search.encoder import Encoder
from clipkit.search.entries import NO_ROW, Entries
from clipkit.search.manifest import FOLDER, MANIFEST, Manifest, telling_remedy
from clipkit.search.memory import Halves, MemoryStore
from clipkit.search.probe import check_images, check_texts
from clipkit.search.query import Term, find_image, read_query
from clipkit.search.results import Duplicates, Result, Results, above, check_threshold
from clipkit.search.scan import Scan, absolute_paths, scan_folder, scan_list
from clipkit.search.spelling import Spelling
from clipkit.search.store import Floats, Hit, Store
from clipkit.search.texts import TextCache

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipkit.search.query import QueryLike

_TOP = 10  # images, where nothing else says how many
_SAMPLE = 4096  # features by which the spread of a query over a large collection is estimated
_TRIES = 5  # to read a state while another process replaces it


class Collection:
    """Search the images of an index.

    Args:
        folder: of the index, or of images with an index in it.
        encoder: for queries that were not asked before; without one they are an error.
        store: where to search; exactly, in the index's own files, if not given.

    Attributes:
        folder: of the index.
        manifest: what the index is of.
        entries: its images.

    Raises:
        DataError: if there is no index, or it is damaged.

    Example:
        collection = Collection("photos")  # with an index in it; no model is loaded
        print(collection.similar("photos/cat.jpg"))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        encoder: Encoder | None = None,
        store: Store | None = None,
    ) -> None:
        self.folder = find_index(folder)
        self._encoder = encoder
        self._store = store
        self._checked: set[str] = set()  # what of the encoder was compared with the index
        self._read()

    def __len__(self) -> int:
        """Return the number of images that can be found."""
        return len(self.memory)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images in {os.fspath(self.folder)!r})"

    @cached_property
    def memory(self) -> MemoryStore:
        """Return the features of the index, mapped from its files."""
        if not self.names:
            return MemoryStore(self.manifest.width)
        rows = self.entries.rows
        return MemoryStore.of(self._blocks, self.names, rows[rows != NO_ROW])

    @cached_property
    def names(self) -> list[str]:
        """Return the paths of all images that can be found, in order, as the index spells them.

        They lie below the folder of the images, or are absolute if these were given as a list.
        """
        rows: list[int] = self.entries.rows.tolist()
        every = zip(self.entries.paths, rows, strict=True)
        return [name for name, row in every if row != NO_ROW]

    @property
    def paths(self) -> list[str]:
        """Return the paths of all images that can be found, in order, as they open from here."""
        return [self._spelling.path_of(name) for name in self.names]

    @property
    def features(self) -> Floats:
        """Return the features of the images, (n, D) float32, in the order of `paths`."""
        return self.memory.features(self.names)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Return the images that could not be read, and why."""
        path_of = self._spelling.path_of
        return [(path_of(name), why) for name, why in self.entries.problems.items()]

    def search(
        self,
        query: "QueryLike",
        k: SupportsIndex | None = None,
        *,
        threshold: float | None = None,
        where: str | None = None,
        templates: Templates | None = None,
    ) -> Results:
        """Return the images nearest to a query, the best first.

        Args:
            query: a text such as "a cat in jeans" or "2 * dog - indoor + photo.jpg"; a path or a
                PIL image; or a `Term` or several. Features of several terms are added up by their
                weights. An image that is not where its path leads is looked for below the folder
                of the index.
            k: how many images; if not given 10, or all above the threshold if there is one.
            threshold: the lowest z-score of an image that is found, such as 3 (see `Result`).
            where: a pattern of paths below the folder, such as "2024/*.jpg".
            templates: texts around each text of the query, whose features are averaged, or the name
                of a prompt set such as "imagenet"; each text as it is if not given.

        Raises:
            ConfigError: if the query is empty, `k` no positive integer, or there is no model and
                the query needs one.
            ImageError: if an image of the query cannot be read.
        """
        count = self._count(k, threshold)
        results = self._search(self.feature_of(query, templates), count, where)
        return above(results, threshold)

    def similar(
        self,
        image: "str | os.PathLike[str] | Image",
        k: SupportsIndex | None = None,
        *,
        threshold: float | None = None,
        where: str | None = None,
    ) -> Results:
        """Return the images nearest to one image, without that image.

        Args:
            image: a path of the collection, which needs no model, or any other path or PIL image.
            k, threshold, where: as in `search`.

        Raises:
            ConfigError: if `k` is no positive integer, or the image needs a model that is missing.
            ImageError: if the image cannot be read.
        """
        count = self._count(k, threshold)
        own = None
        if isinstance(image, str | os.PathLike):
            image = find_image(Path(image), self._spelling.root)
            place = self._spelling.place_of(image)
            own = None if place is None else self._spelling.path_of(self.entries.paths[place])
        found = self._search(self.feature_of(image), count + 1, where)
        others = [result for result in found if result.path != own]
        return above(Results(others[:count]), threshold)

    def duplicates(self, threshold: float = 0.96) -> list[Duplicates]:
        """Return groups of images that look alike.

        Each image of a group is as near to another one of it as the threshold says, so that the two
        ends of a long chain may differ. Of paths that lead to one file through links, a group has
        the first alone. Every image is compared with every other, which takes time
        that grows with the square of their number.

        Args:
            threshold: the lowest cosine of two that are alike, from 0 to 1. What is right depends
                on the model; 1 finds copies alone.

        Raises:
            ConfigError: if the threshold is out of its range.
        """
        groups = find_duplicates(self.memory, threshold)
        path_of = self._spelling.path_of
        return of_several_files(
            [Duplicates(list(map(path_of, group.paths)), group.cosine) for group in groups]
        )

    def feature_of(self, query: "QueryLike", templates: Templates | None = None) -> Floats:
        """Return the feature of a query, (D,) float32 of unit length.

        Arguments and errors are those of `search`.

        Raises:
            ConfigError: if the terms cancel each other out, too.
        """
        total = np.zeros(self.manifest.width, np.float64)
        for term in read_query(query, self._spelling.root):
            total += term.weight * self._feature_of_term(term, templates)
        if float(np.linalg.norm(total)) < 1e-6:
            raise ConfigError(f"the terms of the query cancel each other out: {query!r:.300}")
        return _unit(total)

    def scan(self, images: Iterable[str | os.PathLike[str]] | None = None) -> Scan:
        """Return what differs between the index and its files, without changing it.

        Args:
            images: of an index of a list: the new list. The old one if not given.

        Raises:
            ConfigError: if a list is given for an index of a folder.
            DataError: if the folder is gone, or empty where it was not; or nothing of a list is
                there.
        """
        root = self._spelling.root
        if root is None:
            if images is None:
                return scan_list(self.entries.paths, self.entries)
            return scan_list(absolute_paths(images), self.entries, is_given=True)
        if images is not None:
            raise ConfigError(f"this index is of the folder {root}, and takes no list")
        manifest = self.manifest
        return scan_folder(Path(root), self.entries, manifest.exclude, manifest.include_hidden)

    def _read(self) -> None:
        """Read the present state. Another process may replace it at the same time."""
        for attempt in range(_TRIES):
            self.manifest = Manifest.read(self.folder)
            try:
                with telling_remedy():
                    self.entries = Entries.read(self.folder / self.manifest.entries)
                    self._blocks = [self._map(name) for name in self.manifest.features]
                break
            except DataError:
                if attempt == _TRIES - 1 or Manifest.read(self.folder) == self.manifest:
                    raise
        for name in ("memory", "names", "_sample", "_spelling"):  # of the state before
            self.__dict__.pop(name, None)
        rows = sum(map(len, self._blocks))
        if len(self.entries) and not self.entries.rows.max() < rows:
            raise DataError(
                f"the index in {self.folder} is damaged: it has {rows} features, and images of "
                "later rows. Delete the folder and build the index again"
            )

    def _map(self, name: str) -> Halves:
        features = map_arrays(self.folder / name).get("features")
        is_sound = features is not None and features.shape[1:] == (self.manifest.width,)
        if features is None or not is_sound or features.dtype != np.float16:
            raise DataError(
                f"{self.folder / name} is damaged: it holds no float16 features of width "
                f"{self.manifest.width}"
            )
        return features

    @cached_property
    def _spelling(self) -> Spelling:
        root = self.manifest.root
        if root is not None:
            root = os.path.normpath(os.path.join(self.folder, root))
        return Spelling(root, self.entries)

    def _known(self, term: Term, templates: Templates | None) -> Floats | None:
        """Return the feature of a term, (D,), if that needs no model; else None."""
        if isinstance(term.content, str):
            return self._texts.get(_prompts_of(term.content, templates))
        if isinstance(term.content, Path):
            name = self._spelling.name_of(term.content)
            return None if name is None else _unit(self.memory.features([name])[0])
        return None

    def _feature_of_term(self, term: Term, templates: Templates | None) -> Floats:
        known = self._known(term, templates)
        if known is not None:
            return known
        if self._encoder is None:
            raise ConfigError(
                f"a query that was not asked before needs a model: {term.content!r:.99}. Open the "
                "index with one: Index.open(folder, model)"
            )
        if isinstance(term.content, str):
            return self._encode_text(self._encoder, _prompts_of(term.content, templates))
        self._check_once("images", self._encoder)
        return self._encoder.images([term.content])[0]

    def _encode_text(self, encoder: Encoder, prompts: Sequence[str]) -> Floats:
        """Return the mean feature of prompts, (D,), and keep it for the next time."""
        self._check_once("texts", encoder)
        feature = _unit(encoder.texts(prompts).mean(axis=0, dtype=np.float64))
        self._texts.put(prompts, feature)
        return feature

    def _check_once(self, what: str, encoder: Encoder) -> None:
        """Raise `ConfigError` if the encoder is another model than that of the index."""
        if what not in self._checked:
            check = check_texts if what == "texts" else check_images
            check(encoder, self.folder)
            self._checked.add(what)

    @cached_property
    def _texts(self) -> TextCache:
        return TextCache(self.folder, self.manifest.width)

    def _count(self, k: SupportsIndex | None, threshold: float | None) -> int:
        """Return how many images to ask for."""
        check_threshold(threshold)
        if k is not None:
            return read_count("k", k, 1)
        return _TOP if threshold is None else max(1, len(self))

    def _search(self, feature: Floats, k: int, where: str | None) -> Results:
        if where is not None and not isinstance(where, str):
            raise ConfigError(f"where must be a pattern of paths, not {where!r:.99}")
        queries = feature[None]  # (1, D)
        if self._store is None:
            (cosines,) = self.memory.cosines(queries)
            hits = self.memory.best(cosines, k, where)
        else:
            (hits,) = self._store.search(queries, k, where)
            cosines = queries[0] @ np.transpose(self._sample)  # (n,)
        return Results(self._results(hits, cosines))

    def _results(self, hits: Sequence[Hit], cosines: Floats) -> list[Result]:
        """Return hits with their z-scores, given the query's cosines over the collection."""
        mean = float(cosines.mean(dtype=np.float64)) if len(cosines) else 0.0
        spread = float(cosines.std(dtype=np.float64)) if len(cosines) else 0.0
        return [
            Result(
                path=self._spelling.path_of(hit.name),
                cosine=hit.cosine,
                z=(hit.cosine - mean) / spread if spread > 0 else math.nan,
            )
            for hit in hits
        ]

    @cached_property
    def _sample(self) -> Floats:
        """Features from all over the collection, (n, D) float32."""
        return self.memory.features(self.names[:: max(1, len(self.names) // _SAMPLE)])


def find_index(folder: str | os.PathLike[str]) -> Path:
    """Return the folder of an index: the given one, or the one that lies in it."""
    path = Path(spell_path(folder, "the folder of an index"))
    inside = path / FOLDER
    return inside if not (path / MANIFEST).exists() and inside.is_dir() else path


def _unit(feature: NDArray[np.floating[Any]]) -> Floats:
    """Return a feature scaled to unit length, (D,)."""
    wide = feature.astype(np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def _prompts_of(text: str, templates: Templates | None) -> list[str]:
    """Return the prompts of a text."""
    if templates is None:
        return [text]
    _, prompts = render([text], templates)
    return prompts[0]
