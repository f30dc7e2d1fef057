"""What CLIP takes and refuses, and in which dtype it answers."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.clip import CLIP
from clipkit.errors import ConfigError, ImageError, TokenizerError
from tests.helpers.random_weights import some_images, some_tokens

VOCAB, CONTEXT = 600, 16  # of the models in conftest.py


def test_empty_batches(clip: CLIP) -> None:
    height, width = clip.visual.resolution
    no_images = torch.zeros(0, 3, height, width)
    no_tokens = torch.zeros(0, CONTEXT, dtype=torch.int64)
    assert clip.encode_image(no_images, normalize=True).shape == (0, 32)
    assert clip.encode_text(no_tokens, normalize=True).shape == (0, 32)
    assert clip(no_images, some_tokens(3, CONTEXT, VOCAB))[0].shape == (0, 3)
    assert clip(some_images(2, (height, width)), no_tokens)[1].shape == (0, 2)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 48, 48),
        torch.zeros(1, 3, 48, 32),
        torch.zeros(1, 1, 48, 48),
        torch.zeros(1, 3, 48, 48, dtype=torch.uint8),
    ],
)
def test_bad_images_are_refused(vit: CLIP, images: Tensor) -> None:
    with pytest.raises(
        ImageError, match=r"needs a float tensor of shape \(N, 3, 48, 48\), not torch\.\w+ of \("
    ):
        vit.encode_image(images)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(CONTEXT, dtype=torch.int64),
        torch.zeros(1, CONTEXT + 1, dtype=torch.int64),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, CONTEXT),
        torch.zeros(1, CONTEXT, dtype=torch.bool),
        torch.zeros(1, CONTEXT, dtype=torch.int16),
    ],
)
def test_bad_tokens_are_refused(vit: CLIP, tokens: Tensor) -> None:
    with pytest.raises(
        TokenizerError, match=r"needs int64 or int32 .+ \(N, 1 to 16\), not torch\.\w+ of"
    ):
        vit.encode_text(tokens)


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_ids_outside_the_vocabulary_are_refused(vit: CLIP, bad: int) -> None:
    tokens = some_tokens(4, CONTEXT, VOCAB)
    tokens[2, 1] = bad
    with pytest.raises(TokenizerError, match="this model knows 0 to 599"):
        vit.encode_text(tokens)


def test_arguments_have_openais_names(clip: CLIP) -> None:
    images, tokens = some_images(2, clip.visual.resolution), some_tokens(3, CONTEXT, VOCAB)
    with torch.no_grad():
        assert torch.equal(clip.encode_image(image=images), clip.encode_image(images))
        assert torch.equal(clip.encode_text(text=tokens), clip.encode_text(tokens))
        assert torch.equal(clip(image=images, text=tokens)[0], clip(images, tokens)[0])


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "dtype, cast",
    [
        (torch.float32, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, None),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, None),
        (torch.float16, torch.float16),
    ],
    ids=str,
)
def test_logits_are_in_float32(
    clip: CLIP, dtype: torch.dtype, cast: torch.dtype | None, gradients: bool
) -> None:
    """In half precision a logit of 100 would be off by up to 0.25."""
    model = copy.deepcopy(clip).to(dtype)
    model.logit_scale.data.fill_(4.6)
    images, tokens = some_images(3, clip.visual.resolution), some_tokens(5, CONTEXT, VOCAB)
    context: AbstractContextManager[Any] = nullcontext()
    if cast is not None:
        context = torch.autocast("cpu", dtype=cast)
    with torch.set_grad_enabled(gradients), context:
        per_image, per_text = model(images, tokens)
        image_features, text_features = model.encode_image(images), model.encode_text(tokens)
    assert per_image.dtype == per_text.dtype == torch.float32
    cosines = F.cosine_similarity(image_features.double()[:, None], text_features.double(), dim=-1)
    expected = model.logit_scale.double().exp() * cosines
    torch.testing.assert_close(per_image.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(per_text.double(), expected.T, rtol=0, atol=1e-4)


def replica_of(module: nn.Module) -> nn.Module:
    """Return what nn.DataParallel makes: parameters are plain attributes, and no parameters()."""
    replica = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        if child is not None:
            setattr(replica, name, replica_of(child))
    for name, parameter in module._parameters.items():
        replica._parameters.pop(name, None)
        if parameter is None:
            replica._parameters[name] = None
        else:
            setattr(replica, name, parameter * 1)  # a tensor with a gradient, as by Broadcast
    return replica


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_replicas_of_data_parallel_compute_the_same(
    clip: CLIP, dtype: torch.dtype, gradients: bool
) -> None:
    model = copy.deepcopy(clip).to(dtype)
    model.logit_scale.data = model.logit_scale.data.float()  # as loading in half precision does
    images, tokens = some_images(2, clip.visual.resolution), some_tokens(3, CONTEXT, VOCAB)
    replica = replica_of(model)
    assert isinstance(replica, CLIP)
    assert list(replica.parameters()) == []
    assert replica.dtype == dtype
    assert replica.device == model.device
    with torch.set_grad_enabled(gradients):
        found, expected = replica(images, tokens), model(images, tokens)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_model_says_in_one_line_what_it_is(vit: CLIP) -> None:
    assert repr(vit) == (
        "CLIP(VisionTransformer of 48 x 48 pixels, embed_dim=32, torch.float32 on cpu)"
    )


def test_an_optimized_copy_says_so(vit: CLIP) -> None:
    fast = vit.optimize()
    assert fast.is_optimized
    assert not vit.is_optimized
    vit.check_original("save")
    with pytest.raises(ConfigError, match=r"inference-only copy \(.+\): save the model it is of"):
        fast.check_original("save")


@pytest.mark.gpu
def test_a_vit_is_only_copied_on_cuda(vit: CLIP) -> None:
    fast = copy.deepcopy(vit).cuda().optimize()
    assert fast.is_optimized
    assert fast.optimizations == ()


def test_a_copy_with_nothing_to_gain_is_still_for_inference_alone(vit: CLIP) -> None:
    """As on CUDA: what a program may do must not depend on the machine."""
    fast = copy.deepcopy(vit).double().optimize()
    assert fast.is_optimized
    assert fast.optimizations == ()
    with pytest.raises(ConfigError, match=r"inference-only copy \(unchanged on this device\)"):
        fast.save_pretrained("nowhere")
