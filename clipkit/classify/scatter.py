"""Estimate how features scatter where there are fewer of them than directions."""

from typing import cast

import torch
from torch import Tensor

SMALLEST = 1e-12  # variance of features of unit length that is divided by


def span(rows: Tensor) -> Tensor:
    """Return an orthonormal basis (D, d) of all that rows (R, D) span, or of all space."""
    if len(rows) >= rows.shape[1]:
        return torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    basis, _ = cast("tuple[Tensor, Tensor]", torch.linalg.qr(rows.T))
    return basis


def shrinkage(covariance: Tensor, width: int, freedom: float) -> Tensor:
    """Return the share by which to shrink a covariance to a multiple of the identity.

    Chen et al. (2010), "oracle approximating shrinkage", as scikit-learn's `OAS` has it. With few
    images it is all of it.

    Args:
        covariance: of Gaussian samples, (d, d); in further directions they do not vary.
        width: D, the number of all directions.
        freedom: how many samples there are, less what was fitted to them.
    """
    trace = covariance.trace()
    squares = covariance.square().sum()
    above = squares + trace**2
    below = (freedom + 1) * (squares - trace**2 / width)
    # 0 / 0 where images of one class are all the same, and nothing to shrink if they vary evenly.
    return (above / below).nan_to_num(1.0, posinf=1.0).clamp(0, 1)


def shrunk_spectrum(
    covariance: Tensor, width: int, freedom: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the spectrum of a covariance that is shrunk by `shrinkage`.

    Args:
        covariance, width, freedom: as in `shrinkage`.

    Returns:
        The variances (d,) in rising order, above 0; their directions (d, d), in columns; the
        share () by which it was shrunk; and the variance () in all further directions.
    """
    share = shrinkage(covariance, width, freedom)
    level = covariance.trace() / width
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    shrunk = torch.lerp(covariance, identity * level, share)
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(shrunk))
    return values.clamp(min=SMALLEST), vectors, share, level * share
