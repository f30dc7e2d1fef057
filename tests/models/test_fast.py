"""The inference-only copy: the same features, and a model that is as it was."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clipkit
from clipkit.config import Activation, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.encode.store import digest
from clipkit.errors import ConfigError
from clipkit.models import kernels
from clipkit.models.kernels import PackedLinear
from clipkit.models.layers import QuickGELU
from tests.helpers.random_weights import randomize

PHOTOS = Path(__file__).parents[2] / "examples/photos"
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
    torch.testing.assert_close(
        features, expected, rtol=0, atol=tolerance * expected.abs().max().item()
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert fast.visual.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert fast.optimizations[:2] == (
        "22 batch norms folded into convolutions",
        "channels last",
    )  # 3 + 5 x 3 + 4
    many = torch.randn(80, 3, 64, 64)  # more than go through at a time
    with torch.no_grad():
        parts = torch.cat([fast.encode_image(part) for part in many.split(7)])
        torch.testing.assert_close(
            fast.encode_image(many), parts, rtol=0, atol=tolerance * parts.abs().max().item()
        )
    assert "large batches in parts" in fast.optimizations
    assert not fast.training and not any(p.requires_grad for p in fast.parameters())
    # and the model is as it was
    assert (
        model.training
        and model.optimizations == ()
        and all(p.requires_grad for p in model.parameters())
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def transformer(activation: Activation = "quick_gelu") -> clipkit.CLIP:
    torch.manual_seed(1)
    vision = ViTConfig(resolution=32, patch_size=16, width=64, layers=2, activation=activation)
    text = TextConfig(width=64, layers=2, activation=activation)
    return randomize(clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text)))


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is packed whatever the processor; where oneDNN cannot do it, there is nothing to test."""
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_packed_layers_give_the_same_features(
    activation: Activation, dtype: torch.dtype, packing: None
) -> None:
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    model = transformer(activation)
    oracle, model = copy.deepcopy(model).double(), model.to(dtype)
    before = copy.deepcopy(model.state_dict())
    fast, images, texts = (
        model.optimize(),
        torch.randn(3, 3, 32, 32),
        ["a cat", "a dog", "a cat on a mat"],
    )
    assert fast.optimizations == (
        "17 linear layers packed for oneDNN",
    )  # 4 to a block, and the patches
    assert not any(isinstance(module, nn.GELU | QuickGELU) for module in fast.modules())

    def features(model: clipkit.CLIP) -> torch.Tensor:
        with torch.no_grad():
            single = model.encode_text(model.tokenizer(texts[:1]), normalize=True)
            several = F.normalize(model.encode_text(model.tokenizer(texts)), dim=-1)
            return torch.cat([model.encode_image(images, normalize=True), several, single]).double()

    plain = (features(model) - features(oracle)).abs().max()  # what the dtype costs by itself
    for other in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.optimizations == fast.optimizations and other.dtype == dtype
        assert 0 < (features(other) - features(oracle)).abs().max() < 2 * plain
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert digest(fast) == digest(model.optimize()) != digest(model)


def test_what_a_packed_copy_refuses(packing: None, tmp_path: Path) -> None:
    fast, images = transformer().optimize(), torch.randn(3, 3, 32, 32)
    with pytest.raises(ConfigError, match="has no gradients: take those of the model"):
        fast.encode_image(images.requires_grad_())
    for cast in (fast.half, fast.double, lambda: fast.to(torch.bfloat16), lambda: fast.to("meta")):
        with pytest.raises(
            ConfigError,
            match="packed weights stay torch.float32 on the CPU: move or cast the model",
        ):
            cast()
    assert fast.float().to("cpu") is fast
    with pytest.raises(ConfigError, match="takes no autocast: cast the model"):
        clipkit.extract_features(fast, [torch.rand(3, 32, 32)], precision="bfloat16")
    with pytest.raises(
        ConfigError, match=r"inference-only copy \(17 linear .*: optimize the model it is of"
    ):
        fast.optimize(compile=True)
    before = fast.encode_image(images.detach())
    with pytest.raises(ConfigError, match="load weights into the model it is of"):
        fast.load_state_dict(transformer().state_dict())
    assert torch.equal(fast.encode_image(images.detach()), before)
    classifier = clipkit.ImageClassifier.zero_shot(fast, ["cat", "dog"], ["a {}"])
    with pytest.raises(ConfigError, match="export the classifier of the model it is of"):
        classifier.export(tmp_path / "classifier.onnx")


class Softened(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


@pytest.mark.parametrize("part, module", [
    ("gelu", nn.GELU(approximate="tanh")), ("gelu", nn.ReLU()),
    ("c_fc", nn.Sequential(nn.Linear(64, 256))), ("c_proj", Softened(256, 64)),
])  # fmt: skip
def test_other_parts_of_an_mlp_are_kept(part: str, module: nn.Module, packing: None) -> None:
    model = transformer("gelu").eval()
    for block in model.visual.transformer.resblocks:
        setattr(block.mlp, part, copy.deepcopy(module))
    fast, images = model.optimize(), torch.randn(3, 3, 32, 32)
    assert isinstance(getattr(fast.visual.transformer.resblocks[0].mlp, part), type(module))
    with torch.no_grad():
        torch.testing.assert_close(
            fast.encode_image(images), model.encode_image(images), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("vendor", [True, False])
def test_layers_are_packed_where_it_pays(vendor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: vendor)
    packed = vendor and torch.backends.mkldnn.is_available()
    assert bool(transformer().optimize().optimizations) is packed
    assert transformer().double().optimize().optimizations == ()
    assert transformer().optimize(compile=True).optimizations == ("image tower compiled",)


def test_a_copy_is_not_saved_for_the_model(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"inference-only copy \(22 batch norms .*: save the model it is of"
    ):
        resnet().optimize().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_compile_gives_the_same_features() -> None:
    model, images = resnet().eval(), torch.randn(2, 3, 64, 64)
    fast = model.optimize(compile=True)
    assert fast.optimizations[-1] == "image tower compiled"
    with torch.no_grad():
        torch.testing.assert_close(
            fast.encode_image(images), model.encode_image(images), rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("dtype, cosine", [(torch.float32, 1 - 1e-6), (torch.bfloat16, 0.999)])
def test_trained_weights_give_the_same_features(dtype: torch.dtype, cosine: float) -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    images = torch.stack([model.preprocess(path) for path in sorted(PHOTOS.glob("*.jpg"))])
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True).double()
        for other in (model.to(dtype), model.to(dtype).optimize()):
            found = F.normalize(other.encode_image(images).double(), dim=-1)
            assert (expected * found).sum(dim=1).min() > cosine
