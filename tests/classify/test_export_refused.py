"""clipkit.classify.export: what is refused, and files that are not kept."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from clipkit import ImageClassifier
from clipkit.checkpoints import graph_file
from clipkit.classify import export as source
from clipkit.errors import ConfigError, ExportError


@pytest.mark.parametrize("name", ["x.pt", "x.ONNX", "x", ".onnx"])
def test_another_ending_is_refused(classifier: ImageClassifier, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"export writes .onnx and .pt2, not '{re.escape(name)}'"):
        classifier.export(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacking", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_any_work(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        graph_file, "find_spec", lambda name: None if name == lacking else find(name)
    )
    monkeypatch.setattr(source, "_Deployed", None)
    message = rf"ONNX needs {lacking}: pip install 'clipkit-torch\[export\]'"
    with pytest.raises(ConfigError, match=message):
        classifier.export(tmp_path / "x.onnx")
    with pytest.raises(TypeError, match="not callable"):  # the other kind needs none of them
        classifier.export(tmp_path / "x.pt2")


# Files that differ


def stand_in(
    monkeypatch: pytest.MonkeyPatch, suffix: str, say: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Write a few bytes in place of an export; they are read as what `say` returns.

    `say` gets the images and the right probabilities.
    """
    modules: list[Any] = []

    def write(graph: graph_file.Graph, path: Path) -> None:
        modules.append(graph.module)
        path.write_bytes(b"a new file")

    name = {".pt2": "program", ".onnx": "onnx"}[suffix]
    monkeypatch.setattr(graph_file, f"_write_{name}", write)
    monkeypatch.setattr(
        graph_file,
        f"_open_{name}",
        lambda path, _="": lambda images: [say(images, modules[0](images))],
    )


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda images, right: right + 2e-4, "differs by 2.0e-04 for 1 image; it is not kept"),
        (lambda images, right: right * float("nan"), "differs by nan for 1 image;"),
        (
            lambda images, right: right if len(images) == 2 else right[:1],
            "differs by .* for 5 images",
        ),
        (lambda images, right: right.flip(0), "differs by .* for 2 images"),
    ],
)
def test_a_file_that_differs_is_not_kept(
    classifier: ImageClassifier,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    say: Callable[[Tensor, Tensor], Tensor],
    message: str,
) -> None:
    """And what was at the path before is."""
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"an older file")
    stand_in(monkeypatch, suffix, say)
    with pytest.raises(ExportError, match=message):
        classifier.export(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"an older file"
    # Other kernels may round in another way.
    stand_in(monkeypatch, suffix, lambda images, right: right + 5e-5)
    classifier.export(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"a new file"


def test_a_disk_that_is_full_leaves_the_older_file(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(graph: graph_file.Graph, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(graph_file, "_write_program", write)
    path = tmp_path / "out.pt2"
    path.write_bytes(b"an older file")
    with pytest.raises(OSError, match="disk full"):
        classifier.export(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"an older file"
