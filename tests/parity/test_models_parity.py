"""Models at random weights against open_clip, through files in its layouts and both ways.

Every family of the registry is compared at a small size that keeps its head width, MLP ratio, patch
and activation. RN50 and ViT-B/32 are compared at full size too, and ViT-B/32 there with
transformers as well.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.checkpoints import registry
from clipkit.clip import CLIP
from clipkit.config import ViTConfig
from tests.helpers.models import assert_same_weights
from tests.helpers.peers import (
    FAMILIES,
    FEATURES,
    VOCAB,
    Outputs,
    assert_equal,
    inputs_for,
    open_clip,
    open_clip_config,
    outputs_of,
    save_open_clip,
    small,
    transformers,
)
from tests.helpers.random_weights import randomize


def load_open_clip(folder: Path) -> Any:
    return open_clip.create_model(f"local-dir:{folder}").eval()


def assert_same_outputs(found: Outputs, expected: Outputs) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def without_gradients(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.state_dict().items()}


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
    back, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder / 'ours'}")
    assert_same_outputs(outputs_of(back.eval(), *inputs), expected)
    cfg = open_clip.transform.PreprocessCfg(
        **{k: v for k, v in back.visual.preprocess_cfg.items() if k != "fill_color"}
    )
    assert tuple(cfg.mean) == config.preprocess.mean
    assert tuple(cfg.std) == config.preprocess.std
    assert cfg.interpolation == config.preprocess.interpolation
    assert cfg.resize_mode == config.preprocess.resize_mode


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_full_size(name: str, folder: Path) -> None:
    """It starts from open_clip's own config, and goes back there; the ViT also to transformers."""
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
    assert_same_outputs(outputs_of(load_open_clip(folder / "ours"), *inputs), expected)
    texts = ["a diagram", "a photo of a dog"]
    their_tokenizer = open_clip.get_tokenizer(f"local-dir:{folder / 'ours'}")
    assert torch.equal(their_tokenizer(texts), ours.tokenizer(texts))
    if name == "ViT-B/32":
        ours.save_pretrained(str(folder / "transformers"), layout="transformers")
        other = transformers.CLIPModel.from_pretrained(folder / "transformers")
        assert_equal(outputs_of(other, *inputs), expected)
        again, _ = clipkit.load(folder / "transformers", "cpu")
        assert again.config == config
        assert_same_weights(without_gradients(again), without_gradients(ours))


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
    """Open_clip's training loop saves weights wrapped, prefixed, and without a config."""
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
    """OpenAI's three scalars in a traced model say that activation and head width are theirs."""
    config = small(name)
    config = replace(config, vision=replace(config.vision, resolution=(96, 96)))
    peer = save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    for key, value in (("input_resolution", 96), ("context_length", 24), ("vocab_size", VOCAB)):
        if hasattr(peer, key):
            delattr(peer, key)
        peer.register_buffer(key, torch.tensor(value))
    inputs = inputs_for(config)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced: Any = torch.jit.trace(peer, inputs, check_trace=False)
    traced.save(str(folder / "archive.pt"))
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
    wrong_configs = [
        (0, replace(config, vision=replace(config.vision, activation=other))),
        (0, replace(config, vision=replace(config.vision, head_width=heads))),
        (1, replace(config, text=replace(config.text, activation=other))),
        (1, replace(config, text=replace(config.text, head_width=32))),
    ]
    for which, wrong in wrong_configs:
        ours, _ = clipkit.load(folder / "theirs", "cpu", config=wrong)
        difference = (outputs_of(ours, *inputs)[which] - expected[which]).abs().max()
        assert difference > 100 * FEATURES, wrong


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
    peer = load_open_clip(folder)
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
