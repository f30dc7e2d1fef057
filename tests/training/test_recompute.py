"""Activations computed twice give what activations kept give.

That is: the same features, gradients, statistics and random numbers.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIP
from clipkit.training.losses import clip_loss
from clipkit.training.recompute import cached_features, keep_blocks, recompute, recompute_blocks

Encode = Callable[[CLIP, Tensor], Tensor]


def train(model: CLIP, encode: Encode, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return features with gradients, and buffers, of a copy after one step in training mode."""
    model = copy.deepcopy(model).train()
    features = encode(model, images)
    texts = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    clip_loss(features, texts, model.logit_scale).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [features.detach(), *gradients], [b.clone() for b in model.buffers()]


def images_for(model: CLIP, n: int = 7) -> Tensor:
    return torch.randn(n, 3, *model.visual.resolution, generator=torch.Generator().manual_seed(0))


def assert_same_training(model: CLIP, ours: Encode, plain: Encode) -> None:
    images = images_for(model)
    found, buffers = train(model, ours, images)
    expected, kept = train(model, plain, images)
    assert len(found) == len(expected) > 10
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    for x, y in zip(buffers, kept, strict=True):
        assert torch.equal(x, y)  # running statistics were updated once


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_cached_features_have_the_gradients_of_chunks(clip: CLIP, chunk: int) -> None:
    if chunk == 1:
        clip = copy.deepcopy(clip)
        clip.visual.eval()
    assert_same_training(
        clip,
        lambda m, x: cached_features(m.encode_image, x, chunk),
        lambda m, x: torch.cat([m.encode_image(part) for part in x.split(chunk)]),
    )


def test_cached_features_equal_the_whole_batch_without_batch_norm(vit: CLIP) -> None:
    assert_same_training(
        vit, lambda m, x: cached_features(m.encode_image, x, 2), lambda m, x: m.encode_image(x)
    )


def test_blocks_recomputed(clip: CLIP) -> None:
    def encode(model: CLIP, images: Tensor) -> Tensor:
        recompute_blocks(model)
        return model.encode_image(images)

    assert_same_training(clip, encode, lambda m, x: m.encode_image(x))


def test_blocks_of_both_towers_are_recomputed(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text blocks are called with named inputs, which must come through."""
    calls: list[object] = []
    plain = recompute

    def count(function: Callable[..., Tensor], *inputs: object, **named: object) -> Tensor:
        calls.append(function)
        return plain(function, *inputs, **named)

    monkeypatch.setattr("clipkit.training.recompute.recompute", count)
    model = copy.deepcopy(clip)
    tokens = torch.tensor([[598, 1, 599], [598, 2, 599]])
    expected = model.encode_text(tokens)
    recompute_blocks(model)
    assert torch.equal(model.encode_text(tokens), expected)
    assert len(calls) == 2
    model.encode_image(images_for(model, 2))
    assert len(calls) > 3
    done = len(calls)
    keep_blocks(model)
    model.encode_text(tokens)
    assert len(calls) == done


def test_named_inputs_come_through() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    bias = torch.arange(4.0)
    found = recompute(nn.functional.linear, x, torch.ones(4, 3), bias=bias)
    assert torch.equal(found, 3 + bias.expand(2, 4))


def test_a_copy_of_a_recomputing_model_runs_its_own_weights(vit: CLIP) -> None:
    model = copy.deepcopy(vit)
    recompute_blocks(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    images = images_for(vit)
    assert torch.equal(other.encode_image(images), vit.encode_image(images))


def test_random_numbers_are_drawn_alike() -> None:
    linear = nn.Linear(4, 4)
    noisy = nn.Sequential(linear, nn.Dropout(0.5))
    x = torch.ones(3, 4, requires_grad=True)
    out = recompute(noisy, x)
    out.sum().backward()
    kept = (out.detach() != 0).float() * 2  # dropout scales by it
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept @ linear.weight.detach())


def test_less_is_kept_until_the_backward_pass(vit: CLIP) -> None:
    def kept(encode: Callable[[Tensor], Tensor]) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            encode(images_for(vit, 16))
        return sum(sizes.values())

    def cached(images: Tensor) -> Tensor:
        return cached_features(vit.encode_image, images, 4)

    assert kept(cached) < kept(vit.encode_image) / 5
