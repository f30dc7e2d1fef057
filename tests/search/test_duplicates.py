"""Images that look alike come in groups, also where the features are of several blocks."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import ConfigError
from clipkit.search import Index, duplicates
from clipkit.search.duplicates import find_duplicates
from clipkit.search.memory import MemoryStore
from tests.search.conftest import ColorModel, names

COUNT = 60


@pytest.fixture
def store() -> MemoryStore:
    """Return features near to one of seven directions, some nearer than others."""
    numbers = np.random.default_rng(0)
    centers = np.linalg.qr(numbers.normal(size=(16, 7)))[0].transpose()  # (7, 16)
    spread = numbers.uniform(0.01, 0.12, size=(COUNT, 1))
    rows = centers[numbers.integers(0, 7, COUNT)] + spread * numbers.normal(size=(COUNT, 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    store = MemoryStore(16)
    store.add([f"{number:02}" for number in range(COUNT)], rows.astype(np.float32))
    return store


def groups_by_spreading(store: MemoryStore, threshold: float) -> list[list[str]]:
    """Return the groups as they are defined: whoever is reached by steps between what is alike."""
    names = [f"{number:02}" for number in range(COUNT)]
    rows = store.features(names).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    alike = rows @ rows.transpose() >= threshold
    for _ in range(COUNT):
        alike = (alike.astype(int) @ alike.astype(int)) > 0
    groups = {tuple(np.flatnonzero(row)) for row in alike}
    return sorted([names[place] for place in group] for group in groups if len(group) > 1)


@pytest.mark.parametrize("threshold", [0.05, 0.7, 0.9, 0.96])
@pytest.mark.parametrize("rows", [7, 30, 1024])
def test_groups_are_those_of_all_pairs(
    rows: int, threshold: float, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_ROWS", rows)
    found = find_duplicates(store, threshold)
    assert [group.paths for group in found] == groups_by_spreading(store, threshold)
    assert all(group.cosine >= threshold for group in found)


def test_the_cosine_is_the_lowest_that_was_needed(store: MemoryStore) -> None:
    """It is the highest threshold at which the group is still one."""
    for group in find_duplicates(store, 0.7):
        (whole,) = [
            found
            for found in find_duplicates(store, group.cosine - 1e-5)
            if found.paths[0] == group.paths[0]
        ]
        assert whole.paths == group.paths
        parts = find_duplicates(store, min(1.0, group.cosine + 1e-5))
        assert group.paths not in [found.paths for found in parts]


@pytest.mark.parametrize("threshold", ["0.9", None])
def test_a_threshold_that_is_no_number_is_a_typed_error(
    threshold: float, store: MemoryStore
) -> None:
    with pytest.raises(ConfigError, match="threshold must be above 0 and at most 1"):
        find_duplicates(store, threshold)


def test_links_to_one_file_are_no_duplicates(folder: Path, model: ColorModel) -> None:
    image = folder / "red" / "0.png"
    (folder / "soft.png").symlink_to(image)
    os.link(image, folder / "hard.png")
    index = Index.build(folder, model)
    assert len(index) == 11
    assert index.duplicates(1) == []
    shutil.copy(image, folder / "copy.png")
    index.update()
    (group,) = index.duplicates(1)
    assert names(group.paths) == ["photos/copy.png", "photos/hard.png"]
    shutil.rmtree(folder)  # of what is gone nobody knows whether it was a link
    (group,) = index.duplicates(1)
    assert len(group.paths) == 4
