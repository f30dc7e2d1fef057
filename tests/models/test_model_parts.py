"""What models are made of, in which precision they compute, and that copies are apart."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipkit.clip import CLIP
from tests.helpers.exact import (
    CONTEXT,
    EXACT,
    VOCAB,
    images_for,
    largest_difference,
    make_exact,
    resnet_config,
    tokens_for,
    vit_config,
)


def test_forward_scales_cosines(exact_model: CLIP) -> None:
    images, tokens = images_for(exact_model, 2), tokens_for(exact_model, 3)
    per_image, per_text = exact_model(images, tokens)
    assert per_image.shape == (2, 3)
    assert per_image.dtype == torch.float32
    assert torch.equal(per_image.T, per_text)
    image_features = exact_model.encode_image(images).detach()
    text_features = exact_model.encode_text(tokens).detach()
    for features in (image_features, text_features):
        features /= features.norm(dim=-1, keepdim=True)
    expected = math.exp(exact_model.logit_scale.item()) * image_features @ text_features.T
    assert largest_difference(per_image.detach(), expected) < 1e-4
    unit_images = exact_model.encode_image(images, normalize=True).detach()
    unit_texts = exact_model.encode_text(tokens, normalize=True).detach()
    assert largest_difference(unit_images, image_features) < EXACT
    assert largest_difference(unit_texts, text_features) < EXACT


def test_input_resolution_has_openais_form(exact_vit: CLIP, exact_resnet: CLIP) -> None:
    assert exact_vit.visual.input_resolution == (24, 32)
    assert exact_resnet.visual.input_resolution == (64, 96)
    assert make_exact(vit_config(size=(16, 16))).visual.input_resolution == 16
    assert make_exact(resnet_config((64, 64))).visual.input_resolution == 64


def test_widths_dtype_and_device_are_told(exact_vit: CLIP, exact_resnet: CLIP) -> None:
    for tower in (exact_vit.visual, exact_resnet.visual, exact_vit.text):
        assert tower.output_dim == 20
    assert exact_vit.dtype == torch.float64
    assert copy.deepcopy(exact_vit).float().dtype == torch.float32
    assert exact_vit.device == torch.device("cpu")
    assert (exact_vit.context_length, exact_vit.vocab_size) == (CONTEXT, VOCAB)


def test_a_resnet_without_its_pool_gives_the_map(exact_resnet: CLIP) -> None:
    headless = copy.deepcopy(exact_resnet)
    pool = headless.visual.get_submodule("attnpool")
    images = images_for(exact_resnet)
    pooled = exact_resnet.encode_image(images)
    headless.visual.attnpool = nn.Identity()
    maps = headless.encode_image(images)
    assert maps.shape == (4, 256, 2, 3)
    assert torch.equal(pool(maps), pooled)


@pytest.mark.parametrize("size", [(32, 32), (63, 63), (64, 64), (95, 100), (96, 33)])
def test_the_grid_of_a_resnet_is_that_of_its_map(size: tuple[int, int]) -> None:
    model = make_exact(resnet_config(size))
    height, width = model.config.vision.grid
    assert model.encode_image(images_for(model, 1)).shape == (1, 20)
    model.visual.attnpool = nn.Identity()
    assert model.encode_image(images_for(model, 1)).shape == (1, 256, height, width)


def test_a_vit_does_not_see_a_rest_smaller_than_a_patch() -> None:
    model = make_exact(vit_config(size=(30, 33)))
    images = images_for(model)
    changed = images.clone()
    changed[:, :, 24:] = 0
    changed[:, :, :, 32:] = 0
    assert model.config.vision.grid == (3, 4)
    assert torch.equal(model.encode_image(images), model.encode_image(changed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(exact_model: CLIP, dtype: torch.dtype) -> None:
    images, tokens = images_for(exact_model), tokens_for(exact_model)
    exact = [exact_model.encode_image(images), exact_model.encode_text(tokens)]
    half = copy.deepcopy(exact_model).to(dtype)
    found = [half.encode_image(images), half.encode_text(tokens)]
    single = copy.deepcopy(exact_model).float()
    with torch.autocast("cpu", dtype=dtype):
        automatic = [single.encode_image(images), single.encode_text(tokens)]
    for one, other, expected in zip(found, automatic, exact, strict=True):
        assert one.dtype == dtype
        assert F.cosine_similarity(one.double(), expected).min() > 0.995
        assert F.cosine_similarity(other.double(), expected).min() > 0.995


def test_autocast_trains(exact_model: CLIP) -> None:
    model = copy.deepcopy(exact_model).float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, _ = model(images_for(model), tokens_for(model, 4))
    F.cross_entropy(logits, torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_copies_are_equal_and_apart(exact_model: CLIP) -> None:
    images, tokens = images_for(exact_model), tokens_for(exact_model)
    image_features, text_features = (
        exact_model.encode_image(images),
        exact_model.encode_text(tokens),
    )
    for twin in (copy.deepcopy(exact_model), pickle.loads(pickle.dumps(exact_model))):
        assert twin.config == exact_model.config
        assert not twin.training
        assert torch.equal(twin.encode_image(images), image_features)
        assert torch.equal(twin.encode_text(tokens), text_features)
        with torch.no_grad():
            twin.logit_scale.zero_()
        assert exact_model.logit_scale != 0
