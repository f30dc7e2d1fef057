"""Check published weights by their known outputs.

Run with --network. The first run downloads four ViT-B/32, 2 GB.
"""

import io
import json
import urllib.request

import huggingface_hub
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.checkpoints import hub, infer, registry
from clipkit.checkpoints.documents import CONFIG, OPEN_CLIP_CONFIG, PROCESSORS
from clipkit.checkpoints.source import LAYOUTS
from clipkit.config import ViTConfig

pytestmark = pytest.mark.network

COMMIT = "d05afc436d78f1c48dc0dbf8e5980a9d471f35f6"
IMAGE = f"https://raw.githubusercontent.com/openai/CLIP/{COMMIT}/CLIP.png"


@pytest.fixture(scope="module")
def image() -> Image.Image:
    with urllib.request.urlopen(IMAGE, timeout=60) as answer:
        return Image.open(io.BytesIO(answer.read()))


def probabilities(model: clipkit.CLIP, image: Image.Image) -> torch.Tensor:
    images = model.preprocess(image).unsqueeze(0)
    tokens = clipkit.tokenize(["a diagram", "a dog", "a cat"])
    with torch.no_grad():
        return model(images, tokens)[0].softmax(dim=-1)[0]


def check(model: clipkit.CLIP, image: Image.Image) -> None:
    # openai/CLIP's README states them for this image.
    expected = torch.tensor([0.9927937, 0.00421068, 0.00299572])
    torch.testing.assert_close(probabilities(model, image), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["ViT-B/32", "openai/clip-vit-base-patch32"])
def test_known_probabilities(image: Image.Image, name: str) -> None:
    check(clipkit.load(name, "cpu")[0], image)


def test_known_probabilities_of_openais_archive(image: Image.Image) -> None:
    row = registry.MODELS["ViT-B/32"]
    assert row.openai is not None
    file, digest = row.openai
    model, _ = clipkit.load(
        hub.fetch_url(registry.OPENAI_ARCHIVES.format(sha256=digest, file=file), digest), "cpu"
    )
    assert infer.differences(model.config, row.config) == []
    check(model, image)


@pytest.mark.parametrize("name", registry.MODELS)
def test_published_json_agrees_with_the_row(name: str) -> None:
    """Only configs are compared, as in loading: the row settles what open_clip's file omits."""
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
    """Nothing is downloaded: the repository lists one of its layout's files."""
    row = registry.MODELS[name]
    files = LAYOUTS[_json_files(row)[0]]
    assert any(huggingface_hub.file_exists(row.hub, file) for file in files)


def test_laion_repository_has_both_layouts(image: Image.Image) -> None:
    model = clipkit.CLIP.from_pretrained("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", device="cpu")
    assert isinstance(model.config.vision, ViTConfig)
    assert model.config.vision.activation == "gelu"
    assert probabilities(model, image)[0] > 0.9
