"""Programs written for OpenAI's package run with nothing changed but the import.

Those that stay at the front door run with `import clipkit as clip` too. What reaches inside the
model needs `import clipkit.openai as clip`, and is tested in `tests/openai`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import clipkit
import clipkit.openai
from clipkit.models.layers import Transformer
from tests.helpers.models import RESNET, VIT, random_clip


@pytest.fixture(params=[clipkit, clipkit.openai], ids=["clipkit", "clipkit.openai"])
def clip(request: pytest.FixtureRequest) -> Any:
    """Return what a program imports as `clip`."""
    return request.param


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "CLIP.png"
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_first_program_of_their_readme(clip: Any, photo: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = clip.load("tiny", device=device)

    image = preprocess(Image.open(photo)).unsqueeze(0).to(device)
    text = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)

    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)

        logits_per_image, logits_per_text = model(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()

    assert text.shape == (3, 77)
    assert image_features.shape == (1, 256)
    assert text_features.shape == (3, 256)
    assert logits_per_image.shape == (1, 3)
    assert torch.equal(logits_per_text, logits_per_image.T)
    assert probs.shape == (1, 3)
    assert abs(probs.sum() - 1) < 1e-3


def test_zero_shot_program_of_their_readme(clip: Any, photo: Path) -> None:
    model, preprocess = clip.load("tiny", "cpu")
    image_input = preprocess(Image.open(photo)).unsqueeze(0)
    text_inputs = torch.cat([clip.tokenize(f"a photo of a {c}") for c in ("snake", "frog", "ship")])
    with torch.no_grad():
        image_features = model.encode_image(image_input)
        text_features = model.encode_text(text_inputs)
        logits = model(image_input, text_inputs)[0]
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    similarity = (model.logit_scale.exp() * image_features @ text_features.T).softmax(dim=-1)
    values, indices = similarity[0].topk(3)
    assert torch.allclose(similarity, logits.softmax(dim=-1), atol=1e-5)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    assert sorted(indices.tolist()) == [0, 1, 2]


class Images(Dataset[tuple[Tensor, int]]):
    """Four images of two classes, preprocessed when they are asked for."""

    def __init__(self, preprocess: Any) -> None:
        self.preprocess = preprocess

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.new("RGB", (70, 90), (10 * index, 0, 0))
        return self.preprocess(image), index % 2


def test_linear_probe_program_of_their_readme(clip: Any) -> None:
    model, preprocess = clip.load("tiny", "cpu")
    all_features: list[Tensor] = []
    all_labels: list[Tensor] = []
    with torch.no_grad():
        for images, labels in DataLoader(Images(preprocess), batch_size=3):
            all_features.append(model.encode_image(images))
            all_labels.append(labels)
    features = torch.cat(all_features).cpu().numpy()
    assert features.shape == (4, 256)
    assert features.dtype == np.float32
    assert torch.cat(all_labels).tolist() == [0, 1, 0, 1]


def test_available_models(clip: Any) -> None:
    assert clip.available_models() == [
        "RN50",
        "RN101",
        "RN50x4",
        "RN50x16",
        "RN50x64",
        "ViT-B/32",
        "ViT-B/16",
        "ViT-L/14",
        "ViT-L/14@336px",
    ]


def test_load_takes_their_arguments(clip: Any, tmp_path: Path) -> None:
    model, _ = clip.load("tiny", "cpu", False, str(tmp_path))
    assert not model.training
    model, _ = clip.load(name="tiny", device=torch.device("cpu"), jit=False, download_root=None)
    assert model.logit_scale.device.type == "cpu"
    assert list(tmp_path.iterdir()) == []


def test_load_refuses_jit() -> None:
    with pytest.raises(ValueError, match=r"TorchScript.*use torch\.compile"):
        clipkit.load("tiny", "cpu", jit=True)


def test_tokenize_takes_their_arguments(clip: Any) -> None:
    assert clip.tokenize("a dog").shape == (1, 77)
    tokens = clip.tokenize(["a dog", "hello world!"], 20, True)
    assert tokens.shape == (2, 20)
    assert tokens[1, :6].tolist() == [49406, 3306, 1002, 256, 49407, 0]
    assert clip.tokenize("word " * 100, truncate=True)[0, -1] == 49407
    with pytest.raises(RuntimeError, match="102 tokens"):
        clip.tokenize("word " * 100)


def test_attributes_of_the_embedded_model(clip: Any) -> None:
    model, preprocess = clip.load("tiny", "cpu")
    size = model.visual.input_resolution
    assert isinstance(size, int)
    assert size == 96
    assert isinstance(model.visual, torch.nn.Module)
    assert model.visual.output_dim == 256
    assert (model.context_length, model.vocab_size) == (77, 49408)
    assert model.dtype == torch.float32
    assert isinstance(model.logit_scale, torch.nn.Parameter)
    assert model.logit_scale.shape == ()
    assert preprocess(Image.new("RGB", (100, 80))).shape == (3, size, size)
    images = torch.randn(2, 3, size, size)
    torch.testing.assert_close(model.visual(images.type(model.dtype)), model.encode_image(images))
    counted = sum(int(np.prod(p.shape)) for p in model.parameters())  # as their notebook does
    assert counted > 1_000_000


def test_attributes_of_a_vit(tmp_path: Path) -> None:
    random_clip(VIT).save_pretrained(str(tmp_path))
    model, _ = clipkit.load(str(tmp_path), "cpu")
    visual: Any = model.visual
    assert (visual.input_resolution, visual.output_dim) == (48, 32)
    assert (model.context_length, model.vocab_size) == (16, 600)
    assert visual.conv1.weight.shape == (96, 3, 16, 16)
    assert visual.proj.shape == (96, 32)
    assert visual.positional_embedding.shape == (10, 96)
    assert visual.class_embedding.shape == (96,)
    assert isinstance(visual.transformer, Transformer)
    assert len(visual.transformer.resblocks) == 2


@pytest.mark.parametrize("name, channels, size", [("tiny", 1024, 96), ("resnet", 512, 64)])
def test_feature_map_of_a_resnet(name: str, channels: int, size: int, tmp_path: Path) -> None:
    if name == "resnet":
        random_clip(RESNET).save_pretrained(tmp_path)
        name = str(tmp_path)
    model, _ = clipkit.load(name, "cpu")
    images = torch.randn(2, 3, size, size)
    pool = model.visual.get_submodule("attnpool")
    with torch.no_grad():
        pooled = model.encode_image(images)
        model.visual.attnpool = torch.nn.Identity()
        feature_map = model.encode_image(images)
        again = pool(feature_map)  # without gradients too, which another kernel computes
    assert feature_map.shape == (2, channels, size // 32, size // 32)
    torch.testing.assert_close(again, pooled)


def test_float_and_half() -> None:
    model, _ = clipkit.load("tiny", "cpu")
    images, tokens = torch.randn(1, 3, 96, 96), clipkit.tokenize(["a dog", "a cat"])
    with torch.no_grad():
        expected, scale = model(images, tokens)[0], model.logit_scale.exp()
        assert model.half() is model
        assert model.dtype == torch.float16
        assert model.encode_image(images).dtype == torch.float16  # whatever dtype the images have
        assert model.encode_text(tokens).dtype == torch.float16
        found = model(images.half(), tokens)[0].float()
        torch.testing.assert_close(found, expected, atol=0.3, rtol=0)
        assert model.float() is model
        assert model.dtype == torch.float32
        # The weights are stored in half precision, so they survive. The temperature is in float32,
        # and half() rounds it.
        cosines = model(images, tokens)[0] / model.logit_scale.exp()
        torch.testing.assert_close(cosines, expected / scale, atol=1e-5, rtol=0)


def test_fine_tuning_step(clip: Any) -> None:
    """Everyone copies this: load with jit=False, to float32, cross-entropy both ways."""
    model, _ = clip.load("tiny", device="cpu", jit=False)
    model = model.float()
    images, tokens = torch.randn(2, 3, 96, 96), clip.tokenize(["a dog", "a cat"])
    logits_per_image, logits_per_text = model(images, tokens)
    truth, loss = torch.arange(2), torch.nn.CrossEntropyLoss()
    ((loss(logits_per_image, truth) + loss(logits_per_text, truth)) / 2).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
