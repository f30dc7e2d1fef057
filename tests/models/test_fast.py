"""The inference-only copy has the same features, and leaves its model as it was."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipkit
from clipkit.config import Activation, CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from clipkit.encode.eval_view import eval_view
from clipkit.encode.fingerprints import fingerprint
from clipkit.errors import ConfigError
from clipkit.models import kernels
from clipkit.models.kernels import PackedLinear
from clipkit.models.layers import MLP, QuickGELU
from clipkit.models.resnet import ModifiedResNet
from tests.helpers.random_weights import randomize

PHOTOS = Path(__file__).parents[2] / "examples/photos"
TEXT = TextConfig(width=64, layers=1, activation="gelu")
TEXTS = ["a cat", "a dog", "a cat on a mat"]


def make_resnet() -> clipkit.CLIP:
    """Return a model with batch norms that have seen data: each of their tensors matters."""
    torch.manual_seed(0)
    vision = ResNetConfig(resolution=(64, 64), layers=(1, 2, 1, 1), width=8)
    model = clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=TEXT))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                assert value is not None
                nn.init.uniform_(value, 0.5, 1.5)
    return model


def make_transformer(activation: Activation = "quick_gelu") -> clipkit.CLIP:
    torch.manual_seed(1)
    vision = ViTConfig(
        resolution=(32, 32), patch_size=16, width=64, layers=2, activation=activation
    )
    text = TextConfig(width=64, layers=2, activation=activation)
    return randomize(clipkit.CLIP(CLIPConfig(embed_dim=24, vision=vision, text=text)))


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fail if any number differs by more than a share of the largest one."""
    largest = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * largest)


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


PRECISIONS = [(torch.float32, 2e-6), (torch.bfloat16, 0.05)]


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_folded_batch_norms_give_the_same_features(dtype: torch.dtype, tolerance: float) -> None:
    model = make_resnet().to(dtype).train()
    images = torch.randn(3, 3, 64, 64)
    fast = model.optimize()
    with torch.no_grad():
        features, expected = fast.encode_image(images), model.eval().encode_image(images)
    assert features.dtype == dtype
    assert features.std() > 1e-2
    assert_near(features, expected, tolerance)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert isinstance(fast.visual, ModifiedResNet)
    with torch.no_grad():
        maps = fast.visual.run_to(images.to(dtype), -1)
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert fast.optimizations[:2] == (
        "22 batch norms folded into convolutions",  # 3 + 5 x 3 + 4
        "channels last",
    )


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
def test_large_batches_go_through_in_parts(dtype: torch.dtype, tolerance: float) -> None:
    fast = make_resnet().to(dtype).optimize()
    many = torch.randn(80, 3, 64, 64)
    assert isinstance(fast.visual, ModifiedResNet)
    assert fast.visual.pixels_at_once is not None
    assert many.numel() / 3 > fast.visual.pixels_at_once
    with torch.no_grad():
        parts = torch.cat([fast.encode_image(many[start : start + 7]) for start in range(0, 80, 7)])
        assert_near(fast.encode_image(many), parts, tolerance)
        assert fast.encode_image(many[:0]).shape == (0, 24)
    assert "large batches in parts" in fast.optimizations


def test_the_model_is_left_as_it_was() -> None:
    model = make_resnet().train()
    before = copy.deepcopy(model.state_dict())
    fast = model.optimize()
    assert not fast.training
    assert not any(weight.requires_grad for weight in fast.parameters())
    assert model.training
    assert model.optimizations == ()
    assert not model.is_optimized
    assert all(weight.requires_grad for weight in model.parameters())
    assert_unchanged(model, before)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("kind", ["resnet", "transformer"])
def test_all_parts_of_a_copy_are_in_eval_mode(kind: str, compile: bool, packing: None) -> None:
    """Else every call would make a view of the model first, without what was compiled."""
    model = make_resnet() if kind == "resnet" else make_transformer()
    fast = model.optimize(compile=compile)
    assert [name for name, module in fast.named_modules() if module.training] == []
    assert eval_view(fast) is fast


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack float32 whatever the processor; where oneDNN cannot do it, there is nothing to test."""
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")


def features_of(model: clipkit.CLIP, images: Tensor) -> Tensor:
    """Return unit features of images, of several texts and of one text, in float64."""
    with torch.no_grad():
        encoded = [
            model.encode_image(images),
            model.encode_text(model.tokenizer(TEXTS)),
            model.encode_text(model.tokenizer(TEXTS[:1])),
        ]
    return F.normalize(torch.cat(encoded).double(), dim=-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_packed_layers_give_the_same_features(
    activation: Activation, dtype: torch.dtype, packing: None
) -> None:
    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    model = make_transformer(activation)
    images = torch.randn(3, 3, 32, 32)
    exact = features_of(copy.deepcopy(model).double(), images)
    model = model.to(dtype)
    before = copy.deepcopy(model.state_dict())
    fast = model.optimize()
    # Four layers in each block, and the patches.
    assert fast.optimizations == ("17 linear layers packed for oneDNN",)
    assert not any(isinstance(module, nn.GELU | QuickGELU) for module in fast.modules())

    noise = (features_of(model, images) - exact).abs().max()  # what the dtype costs by itself
    for other in (fast, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.optimizations == fast.optimizations
        assert other.is_optimized
        assert other.dtype == dtype
        difference = (features_of(other, images) - exact).abs().max()
        assert 0 < difference < 2 * noise
    assert_unchanged(model, before)
    assert fingerprint(fast) == fingerprint(model.optimize())
    assert fingerprint(fast) != fingerprint(model)


def test_packed_copies_stay_where_they_are(packing: None) -> None:
    fast = make_transformer().optimize()
    for cast in (fast.half, fast.double, lambda: fast.to(torch.bfloat16), lambda: fast.to("meta")):
        with pytest.raises(
            ConfigError,
            match="packed weights stay torch.float32 on the CPU: move or cast the model",
        ):
            cast()
    assert fast.float().to("cpu") is fast


def test_packed_copies_have_no_gradients_and_take_no_autocast(packing: None) -> None:
    fast = make_transformer().optimize()
    with pytest.raises(ConfigError, match="has no gradients: take those of the model"):
        fast.encode_image(torch.randn(3, 3, 32, 32, requires_grad=True))
    with pytest.raises(ConfigError, match="takes no autocast: cast the model"):
        clipkit.extract_features(fast, [torch.rand(3, 32, 32)], precision="bfloat16")


def test_copies_are_not_optimized_again(packing: None) -> None:
    fast = make_transformer().optimize()
    with pytest.raises(
        ConfigError, match=r"inference-only copy \(17 linear .*: optimize the model it is of"
    ):
        fast.optimize(compile=True)


def test_copies_take_no_weights(packing: None) -> None:
    fast, images = make_transformer().optimize(), torch.randn(3, 3, 32, 32)
    before = fast.encode_image(images)
    with pytest.raises(ConfigError, match="load weights into the model it is of"):
        fast.load_state_dict(make_transformer().state_dict())
    assert torch.equal(fast.encode_image(images), before)


def test_copies_are_not_exported(packing: None, tmp_path: Path) -> None:
    fast = make_transformer().optimize()
    classifier = clipkit.ImageClassifier.zero_shot(fast, ["cat", "dog"], ["a {}"])
    with pytest.raises(ConfigError, match="export the classifier of the model it is of"):
        classifier.export(tmp_path / "classifier.onnx")


def test_copies_are_not_saved_for_the_model(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"inference-only copy \(22 batch norms .*: save the model it is of"
    ):
        make_resnet().optimize().save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Softened(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


def mlps_of(model: clipkit.CLIP) -> list[MLP]:
    return [module for module in model.modules() if isinstance(module, MLP)]


@pytest.mark.parametrize(
    "part, module",
    [
        ("gelu", nn.GELU(approximate="tanh")),
        ("gelu", nn.ReLU()),
        ("c_fc", nn.Sequential(nn.Linear(64, 256))),
        ("c_proj", Softened(256, 64)),
    ],
)
def test_other_parts_of_an_mlp_are_kept(part: str, module: nn.Module, packing: None) -> None:
    model = make_transformer("gelu").eval()
    for mlp in mlps_of(model):
        setattr(mlp, part, copy.deepcopy(module))
    fast, images = model.optimize(), torch.randn(3, 3, 32, 32)
    for mlp in mlps_of(fast):
        kept: Any = getattr(mlp, part)
        assert type(kept) is type(module)
        assert not isinstance(mlp.gelu, nn.Identity)
    with torch.no_grad():
        found, expected = fast.encode_image(images), model.encode_image(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_both_layers_of_an_mlp_are_packed_with_the_activation(packing: None) -> None:
    fast = make_transformer("quick_gelu").optimize()
    for mlp in mlps_of(fast):
        first, second = mlp.get_submodule("c_fc"), mlp.get_submodule("c_proj")
        assert isinstance(first, PackedLinear)
        assert isinstance(second, PackedLinear)
        assert (first.activation, second.activation) == ("swish", "none")


@pytest.mark.parametrize("is_amd", [True, False])
def test_layers_are_packed_where_it_pays(is_amd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: is_amd)
    packed = is_amd and torch.backends.mkldnn.is_available()
    assert bool(make_transformer().optimize().optimizations) is packed
    assert make_transformer().double().optimize().optimizations == ()
    compiled = make_transformer().optimize(compile=True).optimizations
    assert compiled == ("image tower compiled", "8 linear layers packed for oneDNN")[: 1 + packed]


def test_nothing_is_packed_by_an_op_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(kernels, "_onednn_agrees", lambda dtype, packed: False)
    model = make_transformer()
    fast, images = model.optimize(), torch.randn(3, 3, 32, 32)
    assert fast.optimizations == ()
    assert fast.is_optimized
    with torch.no_grad():
        assert torch.equal(fast.encode_image(images), model.encode_image(images))


def test_compile_gives_the_same_features() -> None:
    model, images = make_resnet().eval(), torch.randn(2, 3, 64, 64)
    fast = model.optimize(compile=True)
    assert "image tower compiled" in fast.optimizations
    with torch.no_grad():
        found, expected = fast.encode_image(images), model.encode_image(images)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype, cosine", [(torch.float32, 1 - 1e-6), (torch.bfloat16, 0.999)])
def test_trained_weights_give_the_same_features(dtype: torch.dtype, cosine: float) -> None:
    model = clipkit.CLIP.from_pretrained("tiny", device="cpu")
    images = torch.stack([model.preprocess(path) for path in sorted(PHOTOS.glob("*.jpg"))])
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True).double()
        for other in (model.to(dtype), model.to(dtype).optimize()):
            found = F.normalize(other.encode_image(images).double(), dim=-1)
            assert (expected * found).sum(dim=1).min() > cosine
