"""Read features of images with labels from `.npz` files, one for each set.

Each has `pool` (N, D) and `pool_labels` (N,), to draw support sets from; `test` (M, D) and
`test_labels` (M,), to measure on; `w` (C, D), the features of the class texts; and `logit_scale`,
the factor of the cosines. `kind`, if it is there, says what they are, such as "real".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit


@dataclass(frozen=True)
class FeatureSet:
    """Hold a set of images: features (N, D) of unit length, labels (N,), and the texts' head."""

    name: str
    pool: Tensor
    pool_labels: Tensor
    test: Tensor
    test_labels: Tensor
    zero_shot: clipkit.CosineHead
    kind: str = ""


def read_feature_set(path: Path) -> FeatureSet:
    """Return what a file holds, in float32."""
    with np.load(path) as arrays:
        rows = {
            name: F.normalize(torch.from_numpy(arrays[name].astype(np.float32)), dim=1)
            for name in ("pool", "test", "w")
        }
        labels = {
            name: torch.from_numpy(arrays[name].astype(np.int64))
            for name in ("pool_labels", "test_labels")
        }
        scale = torch.tensor(float(arrays["logit_scale"])).log()
        kind = str(arrays["kind"]) if "kind" in arrays else ""
    head = clipkit.CosineHead(rows["w"], scale)
    return FeatureSet(
        path.stem, rows["pool"], test=rows["test"], zero_shot=head, kind=kind, **labels
    )


def read_feature_sets(folder: Path) -> Iterator[FeatureSet]:
    """Yield the set of each `.npz` of a folder, by name."""
    for path in sorted(folder.glob("*.npz")):
        yield read_feature_set(path)
