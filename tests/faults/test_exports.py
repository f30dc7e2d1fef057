"""Test that exported files are whole, know their labels, and fit every format.

Kinds N (size limits of formats), X13 (full disks), I (refused before the work) and Y12 (what a file
says of itself).
"""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.checkpoints import graph_file
from clipkit.classify import export as source
from clipkit.errors import ExportError, OutputError
from tests.helpers.models import make_small_tokenizer
from tests.helpers.toy_classifier import NAMES, toy_model


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    """Return a classifier of odd names, whose model is as small as can be."""
    model = toy_model(make_small_tokenizer())
    return ImageClassifier.zero_shot(model, ["größe", 'a "b"', *NAMES], None)


def pixels(count: int) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=random, dtype=torch.uint8)


def expected(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """Return probabilities (N, C) of the same pixels, by hand."""
    config = classifier.model.config.preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.no_grad():
        return classifier((images.float() / 255 - mean) / std).softmax(dim=-1)


@pytest.fixture(scope="module")
def large(classifier: ImageClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file that was exported as those above 2 GiB are, over a smaller one."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "README.md").write_text("mine")
    (folder / "x.onnx").write_bytes(b"an older file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_file, "LARGEST_ONNX", 1000)
        classifier.export(folder / "x.onnx")
    return folder / "x.onnx"


# Kind N


def test_weights_too_large_for_one_file_lie_in_a_second_one(
    large: Path, classifier: ImageClassifier
) -> None:
    names = {path.name for path in large.parent.iterdir()}
    assert names == {"x.onnx", "x.onnx.data", "README.md"}  # nothing hidden either
    weights = 4 * sum(weight.numel() for weight in classifier.model.visual.parameters())
    assert (large.parent / "x.onnx.data").stat().st_size >= 0.9 * weights
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(large, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (found,) = session.run(None, {"images": pixels(count).numpy()})
        right = expected(classifier, pixels(count))
        torch.testing.assert_close(torch.from_numpy(found), right, rtol=0, atol=2e-5)


def test_the_limit_is_that_of_the_format() -> None:
    assert 1.9e9 < graph_file.LARGEST_ONNX < 2**31


def stand_in(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], factor: float = 1.0
) -> None:
    """Write something quick in place of an `.onnx`, which says what modules say, times a factor."""
    modules: list[Any] = []

    def write_onnx(graph: graph_file.Graph, path: Path) -> None:
        modules.append(graph.module)
        write(path)

    monkeypatch.setattr(graph_file, "LARGEST_ONNX", 1000)
    monkeypatch.setattr(graph_file, "_write_onnx", write_onnx)
    monkeypatch.setattr(
        graph_file,
        "_open_onnx",
        lambda path, name: lambda images: [factor * modules[0](images)],
    )


def write_two(path: Path) -> None:
    path.write_bytes(b"new")
    path.with_name(f"{path.name}.data").write_bytes(b"new weights")


def test_both_files_are_replaced_or_neither(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "x.onnx", tmp_path / "x.onnx.data"
    path.write_bytes(b"old")
    data.write_bytes(b"old weights")

    def half(partial: Path) -> None:
        write_two(partial)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stand_in(monkeypatch, half)
    with pytest.raises(OutputError, match="No space left on device. Free some space"):
        classifier.export(path)
    stand_in(monkeypatch, write_two, factor=1.1)
    with pytest.raises(ExportError, match="it is not kept"):
        classifier.export(path)
    assert (path.read_bytes(), data.read_bytes()) == (b"old", b"old weights")
    assert len(list(tmp_path.iterdir())) == 2
    stand_in(monkeypatch, write_two)
    classifier.export(path)
    assert (path.read_bytes(), data.read_bytes()) == (b"new", b"new weights")
    assert len(list(tmp_path.iterdir())) == 2


# Kind Y12


def test_a_file_says_what_it_takes_and_gives(large: Path, classifier: ImageClassifier) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(large, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert given.shape == ["batch", 3, 32, 32]
    assert made.shape == ["batch", 6]
    about = session.get_modelmeta().custom_metadata_map
    found = {name: json.loads(value) for name, value in about.items()}
    config = classifier.model.config.preprocess
    assert found == {
        "labels": ["größe", 'a "b"', *NAMES],
        "input_size": [32, 32],
        "mean": list(config.mean),
        "std": list(config.std),
    }


# Kinds I and X13


@pytest.mark.parametrize("name", ["file/x.pt2", "file/x.onnx", "folder.onnx", "a" * 300 + ".pt2"])
def test_places_that_cannot_be_written_are_refused_before_the_work(
    classifier: ImageClassifier, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.setattr(source, "_Deployed", lambda *_: pytest.fail("worked in vain"))
    with pytest.raises(OutputError, match="cannot write .*Choose"):
        classifier.export(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.onnx"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_program_on_a_full_disk_is_an_error_and_not_the_end(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own writer ends the process when a write fails."""
    program = torch.export.export(torch.nn.Identity(), (pixels(1),))
    monkeypatch.setattr(graph_file, "record", lambda *_: program)
    real = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        is_partial = path.name.endswith(".tmp")
        return real(Path("/dev/full") if is_partial else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match="out.pt2.*No space left on device"):
        classifier.export(tmp_path / "out.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_for_inference_is_refused_before_the_work(
    classifier: ImageClassifier, tmp_path: Path
) -> None:
    fast = ImageClassifier.zero_shot(classifier.model.optimize(), NAMES)
    for verb in (fast.save, lambda path: fast.export(path / "x.pt2")):
        with pytest.raises(ValueError, match="inference-only copy.*the classifier of the model"):
            verb(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert isinstance(classifier.model, CLIP)
