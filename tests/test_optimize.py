"""The inference-only copy: the same features, and a model that is as it was."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import clipkit
from clipkit.config import Activation, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.errors import ConfigError
from clipkit.features import digest
from clipkit.models import kernels
from clipkit.models.layers import QuickGELU
from tests.random_weights import randomise

TEXT = TextConfig(width=64, layers=1, activation="gelu")


def resnet() -> clipkit.CLIP:
    """Batch norms that have seen data, so that each of their four tensors matters."""
    torch.manual_seed(0)
    vision = ResNetConfig(resolution=64, layers=(1, 2, 1, 1), width=8)
    model = clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=TEXT))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                assert value is not None
                nn.init.uniform_(value, 0.5, 1.5)
    return model


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 0.05)])
def test_folded_batch_norms_give_the_same_features(dtype: torch.dtype, tolerance: float) -> None:
    model = resnet().to(dtype).train()
    before = copy.deepcopy(model.state_dict())
    images = torch.randn(3, 3, 64, 64)
    fast = model.optimize()
    with torch.no_grad():
        expected = copy.deepcopy(model).eval().encode_image(images)
        features = fast.encode_image(images)
    assert features.dtype == dtype and features.std() > 1e-2
    torch.testing.assert_close(features, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert fast.visual.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert fast.optimizations[:2] == ("22 batch norms folded into convolutions", "channels last")  # 3 + 5 x 3 + 4
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    # and the model is as it was
    assert model.training and model.optimizations == () and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_twice_is_once() -> None:
    fast = resnet().optimize()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(fast.optimize().encode_image(images), fast.encode_image(images))


def transformer(activation: Activation = "quick_gelu") -> clipkit.CLIP:
    torch.manual_seed(1)
    vision = ViTConfig(resolution=32, patch_size=16, width=64, layers=2, activation=activation)
    text = TextConfig(width=64, layers=2, activation=activation)
    return randomise(clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text)))


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_packed_layers_give_the_same_features(
    activation: Activation, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "can_pack", lambda weight: weight.dtype == dtype)
    model = transformer(activation).to(dtype)
    before = copy.deepcopy(model.state_dict())
    fast, images, texts = model.optimize(), torch.randn(3, 3, 32, 32), ["a cat", "a dog", "a cat on a mat"]
    assert fast.optimizations == ("17 linear layers packed for oneDNN",)  # 4 to a block, and the patches
    assert not any(isinstance(module, nn.GELU | QuickGELU) for module in fast.modules())
    for other in (fast, copy.deepcopy(fast), fast.optimize()):
        assert other.optimizations == fast.optimizations and other.dtype == dtype
        with torch.no_grad():
            features, expected = (m.encode_image(images, normalize=True) for m in (other, model))
            torch.testing.assert_close(features, expected, rtol=0, atol=tolerance)
            torch.testing.assert_close(other.embed_texts(texts), model.embed_texts(texts), rtol=0, atol=tolerance)
            single = other.encode_text(other.tokenizer(texts[:1]), normalize=True).float()
            torch.testing.assert_close(single, model.embed_texts(texts[:1]), rtol=0, atol=tolerance)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert digest(fast) == digest(model.optimize()) != digest(model)
    with pytest.raises(ConfigError, match="has no gradients: take those of the model"):
        fast.encode_image(images.requires_grad_())


@pytest.mark.parametrize("vendor", [True, False])
def test_layers_are_packed_where_it_pays(vendor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: vendor)
    packed = vendor and torch.backends.mkldnn.is_available()
    assert bool(transformer().optimize().optimizations) is packed
    assert transformer().double().optimize().optimizations == ()
    assert transformer().optimize(compile=True).optimizations == ("image tower compiled",)


def test_a_copy_is_not_saved_for_the_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inference-only copy \(22 batch norms .*: save the model it is of"):
        resnet().optimize().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_compile_gives_the_same_features() -> None:
    model, images = resnet().eval(), torch.randn(2, 3, 64, 64)
    fast = model.optimize(compile=True)
    assert fast.optimizations[-1] == "image tower compiled"
    with torch.no_grad():
        torch.testing.assert_close(fast.encode_image(images), model.encode_image(images), rtol=0, atol=1e-4)


def test_the_embedded_checkpoint_classifies_alike() -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    images = torch.rand(4, 3, *model.visual.resolution)
    with torch.no_grad():
        expected, found = (m.encode_image(images, normalize=True) for m in (model, model.optimize()))
    assert ((expected * found).sum(dim=1) > 1 - 1e-5).all()
