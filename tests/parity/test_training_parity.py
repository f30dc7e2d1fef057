"""Gradients and the loss against open_clip."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit
from clipkit.checkpoints.layouts import from_canonical
from clipkit.clip import CLIP
from clipkit.training.losses import clip_loss
from tests.helpers.peers import (
    inputs_for,
    open_clip,
    open_clip_config,
    save_open_clip,
    small,
)

Model = Any
Gradients = dict[str, Tensor]


def make_pair(name: str, training: bool, folder: Path) -> tuple[CLIP, Model]:
    """Return the same random model by us and by open_clip, in float64."""
    config = small(name)
    peer = save_open_clip(open_clip_config(config), config.preprocess, folder / "theirs")
    peer.double().train(training)
    ours, _ = clipkit.load(folder / "theirs", "cpu", dtype=torch.float64)
    ours.train(training)
    # At a scale of 100 a random model is sure of itself, and gradients vanish.
    with torch.no_grad():
        ours.logit_scale.fill_(1.5)
        peer.logit_scale.fill_(1.5)  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    return ours, peer


def largest_difference(found: Gradients, expected: Gradients) -> float:
    """Return the largest difference, relative to the largest number of each weight's gradient."""
    largest = 0.0
    for key, gradient in found.items():
        size = float(expected[key].abs().max())
        # A constant added to all keys changes no attention, so their bias has no gradient.
        assert size > 1e-7 or "k_proj.bias" in key, key
        largest = max(largest, float((gradient - expected[key]).abs().max()) / max(size, 1e-4))
    return largest


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["RN50", "ViT-B/32", "ViT-g-14/laion2b_s34b_b88k"])
def test_gradients(name: str, training: bool, folder: Path) -> None:
    """The statistics that batch norms gather are compared too. Only the loss is in float32."""
    ours, peer = make_pair(name, training, folder)
    images, tokens = inputs_for(ours.config)
    image_features, text_features, scale = peer(images.double(), tokens)
    expected_loss = open_clip.ClipLoss()(image_features, text_features, scale)
    expected_loss.backward()
    loss = clip_loss(ours.encode_image(images), ours.encode_text(tokens), ours.logit_scale)
    loss.backward()
    assert abs(loss.item() - expected_loss.item()) < 1e-6

    expected = {key: weight.grad for key, weight in peer.named_parameters()}
    named = {key: weight.grad for key, weight in ours.named_parameters() if weight.grad is not None}
    found = from_canonical(named, "openai")
    assert found.keys() == expected.keys()
    largest = largest_difference(found, expected)
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
