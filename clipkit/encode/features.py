"""Hold the features of images, with the names and labels that belong to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from clipkit.errors import ImageError
from clipkit.plurals import number_of_classes


@dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Hold the features of M images, in the order in which the images were given.

    Attributes:
        features: (M, D) float32, on the CPU.
        labels: (M,) int64, or None where no integers came with the images.
        paths: the path of each of the M images, or the index of one that has no path. Row i of
            `features` belongs to `paths[i]`.
        skipped: path or index of each image that could not be read, and why. They have no row.
        class_names: the names of each label, if they are of a data set that has names for them;
            see `classes_of`.

    Example:
        found = clipkit.extract_features(model, "photos")
        for path, feature in zip(found.paths, found.features):
            print(path, feature.shape)  # (D,)
    """

    features: Tensor
    labels: Tensor | None
    paths: list[str]
    skipped: list[tuple[str, str]]
    class_names: dict[int, list[str]] | None = None

    def __len__(self) -> int:
        """Return the number of rows, M."""
        return len(self.paths)

    def __repr__(self) -> str:
        parts = [" x ".join(map(str, self.features.shape))]
        if self.labels is not None:
            classes = cast("list[int]", self.labels.unique().tolist())
            parts.append(f"labels: {number_of_classes(len(classes))}")
        if self.skipped:
            parts.append(f"{len(self.skipped)} skipped")
        return f"Features({', '.join(parts)})"


def refuse_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Raise `ImageError` for the first image that could not be read, if there is one.

    Args:
        skipped: as in `Features`.
    """
    if skipped:
        name, problem = skipped[0]
        raise ImageError(problem if name in problem else f"image {name}: {problem}")


def join(parts: Sequence[Features]) -> Features:
    """Return the parts one after the other. Labels of some of the rows alone are left out."""
    # A part in which all is skipped has neither a width nor labels.
    sound = [part for part in parts if part.paths]
    labels = [part.labels for part in sound if part.labels is not None]
    return Features(
        features=torch.cat([part.features for part in sound]) if sound else no_features(),
        labels=torch.cat(labels) if sound and len(labels) == len(sound) else None,
        paths=[path for part in parts for path in part.paths],
        skipped=[problem for part in parts for problem in part.skipped],
    )


def no_features() -> Tensor:
    """Return the features of no image, (0, 0), wherever torch puts new tensors by default."""
    return torch.empty(0, 0, dtype=torch.float32, device="cpu")
