"""Features of texts are kept beside an index: not for ever, and not where the index is gone."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from clipkit.search import Index, texts
from clipkit.search.texts import TextCache
from tests.search.conftest import ColorModel

FEATURE = np.ones(8, np.float32)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextCache:
    """Return a cache of at most six texts, four when there are more."""
    monkeypatch.setattr(texts, "_MOST", 6)
    monkeypatch.setattr(texts, "_LEFT", 4)
    return TextCache(tmp_path, 8)


def put(cache: TextCache, folder: Path, number: int) -> None:
    """Keep a text that is as old as its number says, the higher the newer."""
    before = set(folder.glob("texts/*"))
    cache.put([str(number)], FEATURE * number)
    for path in set(folder.glob("texts/*")) - before:
        os.utime(path, ns=(number * 10**9, number * 10**9))


def test_the_oldest_texts_go(small: TextCache, tmp_path: Path) -> None:
    for number in (3, 1, 2, 4, 5, 6):
        put(small, tmp_path, number)
    assert all(small.get([str(number)]) is not None for number in range(1, 7))
    small.put(["7"], FEATURE * 7)  # now, which is later than all
    kept = [number for number in range(1, 8) if small.get([str(number)]) is not None]
    assert kept == [4, 5, 6, 7]
    found = small.get(["5"])
    assert found is not None
    assert found[0] == 5


def test_what_another_process_removed_meanwhile_is_no_error(
    small: TextCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = os.unlink

    def removed_by_both(path: str) -> None:
        unlink(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", removed_by_both)
    for number in range(1, 8):
        put(small, tmp_path, number)
    assert len(list((tmp_path / "texts").iterdir())) == 4


def test_a_text_does_not_bring_an_index_back_that_was_removed(
    folder: Path, model: ColorModel
) -> None:
    index = Index.build(folder, model)
    index.feature_of("green")  # with it the model was checked
    shutil.rmtree(folder)
    assert index.feature_of("red").shape == (8,)
    assert not folder.exists()


def test_prompts_that_join_to_one_text_are_kept_apart(small: TextCache) -> None:
    small.put(["a cat", "a dog"], FEATURE)
    assert small.get(["a cat", "a dog"]) is not None
    assert small.get(["a cata dog"]) is None
    assert small.get(["a cat"]) is None
