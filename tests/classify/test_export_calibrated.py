"""A file of a calibrated classifier says what the classifier says, and all that is known of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.classify.calibration import Calibration
from clipkit.classify.presence import Presence
from clipkit.config import CLIPConfig
from clipkit.tokenizer import Tokenizer
from tests.helpers.random_weights import randomize

NAMES = ["cat", "dog", "rocket"]
PRESENCE = Presence(
    slopes=torch.tensor([0.5, 1.0, 2.0]),
    offsets=torch.tensor([0.1, -0.2, 0.3]),
    thresholds=torch.tensor([0.5, 0.25, 0.125]),
    images=7,
)
ROWS = torch.arange(1, 100) / 50
BOTH = Calibration(temperature=0.3, scores=ROWS, confidences=ROWS, presence=PRESENCE)
FILES = [
    (BOTH, ".onnx", ["probabilities", "confidence", "presence"]),
    (BOTH, ".pt2", ["probabilities", "confidence", "presence"]),
    (replace(BOTH, presence=None), ".onnx", ["probabilities", "confidence"]),
    (Calibration(presence=PRESENCE), ".pt2", ["probabilities", "presence"]),
    (None, ".pt2", ["probabilities"]),
]


@pytest.fixture(scope="module")
def model(vit_config: CLIPConfig, small_tokenizer: Tokenizer) -> CLIP:
    """Return a ViT of one layer with random weights."""
    vision: Any = replace(vit_config.vision, layers=1)
    return randomize(CLIP(replace(vit_config, vision=vision), small_tokenizer), seed=3)


def pixels(model: CLIP) -> Tensor:
    """Return uint8 images (4, 3, H, W) of noise."""
    shape = (4, 3, *model.visual.resolution)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def run(path: Path, images: Tensor) -> tuple[list[str], list[Tensor], dict[str, Any]]:
    """Return names, outputs and metadata of a file, read without clipkit."""
    if path.suffix == ".pt2":
        extra = {"clipkit.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        with torch.no_grad():
            made = module(images)
        outputs = [made] if isinstance(made, Tensor) else list(made)
        return [], outputs, json.loads(extra["clipkit.json"])
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [torch.from_numpy(one) for one in session.run(None, {"images": images.numpy()})]
    about = session.get_modelmeta().custom_metadata_map
    names = [one.name for one in session.get_outputs()]
    return names, outputs, {name: json.loads(value) for name, value in about.items()}


@pytest.mark.parametrize(("calibration", "suffix", "names"), FILES)
def test_the_file_says_what_the_classifier_says(
    model: CLIP, tmp_path: Path, calibration: Calibration | None, suffix: str, names: list[str]
) -> None:
    classifier = ImageClassifier.zero_shot(model, NAMES)
    classifier.calibration = calibration
    images = pixels(model)
    classifier.export(tmp_path / f"out{suffix}")
    found, outputs, about = run(tmp_path / f"out{suffix}", images)
    assert found == (names if suffix == ".onnx" else [])
    assert about["labels"] == NAMES
    expected = classifier.predict(
        [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images],
        several="presence" in names,
    )
    made = dict(zip(names, outputs, strict=True))
    rows = torch.stack([one.probabilities for one in expected])
    torch.testing.assert_close(made["probabilities"], rows, rtol=0, atol=2e-5)
    if "presence" in names:
        shares = torch.stack([one.presence for one in expected if one.presence is not None])
        torch.testing.assert_close(made["presence"], shares, rtol=0, atol=2e-5)
    if "confidence" in names:
        assert calibration is not None
        # Half-way between two images: the one is rejected, and the other is not.
        ranked = made["confidence"].sort().values
        classifier.calibration = replace(calibration, confidences=ranked[1:3].mean().repeat(99))
        again = classifier.predict(classifier.embed(_as_images(images)), reject=True)
        below = made["confidence"] < ranked[1:3].mean()
        assert [one.rejected for one in again] == below.tolist()
    assert ("calibration" in about) == (calibration is not None)


def _as_images(images: Tensor) -> list[Any]:
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_the_metadata_make_the_same_decisions(model: CLIP, tmp_path: Path, suffix: str) -> None:
    classifier = ImageClassifier.zero_shot(model, NAMES)
    classifier.calibration = BOTH
    path = tmp_path / f"out{suffix}"
    classifier.export(path)
    images = pixels(model)
    _, (probabilities, confidence, presence), about = run(path, images)
    said = about["calibration"]
    assert said["temperature"] == 0.3
    assert said["source"] == "held-out images"
    assert said["images"] == 99
    assert list(said["sets"]) == ["0.5", "0.8", "0.9", "0.95", "0.99"]
    assert said["rejection"]["false_alarms"] == 0.05
    thresholds = torch.tensor(said["presence"]["thresholds"])
    for coverage in (0.5, 0.9, 0.99):
        predictions = classifier.predict(
            _as_images(images), coverage=coverage, reject=True, several=True
        )
        members = probabilities >= said["sets"][str(coverage)]
        rejected = confidence < said["rejection"]["threshold"]
        for row, prediction in enumerate(predictions):
            own = {NAMES[int(place)] for place in members[row].nonzero()}
            assert set(prediction.set or []) == own | {prediction.label}
            assert prediction.rejected == bool(rejected[row])
            there = {NAMES[int(place)] for place in (presence[row] > thresholds).nonzero()}
            assert set(prediction.present or []) == there


def test_what_too_few_images_cannot_say_is_left_out(model: CLIP, tmp_path: Path) -> None:
    classifier = ImageClassifier.zero_shot(model, NAMES)
    few = ROWS[:9]
    classifier.calibration = Calibration(temperature=2.0, scores=few, confidences=few)
    classifier.export(tmp_path / "out.pt2")
    _, outputs, about = run(tmp_path / "out.pt2", pixels(model))
    assert len(outputs) == 2
    assert list(about["calibration"]["sets"]) == ["0.5", "0.8", "0.9"]
    assert "rejection" not in about["calibration"]
