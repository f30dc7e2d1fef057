"""What version 0.1.0 wrote is read with the same numbers. `make.py` made the files."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipkit import CLIP, ImageClassifier, TrainConfig, Trainer
from clipkit.encode.store import load_features
from clipkit.training.batches import Batch
from tests.compat.make import METHODS, NAMES, VIT, small_model, some_features, some_images

OLD = Path(__file__).parent / "v0_1_0"


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    """Return what 0.1.0 computed, by name."""
    return load_file(OLD / "expected.safetensors")


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_models(kind: str, expected: dict[str, Tensor]) -> None:
    model = CLIP.from_pretrained(OLD / kind, device="cpu")
    assert_near(model.encode_image(some_images(2)), expected[f"{kind}.images"])
    assert_near(model.embed_texts(["a red car", "cats and dogs"]), expected[f"{kind}.texts"])


@pytest.mark.parametrize("method", METHODS)
def test_classifiers(method: str, expected: dict[str, Tensor], tmp_path: Path) -> None:
    shutil.copytree(OLD / f"classifier_{method}", tmp_path / "classifier")
    shutil.copytree(OLD / "vit", tmp_path / "classifier" / "model")
    classifier = ImageClassifier.load(tmp_path / "classifier", device="cpu")
    assert classifier.labels == NAMES
    assert classifier.provenance["method"] == method
    features, _ = some_features()
    assert_near(classifier.probabilities(features), expected[f"classifier_{method}"])


@pytest.mark.parametrize("method", ["anchored", "gaussian", "prompt_weights"])
def test_classifiers_take_new_classes(method: str, tmp_path: Path) -> None:
    """The scale of the logits was kept among the words about the head."""
    shutil.copytree(OLD / f"classifier_{method}", tmp_path / "classifier")
    shutil.copytree(OLD / "vit", tmp_path / "classifier" / "model")
    classifier = ImageClassifier.load(tmp_path / "classifier", device="cpu")
    features, _ = some_features()
    before = classifier.probabilities(features)
    classifier.add_classes(["bus"], ["a {}.", "my {}."])
    after = classifier.probabilities(features)
    assert classifier.labels == [*NAMES, "bus"]
    assert_near(after[:, :3] / after[:, :3].sum(dim=1, keepdim=True), before)


def test_features(expected: dict[str, Tensor]) -> None:
    features = load_features(OLD / "features.safetensors")
    assert torch.equal(features.features, expected["features"])
    assert features.labels is not None
    assert features.labels.tolist() == [2, 0, 1]
    assert features.paths == ["0", "1", "2"]


def batches(step: int) -> Iterator[Batch]:
    """Yield what `make.py` trained on."""
    while True:
        random = torch.Generator().manual_seed(step)
        tokens = torch.randint(1, 500, (4, 6), generator=random)
        tokens[:, 0], tokens[:, -1] = 520, 521
        yield Batch((torch.randn(4, 3, 32, 32, generator=random), tokens))
        step += 1


def test_training_goes_on(expected: dict[str, Tensor], tmp_path: Path) -> None:
    shutil.copytree(OLD / "run", tmp_path / "run")
    config = TrainConfig(steps=6, warm_up=2, lr=1e-3, log_every=1, save_every=2)
    model = Trainer(small_model(VIT), batches, config, tmp_path / "run", device="cpu").fit()
    trained = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert_near(trained, expected["trained"])
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 6
