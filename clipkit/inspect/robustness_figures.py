"""Hold how a classifier does on corrupted images, and say it as a text."""

from dataclasses import dataclass

from clipkit.columns import align
from clipkit.plurals import number_of
from clipkit.visible import visible


@dataclass(frozen=True)
class RobustnessRow:
    """Hold how a classifier does under one corruption of one severity.

    Attributes:
        corruption: its name.
        severity: how severe it is.
        unit: what the severity is.
        images: how many images were measured. Images of the class whose name is written on all
            others are not.
        accuracy: the share of them that is recognized, 0 to 1, as are all shares here.
        interval: where the true accuracy lies in 95 of 100 cases (Wilson).
        confidence: the mean probability of the answers, right or wrong.
        clean_accuracy: the share of the same images that is recognized without the corruption.
        fooled: the share of the images that is taken for the class whose name is written on them;
            None where no class is written.

    Example:
        for row in clipkit.inspect.robustness(classifier, images, labels).rows:
            print(row.corruption, row.severity, row.accuracy)
    """

    corruption: str
    severity: float
    unit: str
    images: int
    accuracy: float
    interval: tuple[float, float]
    confidence: float
    clean_accuracy: float
    fooled: float | None = None


@dataclass(frozen=True, repr=False)
class RobustnessFigures:
    """Hold all figures of a measurement, which texts and plots are made of.

    Its attributes are explained by `clipkit.inspect.Robustness`.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    confidence: float
    rows: list[RobustnessRow]
    seed: int
    left_out: int
    skipped: list[tuple[str, str]]

    def by_corruption(self) -> dict[str, list[RobustnessRow]]:
        """Return the rows of each corruption by its name, in the order of their severities."""
        groups: dict[str, list[RobustnessRow]] = {}
        for row in self.rows:
            groups.setdefault(row.corruption, []).append(row)
        return groups

    def mean_accuracy(self) -> dict[str, float]:
        """Return the mean accuracy over the severities of each corruption."""
        return {
            name: sum(row.accuracy for row in rows) / len(rows)
            for name, rows in self.by_corruption().items()
        }


def as_line(figures: RobustnessFigures) -> str:
    """Return a measurement in one line."""
    means = ", ".join(f"{name} {share:.1%}" for name, share in figures.mean_accuracy().items())
    images = number_of(figures.images, "image")
    return f"Robustness({images}: accuracy {figures.accuracy:.1%}; {means})"


def as_text(figures: RobustnessFigures) -> str:
    """Return a measurement as a table, with what was left out."""
    images = number_of(figures.images, "image")
    low, high = figures.interval
    lines = [
        f"{images}: accuracy {figures.accuracy:.1%} (95% interval {low:.1%} to "
        f"{high:.1%}), mean confidence {figures.confidence:.1%}",
        *_notes(figures),
    ]
    for name, rows in figures.by_corruption().items():
        title = f"{visible(name)} ({visible(rows[0].unit)})"
        if rows[0].images < figures.images:
            title += f", {number_of(rows[0].images, 'image')}"
        cells = align(
            [list(_cells(rows[0])), *(list(_cells(row).values()) for row in rows)], right=range(5)
        )
        lines += ["", title, *("  " + "  ".join(row).rstrip() for row in cells)]
    return "\n".join(lines)


def _cells(row: RobustnessRow) -> dict[str, str]:
    """Return the cells of a row by what they hold."""
    cells = {
        "severity": f"{row.severity:g}",
        "accuracy": f"{row.accuracy:.1%}",
        "change": f"{100 * (row.accuracy - row.clean_accuracy):+.1f}",
        "confidence": f"{row.confidence:.1%}",
    }
    return cells if row.fooled is None else {**cells, "taken for it": f"{row.fooled:.1%}"}


def _notes(figures: RobustnessFigures) -> list[str]:
    """Return what is to be said of images that are not measured."""
    notes: list[str] = []
    if figures.left_out:
        left_out = number_of(figures.left_out, "image")
        notes.append(f"left out: {left_out}; the classifier was fitted on them")
    if figures.skipped:
        first = visible(figures.skipped[0][1])
        notes.append(f"not read: {number_of(len(figures.skipped), 'image')}; the first: {first}")
    return notes
