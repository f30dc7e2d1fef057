"""clipkit.models.convolutions: fused convolutions compute what those of the model do."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.models import convolutions
from clipkit.models.convolutions import (
    FusedBottleneck,
    FusedConv2d,
    fuse_convolutions,
    pack_kernel,
)
from clipkit.models.resnet import Bottleneck, ModifiedResNet

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)

CONVOLUTIONS = 3 + 5 * 3 + 4


def make_tower() -> ModifiedResNet:
    """Return a small tower as it is when its batch norms are folded: convolutions with biases."""
    torch.manual_seed(0)
    tower = ModifiedResNet(
        resolution=(64, 64), layers=(1, 2, 1, 1), width=8, heads=4, output_dim=24
    )
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            if isinstance(child, nn.Conv2d):
                child.bias = nn.Parameter(torch.randn(child.out_channels))
    return tower.eval().requires_grad_(False)


def fused_copy(tower: ModifiedResNet) -> ModifiedResNet:
    other = copy.deepcopy(tower)
    assert fuse_convolutions(other) == CONVOLUTIONS
    return other


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Give what sets the number of torch's threads, which is as it was afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("side", [64, 96])
def test_features_are_the_same(count: int, side: int) -> None:
    tower = make_tower()
    fused = fused_copy(tower)
    images = torch.randn(count, 3, side, side)
    with torch.no_grad():
        expected, found = tower.run_to(images, -1), fused.run_to(images, -1)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        if side == 64 and count:
            assert expected.std() > 0.1
            torch.testing.assert_close(fused(images), tower(images), rtol=1e-4, atol=1e-4)


def test_each_block_is_the_same() -> None:
    tower = make_tower()
    fused = fused_copy(tower)
    for name, block in tower.named_modules():
        if isinstance(block, Bottleneck):
            other = fused.get_submodule(name)
            assert isinstance(other, FusedBottleneck)
            x = torch.randn(2, block.conv1.in_channels, 16, 16)
            before = x.clone()
            with torch.no_grad():
                torch.testing.assert_close(other(x), block(x), rtol=1e-4, atol=1e-5)
            assert torch.equal(x, before)


def test_copies_and_pickles_compute_the_same() -> None:
    fused = fused_copy(make_tower())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = fused(images)
        assert torch.equal(copy.deepcopy(fused)(images), expected)
        assert torch.equal(pickle.loads(pickle.dumps(fused))(images), expected)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list to which each weight goes that is packed."""
    found: list[Tensor] = []

    def note(weight: Tensor, *how: Any) -> Tensor:
        found.append(weight)
        return pack_kernel(weight, *how)

    monkeypatch.setattr(convolutions, "pack_kernel", note)
    return found


def test_weights_are_packed_once_for_a_shape_and_number_of_threads(
    threads: Callable[[int], None], packed: list[Tensor]
) -> None:
    threads(2)
    fused = fused_copy(make_tower())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = fused(images)
        assert len(packed) == CONVOLUTIONS
        fused(images)
        assert len(packed) == CONVOLUTIONS
        threads(1)
        torch.testing.assert_close(fused(images), expected)
        assert len(packed) == 2 * CONVOLUTIONS
        torch.testing.assert_close(fused(images[:1]), expected[:1])
    assert len(packed) == 3 * CONVOLUTIONS


def test_other_weights_are_packed_anew() -> None:
    fused = fused_copy(make_tower())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = fused(images)
        assert isinstance(fused.conv3, FusedConv2d)
        fused.conv3.weight.mul_(-1)
        after = fused(images)
        assert not torch.allclose(after, before)
        assert torch.equal(copy.deepcopy(fused)(images), after)


def test_gradients_are_those_of_the_tower() -> None:
    tower = make_tower()
    fused = fused_copy(tower)
    found: list[Tensor] = []
    for each in (tower, fused):
        images = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64).requires_grad_()
        each.run_to(images, -1).square().sum().backward()
        assert images.grad is not None
        found.append(images.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [8, 9, 10, 11])
def test_parts_of_a_batch_are_of_one_size(count: int) -> None:
    fused = fused_copy(make_tower())
    fused.pixels_at_once = 5 * 64 * 64
    sizes: list[int] = []
    fused.layer1.register_forward_hook(lambda _, inputs, out: sizes.append(len(out)))
    with torch.no_grad():
        fused(torch.randn(count, 3, 64, 64))
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // 5)


def hooked(block: Bottleneck) -> None:
    block.conv2.register_forward_hook(lambda *_: None)


def hooked_as_a_whole(block: Bottleneck) -> None:
    block.register_forward_hook(lambda *_: None)


def other_activation(block: Bottleneck) -> None:
    block.relu2 = nn.ReLU6()  # pyright: ignore[reportAttributeAccessIssue]


def other_convolution(block: Bottleneck) -> None:
    block.conv2.dilation = (2, 2)
    block.conv2.padding = (2, 2)


def other_forward(block: Bottleneck) -> None:
    block.forward = lambda x: x.relu()  # type: ignore[method-assign]


def with_a_norm(block: Bottleneck) -> None:
    block.bn3 = nn.BatchNorm2d(block.conv3.out_channels).eval()


CHANGES = [
    hooked,
    hooked_as_a_whole,
    other_activation,
    other_convolution,
    other_forward,
    with_a_norm,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_that_was_changed_stays(change: Callable[[Bottleneck], None]) -> None:
    tower = make_tower()
    block = tower.get_submodule("layer2.1")
    assert isinstance(block, Bottleneck)
    change(block)
    other = copy.deepcopy(tower)
    assert fuse_convolutions(other) == CONVOLUTIONS - 3
    assert type(other.get_submodule("layer2.1")) is Bottleneck
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(images), tower(images), rtol=1e-4, atol=1e-4)


def test_a_stem_that_was_changed_stays() -> None:
    tower = make_tower()
    tower.relu2.register_forward_hook(lambda *_: None)
    assert fuse_convolutions(tower) == CONVOLUTIONS - 1
    assert type(tower.conv2) is nn.Conv2d
    assert type(tower.conv3) is FusedConv2d


def missing(*_: object) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")


def refusing(*_: object) -> Tensor:
    raise RuntimeError("mkldnn::_convolution_pointwise() is missing value for argument")


def without_activation(
    x: Tensor,
    other: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    padding: tuple[int, int],
    stride: tuple[int, int],
    activation: str,
) -> Tensor:
    del activation
    out = F.conv2d(x, weight.to_dense(), bias, stride, padding)
    return out if other is None else out + other


@pytest.mark.parametrize("op", [missing, refusing, without_activation])
def test_an_op_that_is_not_what_it_was_is_not_used(
    op: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = convolutions._ops_agree.__wrapped__
    monkeypatch.setattr(convolutions, "_convolve", op)
    monkeypatch.setattr(convolutions, "_ops_agree", probe)
    assert fuse_convolutions(make_tower()) == 0


def test_the_ops_of_this_torch_are_found_good() -> None:
    assert convolutions._ops_agree.__wrapped__(torch.float32)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_without_onednn_nothing_is_fused() -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        assert fuse_convolutions(make_tower()) == 0
    assert fuse_convolutions(make_tower().half()) == 0


def test_weights_that_were_made_for_inference_do_as_well() -> None:
    tower = make_tower()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        fused = fused_copy(tower)
        within = fused(images)
    assert fused.conv1.weight.is_inference()
    with torch.no_grad():
        expected = tower(images)
        torch.testing.assert_close(within, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused(images), expected, rtol=1e-4, atol=1e-4)
