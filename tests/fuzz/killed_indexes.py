"""What `kill.py` kills of search: a build, an update, and updates that a graph follows.

Images are encoded one by one, so that a feature is the same to the bit in every run. States are
written as often as can be. After each of them the process that will be killed notes which contents
have a feature: none of them may be lost.
"""

import os
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from clipkit import CLIP
from clipkit.files import lock
from clipkit.search import Index, filling
from clipkit.search import index as index_module
from clipkit.search.entries import NO_ROW
from clipkit.search.manifest import MANIFEST, Manifest
from clipkit.search.probe import PROBE, probe_images
from clipkit.search.reading import digest_of
from tests.helpers.models import make_small_tokenizer
from tests.helpers.toy_data import toy_config, two_colors

_IMAGES = 40
_ADDED = 12
_CHANGED = 6
_RENAMED = 8
_REMOVED = 6
_STEPS = 8  # of updates that a graph follows, each of which adds an image and removes another

Contents = dict[bytes, bytes]  # the feature of each content, by its digest


class _Model:
    """Encode by a small CLIP, and note what is encoded.

    Attributes:
        batches: the number of images in each batch.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        clip = CLIP(toy_config(), make_small_tokenizer()).eval()
        self.tokenizer, self.preprocess, self._clip = clip.tokenizer, clip.preprocess, clip
        self.batches: list[int] = []

    def encode_image(self, image: Tensor) -> Tensor:
        self.batches.append(len(image))
        return self._clip.encode_image(image)

    def encode_text(self, text: Tensor) -> Tensor:
        return self._clip.encode_text(text)


class _Noting(filling.Filling):
    """Note beside the images which contents have a feature in each state that was written."""

    def write(self, *, is_last: bool = False) -> None:
        super().write(is_last=is_last)
        _note(self._folder)


def _note(index_folder: Path) -> None:
    with open(index_folder.parents[1] / "noted.txt", "a", encoding="ascii") as file:
        file.write(",".join(sorted(digest.hex() for digest in _contents(index_folder))) + "\n")


def _noted(folder: Path) -> set[bytes]:
    """Return the contents of the last state that was noted to its end."""
    path = folder / "noted.txt"
    lines = path.read_text("ascii").split("\n")[:-1] if path.exists() else []
    return {bytes.fromhex(word) for word in lines[-1].split(",") if word} if lines else set()


@contextmanager
def _noting() -> Generator[None, None, None]:
    with (
        mock.patch.object(filling, "_SECONDS", 0.0),
        mock.patch.object(filling, "_SHARE", 0),
        mock.patch.object(index_module, "Filling", _Noting),
    ):
        yield


# What is killed


def _paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    two_colors((200, 5 * seed % 256, 90), (90, 0, 3 * seed % 256), seed).save(path)


def _photo(folder: Path, number: int) -> Path:
    return folder / "photos" / f"{number % 4}" / f"{number:02}.png"


def paint_photos(folder: Path) -> None:
    """Fill `photos` with images."""
    for number in range(_IMAGES):
        _paint(_photo(folder, number), number)


def begin_build() -> Callable[[Path], object]:
    """Return what builds an index of `photos`."""
    model = _warm_model()

    def build(folder: Path) -> None:
        with _noting():
            Index.build(folder / "photos", model, workers=2, batch_size=1)

    return build


def paint_and_change(folder: Path) -> None:
    """Fill `photos`, build an index of them, and add, change, rename and remove images."""
    paint_photos(folder)
    _note(_build(folder, _Model()).folder)
    numbers = iter(range(_IMAGES))
    for number in [next(numbers) for _ in range(_CHANGED)]:
        _paint(_photo(folder, number), 100 + number)
    for number in [next(numbers) for _ in range(_RENAMED)]:
        _photo(folder, number).rename(folder / "photos" / f"renamed-{number}.png")
    for number in [next(numbers) for _ in range(_REMOVED)]:
        _photo(folder, number).unlink()
    for number in range(_ADDED):
        _paint(folder / "photos" / "new" / f"{number}.png", 200 + number)


def begin_update() -> Callable[[Path], object]:
    """Return what updates the index of `photos`."""
    model = _warm_model()

    def update(folder: Path) -> None:
        with _noting():
            Index.open(folder / "photos", model).update(workers=2, batch_size=1)

    return update


def paint_and_make_graph(folder: Path) -> None:
    """Fill `photos`, build an index of them with a graph, and put new images beside them."""
    paint_photos(folder)
    _note(_build(folder, _Model()).folder)
    Index.open(folder / "photos", store="usearch")
    for step in range(_STEPS):
        _paint(folder / "new" / f"{step}.png", 200 + step)


def begin_graph() -> Callable[[Path], object]:
    """Return what moves new images to `photos` one by one, and updates index and graph."""
    model = _warm_model()

    def follow(folder: Path) -> None:
        with _noting():
            index = Index.open(folder / "photos", model, store="usearch")
            for step in range(_STEPS):
                _take_step(folder, step)
                index.update(batch_size=1)

    return follow


def _warm_model() -> _Model:
    """Return a model after all was done once: what is imported late would take most of the time."""
    model = _Model()
    with tempfile.TemporaryDirectory() as scratch:
        _paint(Path(scratch) / "photos" / "0.png", 0)
        _build(Path(scratch), model)
        Index.open(Path(scratch) / "photos", model, store="usearch")
    return model


def _take_step(folder: Path, step: int) -> None:
    new = folder / "new" / f"{step}.png"
    if new.exists():
        os.replace(new, folder / "photos" / f"new-{step}.png")
    _photo(folder, step).unlink(missing_ok=True)


# What must be there after it


def check_build(folder: Path) -> str:
    """Fail unless a build can go on from what is there, and say how much of it is."""
    model = _Model()
    kept = _check_kept(folder)
    found = _describe(len(kept), _IMAGES) + _describe_rest(folder)
    state = _state(folder)
    index = _build(folder, model)
    assert sum(model.batches) == len(probe_images()) + _IMAGES - len(kept)
    _check_end(folder, index, state)
    return found


def check_update(folder: Path) -> str:
    """Fail unless an update can go on from what is there, and say how much of it is."""
    model = _Model()
    kept = _check_kept(folder)
    wanted = {digest_of(path.read_bytes()) for path in (folder / "photos").rglob("*.png")}
    new = wanted - _digests(range(_IMAGES))
    assert len(new) == _ADDED + _CHANGED
    found = "all of it" if kept.keys() == wanted else _describe(len(new & kept.keys()), len(new))
    found += _describe_rest(folder)
    state = _state(folder)
    index = Index.open(folder / "photos", model)
    probed = len(probe_images()) if index.scan().todo else 0
    index.update(batch_size=1)
    assert sum(model.batches) == probed + len(wanted - kept.keys())
    _check_end(folder, index, state)
    return found


def check_graph(folder: Path) -> str:
    """Fail unless index and graph can go on from what is there, and say how far they were."""
    kept = _check_kept(folder)
    steps = len(kept.keys() & _digests(range(200, 200 + _STEPS)))
    place = folder / "photos" / ".clipkit"
    found = _describe(steps, _STEPS) + _describe_rest(folder) + _describe_rest(folder, "usearch")
    _check_graph(folder)
    for step in range(_STEPS):
        _take_step(folder, step)
    state = _state(folder)
    index = Index.open(folder / "photos", _Model(), store="usearch")
    index.update(batch_size=1)
    _check_end(folder, index, state)
    _check_graph(folder)
    with lock(place / "usearch"):
        pass
    kinds = sorted(path.name.split("-")[0] for path in (place / "usearch").iterdir())
    assert kinds == ["entries", "graph", "names", "store.json"]
    return found


def _check_kept(folder: Path) -> Contents:
    """Fail if a content lost its feature, or has another one, and return those that are there."""
    index_folder = folder / "photos" / ".clipkit"
    noted = _noted(folder)
    if not (index_folder / MANIFEST).exists():
        assert not noted
        return {}
    kept = _contents(index_folder)
    at_end = {digest_of(path.read_bytes()) for path in (folder / "photos").rglob("*.png")}
    assert noted & at_end <= kept.keys()  # what no file holds any more may go
    for digest, feature in kept.items():
        assert feature == _undisturbed()[digest]
    return kept


def _check_end(folder: Path, index: Index, state: int) -> None:
    """Fail unless an index is what an undisturbed build makes, and nothing else lies about.

    Args:
        folder: with the images.
        index: of them, up to date.
        state: which was there after the kill.
    """
    with tempfile.TemporaryDirectory() as scratch:
        whole = Index.build(folder / "photos", _Model(), Path(scratch) / "index", batch_size=1)
        assert index.paths == whole.paths
        np.testing.assert_array_equal(index.features, whole.features)
        assert index.skipped == []
    with lock(index.folder):  # it is free
        pass
    if index.manifest.state == state:  # there was nothing to do, and whoever writes next cleans up
        _paint(folder / "photos" / "one more.png", 300)
        index.update(batch_size=1)
    own = {MANIFEST, PROBE, index.manifest.entries, *index.manifest.features}
    found = {path.name for path in index.folder.iterdir()} - {"usearch"}
    assert found == own, found ^ own


def _check_graph(folder: Path) -> None:
    """Fail unless a graph finds what an exact search finds."""
    exact = Index.open(folder / "photos")
    graph = Index.open(folder / "photos", store="usearch")
    query = exact.paths[-1]
    assert graph.search(Path(query), 99).paths == exact.search(Path(query), 99).paths


def _state(folder: Path) -> int:
    """Return the number of the present state of an index, or 0."""
    place = folder / "photos" / ".clipkit"
    return Manifest.read(place).state if (place / MANIFEST).exists() else 0


def _build(folder: Path, model: _Model) -> Index:
    return Index.build(folder / "photos", model, batch_size=1)


def _contents(index_folder: Path) -> Contents:
    """Return the feature of each content in an index."""
    index = Index.open(index_folder)
    entries = [index.entries[place] for place in range(len(index.entries))]
    digests = [entry.digest for entry in entries if entry.row != NO_ROW]
    return dict(zip(digests, (row.tobytes() for row in index.features), strict=True))


def _digests(seeds: Iterable[int]) -> set[bytes]:
    """Return the digests of images by their seeds."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "image.png"
        found: set[bytes] = set()
        for seed in seeds:
            _paint(path, seed)
            found.add(digest_of(path.read_bytes()))
    return found


@cache
def _undisturbed() -> Contents:
    """Return the features that undisturbed builds give to all images of these jobs."""
    seeds = [*range(_IMAGES), *range(100, 100 + _CHANGED), *range(200, 200 + max(_ADDED, _STEPS))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for seed in seeds:
            _paint(folder / "photos" / f"{seed}.png", seed)
        return _contents(_build(folder, _Model()).folder)


def _describe(count: int, total: int) -> str:
    """Say roughly how much of something there is."""
    if count in (0, total):
        return "all" if count else "none"
    return ("below a third", "below two thirds", "nearly all")[3 * count // total]


def _describe_rest(folder: Path, name: str = "") -> str:
    """Say whether a process was killed while it wrote a state of an index or of its graph."""
    place = folder / "photos" / ".clipkit" / name
    is_amid = any(place.glob(".*.tmp")) or len(list(place.glob("entries-*"))) > 1
    return f" (writing {name or 'a state'})" if is_amid else ""
