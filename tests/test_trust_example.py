"""The script that measures calibrations runs on files of features, and measures what it says."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

EXAMPLES = Path(__file__).parents[1] / "examples"
CLASSES, WIDTH = 8, 16


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Return the example as a module. It imports the script beside it."""
    present = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("trust")
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - present:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a file of features of eight classes."""
    random = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(CLASSES, WIDTH, generator=random), dim=1)
    arrays: dict[str, Any] = {"w": texts.numpy(), "logit_scale": np.float32(20)}
    for part, count in (("pool", 80), ("test", 320)):
        labels = torch.arange(count) % CLASSES
        noise = torch.randn(count, WIDTH, generator=random) / 3
        arrays[part] = F.normalize(texts[labels] + noise, dim=1).half().numpy()
        arrays[f"{part}_labels"] = labels.short().numpy()
    folder = tmp_path_factory.mktemp("features")
    np.savez(folder / "drawn.npz", **arrays)
    return folder


def test_a_table_is_printed_and_the_figures_are_written(
    example: Any,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "trust.json"
    options = ["--features", str(features), "--draws", "2", "--compare", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["trust.py", *options])
    example.main()
    results = json.loads(out.read_text())
    assert results["settings"]["draws"] == 2
    ways = results["sets"]["drawn"]
    for way in ("zero-shot, held-out images", "fitted, held-out images"):
        figures = ways[way]
        assert 0.5 < figures["accuracy"][0] < 1
        for coverage in example.COVERAGES:
            expected = max(coverage, figures["accuracy"][0])
            assert abs(figures[f"coverage {coverage}"][0] - expected) < 0.08
            assert figures[f"set size {coverage}"][0] >= 1
        assert abs(figures["false alarms"][0] - 0.05) < 0.05
    assert ways["fitted, cross-validation"]["detected"][0] > 0
    assert set(ways["compare several labels"]) == {
        "contrast, best F1",
        "contrast, half",
        "less the mean, best F1",
    }
    assert (
        ways["compare sets, fitted"]["set size LAC"] < ways["compare sets, fitted"]["set size APS"]
    )
    shown = capsys.readouterr().out
    assert shown.count("\n| drawn |") == len(ways)


def test_unknown_classes_are_in_no_part_of_a_trial(example: Any, features: Path) -> None:
    (task,) = example.read_feature_sets(features)
    assert task.zero_shot.scale == pytest.approx(20)
    part = task.only(torch.tensor([1, 4, 6]))
    assert part.pool_labels.unique().tolist() == [0, 1, 2]
    assert len(part.pool) == 30
    assert part.test.equal(task.test[torch.isin(task.test_labels, torch.tensor([1, 4, 6]))])
    assert part.zero_shot.weight.equal(task.zero_shot.weight[[1, 4, 6]])
    others = task.images_of_others(torch.tensor([1, 4, 6]))
    assert len(others) == 200
    _, trial, _ = next(iter(example.trials_of(task, 2, 0)))
    assert len(trial.unknown) == 80  # two of eight classes
    assert len(trial.calibrating) == len(trial.known) == 120
