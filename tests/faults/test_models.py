"""What programs do to models: hooks, wrappers, forward-mode derivatives and torch's defaults."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize, prune

from clipkit import CLIP, CLIPConfig
from clipkit.models import kernels
from clipkit.models.layers import MLP, Attention
from clipkit.models.resnet import Bottleneck, ModifiedResNet
from tests.helpers.models import RESNET, VIT, make_small_tokenizer, random_clip
from tests.helpers.random_weights import randomize

Change = Callable[[CLIP], object]
CONFIGS = pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])


@pytest.fixture(autouse=True)
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let oneDNN compute float32 whatever the processor."""
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)


def images_for(model: CLIP) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, *model.visual.resolution, generator=random)


# `optimize` keeps what was put on layers or in their place.


def double(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
    return 2 * output


def overridden(layer: nn.Module, forward: Callable[..., Tensor]) -> None:
    layer.forward = forward


def first(model: CLIP, kind: type[nn.Module]) -> Any:
    return next(module for module in model.visual.modules() if isinstance(module, kind))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def override_mlp(model: CLIP) -> None:
    """Use the weights of an MLP's layers and its activation in another way."""
    mlp = first(model, MLP)

    def forward(mlp: MLP, x: Tensor) -> Tensor:
        return mlp.c_proj(mlp.gelu(mlp.c_fc(x) - 1)) @ mlp.c_proj.weight @ mlp.c_fc.weight

    overridden(mlp, MethodType(forward, mlp))  # a copy has the method of the copy


VIT_CHANGES: dict[str, Change] = {
    "hook on a layer": lambda m: first(m, MLP).c_fc.register_forward_hook(double),
    "hook on the activation": lambda m: first(m, MLP).gelu.register_forward_hook(double),
    "hook on the projection": lambda m: first(m, Attention).out_proj.register_forward_hook(double),
    "hook on the attention": lambda m: first(m, Attention).register_forward_hook(double),
    "hook on the patches": lambda m: m.visual.conv1.register_forward_hook(double),
    "forward of a layer": lambda m: overridden(
        first(m, MLP).c_proj, lambda x: x[..., :96].sin() * 3
    ),
    "forward of an MLP": override_mlp,
    "parametrized layer": lambda m: parametrize.register_parametrization(
        first(m, MLP).c_fc, "weight", Doubled()
    ),
    "parametrized attention": lambda m: parametrize.register_parametrization(
        first(m, Attention), "in_proj_weight", Doubled()
    ),
    "pruned attention": lambda m: prune.l1_unstructured(
        first(m, Attention), "in_proj_weight", amount=0.5
    ),
    "pruned layer": lambda m: prune.l1_unstructured(first(m, MLP).c_fc, "weight", amount=0.5),
}
RESNET_CHANGES: dict[str, Change] = {
    "hook on a convolution": lambda m: m.visual.conv1.register_forward_hook(double),
    "hook on a norm": lambda m: first(m, nn.BatchNorm2d).register_forward_hook(double),
    "forward of a norm": lambda m: overridden(first(m, nn.BatchNorm2d), lambda x: x.sin()),
    "parametrized convolution": lambda m: parametrize.register_parametrization(
        m.visual.conv1, "weight", Doubled()
    ),
    "pruned convolution": lambda m: prune.l1_unstructured(m.visual.conv2, "weight", amount=0.5),
}


@pytest.mark.parametrize(
    ("config", "change"),
    [
        *(pytest.param(VIT, change, id=name) for name, change in VIT_CHANGES.items()),
        *(pytest.param(RESNET, change, id=name) for name, change in RESNET_CHANGES.items()),
    ],
)
def test_an_optimized_copy_computes_what_the_model_does(config: CLIPConfig, change: Change) -> None:
    model = randomize(CLIP(config))
    images = images_for(model)
    with torch.no_grad():
        before = model.encode_image(images)
        change(model)
        expected = model.encode_image(images)
        found = model.optimize().encode_image(images)
    scale = expected.abs().max()
    assert (expected - before).abs().max() > 1e-3 * scale
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(scale))


def test_layers_without_hooks_are_packed_beside_one_with() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    model = random_clip(VIT)
    plain = model.optimize()
    first(model, MLP).c_fc.register_forward_hook(double)
    assert plain.optimizations == ("17 linear layers packed for oneDNN",)
    assert model.optimize().optimizations == ("16 linear layers packed for oneDNN",)


# Forward-mode derivatives, which `torch.no_grad` does not switch off.


# torch itself scripts some of its derivatives, which it has deprecated.
SCRIPTS = pytest.mark.filterwarnings("ignore:`torch.jit")


@SCRIPTS
@CONFIGS
@pytest.mark.parametrize("gradients", [True, False])
def test_tangents_pass_the_towers(config: CLIPConfig, gradients: bool) -> None:
    model = randomize(CLIP(config)).requires_grad_(False)
    images = images_for(model)
    tangent = images.flip(0)
    exact = copy.deepcopy(model).double()
    step = 1e-7 * tangent.double()
    higher = exact.encode_image(images.double() + step)
    expected = (higher - exact.encode_image(images.double() - step)) / 2e-7
    # The faster kernel of attention has no such derivative, which torch says.
    with (
        torch.set_grad_enabled(gradients),
        sdpa_kernel(SDPBackend.MATH),
        forward_ad.dual_level(),
    ):
        features = model.encode_image(forward_ad.make_dual(images, tangent))
        found = forward_ad.unpack_dual(features).tangent
    assert found is not None
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-2 * scale)


@SCRIPTS
def test_an_optimized_copy_refuses_tangents() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    fast = random_clip(VIT).optimize()
    images = images_for(fast)
    with (
        torch.no_grad(),
        forward_ad.dual_level(),
        pytest.raises(ValueError, match=r"a model from optimize\(\) has no gradients"),
    ):
        fast.encode_image(forward_ad.make_dual(images, images))


# Kind J: torch's defaults, while a model is loaded and used.


@pytest.mark.parametrize("setting", [torch.float64, torch.bfloat16, "meta"], ids=str)
def test_loading_and_encoding_do_not_follow_torchs_defaults(setting: Any, tmp_path: Path) -> None:
    model = randomize(CLIP(VIT, make_small_tokenizer()))
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    model.save_pretrained(tmp_path / "folder")
    image = torch.rand(3, 48, 48)
    images, texts = model.embed_images([image]), model.embed_texts(["a dog", "a cat"])
    dtype = torch.get_default_dtype()
    set_default: Any = torch.set_default_device if setting == "meta" else torch.set_default_dtype
    set_default(setting)
    try:
        bare = CLIP.from_pretrained(tmp_path / "bare.pt", config=VIT, device="cpu")
        loaded = CLIP.from_pretrained(tmp_path / "folder", device="cpu", resolution=64)
        assert bare.dtype == loaded.dtype == torch.float32
        assert bare.float() is bare
        loaded = CLIP.from_pretrained(tmp_path / "folder", device="cpu")
        assert torch.equal(loaded.embed_images([(image, 3)]), images)
        assert torch.equal(loaded.embed_texts(["a dog", "a cat"]), texts)
        fast = loaded.optimize().float()
        assert torch.isfinite(fast.embed_images([image])).all()
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)


# A result of a CUDA graph is overwritten by the next one.


@pytest.mark.parametrize("normalize", [True, False])
def test_features_of_an_optimized_copy_are_the_callers_own(normalize: bool) -> None:
    fast = random_clip(VIT).optimize()
    buffer = torch.rand(2, 32)
    object.__setattr__(fast.visual, "forward", lambda images: buffer)
    features = fast.encode_image(images_for(fast), normalize=normalize)
    expected = features.clone()
    buffer.fill_(0)
    assert torch.equal(features, expected)
    assert features.any()


def test_a_large_batch_of_a_resnet_goes_through_in_few_parts() -> None:
    model = random_clip(RESNET)
    fast = model.optimize()
    assert isinstance(fast.visual, ModifiedResNet)
    sizes: list[int] = []
    hook: Any = lambda module, arguments: sizes.append(len(arguments[0]))  # noqa: E731
    fast.visual.layer1.register_forward_pre_hook(hook)
    images = torch.zeros(100, 3, 64, 64)
    fast.encode_image(images)
    assert sizes == [50, 50]  # 300,000 pixels are 73 images, and parts are of one size


@pytest.mark.parametrize(
    ("channels", "stride", "has_shortcut"), [(64, 1, False), (64, 2, True), (32, 1, True)]
)
def test_the_shortcut_of_a_bottleneck_has_the_shape_of_its_output(
    channels: int, stride: int, has_shortcut: bool
) -> None:
    block = Bottleneck(channels, 16, stride).eval()
    assert (block.downsample is not None) == has_shortcut
    assert block(torch.zeros(1, channels, 8, 8)).shape == (1, 64, 8 // stride, 8 // stride)
