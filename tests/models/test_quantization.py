"""Quantizers find the linear layers of both towers, as they are of torch's own class."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipkit import CLIP
from tests.helpers.towers import TowerName, make_inputs, make_resnet, make_vit

quantization = pytest.importorskip("torch.ao.quantization")


def quantize(model: CLIP) -> CLIP:
    """Return a copy with linear layers in eight bits."""
    if torch.backends.quantized.engine in (None, "none"):
        pytest.skip("this torch has no engine for quantized layers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will move this to another package
        return quantization.quantize_dynamic(model, {nn.Linear})


def linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def quantized_layers(model: nn.Module) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if type(module).__module__.startswith("torch.ao.nn.quantized.dynamic")
    ]


def assert_close_but_other(quantized: CLIP, model: CLIP, kind: TowerName, gradients: bool) -> None:
    """Fail unless features of both towers are changed by quantization, and by little."""
    images, tokens = make_inputs(kind), make_inputs("text")
    with torch.set_grad_enabled(gradients):
        pairs = [
            (quantized.encode_image(images), model.encode_image(images)),
            (quantized.encode_text(tokens), model.encode_text(tokens)),
        ]
    for found, expected in pairs:
        assert not torch.equal(found, expected)
        assert F.cosine_similarity(found, expected).min() > 0.99


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_quantized_layers_exist_and_features_stay_close(kind: TowerName) -> None:
    model = make_vit() if kind == "vit" else make_resnet()
    quantized = quantize(model)
    assert quantized_layers(quantized) == linear_layers(model)
    assert len(quantized_layers(quantized.text)) == 6  # 3 in each of 2 blocks
    assert len(quantized_layers(quantized.visual)) == (6 if kind == "vit" else 4)
    for gradients in (True, False):
        assert_close_but_other(quantized, model, kind, gradients)


def test_a_quantized_model_can_be_optimized() -> None:
    """What is still in float32 is packed; quantized layers stay."""
    quantized, images = quantize(make_vit()), make_inputs("vit")
    fast = quantized.optimize()
    assert quantized_layers(fast) == quantized_layers(quantized)
    with torch.no_grad():
        expected = quantized.encode_image(images)
        torch.testing.assert_close(fast.encode_image(images), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("gradients", [True, False])
def test_torchao_quantizes_the_linear_layers(kind: TowerName, gradients: bool) -> None:
    """Where it is installed. Its weights are tensors of a class that oneDNN's ops know not."""
    torchao: Any = pytest.importorskip("torchao.quantization")
    model = make_vit() if kind == "vit" else make_resnet()
    quantized = copy.deepcopy(model)
    torchao.quantize_(quantized, torchao.Int8WeightOnlyConfig())
    changed = [
        name.removesuffix(".weight")
        for name, weight in quantized.named_parameters()
        if type(weight) not in (torch.Tensor, nn.Parameter)
    ]
    assert changed == linear_layers(model)
    assert_close_but_other(quantized, model, kind, gradients)
