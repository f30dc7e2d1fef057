"""Say how a classifier does on each group of images, such as places, cameras or people."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from clipkit.classify.intervals import wilson_interval
from clipkit.classify.metric_inputs import (
    Classes,
    check_count,
    check_seed,
    number_names,
    read_classes,
)
from clipkit.columns import align
from clipkit.errors import ConfigError
from clipkit.visible import visible

FEW = 30  # images of a group below which its accuracy says little: the interval is 20 points wide
_DEALS = 1000  # random groupings by which the gap is judged
_QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class GroupFigures:
    """Hold how a classifier does on one group.

    Attributes:
        group: its name.
        images: how many images it has.
        accuracy: the share that is recognized, 0 to 1.
        interval: where the true accuracy lies in 95 of 100 cases (Wilson).
        balanced_accuracy: the mean of the recall of its classes. Groups of other shares of the
            classes are better compared by it.
        confusion: (C, C) int64; row i, column j says how often class i was called j.
        is_small: whether it has fewer images than `few`.
    """

    group: str
    images: int
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    confusion: Tensor
    is_small: bool


@dataclass(frozen=True, eq=False, repr=False)
class Groups:
    """Hold how a classifier does on groups. `by_group` makes it; `print` shows a table.

    Attributes:
        rows: a `GroupFigures` for each group, the lowest accuracy first.
        accuracy: of all images.
        worst, best: groups with the lowest and the highest accuracy. Small ones are looked at only
            where all are small.
        gap: how far their accuracies are apart, 0 to 1.
        chance_gap: a gap that is exceeded in 5 of 100 cases where the same images are dealt to
            groups of these sizes at random. A lower gap says nothing about the groups.
        class_names: the names of the rows and columns of `confusion`; None of classes that are
            numbers alone.
    """

    rows: list[GroupFigures]
    accuracy: float
    worst: str
    best: str
    gap: float
    chance_gap: float
    class_names: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, which JSON can hold."""
        rows: list[dict[str, Any]] = [
            {
                **vars(row),
                "interval": list(row.interval),
                "confusion": cast("list[Any]", row.confusion.tolist()),
            }
            for row in self.rows
        ]
        return {**vars(self), "rows": rows}

    def __repr__(self) -> str:
        return f"Groups({len(self.rows)} groups: {self._spread()})"

    def __str__(self) -> str:
        header = ["group", "images", "accuracy", "95% interval", "balanced"]
        cells = [
            [
                visible(row.group),
                f"{row.images:,}",
                f"{row.accuracy:.1%}",
                f"{row.interval[0]:.1%} to {row.interval[1]:.1%}",
                f"{row.balanced_accuracy:.1%}",
            ]
            for row in self.rows
        ]
        lines = ["  ".join(row) for row in align([header, *cells], right=(1, 2, 4))]
        for place, row in enumerate(self.rows, start=1):
            lines[place] += "  (few images)" if row.is_small else ""
        return "\n".join([f"accuracy {self.accuracy:.1%}, {self._spread()}", "", *lines])

    def _spread(self) -> str:
        return (
            f"worst {visible(self.worst)}, best {visible(self.best)}, gap {100 * self.gap:.1f} "
            f"points (by chance up to {100 * self.chance_gap:.1f})"
        )


def by_group(
    predicted: Classes,
    labels: Classes,
    groups: Iterable[Hashable],
    classes: int | Sequence[str] | None = None,
    *,
    few: int = FEW,
    seed: int = 0,
) -> Groups:
    """Return accuracy and confusion on each group of images, and how far the groups are apart.

    Args:
        predicted, labels: (N,) classes, by their numbers or by their names.
        groups: the name of the group of each image, N texts, integers or other values.
        classes: C, or C names in the order of the numbers; by default what the highest class needs,
            and of names those that occur, sorted.
        few: a group with fewer images is small.
        seed: of the random groupings behind `chance_gap`.

    Raises:
        ConfigError: if shapes do not fit, there is no image, a class is beyond `classes`, names
            stand beside numbers, or two groups print alike, such as 1 and "1".

    Example:
        >>> found = by_group([0, 1, 1, 1], [0, 1, 1, 0], ["day", "day", "night", "night"], few=2)
        >>> found.worst, found.best, found.gap
        ('night', 'day', 0.5)
    """
    check_count("by_group", "few", few)
    check_seed("by_group", seed)
    predicted, labels, class_names, count = _read(predicted, labels, classes)
    names = _names(groups, len(labels))
    rows: list[GroupFigures] = []
    for group in dict.fromkeys(names):
        own = torch.tensor([name == group for name in names], device="cpu")
        rows.append(_figures(group, predicted[own], labels[own], count, few))
    rows.sort(key=lambda row: row.accuracy)
    judged = [row for row in rows if not row.is_small] or rows
    return Groups(
        rows=rows,
        accuracy=int((predicted == labels).sum()) / len(labels),
        worst=judged[0].group,
        best=judged[-1].group,
        gap=judged[-1].accuracy - judged[0].accuracy,
        chance_gap=_chance_gap(judged, seed),
        class_names=class_names,
    )


def _read(
    predicted: Classes, labels: Classes, classes: int | Sequence[str] | None
) -> tuple[Tensor, Tensor, list[str] | None, int]:
    """Return predictions and labels as numbers on the CPU, and names and count of the classes."""
    given = None if isinstance(classes, int) or classes is None else _check_names(classes)
    numbers, right, names = number_names("by_group", predicted, labels, given)
    if names is not None and given is None and classes is not None:
        raise ConfigError(
            f"by_group takes classes by their names, in the order of the rows of confusions, not "
            f"classes={classes!r}: leave it out, or pass a list of names"
        )
    count = classes if isinstance(classes, int) else None
    if count is not None:
        check_count("by_group", "classes", count)
    if names is not None:
        count = len(names)
    limit = math.inf if count is None else count
    found, truth = read_classes("by_group", numbers, right, limit)
    if count is None:
        count = int(torch.maximum(found, truth).max()) + 1
    return found.cpu(), truth.cpu(), names, count


def _check_names(classes: object) -> list[str]:
    """Return the names of classes, or raise `ConfigError`."""
    names = list(cast("Iterable[object]", classes)) if isinstance(classes, list | tuple) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            "by_group needs classes as an integer of at least 1, or as names that differ, not "
            f"{classes!r:.60}"
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"by_group has a class twice: {names!r:.60}")
    return cast("list[str]", names)


def _names(groups: Iterable[Hashable], count: int) -> list[str]:
    """Return the name of the group of each image."""
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise ConfigError(f"by_group needs the group of each image, not {groups!r:.60}")
    values = cast("list[Any]", groups.tolist() if isinstance(groups, Tensor) else list(groups))
    if len(values) != count:
        raise ConfigError(
            f"by_group needs a group for each of {count:,} images, not {len(values):,}"
        )
    named: dict[str, Any] = {}
    for value in values:
        if (first := named.setdefault(str(value), value)) != value and value == value:
            raise ConfigError(
                f"by_group has groups that print alike, {first!r:.60} and {value!r:.60}: give them "
                "names that differ, or one type"
            )
    return [str(value) for value in values]


def _figures(group: str, predicted: Tensor, labels: Tensor, classes: int, few: int) -> GroupFigures:
    """Return the figures of one group."""
    cells = (labels * classes + predicted).bincount(minlength=classes**2)
    confusion = cells.view(classes, classes)  # (C * C,) -> (C, C)
    right, of_class = confusion.diagonal().double(), confusion.sum(dim=1).double()  # (C,)
    occurs = of_class > 0
    images, hits = len(labels), int(right.sum())
    return GroupFigures(
        group=group,
        images=images,
        accuracy=hits / images,
        interval=wilson_interval(hits, images),
        balanced_accuracy=float((right[occurs] / of_class[occurs]).mean()),
        confusion=confusion,
        is_small=images < few,
    )


def _chance_gap(rows: Sequence[GroupFigures], seed: int) -> float:
    """Return the gap below which 95 % of random groupings of the same images stay."""
    sizes = np.array([row.images for row in rows])
    hits = sum(int(row.confusion.trace()) for row in rows)
    # How many of the images that are right each group gets, where all are dealt out at random.
    dealt = np.random.default_rng(seed).multivariate_hypergeometric(
        sizes, hits, size=_DEALS, method="marginals"
    )
    shares = dealt / sizes  # (deals, groups)
    gaps = shares.max(axis=1) - shares.min(axis=1)
    return float(np.quantile(gaps, _QUANTILE, method="higher"))
