"""Read features of images with labels from `.npz` files, one for each set.

Each has `pool` (N, D) and `pool_labels` (N,), to draw support sets from; `test` (M, D) and
`test_labels` (M,), to measure on; `w` (C, D), the features of the class texts; and `logit_scale`,
the factor of the cosines. `kind`, if it is there, says what they are, such as "real".
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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

    def only(self, classes: Tensor) -> "FeatureSet":
        """Return the set of some of the classes, (K,), renumbered."""
        numbers = torch.full((self.zero_shot.classes,), -1)
        numbers[classes] = torch.arange(len(classes))
        pool, test = numbers[self.pool_labels], numbers[self.test_labels]
        head = clipkit.CosineHead(self.zero_shot.weight[classes], self.zero_shot.logit_scale)
        return replace(
            self,
            pool=self.pool[pool >= 0],
            pool_labels=pool[pool >= 0],
            test=self.test[test >= 0],
            test_labels=test[test >= 0],
            zero_shot=head,
        )

    def images_of_others(self, classes: Tensor) -> Tensor:
        """Return the test images of all other classes."""
        return self.test[~torch.isin(self.test_labels, classes)]


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
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise SystemExit(f"there is no .npz in {folder}: the docstring says how features are made")
    for path in paths:
        yield read_feature_set(path)
