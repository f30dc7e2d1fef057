"""A tower in a file computes what it does in torch, and the file says how to use it."""

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit import CLIP, Preprocess, PreprocessConfig
from clipkit.checkpoints import graph_file
from clipkit.checkpoints.export_tower import Tower, describe_tower
from clipkit.checkpoints.graph_file import Graph
from clipkit.config import CLIPConfig
from clipkit.errors import ConfigError, ExportError, OutputError
from clipkit.tokenizer import Tokenizer
from tests.helpers.models import RESNET, VIT
from tests.helpers.random_weights import randomize, some_images, some_tokens
from tests.helpers.towers import make_vit, with_low_rank_changes

pytest.importorskip("onnxruntime")

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
Kind = tuple[str, Tower, str]
KINDS: list[Kind] = [
    ("vit", "image", ".onnx"),
    ("vit", "text", ".onnx"),
    ("vit", "text", ".pt2"),
    ("resnet", "image", ".pt2"),
]


@pytest.fixture(scope="module")
def models(small_tokenizer: Tokenizer) -> dict[str, CLIP]:
    """Return a ViT and a ResNet with random weights."""
    configs: dict[str, CLIPConfig] = {"vit": VIT, "resnet": RESNET}
    return {name: randomize(CLIP(config, small_tokenizer)) for name, config in configs.items()}


Export = Callable[[Kind], Path]


@pytest.fixture(scope="module")
def exported(models: dict[str, CLIP], tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports a tower, once for all tests."""

    @functools.cache
    def export(kind: Kind) -> Path:
        name, tower, suffix = kind
        path = tmp_path_factory.mktemp("export") / f"{tower}{suffix}"
        models[name].export_tower(path, tower=tower)
        return path

    return export


def run(path: Path, name: str) -> Callable[[Tensor], Tensor]:
    """Return the function in a file, read without clipkit."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(session.run(None, {name: inputs.numpy()})[0])


def about(path: Path) -> dict[str, Any]:
    """Return what a file says of itself."""
    if path.suffix == ".pt2":
        extra = {"clipkit.json": ""}
        torch.export.load(path, extra_files=extra)
        return json.loads(extra["clipkit.json"])
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(value) for name, value in found.items()}


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_file_computes_what_the_tower_does(
    exported: Export, models: dict[str, CLIP], kind: Kind
) -> None:
    path, model = exported(kind), models[kind[0]]
    assert list(path.parent.iterdir()) == [path]  # one file, and nothing left beside it
    in_file = run(path, "images" if kind[1] == "image" else "tokens")
    for count in (1, 7, 4):
        if kind[1] == "image":
            inputs = some_images(count, model.visual.resolution)
            expected = model.encode_image(inputs).detach()
        else:
            inputs = some_tokens(count, 16 - count, 600)
            expected = model.encode_text(inputs).detach()
        found = in_file(inputs)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        if count > 1:  # else the comparison would prove little
            assert found.std(dim=0).max() > 0.1


def test_the_sizes_of_an_onnx_have_names(exported: Export) -> None:
    import onnxruntime

    shapes: dict[Tower, list[Any]] = {"image": ["batch", 3, 48, 48], "text": ["batch", "length"]}
    for tower, given in shapes.items():
        path = exported(("vit", tower, ".onnx"))
        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (taken,), (made,) = session.get_inputs(), session.get_outputs()
        assert taken.name == ("images" if tower == "image" else "tokens")
        assert taken.shape == given
        assert (made.name, made.shape) == ("features", ["batch", 32])


def test_an_image_tower_says_how_images_are_prepared(
    exported: Export, models: dict[str, CLIP]
) -> None:
    expected: dict[str, Any] = {
        "tower": "image",
        "embed_dim": 32,
        "normalized": False,
        "logit_scale": pytest.approx(4.6),
        "logit_scale_exp": pytest.approx(99.484, abs=1e-2),
        "input_size": [48, 48],
        "preprocess": {
            "type": "Preprocess",
            "size": [48, 48],
            "crop": "center",
            "rescale": 1 / 255,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.4],
            "interpolation": "bilinear",
            "resize_mode": "squash",
        },
    }
    assert about(exported(("vit", "image", ".onnx"))) == expected
    expected["input_size"] = expected["preprocess"]["size"] = [64, 64]
    assert about(exported(("resnet", "image", ".pt2"))) == expected


def test_a_text_tower_has_its_tokenizer(exported: Export, models: dict[str, CLIP]) -> None:
    for suffix in (".onnx", ".pt2"):
        found = about(exported(("vit", "text", suffix)))
        merges = found.pop("tokenizer")["model"]["merges"]
        assert merges == list(models["vit"].tokenizer.merges)
        assert found == {
            "tower": "text",
            "embed_dim": 32,
            "normalized": False,
            "logit_scale": pytest.approx(4.6),
            "logit_scale_exp": pytest.approx(99.484, abs=1e-2),
            "context_length": 16,
            "vocab_size": 600,
            "start_of_text": 598,
            "end_of_text": 599,
            "padding": 0,
        }


WITHOUT_TORCH = """
import json, sys
import numpy as np, onnxruntime, tokenizers
from PIL import Image

def load(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    return session, {name: json.loads(value) for name, value in found.items()}

def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)

image, about = load(sys.argv[1])
how = about["preprocess"]
assert how["resize_mode"] == "squash"
height, width = how["size"]
filter = Image.Resampling[how["interpolation"].upper()]
photos = [Image.open(path).convert("RGB").resize((width, height), filter) for path in sys.argv[4:]]
pixels = np.stack([np.asarray(photo) for photo in photos]).astype(np.float32) * how["rescale"]
pixels = (pixels - how["mean"]) / how["std"]
pixels = pixels.transpose(0, 3, 1, 2).astype(np.float32)
images = unit(image.run(None, {"images": pixels})[0])

text, about = load(sys.argv[2])
tokenizer = tokenizers.Tokenizer.from_str(json.dumps(about["tokenizer"]))
tokens = np.array([row.ids for row in tokenizer.encode_batch(["a cat", "a dog"])])
texts = unit(text.run(None, {"tokens": tokens})[0])
logits = about["logit_scale_exp"] * images @ texts.T
np.savez(sys.argv[3], images=images, texts=texts, logits=logits)
assert "torch" not in sys.modules and "clipkit" not in sys.modules
"""


def test_a_program_without_torch_can_use_both(
    exported: Export, models: dict[str, CLIP], tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers")
    files = [exported(("vit", tower, ".onnx")) for tower in ("image", "text")]
    command = [sys.executable, "-c", WITHOUT_TORCH, *files, tmp_path / "out.npz", *PHOTOS]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = np.load(tmp_path / "out.npz")
    model = models["vit"]
    images, texts = model.embed_images(PHOTOS), model.embed_texts(["a cat", "a dog"])
    np.testing.assert_allclose(found["images"], images, atol=1e-4)
    np.testing.assert_allclose(found["texts"], texts, atol=1e-5)
    logits = model.logit_scale.exp().detach() * images @ texts.T
    np.testing.assert_allclose(found["logits"], logits, atol=1e-2)


def test_low_rank_changes_are_merged(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    plain = make_vit()
    changed = with_low_rank_changes(plain).eval()
    images = some_images(3, (32, 32))
    changed.export_tower(tmp_path / "image.pt2")
    found = run(tmp_path / "image.pt2", "images")(images)
    expected = changed.encode_image(images).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - plain.encode_image(images)).abs().max() > 0.1


def test_a_model_in_half_precision_is_written_in_float32_and_left_as_it_was(
    models: dict[str, CLIP], tmp_path: Path
) -> None:
    model = copy.deepcopy(models["resnet"]).half().train()  # batch norms differ in training
    model.export_tower(tmp_path / "image.pt2")
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert model.dtype == torch.float16
    images = some_images(2, (64, 64))
    found = run(tmp_path / "image.pt2", "images")(images)
    expected = model.eval().float().encode_image(images).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_an_autocast_around_the_export_has_no_part_in_the_file(
    models: dict[str, CLIP], tmp_path: Path, tower: Tower
) -> None:
    path = tmp_path / "tower.pt2"
    with torch.autocast("cpu", torch.bfloat16):
        models["vit"].export_tower(path, tower=tower)
    assert "bfloat16" not in str(torch.export.load(path).graph)


# What is refused


def stand_in(monkeypatch: pytest.MonkeyPatch, say: Callable[[Tensor], Tensor]) -> None:
    """Write a few bytes in place of an export; they are read as what `say` makes of features."""
    modules: list[Any] = []

    def write(graph: Graph, path: Path) -> None:
        modules.append(graph.module)
        path.write_bytes(b"a new file")

    monkeypatch.setattr(graph_file, "_write_program", write)
    monkeypatch.setattr(
        graph_file, "_open_program", lambda path: lambda inputs: [say(modules[0](inputs))]
    )


def turn(features: Tensor) -> Tensor:
    """Return features that are as long, and point a little elsewhere."""
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    return features + 0.01 * noise * features.abs().mean()


@pytest.mark.parametrize(
    "say",
    [
        turn,
        lambda features: 1.01 * features,  # of the same direction
        lambda features: turn(features) if len(features) == 5 else features,
        lambda features: features * float("nan"),
    ],
)
def test_a_file_that_differs_is_not_kept(
    models: dict[str, CLIP],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    say: Callable[[Tensor], Tensor],
) -> None:
    stand_in(monkeypatch, say)
    with pytest.raises(ExportError, match="differs from the model for . sample.*it is not kept"):
        models["vit"].export_tower(tmp_path / "image.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_agrees_takes_the_place_of_an_older_one(
    models: dict[str, CLIP], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, lambda features: features + 1e-6)
    path = tmp_path / "text.pt2"
    path.write_bytes(b"an older file")
    models["vit"].export_tower(str(path), tower="text")
    assert path.read_bytes() == b"a new file"


@pytest.mark.parametrize(
    ("path", "tower", "message"),
    [
        ("x.pt", "image", "export writes .onnx and .pt2, not 'x.pt'"),
        ("", "image", "export writes .onnx and .pt2, not ''"),
        (7, "image", "the file of a tower must be a path, not 7"),
        ("x.onnx", "visual", 'the tower to export is "image" or "text", not \'visual\''),
    ],
)
def test_wrong_arguments_are_refused(
    models: dict[str, CLIP], path: Any, tower: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        models["vit"].export_tower(path, tower=tower)


def test_a_place_that_cannot_be_written_is_refused(models: dict[str, CLIP], tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(OutputError, match="a folder of that name is in the way"):
        models["vit"].export_tower(tmp_path / "x.onnx")


def test_a_copy_for_inference_is_refused(models: dict[str, CLIP], tmp_path: Path) -> None:
    fast = models["vit"].optimize()
    with pytest.raises(ConfigError, match="inference-only copy.*export a tower of the model it is"):
        fast.export_tower(tmp_path / "x.pt2")


def test_a_text_tower_needs_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass the one that belongs to the weights"):
        CLIP(VIT).export_tower(tmp_path / "text.pt2", tower="text")


def test_a_preprocessing_that_is_code_is_named(models: dict[str, CLIP]) -> None:
    model = copy.copy(models["vit"])
    model.preprocess = F.relu
    said = describe_tower(model, "image")["preprocess"]
    assert said["type"] == "other"
    assert "relu" in said["repr"]
    model.preprocess = Preprocess((48, 48), PreprocessConfig(resize_mode="longest"))
    assert describe_tower(model, "image")["preprocess"]["resize_mode"] == "longest"
