"""List images whose own label a classifier that was not fitted on them finds unlikely.

Such an image is a mistake of the classifier or of whoever gave the label. Which of the two it is,
somebody must look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from clipkit.classify.metric_inputs import is_number
from clipkit.errors import ConfigError

# By examples/suspects.py: from 0.03 to 0.01 precision and recall together change little.
CUT = 0.02


@dataclass(frozen=True)
class Suspect:
    """Hold one image that may have a wrong label.

    Attributes:
        index: the image's row among those that were given and can be read.
        path: its file; None for an image that has none.
        label, probability: its own label, and how probable that is said to be.
        likelier, likelier_probability: the most probable label.

    Example:
        for suspect in classifier.suspects(images, labels):
            print(suspect.path, suspect.label, suspect.likelier)
    """

    index: int
    path: str | None
    label: str
    probability: float
    likelier: str
    likelier_probability: float


def find_suspects(
    class_names: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    *,
    cut: float = CUT,
    rows: Tensor | None = None,
    paths: Sequence[str | None] | None = None,
) -> list[Suspect]:
    """Return the images whose own label is less probable than `cut` times the likeliest one.

    Args:
        class_names: C names.
        probabilities: (N, C), of heads that were not fitted on the images; each row has the sum 1.
        labels: (N,) the images' own labels, integers.
        cut: above 0, at most 1. At 1 every image is listed that is taken for another class.
        rows: (N,) the number by which each image is known; by default 0 to N - 1.
        paths: N files of the images.

    Returns:
        The most suspicious first: those whose own label is the least probable beside the likeliest.

    Raises:
        ConfigError: for another cut.

    Example:
        >>> import torch
        >>> said = torch.tensor([[0.99, 0.01], [0.999, 0.001], [0.3, 0.7]])
        >>> [one.index for one in find_suspects(["cat", "dog"], said, torch.tensor([0, 1, 0]))]
        [1]
    """
    check_cut(cut)
    own = probabilities.gather(1, labels[:, None].long())[:, 0]  # (N, 1) -> (N,)
    highest, likelier = probabilities.max(dim=1)
    ratio = own / highest
    order = ratio.argsort(stable=True)
    chosen = order[(ratio < cut)[order]]
    return [
        Suspect(
            index=place if rows is None else int(rows[place]),
            path=None if paths is None else paths[place],
            label=class_names[int(labels[place])],
            probability=float(own[place]),
            likelier=class_names[int(likelier[place])],
            likelier_probability=float(highest[place]),
        )
        for place in cast("list[int]", chosen.tolist())
    ]


def check_cut(cut: float) -> None:
    """Raise `ConfigError` unless this is a number above 0, at most 1."""
    if not is_number(cut) or not 0 < cut <= 1:
        raise ConfigError(f"cut must be a number above 0, at most 1, not {cut!r:.60}")
