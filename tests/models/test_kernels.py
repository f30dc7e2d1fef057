"""Which kernel computes a linear layer, and that it makes no difference but in time."""

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from clipkit.errors import ConfigError
from clipkit.models import kernels
from clipkit.models.kernels import PackedLinear, apply_linear, can_pack, linear, pack
from clipkit.models.layers import QuickGELU

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)
Calls = list[Tensor]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """Take oneDNN for the faster one; the list gets the input of each product that it computes."""
    seen: Calls = []
    genuine = kernels._onednn_linear
    kernels._onednn_agrees(torch.float32, packed=False)  # its own products are none of the list

    def watched(x: Tensor, *rest: Any) -> Tensor:
        seen.append(x)
        return genuine(x, *rest)

    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(kernels, "_most_rows", lambda: math.inf)
    monkeypatch.setattr(kernels, "_onednn_linear", watched)
    yield seen


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (1, 24), (4, 0, 24), (70, 24)])
def test_onednn_computes_the_same(shape: tuple[int, ...], calls: Calls) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 17), torch.randn(shape)
    strided = torch.empty(24, *shape[:-1]).movedim(0, -1).copy_(x)
    weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
    oracle = x.double().numpy() @ weight.T + bias
    with torch.no_grad():
        found = [
            apply_linear(layer, x),
            apply_linear(layer, strided),
            linear(x, layer.weight, layer.bias),
        ]
    assert len(calls) == 3
    for y in found:
        assert y.shape == (*shape[:-1], 17)
        assert y.is_contiguous()
        np.testing.assert_allclose(y.numpy(), oracle, rtol=0, atol=2e-6)


class Doubled(nn.Linear):
    """A layer that is no ordinary one."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Int8Weight(Tensor):
    """A weight that knows `F.linear` and nothing else, as the tensors of quantizers do."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def of(weight: Tensor) -> "Int8Weight":
        quantized = Int8Weight(torch.empty(weight.shape))
        quantized.scale = weight.abs().max() / 127
        quantized.codes = (weight / quantized.scale).round().to(torch.int8)
        return quantized

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear:
            x, weight, *bias = args
            return F.linear(x, weight.codes.float() * weight.scale, *bias)
        if getattr(func, "__name__", "") in ("__get__", "__set__", "abs", "detach"):
            return super().__torch_function__(func, types, args, kwargs or {})
        raise NotImplementedError(f"{func} of a quantized weight")


@needs_onednn
def test_subclasses_of_tensor_see_no_private_op(calls: Calls) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(5, 8), torch.randn(5), torch.randn(3, 8)
    quantized = Int8Weight.of(weight)
    with torch.no_grad():
        expected, found = F.linear(x, weight, bias), linear(x, quantized, bias)
    assert type(quantized) is Int8Weight
    assert calls == []
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)
    assert not can_pack(quantized)


@needs_onednn
def test_subclasses_of_tensor_as_input_see_no_private_op(calls: Calls) -> None:
    class Image(Tensor):
        pass

    with torch.no_grad():
        apply_linear(nn.Linear(8, 5), torch.randn(3, 8).as_subclass(Image))
    assert calls == []


# Ways to change a layer of 8 x 8 or its input, so that it must be called as it is.
Change = Callable[[nn.Linear, Tensor], tuple[nn.Module, Tensor]]


def with_forward(layer: nn.Linear, x: Tensor) -> tuple[nn.Module, Tensor]:
    forward = layer.forward
    layer.forward = lambda input: forward(input) + 1  # as accelerate's hooks do
    return layer, x


def add_one(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output + 1


def add_one_before(module: nn.Module, args: Any) -> tuple[Tensor]:
    return (args[0] + 1,)


def with_hook(layer: nn.Linear, x: Tensor) -> tuple[nn.Module, Tensor]:
    layer.register_forward_hook(add_one)
    return layer, x


def with_pre_hook(layer: nn.Linear, x: Tensor) -> tuple[nn.Module, Tensor]:
    layer.register_forward_pre_hook(add_one_before)
    return layer, x


CHANGES: dict[str, Change] = {
    "bfloat16": lambda layer, x: (layer.bfloat16(), x.bfloat16()),
    "float64": lambda layer, x: (layer.double(), x.double()),
    "meta": lambda layer, x: (layer.to("meta"), x.to("meta")),
    "forward": with_forward,
    "hook": with_hook,
    "pre-hook": with_pre_hook,
    "subclass": lambda layer, x: (Doubled(8, 8), x),
    "parametrized": lambda layer, x: (torch.nn.utils.parametrizations.weight_norm(layer), x),
}

# Where the private op may not compute.
CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradient": torch.enable_grad,
    "switch": lambda: torch.backends.mkldnn.flags(enabled=False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "counter": lambda: FlopCounterMode(display=False),
}


@needs_onednn
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_layers_are_called(change: Change, calls: Calls) -> None:
    torch.manual_seed(0)
    layer, x = change(nn.Linear(8, 8), torch.randn(3, 8))
    with torch.no_grad():
        found, expected = apply_linear(layer, x), layer(x)
    assert calls == []
    assert found.dtype == x.dtype
    assert x.is_meta or torch.equal(found, expected)


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # from the switch, torch's own
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_the_plain_kernel_where_onednn_would_not_do(
    context: Callable[[], AbstractContextManager[Any]], calls: Calls
) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    with torch.no_grad(), context():
        found = [apply_linear(layer, x), linear(x, layer.weight, layer.bias)]
        expected = layer(x)
    assert calls == []
    for y in found:
        assert torch.equal(y, expected)


@needs_onednn
def test_the_plain_kernel_under_a_hook_of_all_modules(calls: Calls) -> None:
    seen: list[nn.Module] = []
    handle = register_module_forward_hook(lambda module, args, output: seen.append(module))
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        apply_linear(layer, torch.randn(3, 8))
    handle.remove()
    assert seen == [layer]
    assert calls == []


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear(self.layer, linear(x, self.weight))


@needs_onednn
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("how", ["compile", "trace", "fx", "vmap"])
def test_recorded_graphs_have_the_plain_kernel(how: str, calls: Calls) -> None:
    torch.manual_seed(0)
    module, x = OneLayer().eval(), torch.randn(4, 3, 8)
    recorders: dict[str, Callable[[], Any]] = {
        "compile": lambda: torch.compile(module, backend="eager", fullgraph=True),
        "trace": lambda: torch.jit.trace(module, x, check_trace=False),
        "fx": lambda: torch.fx.symbolic_trace(module),
        "vmap": lambda: torch.vmap(module),
    }
    with torch.no_grad():
        found = recorders[how]()(x)
        assert calls == []
        torch.testing.assert_close(found, module(x), rtol=0, atol=1e-6)
    assert len(calls) == 2


def test_flops_are_counted_without_gradients(calls: Calls) -> None:
    x, layer = torch.randn(5, 8), nn.Linear(8, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        apply_linear(layer, x)
    assert counter.get_total_flops() == 2 * 5 * 8 * 3


# The private op may be another one tomorrow.


def missing(*args: Any) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def refusing(*args: Any) -> Tensor:
    raise NotImplementedError("Could not run 'mkldnn::_linear_pointwise'")


def transposed(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    return F.linear(x, weight.flip(0), bias)


def without_activation(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    return F.linear(x, weight, bias)


@pytest.mark.parametrize("op", [missing, refusing, transposed, without_activation])
@pytest.mark.parametrize("packed", [False, True])
def test_an_op_that_is_not_what_it_was_is_not_used(
    op: Callable[..., Tensor], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = kernels._onednn_agrees.__wrapped__
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(kernels, "pack", lambda weight: weight)
    monkeypatch.setattr(kernels, "_onednn_linear", op)
    assert not probe(torch.float32, packed)
    monkeypatch.setattr(kernels, "_onednn_agrees", probe)
    x, layer = torch.randn(3, 8), nn.Linear(8, 5)
    with torch.no_grad():
        assert torch.equal(apply_linear(layer, x), layer(x))
        assert torch.equal(linear(x, layer.weight, layer.bias), layer(x))
    assert not can_pack(layer.weight)


@needs_onednn
@pytest.mark.parametrize("packed", [False, True])
def test_the_op_of_this_torch_is_found_good(packed: bool) -> None:
    assert kernels._onednn_agrees(torch.float32, packed)


@needs_onednn
def test_the_op_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[torch.dtype] = []
    genuine = F.silu
    monkeypatch.setattr(kernels, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(F, "silu", lambda x: (tried.append(x.dtype), genuine(x))[1])
    kernels._onednn_agrees.cache_clear()
    with torch.no_grad():
        for _ in range(3):
            apply_linear(nn.Linear(8, 8), torch.randn(2, 8))
    assert len(tried) == 1


def test_gradients_are_those_of_the_layer() -> None:
    torch.manual_seed(2)
    layer, x = nn.Linear(6, 5), torch.randn(4, 6, requires_grad=True)
    inputs = [x, layer.weight, layer.bias]
    expected = torch.autograd.grad(layer(x).square().sum(), inputs)
    for y in (apply_linear(layer, x), linear(x, layer.weight, layer.bias)):
        found = torch.autograd.grad(y.square().sum(), inputs)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@needs_onednn
@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
def test_many_rows_are_multiplied_by_the_plain_weight(
    activation: kernels.Fused, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_most_rows", lambda: 6)
    torch.manual_seed(0)
    layer = nn.Linear(24, 17)
    packed = PackedLinear(pack(layer.weight), layer.bias, activation)
    few, many = torch.randn(2, 3, 24), torch.randn(7, 24)
    after = {"none": lambda y: y, "gelu": F.gelu, "swish": F.silu}[activation]
    for x, count in ((few, 1), (many, 0), (few[:0], 1)):
        calls.clear()
        for own in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            with torch.no_grad():
                torch.testing.assert_close(own(x), after(layer(x)), rtol=0, atol=1e-5)
        assert len(calls) == 3 * count
    calls.clear()
    with torch.no_grad():
        apply_linear(layer, many)
        linear(many, layer.weight, layer.bias)
        assert not calls
        apply_linear(layer, few)
    assert len(calls) == 1


def test_quick_gelu_has_the_same_bits_with_and_without_gradients() -> None:
    x = torch.linspace(-20, 20, 1001)
    kept = x.clone()
    with torch.no_grad():
        y = QuickGELU()(x)
    assert torch.equal(x, kept)
    assert torch.equal(y, QuickGELU()(x.requires_grad_()).detach())


@needs_onednn
@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
def test_packed_layers_compute_the_same(activation: kernels.Fused) -> None:
    torch.manual_seed(4)
    x, weight, bias = torch.randn(2, 5, 24), torch.randn(17, 24), torch.randn(17)
    expected = F.linear(x, weight, bias)
    expected = {"none": expected, "gelu": F.gelu(expected), "swish": F.silu(expected)}[activation]
    packed = PackedLinear(pack(weight), bias, activation)
    for layer in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert layer.weight.is_mkldnn
        assert layer.weight.shape == (17, 24)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=2e-5)
    assert repr(packed) == f"PackedLinear(24, 17, activation={activation!r})"


@needs_onednn
def test_packed_weights_refuse_autocast_and_gradients() -> None:
    x, packed, bias = torch.randn(5, 24), pack(torch.randn(17, 24)), torch.randn(17)
    torch.testing.assert_close(linear(x, packed, bias), F.linear(x, packed.to_dense(), bias))
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ConfigError, match="takes no autocast: cast the model"),
    ):
        linear(x, packed, bias)
    with pytest.raises(ConfigError, match=r"optimize\(\) has no gradients"):
        linear(x.requires_grad_(), packed, bias)
