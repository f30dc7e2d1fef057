"""clipkit.classify.export: a file alone says what the classifier says, or is not kept."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from clipkit import CLIP, ImageClassifier, Preprocess, PreprocessConfig
from clipkit.classify.heads import CacheHead, Head, LinearHead, WeightedPromptHead
from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError
from clipkit.tokenizer import Tokenizer
from tests.helpers.random_weights import randomize

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"
NAMES = ["cat", "dog", "rocket"]


ANOTHER = Preprocess(
    (48, 48), PreprocessConfig(mean=(0.1, 0.6, 0.2), std=(0.9, 0.5, 0.1), resize_mode="squash")
)


@pytest.fixture(scope="module")
def towers(
    vit_config: CLIPConfig, resnet_config: CLIPConfig, small_tokenizer: Tokenizer
) -> dict[str, CLIP]:
    """Return a ViT of one layer, since an export takes time for each, and a ResNet."""
    vision: Any = replace(vit_config.vision, layers=1)
    configs = {"vit": replace(vit_config, vision=vision), "resnet": resnet_config}
    towers = {
        name: randomize(CLIP(config, small_tokenizer), seed=3) for name, config in configs.items()
    }
    towers["vit, other preprocess"] = copy.deepcopy(towers["vit"])
    towers["vit, other preprocess"].preprocess = ANOTHER
    return towers


Export = Callable[[str, str, str], tuple[ImageClassifier, Path]]


@pytest.fixture(scope="module")
def exported(towers: dict[str, CLIP], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports a tower with a head, once for all tests."""

    @functools.cache
    def export(tower: str, head: str, suffix: str) -> tuple[ImageClassifier, Path]:
        classifier = ImageClassifier.zero_shot(towers[tower], NAMES)
        classifier.head = heads()[head]
        path = tmp_path_factory.mktemp("export") / f"out{suffix}"
        classifier.export(path)
        return classifier, path

    return export


def pixels(count: int, model: CLIP) -> Tensor:
    """Return uint8 images (count, 3, H, W), smooth, all different, with values from 0 to 255."""
    random = torch.Generator().manual_seed(count)
    corners = torch.randn(count, 3, 3, 3, generator=random)
    images = F.interpolate(corners, model.visual.resolution, mode="bilinear", align_corners=True)
    return (128 + 127 * images.clamp(-1, 1)).round().to(torch.uint8)


def eager(classifier: ImageClassifier, images: Tensor) -> Tensor:
    """Return what the classifier says of the same pixels as PIL images, which fit already."""
    return classifier.probabilities(
        [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    )


def run(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the function in a file, read without clipkit."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape[1]) == ("images", "tensor(uint8)", 3)
    assert given.shape[0] == "batch"
    assert (made.name, made.type) == ("probabilities", "tensor(float)")
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def heads(width: int = 32) -> dict[str, Head]:
    """Return a head of each kind but zero-shot, which is exported with the embedded model."""
    random = torch.Generator().manual_seed(0)

    def rows(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, width, generator=random), dim=-1)

    scale = torch.tensor(2.5)
    values = F.one_hot(torch.arange(7) % 3)
    alpha = torch.tensor(2.0)
    beta = torch.tensor(4.0)
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
        ("vit, other preprocess", "linear", ".pt2"),
        ("vit", "weighted prompts", ".onnx"),
        ("vit", "cache", ".onnx"),
        ("resnet", "cache", ".pt2"),
        ("resnet", "weighted prompts", ".pt2"),
        ("resnet", "linear", ".onnx"),
    ],
)
def test_the_file_says_what_the_classifier_says(
    exported: Export, tower: str, head: str, suffix: str
) -> None:
    classifier, path = exported(tower, head, suffix)
    assert list(path.parent.iterdir()) == [path]  # one file, and nothing left beside it
    in_file = run(path)
    for count in (1, 7, 4):
        images = pixels(count, classifier.model)
        expected = eager(classifier, images)
        probabilities = in_file(images)
        assert probabilities.dtype == torch.float32
        assert probabilities.shape == (count, 3)
        torch.testing.assert_close(probabilities, expected, rtol=0, atol=2e-5)
        if count > 1:  # else the comparison would prove little
            assert expected.std(dim=0).max() > 0.02


def test_a_program_is_made_of_plain_operations(exported: Export) -> None:
    """Runtimes other than Python's may not know of autocast."""
    _, path = exported("vit, other preprocess", "linear", ".pt2")
    program = torch.export.load(path)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls
    assert not any(isinstance(target, torch._ops.HigherOrderOperator) for target in calls)


def test_what_a_program_returns_has_no_gradients(exported: Export) -> None:
    classifier, path = exported("vit, other preprocess", "linear", ".pt2")
    images = pixels(2, classifier.model)
    outputs = torch.export.load(path).module()(images)
    np.testing.assert_allclose(outputs.numpy(), eager(classifier, images).numpy(), atol=2e-5)
    assert any(weight.requires_grad for weight in classifier.parameters())


# Preprocessing


class Tinted(nn.Module):
    """Prepare uint8 images by weights of its own, with a resize that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.tint = nn.Parameter(torch.tensor([0.5, 1.5, 2.5]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        resized = F.interpolate(images.to(self.tint.dtype), (48, 48), mode="bilinear")
        return (resized / 255 - 0.5) * self.tint


@pytest.fixture
def own_vit(towers: dict[str, CLIP]) -> CLIP:
    """Return a copy, whose preprocessing may be set."""
    return copy.deepcopy(towers["vit"])


def test_the_preprocess_that_was_set_is_exported(exported: Export, own_vit: CLIP) -> None:
    """And not the one of the model's config."""
    classifier, path = exported("vit, other preprocess", "linear", ".pt2")
    images = pixels(4, own_vit)
    before = ImageClassifier.zero_shot(own_vit, NAMES)
    before.head = classifier.head
    expected = eager(classifier, images)
    assert (expected - eager(before, images)).abs().max() > 0.01
    torch.testing.assert_close(run(path)(images), expected, rtol=0, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_module_becomes_part_of_the_file(own_vit: CLIP, tmp_path: Path, suffix: str) -> None:
    module = Tinted().half()  # which stays half
    own_vit.preprocess = module
    classifier = ImageClassifier.zero_shot(own_vit, NAMES)
    classifier.export(tmp_path / f"out{suffix}")
    assert module.tint.dtype == torch.float16
    images = pixels(4, own_vit)
    with torch.no_grad():
        expected = classifier(Tinted()(images)).softmax(dim=-1)
    probabilities = run(tmp_path / f"out{suffix}")(images)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_torchvision_transforms_become_part_of_the_file(own_vit: CLIP, tmp_path: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    own_vit.preprocess = transforms.Compose(
        [
            transforms.Resize((48, 48)),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
        ]
    )
    classifier = ImageClassifier.zero_shot(own_vit, NAMES)
    classifier.export(tmp_path / "out.pt2")
    images = pixels(4, own_vit)
    with torch.no_grad():
        expected = classifier(own_vit.preprocess(images)).softmax(dim=-1)
    probabilities = run(tmp_path / "out.pt2")(images)
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=2e-5)


class Flat(nn.Module):
    """Return a float tensor of another shape."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=1)


class OnlyPaths(nn.Module):
    """Take paths alone."""

    def forward(self, image: Any) -> Tensor:
        return torch.zeros(Path(image).stat().st_size)


class Own(Preprocess):
    """Do something else than a `Preprocess`."""

    def __call__(self, image: Any) -> Tensor:
        return super().__call__(image).flip(0)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (lambda image: image, "preprocess is <function.*set model.preprocess to a clipkit.Prep"),
        (Own((48, 48), PreprocessConfig()), "preprocess is Own.*cannot be written into a file"),
        (nn.Identity(), r"makes torch.uint8 of \(5, 3, 48, 48\) of uint8 images"),
        (Flat(), r"makes torch.float32 of \(5, 48, 48\) of uint8 images .* the same shape"),
        (OnlyPaths(), r"cannot be exported \(TypeError: .*must take uint8 images"),
    ],
)
def test_a_preprocess_that_cannot_be_exported_is_refused(
    own_vit: CLIP, tmp_path: Path, preprocess: Any, message: str
) -> None:
    own_vit.preprocess = preprocess
    with pytest.raises(ConfigError, match=message):
        ImageClassifier.zero_shot(own_vit, NAMES).export(tmp_path / "out.pt2")
    assert list(tmp_path.iterdir()) == []


# The classifier


@pytest.mark.slow
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
    size = path.stat().st_size
    assert image_tower < size < image_tower + 1e6 < all_of_it


@pytest.mark.slow
def test_the_classifier_stays_as_it_was(towers: dict[str, CLIP], tmp_path: Path) -> None:
    """In training mode, with gradients, and in half precision; the file computes in float32."""
    model = copy.deepcopy(towers["resnet"]).half()  # its batch norms differ in training
    classifier = ImageClassifier.zero_shot(model, NAMES).train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.export(tmp_path / "half.pt2")
    assert all(module.training for module in classifier.modules())
    for parameter in classifier.parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
    after = classifier.state_dict()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value)
    images = pixels(3, model)
    model.float()
    expected = eager(classifier.eval(), images)
    torch.testing.assert_close(run(tmp_path / "half.pt2")(images), expected, rtol=0, atol=2e-5)
