"""What the pages "Coming from ..." say of differences is so in the peers that are installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import clipkit
from clipkit.errors import ImageError, StateDictMismatchError, TokenizerError

LONG = "a photo of a cat " * 40


@pytest.fixture
def in_open_clip(tmp_path: Path) -> str:
    clipkit.CLIP.from_pretrained("tiny", device="cpu").save_pretrained(tmp_path, layout="open_clip")
    return f"local-dir:{tmp_path}"


@pytest.fixture
def in_transformers(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vision = clipkit.ViTConfig(
        resolution=(32, 32), patch_size=16, width=64, layers=2, activation="quick_gelu"
    )
    text = clipkit.TextConfig(width=64, layers=2, activation="quick_gelu")
    model = clipkit.CLIP(clipkit.CLIPConfig(embed_dim=32, vision=vision, text=text)).eval()
    model.save_pretrained(tmp_path, layout="transformers")
    return tmp_path


def test_open_clip_loads_in_train_mode(in_open_clip: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    model: nn.Module = open_clip.create_model(in_open_clip)
    assert model.training
    assert not clipkit.load("tiny", "cpu")[0].training


def test_open_clip_cuts_long_texts_without_a_word(in_open_clip: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.get_tokenizer(in_open_clip)
    tokens: torch.Tensor = tokenizer([LONG])
    with pytest.raises(TokenizerError, match="more than context_length=77"):
        clipkit.tokenize([LONG])
    assert torch.equal(tokens, clipkit.tokenize([LONG], truncate=True))


def test_open_clip_reads_special_tokens_in_a_text(in_open_clip: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    tokenizer = open_clip.get_tokenizer(in_open_clip)
    tokens: torch.Tensor = tokenizer(["a <end_of_text> cat"])
    assert (tokens == 49407).sum() == 2
    assert (clipkit.tokenize(["a <end_of_text> cat"]) == 49407).sum() == 1


def test_open_clip_takes_float_images_of_any_range(in_open_clip: str) -> None:
    open_clip = pytest.importorskip("open_clip")
    _, _, preprocess = open_clip.create_model_and_transforms(in_open_clip)
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    assert callable(model.preprocess)
    transparent = Image.new("RGBA", (96, 96), (255, 0, 0, 0))
    assert not torch.equal(preprocess(transparent), model.preprocess(transparent))
    white = Image.new("RGB", (96, 96), "white")
    assert torch.equal(model.preprocess(transparent), model.preprocess(white))
    with pytest.raises(ImageError, match="If they are in 0-255, divide by 255"):
        model.preprocess(torch.full((3, 96, 96), 255.0))


def test_transformers_5_returns_objects(in_transformers: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model: Any = transformers.CLIPModel.from_pretrained(in_transformers)
    found = model.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32))
    is_five = int(transformers.__version__.partition(".")[0]) >= 5
    assert isinstance(found, torch.Tensor) != is_five
    assert hasattr(found, "pooler_output") == is_five


def test_transformers_pads_with_the_end_of_text(in_transformers: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(in_transformers)
    rows = tokenizer(["a cat", "a dog in the snow"], padding=True).input_ids
    assert rows[0][-3:] == [49407, 49407, 49407]
    assert tokenizer("<|endoftext|>").input_ids == [49406, 49407, 49407]
    assert 49407 not in clipkit.Tokenizer().encode("<|endoftext|>")


def test_transformers_5_does_not_mend_texts(in_transformers: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(in_transformers)
    for text in ("schÃ¶n", "“cat”", "cats &amp; dogs", "ｃａｔ"):
        assert tokenizer(text).input_ids[1:-1] != clipkit.Tokenizer().encode(text), text
    assert tokenizer("a cat").input_ids[1:-1] == clipkit.Tokenizer().encode("a cat")


def test_transformers_wants_to_be_told_of_long_texts(in_transformers: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model: Any = transformers.CLIPModel.from_pretrained(in_transformers)
    ids = torch.full((1, 90), 320)
    with pytest.raises(ValueError, match="Sequence length must be less than"):
        model.get_text_features(input_ids=ids)


def test_transformers_5_keeps_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    vision = clipkit.ViTConfig(
        resolution=(32, 32), patch_size=16, width=64, layers=1, activation="gelu"
    )
    text = clipkit.TextConfig(width=64, layers=1, activation="gelu")
    model = clipkit.CLIP(clipkit.CLIPConfig(embed_dim=32, vision=vision, text=text)).eval()
    model.save_pretrained(tmp_path, layout="transformers", dtype=torch.bfloat16)
    config = tmp_path / "config.json"  # a repository of the hub says it there
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "bfloat16"}))
    theirs: Any = transformers.CLIPModel.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16
    assert clipkit.load(tmp_path, "cpu")[0].dtype == torch.float32


def test_transformers_goes_on_without_a_weight(in_transformers: Path) -> None:
    from safetensors.torch import load_file, save_file

    transformers = pytest.importorskip("transformers")
    file = in_transformers / "model.safetensors"
    weights = load_file(file)
    del weights["visual_projection.weight"]
    save_file(weights, file, {"format": "pt"})
    model: Any = transformers.CLIPModel.from_pretrained(in_transformers)
    assert model.visual_projection.weight.shape == (32, 64)
    with pytest.raises(StateDictMismatchError, match="visual.proj"):
        clipkit.load(in_transformers, "cpu")


def test_transformers_classifies_images_without_the_projection(in_transformers: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model: Any = transformers.CLIPForImageClassification.from_pretrained(in_transformers)
    assert model.classifier.in_features == 64
    assert not any("projection" in name for name, _ in model.named_parameters())


def both_processors(folder: Path, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what transformers and clipkit make of an image of so many pixels by 100."""
    transformers = pytest.importorskip("transformers", minversion="5")
    processor: Any = transformers.CLIPProcessor.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 81, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((width, 100), Image.Resampling.BICUBIC)
    theirs = processor.image_processor(image, return_tensors="pt").pixel_values[0]
    return theirs, clipkit.load(folder, "cpu")[1](image)


def test_the_processor_of_transformers_5_is_a_level_off(in_transformers: Path) -> None:
    theirs, ours = both_processors(in_transformers, 150)
    assert 0 < (ours - theirs).abs().max() < 2.1 / 255 / 0.26


def test_the_window_of_transformers_5_is_a_pixel_further_left(in_transformers: Path) -> None:
    """It is so where an odd number of pixels is cut away."""
    theirs, ours = both_processors(in_transformers, 162)
    assert (ours - theirs).abs().max() > 1
    assert (ours[:, :, :-1] - theirs[:, :, 1:]).abs().max() < 2.1 / 255 / 0.26
