"""Patches are embedded as by a convolution."""

import pytest
import torch
import torch.nn.functional as F

from clipkit.models.vision_transformer import Patches


@pytest.mark.parametrize("size", [(20, 12), (23, 15)])  # with a rest at the edges
def test_patches_are_a_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(3)
    layer, images = Patches(3, 7, 4), torch.randn(2, 3, *size)
    with torch.no_grad():
        y = layer(images)
    expected = F.conv2d(images.double(), layer.weight.detach().double(), stride=4)
    assert y.shape == expected.shape == (2, 7, 5, 3)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=2e-6)
    layer.stride = (2, 2)  # denser
    assert torch.equal(layer(images), F.conv2d(images, layer.weight, stride=2))


def test_patches_have_the_gradients_of_a_convolution() -> None:
    torch.manual_seed(3)
    layer, images = Patches(3, 7, 4), torch.randn(2, 3, 20, 12, requires_grad=True)
    inputs = [images, layer.weight]
    found = torch.autograd.grad(layer(images).square().sum(), inputs)
    by_torch = F.conv2d(images, layer.weight, stride=4).square().sum()
    expected = torch.autograd.grad(by_torch, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
