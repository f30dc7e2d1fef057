"""Test that torch's default device does not reach what is on the CPU always (kind J)."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit import CLIP, CLIPClassifier, ImageClassifier, finetune, lora, read_folder
from clipkit.training import low_rank
from tests.helpers.toy_data import color_folders


@contextmanager
def default_device(name: str) -> Generator[None, None, None]:
    """Let torch make tensors on another device for a while."""
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def test_rows_are_fitted_on_the_cpu() -> None:
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(12, 3)), ["a", "b", "c"] * 4
    expected = CLIPClassifier().fit(rows, labels)
    with default_device("meta"):
        found = CLIPClassifier().fit(rows, labels)
        assert np.array_equal(found.predict_proba(rows), expected.predict_proba(rows))
    assert np.array_equal(found.coef_, expected.coef_)


def test_low_rank_changes_begin_on_the_cpu(model: CLIP) -> None:
    torch.manual_seed(0)
    expected = lora(model, 2).state_dict()
    torch.manual_seed(0)
    with default_device("meta"):
        found = lora(model, 2).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_low_rank_changes_are_chosen_on_the_cpu(
    model: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training itself cannot be tried, since torch's DataLoader draws on the default device."""

    def untrained(start: ImageClassifier, *_: object) -> CLIP:
        return start.model

    monkeypatch.setattr(low_rank, "train_changes", untrained)
    pairs = read_folder(color_folders(tmp_path / "images", each=2))
    expected = finetune(model, pairs, tmp_path / "a", lora=1)
    with default_device("meta"):
        found = finetune(model, pairs, tmp_path / "b", lora=1)
    assert found.provenance["lora"] == expected.provenance["lora"]
    assert found.provenance["lora"]["held_out"]["images"] == 8
