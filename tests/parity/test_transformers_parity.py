"""Models at random weights against transformers, through its files and both ways."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipkit
from clipkit.checkpoints import infer
from clipkit.clip import CLIP
from clipkit.config import PreprocessConfig
from tests.helpers.peers import (
    VITS,
    VOCAB,
    assert_equal,
    inputs_for,
    outputs_of,
    save_processor,
    small,
    transformers,
    transformers_config,
    with_tokenizer,
)
from tests.helpers.random_weights import randomize, some_images


@pytest.mark.parametrize("name", VITS)
def test_transformers_both_ways(name: str, folder: Path) -> None:
    config = small(name)
    peer = randomize(transformers.CLIPModel(transformers_config(config, eos_token_id=VOCAB - 1)))
    peer.save_pretrained(folder / "theirs")
    save_processor(config, folder / "theirs")
    images, tokens = inputs_for(config, pad=VOCAB - 1)
    expected = outputs_of(peer, images, tokens)
    ours, _ = clipkit.load(folder / "theirs", "cpu")
    assert infer.differences(ours.config, config) == []
    assert_equal(outputs_of(ours, images, tokens), expected)

    ours = with_tokenizer(ours)
    ours.save_pretrained(str(folder / "ours"), layout="transformers")
    back = transformers.CLIPModel.from_pretrained(folder / "ours")
    for found, other in zip(outputs_of(back, images, tokens), expected, strict=True):
        assert torch.equal(found, other)
    again, _ = clipkit.load(folder / "ours", "cpu")
    assert infer.differences(again.config, config) == []


@pytest.mark.parametrize("eos_token_id", [2, 49407])
def test_transformers_with_the_real_vocabulary(eos_token_id: int, folder: Path) -> None:
    """Old configs say 2, which means the highest id. Rows are padded with the end of text.

    The weights are in shards.
    """
    config = small("ViT-B/32")
    config = replace(
        config, text=replace(config.text, width=64, vocab_size=49408, context_length=77)
    )
    peer = randomize(transformers.CLIPModel(transformers_config(config, eos_token_id)))
    peer.save_pretrained(folder, max_shard_size="5MB")
    assert len(list(folder.glob("model-0000*.safetensors"))) > 1
    ours, _ = clipkit.load(folder, "cpu")
    assert ours.config == config
    tokens = ours.tokenizer(
        ["a diagram", "a photo of a dog", "two cats asleep on a red sofa, seen from above", ""]
    )
    padded = torch.where(torch.arange(77) > tokens.argmax(dim=-1)[:, None], 49407, tokens)
    images = some_images(4, config.vision.resolution)
    expected = outputs_of(peer, images, padded)
    assert_equal(outputs_of(ours, images, padded), expected)
    assert_equal(outputs_of(ours, images, tokens), expected)


def test_transformers_processor(folder: Path) -> None:
    """Transformers makes our tokenizer and our preprocessing of a folder of ours."""
    config = small("ViT-L/14")
    text = replace(config.text, vocab_size=49408, width=64, layers=1)
    preprocess = PreprocessConfig(mean=(0.5, 0.4, 0.6), std=(0.5, 0.3, 0.4))
    ours = CLIP(replace(config, text=text, preprocess=preprocess)).eval()
    ours.save_pretrained(str(folder), layout="transformers")
    processor = transformers.CLIPProcessor.from_pretrained(folder)

    texts = [
        "a photo of a cat",
        "Hello, World: 123 isn't it?",
        "naïve CAFÉ — 東京 🎉",
        "",
        "a " * 30,
    ]
    tokens = ours.tokenizer(texts, truncate=True)
    padded = torch.where(torch.arange(24) > tokens.argmax(dim=-1)[:, None], 49407, tokens)
    rows = processor.tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    assert rows.tolist() == padded.tolist()

    pixels = np.random.default_rng(0).integers(0, 256, (50, 81, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((162, 100), Image.Resampling.BICUBIC)
    found = ours.preprocess(image)
    by_pil = transformers.CLIPImageProcessorPil.from_pretrained(folder)
    exact = by_pil(image, return_tensors="pt").pixel_values[0]
    assert torch.equal(found, exact)
    # Torchvision's resizing is one gray level off here and there.
    fast = processor.image_processor(image, return_tensors="pt").pixel_values[0]
    assert (found - fast).abs().max() < 1.1 / 255 / 0.3
    processor.save_pretrained(folder / "again")  # since transformers 5 in one file of another name
    transformers.CLIPModel.from_pretrained(folder).save_pretrained(folder / "again")
    assert not (folder / "again" / "preprocessor_config.json").exists()
    assert clipkit.load(folder / "again", "cpu")[1] == ours.preprocess


def test_transformers_believes_the_dict_of_old_configs(folder: Path) -> None:
    """There `text_config_dict` overrules `text_config`, and so with `vision_config`."""
    config = small("ViT-B/32")
    peer = randomize(transformers.CLIPModel(transformers_config(config, VOCAB - 1)))
    peer.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        values[f"{part}_dict"] = dict(values[part])
        values[part] |= {"hidden_act": "gelu", "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(values))
    inputs = inputs_for(config)
    ours, _ = clipkit.load(folder, "cpu")
    assert_equal(
        outputs_of(ours, *inputs),
        outputs_of(transformers.CLIPModel.from_pretrained(folder), *inputs),
    )
