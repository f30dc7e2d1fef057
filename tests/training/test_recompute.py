"""Activations computed twice must give what activations kept give: features, gradients, statistics, random numbers."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clipkit import CLIP
from clipkit.training.losses import clip_loss
from clipkit.training.recompute import cached_features, recompute_blocks, recompute


def train(
    model: CLIP, encode: Callable[[CLIP, Tensor], Tensor], images: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Features, gradients and buffers after one backward pass in training mode; a copy of the model is used."""
    model = copy.deepcopy(model).train()
    features = encode(model, images)
    texts = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    clip_loss(features, texts, model.logit_scale).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [features.detach(), *gradients], [b.clone() for b in model.buffers()]


def images_for(model: CLIP, n: int = 7) -> Tensor:
    return torch.randn(n, 3, *model.visual.resolution, generator=torch.Generator().manual_seed(0))


def assert_same(model: CLIP, ours: Callable[..., Tensor], plain: Callable[..., Tensor]) -> None:
    images = images_for(model)
    (found, buffers), (expected, kept) = train(model, ours, images), train(model, plain, images)
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
    assert_same(
        clip,
        lambda m, x: cached_features(m.encode_image, x, chunk),
        lambda m, x: torch.cat([m.encode_image(part) for part in x.split(chunk)]),
    )


def test_cached_features_equal_the_whole_batch_without_batch_norm(vit: CLIP) -> None:
    assert_same(
        vit, lambda m, x: cached_features(m.encode_image, x, 2), lambda m, x: m.encode_image(x)
    )


def test_blocks_recomputed(clip: CLIP) -> None:
    def encode(model: CLIP, images: Tensor) -> Tensor:
        recompute_blocks(model)
        return model.encode_image(images)

    assert_same(clip, encode, lambda m, x: m.encode_image(x))


def test_a_copy_of_a_checkpointed_model_runs_its_own_weights(vit: CLIP) -> None:
    model = copy.deepcopy(vit)
    recompute_blocks(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    images = images_for(vit)
    assert torch.equal(other.encode_image(images), vit.encode_image(images))


def test_random_numbers_are_drawn_alike() -> None:
    noisy = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    x = torch.ones(3, 4, requires_grad=True)
    out = recompute(noisy, x)
    out.sum().backward()
    kept = (out.detach() != 0).float() * 2  # what dropout scales by
    assert x.grad is not None
    torch.testing.assert_close(x.grad, kept @ noisy[0].weight.detach())  # pyright: ignore[reportArgumentType]


def test_less_is_kept_until_the_backward_pass(vit: CLIP) -> None:
    def kept(encode: Callable[[Tensor], Tensor]) -> int:
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: (
                sizes.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x
            ),
            lambda x: x,
        ):
            encode(images_for(vit, 16))
        return sum(sizes.values())

    def cached(images: Tensor) -> Tensor:
        return cached_features(vit.encode_image, images, 4)

    assert kept(cached) < kept(vit.encode_image) / 5
