"""Compare accuracy on several sets with that on a reference set: effective robustness."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from clipkit.classify.metric_inputs import is_number
from clipkit.columns import align
from clipkit.errors import ConfigError
from clipkit.visible import visible

# Of the baseline's logits on the reference set, below which a line through them says nothing: 0.025
# points of accuracy about 50 %.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class ShiftFigures:
    """Hold how accuracy on one set compares with that on the reference set.

    Attributes:
        name: of the set.
        accuracy: on it, 0 to 1.
        difference: accuracy less that on the reference set.
        expected: what the baseline's models would have on the set, of this accuracy on the
            reference set; None without a baseline.
        effective: accuracy less what is expected: the effective robustness.
    """

    name: str
    accuracy: float
    difference: float
    expected: float | None = None
    effective: float | None = None


@dataclass(frozen=True, repr=False)
class Shifts:
    """Hold accuracy on several sets beside that on a reference set; `print` shows a table.

    Attributes:
        reference: the name of the reference set.
        accuracy: on it.
        rows: a `ShiftFigures` for each other set, in the order given.
    """

    reference: str
    accuracy: float
    rows: list[ShiftFigures]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values, which JSON can hold."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Shifts({len(self.rows)} sets beside {self.reference})"

    def __str__(self) -> str:
        header = ["set", "accuracy", "difference", "expected", "effective robustness"]
        cells = [[visible(self.reference), f"{self.accuracy:.1%}", "", "", ""]]
        for row in self.rows:
            expected = "" if row.expected is None else f"{row.expected:.1%}"
            effective = "" if row.effective is None else f"{100 * row.effective:+.1f}"
            difference = f"{100 * row.difference:+.1f}"
            cells.append(
                [visible(row.name), f"{row.accuracy:.1%}", difference, expected, effective]
            )
        if not any(row.effective is not None for row in self.rows):
            header, cells = header[:3], [row[:3] for row in cells]
        table = align([header, *cells], right=range(1, len(header)))
        return "\n".join("  ".join(row).rstrip() for row in table)


def effective_robustness(
    accuracies: Mapping[str, float],
    reference: str,
    *,
    baseline: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Shifts:
    """Return how accuracy on several sets compares with that on a reference set.

    Models that are better on the reference set are better on others, too. Effective robustness is
    what a classifier has beyond that: its accuracy on a set less what the line says that fits other
    models, on the scale of logits (Taori et al., 2007.00644, equation 1).

    Args:
        accuracies: of the classifier on each set, 0 to 1, by the sets' names.
        reference: the name of the reference set.
        baseline: for each set, the accuracies of other models as pairs (on the reference set, on
            this set), two or more, above 0 and below 1. Sets without pairs get a difference alone.

    Raises:
        ConfigError: for a name that is not there, an impossible accuracy, or pairs that lie on no
            line.

    Example:
        >>> pairs = {"sketch": [(0.6, 0.3), (0.7, 0.4), (0.8, 0.5)]}
        >>> found = effective_robustness({"val": 0.7, "sketch": 0.6}, "val", baseline=pairs)
        >>> round(found.rows[0].difference, 3), round(found.rows[0].effective, 3)
        (-0.1, 0.21)
    """
    lines = dict(baseline or {})
    if reference not in accuracies:
        raise ConfigError(f"{reference!r:.60} is none of the sets {list(accuracies)!r:.200}")
    if unknown := [name for name in lines if name not in accuracies or name == reference]:
        raise ConfigError(
            f"the baseline has pairs for {unknown[0]!r:.60}, which is none of the other sets "
            f"{[name for name in accuracies if name != reference]!r:.200}"
        )
    for name, share in accuracies.items():
        if not is_number(share) or not 0 <= share <= 1:
            raise ConfigError(f"the accuracy on {name!r:.60} must be of 0 to 1, not {share!r:.60}")
    own = float(accuracies[reference])
    rows = [
        _row(name, float(share), own, lines.get(name))
        for name, share in accuracies.items()
        if name != reference
    ]
    return Shifts(reference, own, rows)


def _row(
    name: str, share: float, reference: float, pairs: Sequence[tuple[float, float]] | None
) -> ShiftFigures:
    """Return the figures of one set."""
    if pairs is None:
        return ShiftFigures(name, share, share - reference)
    expected = _expected(name, reference, pairs)
    return ShiftFigures(name, share, share - reference, expected, share - expected)


def _expected(name: str, reference: float, pairs: Sequence[tuple[float, float]]) -> float:
    """Return what a line through the logits of pairs says of an accuracy on the reference set."""
    if not isinstance(cast("object", pairs), Collection) or isinstance(pairs, str):
        raise ConfigError(
            f"the baseline of {name!r:.60} needs pairs such as [(0.7, 0.4), (0.8, 0.5)], not "
            f"{pairs!r:.60}"
        )
    for pair in pairs:
        _check_pair(name, pair)
    if not 0 < reference < 1:
        raise ConfigError(
            f"an accuracy of {reference:g} on the reference set has no logit, so nothing can be "
            "expected of it: leave baseline out"
        )
    x = np.array([_logit(first) for first, _ in pairs])
    y = np.array([_logit(second) for _, second in pairs])
    if len(x) < 2 or np.ptp(x) < _LEAST_SPREAD:
        raise ConfigError(
            f"the baseline of {name!r:.60} needs two models of different accuracy on the reference "
            f"set, not {len(pairs)} of {sorted({first for first, _ in pairs})!r:.60}: add others, "
            "or leave its pairs out"
        )
    spread = x - x.mean()
    slope = float(spread @ (y - y.mean()) / (spread @ spread))
    logit = float(y.mean()) + slope * (_logit(reference) - float(x.mean()))
    return (1 + math.tanh(logit / 2)) / 2  # the logistic function, which overflows for no line


def _check_pair(name: str, pair: object) -> None:
    """Raise `ConfigError` unless a pair of a baseline is two accuracies that have a logit."""
    shares = list(cast("Collection[object]", pair)) if isinstance(pair, Collection) else []
    if len(shares) != 2 or not all(
        is_number(share) and 0 < cast("float", share) < 1 for share in shares
    ):
        raise ConfigError(
            f"the baseline of {name!r:.60} needs pairs of accuracies above 0 and below 1, such as "
            f"(0.7, 0.4), not {pair!r:.60}"
        )


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
