"""Published weights and their known outputs. Run with --network; the first run downloads four ViT-B/32, 2 GB."""

import io
import json
import urllib.request

import pytest
import torch
from PIL import Image

import clipkit
from clipkit.checkpoints import hub, infer, registry
from clipkit.checkpoints.documents import CONFIG, OPEN_CLIP_CONFIG, PROCESSORS
from clipkit.checkpoints.source import LAYOUTS
from clipkit.config import ViTConfig

pytestmark = pytest.mark.network

PICTURE = "https://raw.githubusercontent.com/openai/CLIP/d05afc436d78f1c48dc0dbf8e5980a9d471f35f6/CLIP.png"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    with urllib.request.urlopen(PICTURE, timeout=60) as answer:
        return Image.open(io.BytesIO(answer.read()))


def probabilities(model: clipkit.CLIP, picture: Image.Image) -> torch.Tensor:
    images = model.preprocess(picture).unsqueeze(0)
    tokens = clipkit.tokenize(["a diagram", "a dog", "a cat"])
    with torch.no_grad():
        return model(images, tokens)[0].softmax(dim=-1)[0]


def check(model: clipkit.CLIP, picture: Image.Image) -> None:
    expected = torch.tensor(
        [0.9927937, 0.00421068, 0.00299572]
    )  # openai/CLIP's README, for this picture
    torch.testing.assert_close(probabilities(model, picture), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["ViT-B/32", "openai/clip-vit-base-patch32"])
def test_known_probabilities(picture: Image.Image, name: str) -> None:
    check(clipkit.load(name, "cpu")[0], picture)


def test_known_probabilities_of_openais_archive(picture: Image.Image) -> None:
    row = registry.MODELS["ViT-B/32"]
    assert row.openai is not None
    file, digest = row.openai
    model, _ = clipkit.load(
        hub.fetch_url(registry.OPENAI_ARCHIVES.format(sha256=digest, file=file), digest), "cpu"
    )
    assert infer.differences(model.config, row.config) == []
    check(model, picture)


@pytest.mark.parametrize("name", registry.MODELS)
def test_published_json_agrees_with_the_row(name: str) -> None:
    """Configs only, compared as loading does: what open_clip's file leaves out, the row may settle."""
    row = registry.MODELS[name]
    found = [
        json.loads(hub.fetch_hub(row.hub, (file,)).read_text("utf-8")) for file in _json_files(row)
    ]
    if _json_files(row) == (OPEN_CLIP_CONFIG,):
        stated = infer.from_open_clip(found[0], row.config)
    else:
        stated = infer.from_transformers(*found)
    assert infer.differences(stated, row.config) == []


def _json_files(row: registry.Model) -> tuple[str, ...]:
    return (OPEN_CLIP_CONFIG,) if row.layout == "open_clip" else (CONFIG, PROCESSORS[0])


@pytest.mark.parametrize("name", registry.MODELS)
def test_published_weights_are_where_the_row_says(name: str) -> None:
    """The repository lists one of its layout's files; nothing is downloaded."""
    from huggingface_hub import file_exists

    row = registry.MODELS[name]
    files = LAYOUTS[_json_files(row)[0]]
    assert any(file_exists(row.hub, file) for file in files)


def test_laion_repository_has_both_layouts(picture: Image.Image) -> None:
    model = clipkit.CLIP.from_pretrained("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", device="cpu")
    assert isinstance(model.config.vision, ViTConfig) and model.config.vision.activation == "gelu"
    assert probabilities(model, picture)[0] > 0.9
