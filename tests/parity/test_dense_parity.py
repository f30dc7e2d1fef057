"""Raw maps at random weights against transformers' hidden states and open_clip's intermediates."""

from pathlib import Path
from typing import Any

import pytest
import torch

import clipkit
from clipkit.inspect import dense_features
from tests.helpers.peers import (
    FAMILIES,
    FEATURES,
    VITS,
    VOCAB,
    inputs_for,
    open_clip,
    open_clip_config,
    save_open_clip,
    save_processor,
    small,
    transformers,
    transformers_config,
)
from tests.helpers.random_weights import randomize, some_images


def assert_same_maps(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail unless maps are equal to float noise at the size of their numbers, which vary."""
    assert found.shape == expected.shape
    size = float(expected.abs().max())
    assert float((expected - expected.mean(dim=(2, 3), keepdim=True)).abs().max()) > 0.05 * size
    assert float((found - expected).abs().max()) < FEATURES * size


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_raw_maps_are_open_clips_intermediates(name: str, folder: Path) -> None:
    config = small(name)
    peer: Any = save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    images, _ = inputs_for(config)
    ours, _ = clipkit.load(folder / "theirs", "cpu")
    expected = peer.visual.forward_intermediates(images)["image_intermediates"]
    first = 0 if name in VITS else 1  # of a ResNet open_clip counts the stem as well
    for number, theirs in enumerate(expected[first:]):
        assert_same_maps(dense_features(ours, images, "raw", after_block=number), theirs)
    assert_same_maps(dense_features(ours, images, "raw"), expected[-1])


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14"])
@torch.no_grad()
def test_other_sizes_are_those_of_a_model_that_open_clip_resized(name: str, folder: Path) -> None:
    config = small(name)
    save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    patch = int(vars(config.vision)["patch_size"])
    size = (2 * patch, 5 * patch)
    peer: Any = open_clip.create_model(f"local-dir:{folder / 'theirs'}", force_image_size=size)
    images = some_images(3, size)
    ours, _ = clipkit.load(folder / "theirs", "cpu")
    expected = peer.eval().visual.forward_intermediates(images)["image_intermediates"]
    for block in (0, -1):
        assert_same_maps(dense_features(ours, images, "raw", after_block=block), expected[block])


@pytest.mark.parametrize("name", clipkit.available_models())
@torch.no_grad()
def test_other_sizes_are_those_of_a_checkpoint_loaded_at_that_size(name: str, folder: Path) -> None:
    config = small(name)
    model = randomize(clipkit.CLIP(config))
    model.save_pretrained(folder)
    cell = int(vars(config.vision).get("patch_size", 32))
    size = (2 * cell, 5 * cell)
    images = some_images(3, size)
    resized, _ = clipkit.load(folder, "cpu", resolution=size)
    for method in ("neighbors", "values", "queries"):
        found = dense_features(model, images, method)
        assert_same_maps(found, dense_features(resized, images, method))


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_raw_maps_are_transformers_hidden_states(name: str, folder: Path) -> None:
    config = small(name)
    peer = randomize(transformers.CLIPModel(transformers_config(config, eos_token_id=VOCAB - 1)))
    peer.save_pretrained(folder / "theirs")
    save_processor(config, folder / "theirs")
    images, _ = inputs_for(config)
    ours, _ = clipkit.load(folder / "theirs", "cpu")
    states = peer.vision_model(pixel_values=images, output_hidden_states=True).hidden_states
    rows, columns = config.vision.grid
    for number, state in enumerate(states[1:]):
        theirs = state[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        assert_same_maps(dense_features(ours, images, "raw", after_block=number), theirs)
