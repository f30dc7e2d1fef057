"""The contrastive losses against float64 NumPy and known cases, in one piece and in tiles."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.errors import ConfigError
from clipkit.training import losses
from clipkit.training.losses import clip_logit_scale_, clip_loss, sigmoid_loss


@pytest.fixture(autouse=True, params=[losses.TILE, 20, 1], ids=["plain", "tiles", "rows"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Every test runs by the plain formula, in tiles of several rows, and row by row."""
    monkeypatch.setattr(losses, "TILE", request.param)
    return request.param


def some_features(n: int = 6, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=random) * 3, torch.randn(n, d, generator=random) + 0.5


def oracle(images: Any, texts: Any, log_scale: float) -> float:
    """Figure 3 of 2103.00020 in float64, by counting each row's and each column's surprise."""
    images, texts = (np.asarray(f, np.float64) for f in (images, texts))
    images, texts = (f / np.sqrt((f**2).sum(1, keepdims=True)) for f in (images, texts))
    logits = min(math.exp(log_scale), 100) * images @ texts.T
    n = len(logits)
    by_row = sum(math.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(n)) / n
    by_column = sum(math.log(np.exp(logits[:, i]).sum()) - logits[i, i] for i in range(n)) / n
    return (by_row + by_column) / 2


@pytest.mark.parametrize("log_scale", [0.0, 2.6592, 4.6, math.log(100), 5.0])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_equals_the_oracle(n: int, log_scale: float) -> None:
    images, texts = some_features(n)
    loss = clip_loss(images, texts, torch.tensor(log_scale))
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(oracle(images, texts, log_scale), rel=5e-6, abs=5e-6)


def test_rows_and_columns_both_count() -> None:
    """Two texts are alike: each image finds its own, but one text cannot tell. Swapping is free."""
    images, texts = torch.eye(3), torch.eye(3)
    texts[1] = texts[0]
    scale = torch.tensor(math.log(10.0))
    loss = clip_loss(images, texts, scale).item()
    assert loss == pytest.approx(oracle(images, texts, math.log(10)), rel=1e-6)
    assert loss == pytest.approx(clip_loss(texts, images, scale).item(), rel=1e-6)


@pytest.mark.parametrize("n", [2, 5])
def test_known_values(n: int) -> None:
    pairs = torch.eye(n)
    # Each finds its own at the logit e, the others at 0.
    loss = clip_loss(pairs, pairs, torch.tensor(1.0))
    assert loss.item() == pytest.approx(math.log(1 + (n - 1) * math.exp(-math.e)), rel=1e-6)
    alike = torch.ones(n, 4)
    assert clip_loss(alike, alike, torch.tensor(3.0)).item() == pytest.approx(math.log(n), rel=1e-6)


def test_length_does_not_matter_order_does() -> None:
    images, texts = some_features()
    scale = torch.tensor(3.0)
    loss = clip_loss(images, texts, scale)
    lengths = torch.linspace(0.1, 9, 6)[:, None]
    assert clip_loss(images * lengths, texts * 7, scale).item() == pytest.approx(
        loss.item(), rel=1e-5
    )
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert clip_loss(images[order], texts[order], scale).item() == pytest.approx(
        loss.item(), rel=1e-5
    )
    assert abs(clip_loss(images[order], texts, scale).item() - loss.item()) > 0.1


def test_gradients_equal_finite_differences_of_the_oracle() -> None:
    inputs = [*some_features(), torch.tensor(2.0)]
    leaves = [value.clone().requires_grad_() for value in inputs]
    clip_loss(leaves[0], leaves[1], leaves[2]).backward()
    for which, leaf in enumerate(leaves):
        assert leaf.grad is not None
        for place in np.ndindex(tuple(leaf.shape)):
            values = []
            for step in (1e-5, -1e-5):
                moved = [value.double().numpy().copy() for value in inputs]
                moved[which][place] += step
                values.append(oracle(moved[0], moved[1], float(moved[2])))
            assert leaf.grad[place].item() == pytest.approx(
                (values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6
            )


def test_the_scale_stops_at_100_and_can_come_back() -> None:
    """A loop that clips the parameter leaves it at float32(log 100), with a gradient still."""
    images, texts = some_features()

    def loss_and_gradient(log_scale: float) -> tuple[float, float]:
        parameter = torch.tensor(log_scale, requires_grad=True)
        loss = clip_loss(images, texts, parameter)
        loss.backward()
        assert parameter.grad is not None
        return loss.item(), parameter.grad.item()

    at_limit, slope = loss_and_gradient(math.log(100))
    assert slope != 0
    assert loss_and_gradient(9.0) == (pytest.approx(at_limit, rel=5e-6), 0)
    below, other_slope = loss_and_gradient(math.log(90))
    assert abs(below - at_limit) > 1e-3
    assert slope == pytest.approx(other_slope, rel=0.3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_is_computed_in_float32(dtype: torch.dtype) -> None:
    images, texts = (features.to(dtype) for features in some_features())
    expected = oracle(images.double(), texts.double(), 4.0)
    scale = torch.tensor(4.0, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = clip_loss(images, texts, scale)
    for loss in (clip_loss(images, texts, scale), automatic):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize(
    ("images", "texts", "shapes"),
    [
        (torch.ones(4, 3), torch.ones(5, 3), r"\(4, 3\) and \(5, 3\)"),
        (torch.ones(4, 3), torch.ones(4, 2), r"\(4, 3\) and \(4, 2\)"),
        (torch.ones(4), torch.ones(4), r"\(4,\) and \(4,\)"),
        (torch.ones(2, 4, 3), torch.ones(2, 4, 3), r"\(2, 4, 3\) and \(2, 4, 3\)"),
        (torch.ones(0, 3), torch.ones(0, 3), r"\(0, 3\) and \(0, 3\)"),
    ],
)
def test_wrong_shapes_are_refused(images: Tensor, texts: Tensor, shapes: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"of one shape \(N, D\) with N at least 1, not {shapes}"
    ):
        clip_loss(images, texts, torch.tensor(1.0))
    with pytest.raises(
        ConfigError, match="sigmoid_loss needs image and text features of one shape"
    ):
        sigmoid_loss(images, texts, torch.tensor(1.0))


@pytest.mark.parametrize("noise", [0.3, 1.0, 5.0])  # from nearly solved to hopeless
def test_tiles_equal_float64(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of 300 pairs and each gradient, within 1e-6; also where the loss is 3e-5."""
    random = torch.Generator().manual_seed(1)
    images = torch.randn(300, 64, generator=random)
    texts = images + noise * torch.randn(300, 64, generator=random)

    def results(dtype: torch.dtype) -> list[Tensor]:
        leaves = [
            x.detach().to(dtype, copy=True).requires_grad_()
            for x in (images, texts, torch.tensor(3.0))
        ]
        if dtype == torch.float64:
            a, b = (x / x.norm(dim=1, keepdim=True) for x in leaves[:2])
            logits = leaves[2].exp() * a @ b.T
            loss = -(logits.log_softmax(0) + logits.log_softmax(1)).diagonal().mean() / 2
        else:
            loss = clip_loss(leaves[0], leaves[1], leaves[2])
        loss.backward()
        return [loss.detach(), *(leaf.grad for leaf in leaves)]  # pyright: ignore[reportReturnType]

    monkeypatch.setattr(losses, "TILE", min(losses.TILE, 700))
    for ours, exact in zip(results(torch.float32), results(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-6)


def sigmoid_oracle(images: Any, texts: Any, log_scale: float, bias: float) -> float:
    """Algorithm 1 of 2303.15343 in float64, combination by combination."""
    images, texts = (np.asarray(f, np.float64) for f in (images, texts))
    total, n = 0.0, len(images)
    for i in range(n):
        for j in range(n):
            cosine = images[i] @ texts[j] / np.linalg.norm(images[i]) / np.linalg.norm(texts[j])
            logit = math.exp(log_scale) * cosine + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / n


@pytest.mark.parametrize(("log_scale", "bias"), [(math.log(10), -10.0), (1.0, 0.0), (3.0, -2.0)])
@pytest.mark.parametrize("n", [1, 6])
def test_sigmoid_equals_the_oracle(n: int, log_scale: float, bias: float) -> None:
    inputs = [*some_features(n), torch.tensor(log_scale), torch.tensor(bias)]
    leaves = [value.clone().requires_grad_() for value in inputs]
    loss = sigmoid_loss(leaves[0], leaves[1], leaves[2], logit_bias=leaves[3])
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        sigmoid_oracle(inputs[0], inputs[1], log_scale, bias), rel=5e-6
    )
    loss.backward()
    for which in (2, 3):
        values = [
            sigmoid_oracle(
                inputs[0], inputs[1], log_scale + d * (which == 2), bias + d * (which == 3)
            )
            for d in (1e-5, -1e-5)
        ]
        gradient = leaves[which].grad
        assert gradient is not None
        assert gradient.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None


def test_the_default_bias_is_siglips() -> None:
    images, texts = some_features()
    loss = sigmoid_loss(images, texts, torch.tensor(2.0))
    assert loss.item() == pytest.approx(sigmoid_oracle(images, texts, 2.0, -10.0), rel=5e-6)


def test_the_parameter_is_clipped_in_place() -> None:
    for start, end in ((9.0, math.log(100)), (1.0, 1.0)):
        parameter = torch.nn.Parameter(torch.tensor(start))
        clip_logit_scale_(parameter)
        assert parameter.item() == pytest.approx(end)
        assert parameter.requires_grad
