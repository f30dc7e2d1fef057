"""Weights of int8 in torch: products are exact on their levels, and features stay near."""

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from clipkit import CLIP
from clipkit.encode.fingerprints import fingerprint
from clipkit.errors import ConfigError
from clipkit.models import fast as fast_models
from clipkit.models import int8
from clipkit.models.int8 import has_int8, multiply, pack_levels, quantize_weight
from clipkit.models.kernels import PackedLinear, linear, pack_int8
from clipkit.models.layers import MLP
from tests.helpers.towers import make_inputs, make_resnet, make_vit, with_low_rank_changes

pytestmark = pytest.mark.skipif(not has_int8(), reason="this torch does not multiply in int8")

Doubles = NDArray[np.float64]


def product_by_numpy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Doubles:
    """Return a product of rows, (R, in) times (out, in), on levels that NumPy rounds to."""
    rows, weights = x.double().numpy(), weight.double().numpy()
    low = rows.min(axis=1, keepdims=True)
    steps_of_rows = (rows.max(axis=1, keepdims=True) - low) / 127
    steps_of_rows[steps_of_rows == 0] = 1
    steps_of_weights = np.abs(weights).max(axis=1, keepdims=True) / 127
    steps_of_weights[steps_of_weights == 0] = 1
    rounded = low + np.rint((rows - low) / steps_of_rows) * steps_of_rows
    product = rounded @ (np.rint(weights / steps_of_weights) * steps_of_weights).T
    return product if bias is None else product + bias.double().numpy()


def assert_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Fail unless a product is NumPy's, but for levels that float noise rounds otherwise."""
    levels, scales = quantize_weight(weight)
    found = multiply(x, pack_levels(levels), scales, bias).double().numpy()
    expected = product_by_numpy(x, weight, bias)
    one_level = (x.amax(dim=1) - x.amin(dim=1)) / 127 * weight.abs().max()
    noise = 1e-5 * x.abs().amax(dim=1) * weight.abs().sum(dim=1).max()
    assert (np.abs(found - expected).max(axis=1) <= (one_level + noise).numpy()).all()
    # In most rows all of them are rounded alike.
    near = np.abs(found - expected) <= noise[:, None].numpy() + 1e-12
    assert near.all(axis=1).mean() >= 0.5


@pytest.mark.parametrize("shape", [(1, 8, 3), (5, 24, 17), (50, 768, 96), (3, 3072, 8)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_are_those_of_the_levels(shape: tuple[int, int, int], with_bias: bool) -> None:
    torch.manual_seed(0)
    rows, width, out = shape
    x, weight = torch.randn(rows, width) * 3 + 1, torch.randn(out, width)
    assert_product(x, weight, torch.randn(out) if with_bias else None)


def test_products_are_near_those_of_the_numbers() -> None:
    """The bound: half a step of each input times its weight, and the other way round."""
    torch.manual_seed(1)
    x, weight, bias = torch.randn(20, 300), torch.randn(40, 300), torch.randn(40)
    found = linear(x, pack_int8(weight), bias).double()
    exact = F.linear(x.double(), weight.double(), bias.double())
    step_of_x = (x.amax(dim=1) - x.amin(dim=1)).double()[:, None] / 127
    step_of_weight = weight.abs().amax(dim=1).double() / 127
    size_of_x = (x.double().abs() + step_of_x / 2).sum(dim=1, keepdim=True)
    bound = step_of_x / 2 * weight.double().abs().sum(dim=1) + step_of_weight / 2 * size_of_x
    assert ((found - exact).abs() <= bound).all()
    assert F.cosine_similarity(found, exact).min() > 0.999


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(3, 64),
        torch.full((3, 64), -2.5),
        torch.arange(64.0).repeat(3, 1) * 1e-30,
        torch.arange(64.0).repeat(3, 1) * 1e30,
        torch.arange(64.0).repeat(3, 1) * 1e-3 + 1000,  # few of its digits differ
        torch.eye(3, 64) * 1e4 + torch.arange(64.0),  # an outlier in each
    ],
)
def test_unusual_rows_are_multiplied(x: Tensor) -> None:
    torch.manual_seed(2)
    assert_product(x, torch.randn(5, 64), None)


def test_unusual_weights_are_multiplied() -> None:
    torch.manual_seed(2)
    weight = torch.stack([torch.zeros(64), torch.full((64,), 3.0), torch.randn(64) * 1e-20])
    assert_product(torch.randn(4, 64), weight, torch.randn(3))


def test_no_sum_of_largest_levels_overflows() -> None:
    """Processors without instructions for int8 add two products up in 16 bits."""
    x = torch.ones(2, 4096)
    x[1, 2048:] = 0  # so that the others have the largest level; equal numbers all have level 0
    weight = torch.ones(3, 4096)
    weight[1] = -1
    found = linear(x, pack_int8(weight))
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-6, atol=0)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_row(number: float) -> None:
    torch.manual_seed(3)
    x, packed = torch.randn(3, 64), pack_int8(torch.randn(5, 64))
    expected = linear(x, packed)
    x[1, 7] = number
    found = linear(x, packed)
    assert not torch.isfinite(found[1]).any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_rows_do_not_depend_on_each_other() -> None:
    torch.manual_seed(4)
    x, packed, bias = torch.randn(9, 64) * 10, pack_int8(torch.randn(5, 64)), torch.randn(5)
    x[4] *= 1000
    together = linear(x, packed, bias)
    alone = torch.cat([linear(row, packed, bias) for row in x.split(1)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("shape", [(2, 3, 24), (0, 24), (4, 0, 24), (24,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["none", "gelu", "swish"])
def test_layers_keep_shape_and_dtype(
    shape: tuple[int, ...], dtype: torch.dtype, activation: Any
) -> None:
    torch.manual_seed(5)
    layer, x = nn.Linear(24, 17).to(dtype), torch.randn(shape).to(dtype)
    packed = PackedLinear(pack_int8(layer.weight), layer.bias, activation)
    after = {"none": lambda y: y, "gelu": F.gelu, "swish": F.silu}[activation]
    with torch.no_grad():
        expected = after(layer(x))
        for own in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            found = own(x)
            assert (found.shape, found.dtype) == (expected.shape, dtype)
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
            assert torch.equal(found, packed(x))


def test_weights_are_rounded_to_the_nearest_level() -> None:
    torch.manual_seed(6)
    weight = torch.randn(7, 40) * torch.logspace(-3, 3, 7)[:, None]
    steps = weight.abs().amax(dim=1, keepdim=True) / 127
    packed = pack_int8(weight)
    assert packed.dtype is torch.int8
    assert packed.scales is not None
    rounded = packed.to_dense().T * packed.scales.steps[:, None]
    assert ((rounded - weight).abs() <= 0.5001 * steps).all()


def test_weights_may_lie_in_any_order() -> None:
    torch.manual_seed(6)
    x, weight = torch.randn(4, 64), torch.randn(64, 5).T
    assert not weight.is_contiguous()
    assert torch.equal(linear(x, pack_int8(weight)), linear(x, pack_int8(weight.contiguous())))


def test_layers_say_their_sizes() -> None:
    layer = PackedLinear(pack_int8(torch.randn(17, 24)), None)
    assert repr(layer) == "PackedLinear(24, 17, activation='none', int8)"


def test_torchs_defaults_are_not_followed() -> None:
    torch.manual_seed(7)
    x, weight = torch.randn(3, 24), torch.randn(5, 24)
    expected = linear(x, pack_int8(weight))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert int8.has_int8.__wrapped__()
            assert torch.equal(linear(x, pack_int8(weight)), expected)
    finally:
        torch.set_default_dtype(torch.float32)


# Models.


@pytest.fixture(scope="module")
def vit() -> CLIP:
    return make_vit()


def test_features_are_near_those_of_float32(vit: CLIP) -> None:
    fast, plain, images = vit.optimize(int8=True), vit.optimize(), make_inputs("vit")
    # Four layers in each of two blocks.
    assert fast.optimizations[0] == "8 linear layers of the image tower in int8"
    with torch.no_grad():
        found, expected = fast.encode_image(images), vit.encode_image(images)
        assert F.cosine_similarity(found, expected).min() > 0.99
        assert not torch.allclose(found, expected, rtol=0, atol=1e-4)
        tokens = make_inputs("text")
        assert torch.equal(fast.encode_text(tokens), plain.encode_text(tokens))
    assert fast.dtype is torch.float32


def test_copies_compute_the_same(vit: CLIP) -> None:
    fast, images = vit.optimize(int8=True), make_inputs("vit")
    with torch.no_grad():
        expected = fast.encode_image(images)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert torch.equal(other.encode_image(images), expected)
            assert fingerprint(other.visual) == fingerprint(fast.visual)


def test_fingerprints_are_their_own(vit: CLIP) -> None:
    """Of two weights whose levels are alike, and of weights that rounding does not change, too."""
    larger, on_levels = copy.deepcopy(vit), copy.deepcopy(vit)
    for module in larger.visual.modules():
        if isinstance(module, MLP):
            module.c_proj.weight.data *= 2
    for name, weight in on_levels.visual.named_parameters():
        if "resblocks" in name and weight.ndim == 2:
            weight.data = weight.data.sign() * 0.25
    models = [vit, vit.optimize(), vit.optimize(int8=True), larger.optimize(int8=True)]
    models += [on_levels.optimize(), on_levels.optimize(int8=True)]
    assert len({fingerprint(model.visual) for model in models}) == 6


def test_low_rank_changes_are_merged(vit: CLIP) -> None:
    changed, images = with_low_rank_changes(vit), make_inputs("vit")
    with torch.no_grad():
        found, expected = changed.optimize(int8=True).encode_image(images), vit.encode_image(images)
        assert F.cosine_similarity(found, changed.encode_image(images)).min() > 0.98
        assert F.cosine_similarity(found, expected).max() < 0.98


def test_a_model_in_bfloat16_keeps_its_dtype(vit: CLIP) -> None:
    half, images = copy.deepcopy(vit).bfloat16(), make_inputs("vit")
    with torch.no_grad():
        found = half.optimize(int8=True).encode_image(images)
        assert found.dtype is torch.bfloat16
        assert F.cosine_similarity(found.float(), vit.encode_image(images)).min() > 0.98


def test_hooked_layers_are_called(vit: CLIP) -> None:
    hooked, seen = copy.deepcopy(vit), []
    first = next(module for module in hooked.visual.modules() if isinstance(module, MLP))
    first.c_fc.register_forward_hook(lambda *_: seen.append(1))
    fast = hooked.optimize(int8=True)
    assert fast.optimizations[0] == "7 linear layers of the image tower in int8"
    with torch.no_grad():
        fast.encode_image(make_inputs("vit"))
    assert seen


def test_copies_have_no_gradients_and_take_no_autocast(vit: CLIP) -> None:
    fast, images = vit.optimize(int8=True), make_inputs("vit")
    with pytest.raises(ConfigError, match="no gradients"):
        fast.encode_image(images.requires_grad_())
    with pytest.raises(ConfigError, match="takes no autocast"), torch.autocast("cpu"):
        fast.encode_image(images.detach())
    with pytest.raises(ConfigError, match="packed weights stay"):
        fast.double()


def test_choices_that_do_not_go_together_are_refused(vit: CLIP) -> None:
    with pytest.raises(ConfigError, match="leave int8=True or compile=True out"):
        vit.optimize(int8=True, compile=True)
    with pytest.raises(ConfigError, match="pass a hundred or so of your own as calibration="):
        vit.optimize(int8=True, runtime="openvino")
    with pytest.raises(ConfigError, match="pass int8=True in its place"):
        vit.optimize(int8=True, calibration=["no such image.jpg"])


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # from the switch, torch's own
def test_towers_that_cannot_be_quantized_are_refused(
    vit: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r'of the class ModifiedResNet: pass runtime="openvino"'):
        make_resnet().optimize(int8=True)
    with pytest.raises(ConfigError, match=r"in torch\.float64 on cpu: move or cast the model"):
        copy.deepcopy(vit).double().optimize(int8=True)
    with pytest.raises(ConfigError, match="on meta"):
        copy.deepcopy(vit).to("meta").optimize(int8=True)
    with (
        torch.backends.mkldnn.flags(enabled=False),
        pytest.raises(ConfigError, match=r"switched off: set torch\.backends\.mkldnn\.enabled"),
    ):
        vit.optimize(int8=True)
    hooked = copy.deepcopy(vit)
    for module in hooked.visual.modules():
        module.register_forward_hook(lambda *_: None)
    with pytest.raises(ConfigError, match="remove the hooks, or leave int8=True out"):
        hooked.optimize(int8=True)
    monkeypatch.setattr(fast_models, "has_int8", lambda: False)
    with pytest.raises(ConfigError, match="does not multiply in int8 on this processor: pass"):
        vit.optimize(int8=True)


def test_an_op_that_fails_or_errs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    look, genuine = int8.has_int8.__wrapped__, int8._products
    assert look()

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("could not create a primitive descriptor")

    def saturate(levels: Tensor, packed: Tensor, steps: Tensor) -> Tensor:
        """Lose what 15 bits do not hold, as another kernel might."""
        return genuine(levels, packed, steps).clamp(max=2**19)

    for broken in (fail, saturate, lambda *_: torch.zeros(3, 4)):
        monkeypatch.setattr(int8, "_products", broken)
        assert not look()
