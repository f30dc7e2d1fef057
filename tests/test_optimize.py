"""The inference-only copy: the same features, and a model that is as it was."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import clipkit
from clipkit.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.errors import ConfigError

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
    assert fast.optimizations == ("22 batch norms folded into convolutions", "channels last")  # 3 + 5 x 3 + 4
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    # and the model is as it was
    assert model.training and model.optimizations == () and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_twice_is_once() -> None:
    fast = resnet().optimize()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(fast.optimize().encode_image(images), fast.encode_image(images))


def test_a_vision_transformer_has_nothing_to_fold() -> None:
    vision = ViTConfig(resolution=32, patch_size=16, width=64, layers=1, activation="gelu")
    model = clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=TEXT))
    fast, images = model.optimize(), torch.randn(2, 3, 32, 32)
    assert fast.optimizations == () and fast is not model
    with torch.no_grad():
        assert torch.equal(fast.encode_image(images), model.encode_image(images))


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
