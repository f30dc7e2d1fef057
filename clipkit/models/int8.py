"""Multiply by weights of int8 in torch, on the CPU.

Weights are rounded to 255 levels, which each output spaces as its own row needs; tokens to 128
levels between the smallest and the largest number of each, found as they come. So nothing has to be
calibrated, and no token sets the levels of another. Scales of this kind are those of LLM.int8()
(2208.07339), without its outliers in float.

The products are oneDNN's, by the private op that torch's compiler uses for them. It is tried once
before use. Its sums are exact: 128 levels, not 256, keep those of pairs in 16 bits, in which
processors without instructions for int8 add them up.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_OF_WEIGHT = 127  # the largest level of a weight; the smallest is its negative
MOST_OF_INPUT = 127  # the largest level of an input; the smallest is 0


@dataclass(frozen=True)
class Int8Scales:
    """Hold what the levels of a weight stand for.

    Args:
        steps: between the levels of each output, (out,) float32.
        sums: of each output's weights, (out,) float32. They multiply the smallest number of a
            token, which level 0 of it stands for.
    """

    steps: Tensor
    sums: Tensor

    def clone(self) -> "Int8Scales":
        """Return a copy with memory of its own."""
        return Int8Scales(self.steps.clone(), self.sums.clone())


def quantize_weight(weight: Tensor) -> tuple[Tensor, Int8Scales]:
    """Return the levels of a weight, (out, in) int8, and what they stand for.

    Args:
        weight: (out, in), any float dtype.
    """
    weight = weight.detach().float().contiguous()  # the op reads levels as they lie
    largest = weight.abs().amax(dim=1, keepdim=True)  # (out, 1)
    steps = (largest / MOST_OF_WEIGHT).clamp_min_(torch.finfo(torch.float32).tiny)
    levels = (weight / steps).round_()
    sums = levels.sum(dim=1) * steps.squeeze(1)
    return levels.to(torch.int8), Int8Scales(steps.squeeze(1), sums)


def pack_levels(levels: Tensor) -> Tensor:
    """Return the levels of a weight (out, in) in oneDNN's own order, as an (in, out)."""
    return torch.ops.onednn.qlinear_prepack(levels, None)


def multiply(x: Tensor, packed: Tensor, scales: Int8Scales, bias: Tensor | None) -> Tensor:
    """Return nearly `F.linear(x, weight, bias)`.

    Args:
        x: (..., in) float32 or bfloat16.
        packed: the weight's levels, from `pack_levels`.
        scales: of the weight.
        bias: (out,).

    Returns:
        (..., out), in the dtype of `x`.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    if len(rows) == 0:
        return x.new_zeros(*x.shape[:-1], len(scales.steps))
    levels, low, step = _quantize_rows(rows)
    products = _products(levels, packed, scales.steps)
    # A number is low + level x step, so its product with a weight is low x weight + step x product.
    start = low * scales.sums if bias is None else torch.addcmul(bias.float(), low, scales.sums)
    y = start.addcmul_(products, step)
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the levels of each row, (R, in) uint8, its smallest number and its step, (R, 1)."""
    low = rows.amin(dim=1, keepdim=True)  # aminmax takes three times as long as these two
    step = (rows.amax(dim=1, keepdim=True) - low) / MOST_OF_INPUT
    step.clamp_min_(torch.finfo(torch.float32).tiny)  # a row of equal numbers has none
    levels = (rows - low).mul_(1 / step).add_(0.5)  # to the nearest once it is cut off
    # Up to 127 the bits of both dtypes are the same, and a cast to uint8 takes seven times as long.
    return levels.to(torch.int8).view(torch.uint8), low, step


def _products(levels: Tensor, packed: Tensor, steps: Tensor) -> Tensor:
    """Return the products of levels with a weight, (R, in) uint8 -> (R, out) float32."""
    zero_points = steps.new_zeros(len(steps), dtype=torch.int64)
    return torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, 0, packed, steps, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
    )


@functools.cache
def has_int8() -> bool:
    """Return whether torch's private op is there, and multiplies as it should.

    Another version of torch may lack it or have changed it, and so may another processor.
    """
    numbers = torch.arange(7 * 768, device="cpu") * 37 % 128
    x = numbers[: 3 * 768].view(3, 768).to(torch.uint8)
    weight = (numbers[3 * 768 :].view(4, 768) * 2 - 127).to(torch.int8)
    # Sums of two products that 16 bits hold, but only just.
    x[0], weight[0] = MOST_OF_INPUT, MOST_OF_WEIGHT
    expected = (x.double() @ weight.double().T).float()
    steps = torch.ones(4, dtype=torch.float32, device="cpu")
    try:
        return torch.equal(_products(x, pack_levels(weight), steps), expected)
    # There is no such op, it does not run here, or it takes other arguments.
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
