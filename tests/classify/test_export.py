"""clipkit.classify.export: a file alone says what the classifier says, of any number of pictures, or is not kept."""

import copy
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipkit import CLIP, ImageClassifier
from clipkit.classify import export as source
from clipkit.classify.heads import CacheHead, Head, LinearHead, WeightedPromptHead
from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError, ExportError
from clipkit.tokenizer import Tokenizer
from tests.helpers.random_weights import randomize

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
NAMES = ["cat", "dog", "rocket"]


@pytest.fixture(scope="module")
def towers(
    vit_config: CLIPConfig, resnet_config: CLIPConfig, small_tokenizer: Tokenizer
) -> dict[str, CLIP]:
    return {
        name: randomize(CLIP(config, small_tokenizer), seed=3)
        for name, config in (("vit", vit_config), ("resnet", resnet_config))
    }


def pixels(count: int, model: CLIP) -> Tensor:
    """uint8 (count, 3, H, W), smooth pictures that differ, with all values from 0 to 255."""
    random = torch.Generator().manual_seed(count)
    corners = torch.randn(count, 3, 3, 3, generator=random)
    images = F.interpolate(corners, model.visual.resolution, mode="bilinear", align_corners=True)
    return (128 + 127 * images.clamp(-1, 1)).round().to(torch.uint8)


def eager(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """What the classifier says of the same pixels as pictures: its own preprocessing has nothing to resize."""
    return classifier.probabilities(
        [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    )


def run(path: Path) -> Callable[[Tensor], Tensor]:
    """The file, read without clipkit."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1]) == ("images", "tensor(uint8)", 3)
    assert isinstance(given.shape[0], str) and (made.name, made.type) == (
        "probabilities",
        "tensor(float)",
    )
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def heads(width: int = 32) -> dict[str, Head]:
    """One of each kind, which tell pictures apart; zero-shot's own is exported with the embedded model."""
    random = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, width, generator=random), dim=-1)

    scale = torch.tensor(2.5)
    values, alpha, beta = F.one_hot(torch.arange(7) % 3), torch.tensor(2.0), torch.tensor(4.0)
    return {
        "linear": LinearHead(9 * rows(3), torch.tensor([0.3, -0.2, 0.1])),
        "weighted prompts": WeightedPromptHead(
            rows(3, 4), scale, torch.rand(3, 4, generator=random)
        ),
        "cache": CacheHead(rows(3), scale, rows(7), values, alpha, beta),
    }


@pytest.mark.parametrize(
    ("tower", "head", "suffix"),
    [
        ("vit", "linear", ".pt2"),
        ("vit", "weighted prompts", ".onnx"),
        ("vit", "cache", ".onnx"),
        ("resnet", "cache", ".pt2"),
        ("resnet", "weighted prompts", ".pt2"),
        ("resnet", "linear", ".onnx"),
    ],
)
def test_the_file_says_what_the_classifier_says(
    towers, tmp_path: Path, tower, head, suffix: str
) -> None:
    classifier = ImageClassifier.zero_shot(towers[tower], NAMES)
    classifier.head = heads()[head]
    classifier.export(tmp_path / f"out{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == [
        f"out{suffix}"
    ]  # one file, and nothing left beside it
    exported = run(tmp_path / f"out{suffix}")
    for count in (1, 7, 4):
        images = pixels(count, classifier.model)
        expected = eager(classifier, images)
        probabilities = exported(images)
        assert probabilities.dtype == torch.float32 and probabilities.shape == (count, 3)
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=2e-5)
        assert (
            count == 1 or expected.std(dim=0).max() > 0.02
        )  # else the comparison would prove little


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_embedded_model_tells_a_photo_and_leaves_its_text_tower_behind(
    tmp_path: Path, suffix: str
) -> None:
    classifier = ImageClassifier.zero_shot("tiny", NAMES).to("cpu")
    path = tmp_path / f"tiny{suffix}"
    classifier.export(str(path))
    height, width = classifier.model.visual.resolution
    with Image.open(PHOTOS / "rocket.jpg") as photo:
        image = torch.from_numpy(
            np.array(photo.convert("RGB").resize((width, height))).transpose(2, 0, 1).copy()
        )
    (probabilities,) = run(path)(image[None])
    assert NAMES[int(probabilities.argmax())] == "rocket"
    torch.testing.assert_close(probabilities, eager(classifier, image[None])[0], rtol=0, atol=2e-5)
    image_tower, all_of_it = (
        4 * sum(p.numel() for p in module.parameters())
        for module in (classifier.model.visual, classifier.model)
    )
    assert image_tower < path.stat().st_size < image_tower + 1e6 < all_of_it


def test_the_classifier_stays_as_it_was(towers, tmp_path: Path) -> None:
    """In training mode, with gradients, and in half precision: the file computes in float32 from the same weights."""
    model = copy.deepcopy(towers["resnet"]).half()  # whose batch norms behave otherwise in training
    classifier = ImageClassifier.zero_shot(model, NAMES).train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.export(tmp_path / "half.pt2")
    assert all(module.training for module in classifier.modules())
    assert all(p.requires_grad and p.grad is None for p in classifier.parameters())
    after = classifier.state_dict()
    assert all(
        after[name].dtype == value.dtype and torch.equal(after[name], value)
        for name, value in before.items()
    )
    images = pixels(3, model)
    model.float()
    expected = eager(classifier.eval(), images)
    torch.testing.assert_close(run(tmp_path / "half.pt2")(images), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["x.pt", "x.ONNX", "x", ".onnx"])
def test_another_ending_is_refused(towers, tmp_path: Path, name: str) -> None:
    classifier = ImageClassifier.zero_shot(towers["vit"], NAMES)
    with pytest.raises(ConfigError, match=f"export writes .onnx and .pt2, not '{re.escape(name)}'"):
        classifier.export(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacking", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_before_any_work(
    towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking
) -> None:
    classifier = ImageClassifier.zero_shot(towers["vit"], NAMES)
    find = importlib.util.find_spec
    monkeypatch.setattr(source, "find_spec", lambda name: None if name == lacking else find(name))
    monkeypatch.setattr(source, "_Deployed", None)
    with pytest.raises(
        ConfigError, match=rf"ONNX needs {lacking}: pip install 'clipkit-torch\[export\]'"
    ):
        classifier.export(tmp_path / "x.onnx")
    with pytest.raises(TypeError, match="not callable"):  # the other kind needs none of them
        classifier.export(tmp_path / "x.pt2")


def stand_in(
    monkeypatch: pytest.MonkeyPatch, suffix: str, say: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Write a few bytes in place of an export, which are then read as what `say` makes of images and probabilities."""
    modules: list[Any] = []

    def write(module: Any, images: Tensor, path: Path) -> None:
        modules.append(module)
        path.write_bytes(b"a new file")

    name = {".pt2": "program", ".onnx": "onnx"}[suffix]
    monkeypatch.setattr(source, f"_write_{name}", write)
    monkeypatch.setattr(
        source, f"_open_{name}", lambda path: lambda images: say(images, modules[0](images))
    )


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("say", "message"),
    [
        (lambda images, right: right + 2e-4, "differs by 2.0e-04 for 1 images; it is not kept"),
        (lambda images, right: right * float("nan"), "differs by nan for 1 images"),
        (
            lambda images, right: right if len(images) == 2 else right[:1],
            "differs by .* for 5 images",
        ),
        (lambda images, right: right.flip(0), "differs by .* for 2 images"),
    ],
)
def test_a_file_that_differs_is_not_kept(
    towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, say, message: str
) -> None:
    """And what was at the path before is."""
    classifier = ImageClassifier.zero_shot(towers["vit"], NAMES)
    classifier.head = heads()["linear"]
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"an older file")
    stand_in(monkeypatch, suffix, say)
    with pytest.raises(ExportError, match=message):
        classifier.export(path)
    assert [p.name for p in tmp_path.iterdir()] == [
        path.name
    ] and path.read_bytes() == b"an older file"
    stand_in(
        monkeypatch, suffix, lambda images, right: right + 5e-5
    )  # other kernels may round otherwise
    classifier.export(path)
    assert [p.name for p in tmp_path.iterdir()] == [
        path.name
    ] and path.read_bytes() == b"a new file"


def test_a_disk_that_is_full_leaves_the_older_file(
    towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(module: Any, images: Tensor, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(source, "_write_program", write)
    path = tmp_path / "out.pt2"
    path.write_bytes(b"an older file")
    with pytest.raises(OSError, match="disk full"):
        ImageClassifier.zero_shot(towers["vit"], NAMES).export(path)
    assert [p.name for p in tmp_path.iterdir()] == [
        path.name
    ] and path.read_bytes() == b"an older file"
