"""Models at random weights against open_clip and transformers, through the files of every layout and both ways.

Every family of the registry is compared at a small size that keeps its head width, MLP ratio, patch and activation;
RN50 and ViT-B/32 also at full size.
"""

import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import clipkit
from clipkit.checkpoints import infer, registry
from clipkit.checkpoints.layouts import from_canonical
from clipkit.checkpoints.resize import resize_positions
from clipkit.clip import CLIP
from clipkit.config import PreprocessConfig, ViTConfig
from clipkit.errors import UnsupportedCheckpointError
from clipkit.training.losses import clip_loss
from tests.helpers.peers import (
    FAMILIES,
    FEATURES,
    VITS,
    VOCAB,
    assert_equal,
    inputs_for,
    open_clip,
    open_clip_config,
    outputs_of,
    save_open_clip,
    save_processor,
    small,
    transformers,
    transformers_config,
    with_tokenizer,
)
from tests.helpers.random_weights import randomize, some_images


@pytest.mark.parametrize("name", FAMILIES)
def test_open_clip_both_ways(name: str, folder: Path) -> None:
    config = small(name)
    peer = save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    inputs = inputs_for(config)
    expected = outputs_of(peer, *inputs)
    ours, _ = clipkit.load(folder / "theirs", "cpu")
    assert ours.config == config
    assert_equal(outputs_of(ours, *inputs), expected)

    ours.save_pretrained(str(folder / "ours"), layout="open_clip")
    back, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'ours'}")
    for found, other in zip(outputs_of(back.eval(), *inputs), expected, strict=True):
        assert torch.equal(found, other)
    cfg = open_clip.transform.PreprocessCfg(
        **{k: v for k, v in back.visual.preprocess_cfg.items() if k != "fill_color"}
    )
    assert (tuple(cfg.mean), tuple(cfg.std)) == (config.preprocess.mean, config.preprocess.std)
    assert (cfg.interpolation, cfg.resize_mode) == (
        config.preprocess.interpolation,
        config.preprocess.resize_mode,
    )


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


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_full_size(name: str, folder: Path) -> None:
    """open_clip's own config for the name; then back to it, and for the ViT on to transformers."""
    config = registry.MODELS[name].config
    model_cfg = open_clip.get_model_config(f"{name.replace('/', '-')}-quickgelu")
    peer = save_open_clip(model_cfg, config.preprocess, folder / "theirs")
    inputs = inputs_for(config, count=2)
    expected = outputs_of(peer, *inputs)
    del peer
    ours, _ = clipkit.load(folder / "theirs", "cpu")
    assert ours.config == config
    assert_equal(outputs_of(ours, *inputs), expected)
    ours.save_pretrained(str(folder / "ours"), layout="open_clip")
    back = open_clip.create_model(f"local-dir:{folder / 'ours'}").eval()
    assert all(torch.equal(*pair) for pair in zip(outputs_of(back, *inputs), expected, strict=True))
    texts = ["a diagram", "a photo of a dog"]
    assert torch.equal(
        open_clip.get_tokenizer(f"local-dir:{folder / 'ours'}")(texts), ours.tokenizer(texts)
    )
    if name == "ViT-B/32":
        del back
        ours.save_pretrained(str(folder / "transformers"), layout="transformers")
        other = transformers.CLIPModel.from_pretrained(folder / "transformers")
        assert_equal(outputs_of(other, *inputs), expected)
        again, _ = clipkit.load(folder / "transformers", "cpu")
        assert again.config == config
        assert all(
            torch.equal(value, again.state_dict()[key]) for key, value in ours.state_dict().items()
        )


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_custom_text_layout(name: str, folder: Path) -> None:
    config = small(name)
    peer = save_open_clip(
        open_clip_config(config) | {"custom_text": True},
        config.preprocess,
        folder / "theirs",
        force_custom_text=True,
    )
    assert peer.state_dict().keys() == CLIP(config).state_dict().keys()
    inputs = inputs_for(config)
    ours, _ = clipkit.load(folder / "theirs", "cpu")
    assert_equal(outputs_of(ours, *inputs), outputs_of(peer, *inputs))


@pytest.mark.parametrize("name", ["RN50", "ViT-L/14"])
def test_training_checkpoint(name: str, folder: Path) -> None:
    """What open_clip's training loop saves: wrapped, prefixed, and without a config."""
    config = small(name)
    peer = save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    state = {f"module.{key}": value for key, value in peer.state_dict().items()}
    torch.save(
        {"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}},
        folder / "epoch_3.pt",
    )
    inputs = inputs_for(config)
    ours, _ = clipkit.load(folder / "epoch_3.pt", "cpu", config=config)
    assert_equal(outputs_of(ours, *inputs), outputs_of(peer, *inputs))


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_openai_archive(name: str, folder: Path) -> None:
    """A traced model with OpenAI's three scalars, which say that activation and head width are theirs."""
    config = small(name)
    config = replace(config, vision=replace(config.vision, resolution=(96, 96)))
    peer = save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    for key, value in (("input_resolution", 96), ("context_length", 24), ("vocab_size", VOCAB)):
        delattr(peer, key) if hasattr(peer, key) else None
        peer.register_buffer(key, torch.tensor(value))
    inputs = inputs_for(config)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.trace(peer, inputs, check_trace=False).save(str(folder / "archive.pt"))
    ours, _ = clipkit.load(folder / "archive.pt", "cpu")
    assert ours.config == config
    assert_equal(outputs_of(ours, *inputs), outputs_of(peer, *inputs))


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-H-14/laion2b_s32b_b79k"])
def test_a_wrong_config_is_seen(name: str, folder: Path) -> None:
    config = small(name)
    assert isinstance(config.vision, ViTConfig)
    peer = save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    inputs = inputs_for(config)
    expected = outputs_of(peer, *inputs)
    other = "gelu" if config.text.activation == "quick_gelu" else "quick_gelu"
    heads = config.vision.head_width // 2
    for which, wrong in (
        (0, replace(config, vision=replace(config.vision, activation=other))),
        (0, replace(config, vision=replace(config.vision, head_width=heads))),
        (1, replace(config, text=replace(config.text, activation=other))),
        (1, replace(config, text=replace(config.text, head_width=32))),
    ):
        ours, _ = clipkit.load(folder / "theirs", "cpu", config=wrong)
        difference = (outputs_of(ours, *inputs)[which] - expected[which]).abs().max()
        assert difference > 100 * FEATURES, wrong


@pytest.mark.parametrize("eos_token_id", [2, 49407])
def test_transformers_with_the_real_vocabulary(eos_token_id: int, folder: Path) -> None:
    """Old configs say 2, which means the highest id; the rows are padded with the end of text. In shards."""
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
    """The tokenizer and the image processor that transformers makes of a folder of ours."""
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
    picture = Image.fromarray(pixels).resize((162, 100), Image.Resampling.BICUBIC)
    found = ours.preprocess(picture)
    exact = transformers.CLIPImageProcessorPil.from_pretrained(folder)(
        picture, return_tensors="pt"
    ).pixel_values[0]
    fast = processor.image_processor(picture, return_tensors="pt").pixel_values[0]
    assert torch.equal(found, exact)
    processor.save_pretrained(folder / "again")  # since transformers 5 in one file of another name
    transformers.CLIPModel.from_pretrained(folder).save_pretrained(folder / "again")
    assert not (folder / "again" / "preprocessor_config.json").exists()
    assert clipkit.load(folder / "again", "cpu")[1] == ours.preprocess

    assert (
        found - fast
    ).abs().max() < 1.1 / 255 / 0.3  # torchvision's resizing is one grey level off here and there


def test_transformers_believes_the_dict_of_old_configs(folder: Path) -> None:
    """`text_config_dict` and `vision_config_dict`, where they are, overrule `text_config` and `vision_config`."""
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


def test_an_mlp_width_that_open_clip_would_round_down(folder: Path) -> None:
    """56 x (488 / 56) is 487.99... in float64."""
    config = small("ViT-B/32")
    assert isinstance(config.vision, ViTConfig)
    sizes: dict[str, Any] = {"width": 56, "head_width": 28, "mlp_ratio": 488 / 56}
    config = replace(
        config, vision=replace(config.vision, **sizes), text=replace(config.text, **sizes)
    )
    ours = randomize(CLIP(config))
    ours.save_pretrained(str(folder), layout="open_clip")
    inputs = inputs_for(config)
    peer = open_clip.create_model(f"local-dir:{folder}").eval()
    assert_equal(outputs_of(ours, *inputs), outputs_of(peer, *inputs))


@pytest.mark.parametrize("size", [56, (70, 42), 83])
def test_open_clip_at_another_resolution(size: int | tuple[int, int], folder: Path) -> None:
    config = small("ViT-L/14")
    assert config.vision.grid == (3, 3)
    save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    peer = open_clip.create_model(f"local-dir:{folder / 'theirs'}", force_image_size=size).eval()
    ours, _ = clipkit.load(folder / "theirs", "cpu", resolution=size)
    inputs = inputs_for(ours.config)
    assert_equal(outputs_of(ours, *inputs), outputs_of(peer, *inputs))


@pytest.mark.parametrize("old, new", [(7, 10), (16, 7), (5, 3)])
def test_resized_positions(old: int, new: int) -> None:
    positions = torch.randn(1 + old * old, 12, generator=torch.Generator().manual_seed(0))
    state = {"visual.positional_embedding": positions}
    peer = nn.Module()
    peer.visual = nn.Module()
    peer.visual.grid_size = (new, new)  # pyright: ignore[reportArgumentType]
    open_clip.model.resize_pos_embed(state, peer)
    assert torch.equal(
        resize_positions(positions, (old, old), (new, new)), state["visual.positional_embedding"]
    )


# Training.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["RN50", "ViT-B/32", "ViT-g-14/laion2b_s34b_b88k"])
def test_gradients(name: str, training: bool, folder: Path) -> None:
    """Of the loss by every weight, and the statistics that batch norms gather. In float64 but for the loss itself."""
    config = small(name)
    peer: Any = (
        save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
        .double()
        .train(training)
    )
    ours, _ = clipkit.load(folder / "theirs", "cpu", dtype=torch.float64)
    ours.train(training)
    with (
        torch.no_grad()
    ):  # at a scale of 100 a random model is sure of itself, and gradients vanish
        ours.logit_scale.fill_(1.5)
        peer.logit_scale.fill_(1.5)
    images, tokens = inputs_for(config)
    image_features, text_features, scale = peer(images.double(), tokens)
    expected_loss = open_clip.ClipLoss()(image_features, text_features, scale)
    expected_loss.backward()
    loss = clip_loss(ours.encode_image(images), ours.encode_text(tokens), ours.logit_scale)
    loss.backward()
    assert abs(loss.item() - expected_loss.item()) < 1e-6

    expected = {key: weight.grad for key, weight in peer.named_parameters()}
    found = from_canonical(
        {k: w.grad for k, w in ours.named_parameters() if w.grad is not None}, "openai"
    )
    assert found.keys() == expected.keys()
    largest = 0.0
    for key, gradient in found.items():
        size = float(expected[key].abs().max())
        assert size > 1e-7 or "k_proj.bias" in key, (
            key
        )  # a constant added to all keys changes no attention
        largest = max(largest, float((gradient - expected[key]).abs().max()) / max(size, 1e-4))
    print(f"largest difference of gradients, relative to each weight's largest: {largest:.1e}")
    assert largest < 1e-5
    buffers = from_canonical(dict(ours.named_buffers()), "openai")
    for key, value in peer.named_buffers():
        assert key == "attn_mask" or torch.allclose(buffers[key], value, rtol=1e-9), key


def test_loss() -> None:
    random = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(7, 9, generator=random), dim=-1) for _ in range(2))
    for log_scale in (torch.tensor(0.0), torch.tensor(2.6592), torch.tensor(4.6)):
        expected = open_clip.ClipLoss()(images, texts, log_scale.exp())
        assert abs(clip_loss(images, texts, log_scale).item() - expected.item()) < 1e-5


# The registry and the reading of configs against what open_clip knows of the same names.


@pytest.mark.parametrize(
    "name", [name for name in registry.MODELS if not name.startswith("TinyCLIP")]
)
def test_registry_agrees_with_open_clip(name: str) -> None:
    row = registry.MODELS[name]
    architecture, _, tag = (
        f"{name.replace('/', '-').replace('@336px', '-336')}/openai" if row.openai else name
    ).rpartition("/")
    tag = tag.replace("metaclip_2pt5b", "metaclip_fullcc")
    known = [
        open_clip.get_pretrained_cfg(architecture + suffix, tag) for suffix in ("", "-quickgelu")
    ]
    known = known[0] or known[1]
    assert known["hf_hub"] == f"{row.hub}/"
    activation = "quick_gelu" if known.get("quick_gelu") else "gelu"
    assert row.config.text.activation == activation
    values = open_clip.get_model_config(architecture) | {"quick_gelu": activation == "quick_gelu"}
    settings = {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    assert infer.from_open_clip({"model_cfg": values, "preprocess_cfg": settings}) == row.config


def test_every_config_of_open_clip_is_read_or_refused() -> None:
    plain = re.compile(r"RN\d+(x\d+)?|ViT-(B|L|H|M|S|g|e|bigG)-\d+(-plus)?(-\d+)?(-alt)?")
    for name in open_clip.list_models():
        values = {"model_cfg": open_clip.get_model_config(name)}
        if (
            plain.fullmatch(name.removesuffix("-quickgelu")) and name != "ViT-M-16-alt"
        ):  # the one with layer scale
            config = infer.from_open_clip(values)
            assert (config.text.activation == "quick_gelu") == name.endswith("-quickgelu")
        else:
            with pytest.raises(UnsupportedCheckpointError, match="not a plain CLIP"):
                infer.from_open_clip(values)
