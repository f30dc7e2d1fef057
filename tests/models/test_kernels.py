"""Which kernel computes a linear layer, and that it makes no difference but in time."""

import copy
import pickle
import platform
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipkit.errors import ConfigError
from clipkit.models import kernels
from clipkit.models.layers import QuickGELU

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """oneDNN is taken for the faster one; the list gets the input of each product that it computes."""
    seen: list[Any] = []
    genuine = kernels._onednn_linear
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(
        kernels, "_onednn_linear", lambda x, *rest: (seen.append(x), genuine(x, *rest))[1]
    )
    yield seen


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (1, 24), (4, 0, 24), (70, 24)])
def test_onednn_computes_the_same(shape: tuple[int, ...], calls: list[Any]) -> None:
    torch.manual_seed(0)
    layer, x = kernels.Linear(24, 17), torch.randn(shape)
    with torch.no_grad():
        y = layer(x)
        strided = layer(torch.randn(24, *shape[:-1]).movedim(0, -1).copy_(x))
    oracle = (
        x.double().numpy() @ layer.weight.detach().double().numpy().T
        + layer.bias.detach().double().numpy()
    )
    assert len(calls) == 2 and y.shape == (*shape[:-1], 17) and y.is_contiguous()
    np.testing.assert_allclose(y.numpy(), oracle, rtol=0, atol=2e-6)
    np.testing.assert_allclose(strided.numpy(), oracle, rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # from the switch, torch's own
@pytest.mark.parametrize(
    "why", ["gradient", "switch", "autocast", "bfloat16", "float64", "compiled"]
)
def test_blas_where_onednn_would_not_do(why: str, calls: list[Any]) -> None:
    layer, x = kernels.Linear(8, 8), torch.randn(3, 8)
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(why, torch.float32)
    layer, x = layer.to(dtype), x.to(dtype)
    switch: Any = torch.backends.mkldnn.flags(enabled=False) if why == "switch" else nullcontext()
    cast: Any = torch.autocast("cpu", torch.bfloat16) if why == "autocast" else nullcontext()
    with torch.set_grad_enabled(why == "gradient"), switch, cast:
        if why == "compiled":
            torch.compile(layer, backend="eager", fullgraph=True)(x)
        else:
            layer(x)
    assert not calls


def test_gradients_and_copies_are_those_of_an_ordinary_layer() -> None:
    torch.manual_seed(2)
    layer, ordinary = kernels.Linear(6, 5), torch.nn.Linear(6, 5)
    ordinary.load_state_dict(layer.state_dict())
    x = torch.randn(4, 6)
    for module in (layer, ordinary, copy.deepcopy(layer)):
        module.zero_grad()
        module(x).square().sum().backward()
        assert (
            module.weight.grad is not None and ordinary.weight.grad is not None or module is layer
        )
    assert layer.weight.grad is not None and torch.equal(layer.weight.grad, ordinary.weight.grad)


@pytest.mark.parametrize(
    "about, expected", [("vendor_id: AuthenticAMD", True), ("vendor_id: GenuineIntel", False)]
)
def test_the_choice_follows_the_vendor(
    about: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: about)
    assert kernels._onednn_is_faster.__wrapped__() is expected


def test_the_choice_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(
        platform, "processor", lambda: "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD"
    )
    assert kernels._onednn_is_faster.__wrapped__()


def test_quick_gelu_has_the_same_bits_with_and_without_gradients() -> None:
    x = torch.linspace(-20, 20, 1001)
    kept = x.clone()
    with torch.no_grad():
        y = QuickGELU()(x)
    assert torch.equal(x, kept) and torch.equal(y, QuickGELU()(x.requires_grad_()).detach())


@pytest.mark.parametrize("size", [(20, 12), (23, 15)])  # with a rest at the edges
def test_patches_are_a_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(3)
    layer, images = kernels.Patches(3, 7, 4), torch.randn(2, 3, *size)
    with torch.no_grad():
        y = layer(images)
    expected = F.conv2d(images.double(), layer.weight.detach().double(), stride=4)
    assert y.shape == expected.shape == (2, 7, 5, 3)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-6)
    layer.stride = (2, 2)  # denser
    assert torch.equal(layer(images), F.conv2d(images, layer.weight, stride=2))
    layer.stride = (4, 4)
    images.requires_grad_()
    found = torch.autograd.grad(layer(images).square().sum(), [images, layer.weight])
    expected = torch.autograd.grad(
        F.conv2d(images, layer.weight, stride=4).square().sum(), [images, layer.weight]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
def test_packed_weights_compute_the_same(activation: str) -> None:
    torch.manual_seed(4)
    x, weight, bias = torch.randn(2, 5, 24), torch.randn(17, 24), torch.randn(17)
    packed = kernels.pack(weight)
    expected = F.linear(x, weight, bias)
    expected = {"none": expected, "gelu": F.gelu(expected), "swish": F.silu(expected)}[activation]
    for each in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert each.is_mkldnn and each.shape == (17, 24)
        torch.testing.assert_close(
            kernels.linear(x, each, bias, activation), expected, rtol=0, atol=2e-5
        )
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ConfigError, match="takes no autocast: cast the model"),
    ):
        kernels.linear(x, packed, bias)
    with pytest.raises(ConfigError, match=r"optimize\(\) has no gradients"):
        kernels.linear(x.requires_grad_(), packed, bias)
