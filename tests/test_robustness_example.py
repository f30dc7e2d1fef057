"""The script that measures robustness runs on folders of images, and writes what it says."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.toy_data import color_folders

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """Return the example as a module. It imports the script beside it."""
    present = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("robustness")
    sys.path.remove(str(EXAMPLES))
    for name in set(sys.modules) - present:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("shots", ["0", "1"])
def test_it_measures_some_images_of_the_test_half(
    example: Any,
    shots: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    color_folders(tmp_path / "colors" / "train", each=1)
    color_folders(tmp_path / "colors" / "test", each=2, seed=50)
    command = ["robustness.py", "--data", f"cifar10={tmp_path / 'colors'}", "--images", "3"]
    monkeypatch.setattr(sys, "argv", [*command, "--shots", shots, "--out", str(tmp_path)])
    example.main()
    values = json.loads((tmp_path / "robustness_cifar10.json").read_text("utf-8"))
    assert values["images"] == 3
    assert values["left_out"] == 0
    assert values["shots"] == int(shots)
    assert list(values["mean_accuracy"])[-1] == "text of no class"
    assert len(values["rows"]) == 30
    assert values["rows"][-1]["fooled"] is None
    assert values["processor"]
    assert "taken for it" in capsys.readouterr().out
    with Image.open(tmp_path / "robustness_cifar10.png") as figure:
        assert figure.size[0] > 500
