"""Write a report as a text for a terminal, a log or a mail."""

from collections.abc import Sequence

from clipkit.classify.figures import ClassFigures, Figures, Mistake
from clipkit.columns import align
from clipkit.plurals import number_of
from clipkit.visible import visible

_CLASSES = 20  # rows of each table
MOST_CONFUSIONS = 10
_MISTAKES = 10

_CONFUSION_HEADER = ["true class", "predicted class", "images", "of the true class"]


def as_line(figures: Figures) -> str:
    """Return a report in one line.

    Example:
        >>> from clipkit.classify.figures import Estimate
        >>> as_line(Figures(Estimate(""), 9, 0.5, (0.25, 0.75), 0.5, None, 0.1, [], [], [], []))
        'Report(9 images: accuracy 50.0%, 95% interval 25.0% to 75.0%; held out)'
    """
    return (
        f"Report({number_of(figures.images, 'image')}: accuracy {figures.accuracy:.1%}, "
        f"{interval_in_words(figures)}; {obtained(figures)})"
    )


def as_text(figures: Figures) -> str:
    """Return the main figures, how they were obtained, and the most telling rows of each table."""
    main = align([[name, value] for name, value in main_figures(figures).items()], right=[1])
    main[0][1] += f"  ({interval_in_words(figures)})"
    parts = [
        "\n".join("  ".join(row) for row in main),
        visible(sentences(figures)),
        _class_table(figures.classes),
        confusion_table(figures),
        _bin_table(figures),
        _mistake_table(figures.mistakes),
    ]
    return "\n\n".join(part for part in parts if part)


def obtained(figures: Figures) -> str:
    """Return how a report was obtained, in a few words."""
    folds = figures.estimate.folds
    return f"cross-validated in {folds} folds" if folds else "held out"


def main_figures(figures: Figures) -> dict[str, str]:
    """Return the figures of the whole classifier by name, as people read them."""
    shares = {
        "accuracy": figures.accuracy,
        "top-5 accuracy": figures.top_5,
        "balanced accuracy": figures.balanced_accuracy,
        "calibration error": figures.calibration_error,
    }
    return {name: f"{share:.1%}" for name, share in shares.items() if share is not None}


def interval_in_words(figures: Figures) -> str:
    """Return the interval of the accuracy."""
    low, high = figures.interval
    return f"95% interval {low:.1%} to {high:.1%}"


def sentences(figures: Figures) -> str:
    """Return what was measured and how, as one or more sentences."""
    text = f"{figures.estimate.sentence}."
    skipped = figures.estimate.skipped
    if skipped:
        text += f" {number_of(len(skipped), 'image')} could not be read; the first: {skipped[0][1]}"
    return text[:1].upper() + text[1:]


def weakest_first(classes: Sequence[ClassFigures]) -> list[ClassFigures]:
    """Return classes by their recall, the lowest first; those that have none come last."""
    return sorted(classes, key=lambda row: 2.0 if row.recall is None else row.recall)


def in_percent(share: float | None) -> str:
    """Return a share for people; a dash where there is none."""
    return "-" if share is None else f"{share:.1%}"


def _class_table(classes: Sequence[ClassFigures]) -> str:
    rows = [
        [row.label, f"{row.images:,}", in_percent(row.precision), in_percent(row.recall)]
        for row in weakest_first(classes)
    ]
    header = ["class", "images", "precision", "recall"]
    return _table("classes, the weakest first", header, rows, _CLASSES, right=(1, 2, 3))


def confusion_table(figures: Figures) -> str:
    """Return how many images of which class were predicted as which other; nothing without any."""
    images = {row.label: row.images for row in figures.classes}
    rows = [
        [pair.true, pair.predicted, f"{pair.count:,}", f"{pair.count / images[pair.true]:.1%}"]
        for pair in figures.confusions
    ]
    title = "most often taken for another class"
    return _table(title, _CONFUSION_HEADER, rows, MOST_CONFUSIONS, right=(2, 3))


def _bin_table(figures: Figures) -> str:
    rows = [
        [f"{low:.0%} to {high:.0%}", f"{images:,}", f"{confidence:.1%}", f"{accuracy:.1%}"]
        for low, high, images, confidence, accuracy in figures.bins
    ]
    header = ["probability", "images", "mean", "right"]
    return _table("how far probabilities hold", header, rows, len(rows), right=(1, 2, 3))


def _mistake_table(mistakes: Sequence[Mistake]) -> str:
    rows = [
        [
            name_of(mistake),
            f"{mistake.true} {mistake.true_probability:.1%}",
            f"{mistake.predicted} {mistake.predicted_probability:.1%}",
        ]
        for mistake in mistakes
    ]
    header = ["image", "true class", "predicted class"]
    return _table("worst mistakes", header, rows, _MISTAKES)


def name_of(mistake: Mistake) -> str:
    """Return the path of an image, or its number if it has none."""
    return f"image {mistake.index}" if mistake.path is None else mistake.path


def _table(
    title: str,
    header: list[str],
    rows: list[list[str]],
    most: int,
    right: Sequence[int] = (),
) -> str:
    """Return a table with a title, and the number of rows that are too many; nothing without rows.

    Names may hold characters that act on a terminal, so they are shown as escapes.
    """
    if not rows:
        return ""
    shown = [[visible(cell) for cell in row] for row in rows[:most]]
    if len(rows) > most:
        title += f" ({most:,} of {len(rows):,})"
    lines = ["  ".join(row).rstrip() for row in align([header, *shown], right)]
    return "\n".join([title, *(f"  {line}" for line in lines)])
