"""Say how good a classifier is, and where it errs, from its probabilities of labeled images."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor

from clipkit.classify import metrics
from clipkit.classify.figures import ClassFigures, Confusion, Estimate, Figures, Mistake
from clipkit.classify.report_html import as_page, as_table
from clipkit.classify.report_text import as_line, as_text
from clipkit.errors import ConfigError
from clipkit.files import replacing, write_json
from clipkit.plurals import number_of_classes

LEVEL = 0.95  # of the interval
MOST_MISTAKES = 100  # kept, the worst ones
_RANKED = 3  # labels that are told of a mistake
_TOP = 5  # of five classes or fewer it would always be right


@dataclass(frozen=True, repr=False)
class Report(Figures):
    """Hold how good a classifier is. `ImageClassifier.report` makes it.

    `print(report)` gives a text, `to_html` a page.

    Example:
        report = classifier.report("new_photos/", labels)
        print(report.accuracy, report.interval)
        report.to_html("report.html")

    Attributes:
        estimate: how the figures were obtained.
        images: how many images were measured.
        accuracy: the share that was recognized, 0 to 1, as are all shares here.
        interval: where the true accuracy lies in 95 of 100 cases (Wilson), for images like these
            that are independent of each other.
        balanced_accuracy: the mean of the classes' recall.
        top_5: the share with the right label among the five most probable; None for five classes or
            fewer.
        calibration_error: the mean gap between how sure predictions are and how many are right, in
            15 bins.
        classes: for each class that occurs, in the classifier's order.
        confusions: which class was taken for which, the most frequent first.
        bins: how many predictions of each range of probabilities are right.
        mistakes: the 100 worst, those first whose wrong label was the most probable beside the
            right one.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, which JSON can hold.

        Returns:
            The attributes by name. Bins and mistakes are mappings too.
        """
        values = {name: value for name, value in vars(self).items() if name != "image_of"}
        return {
            **values,
            "estimate": asdict(self.estimate),
            "interval": list(self.interval),
            "classes": [asdict(row) for row in self.classes],
            "confusions": [asdict(row) for row in self.confusions],
            "bins": [row._asdict() for row in self.bins],
            "mistakes": [asdict(row) for row in self.mistakes],
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as a JSON file.

        Args:
            path: the file, which is replaced if it exists.

        Raises:
            OutputError: if it cannot be written.
        """
        write_json(self.to_dict(), path)

    def to_html(self, path: str | os.PathLike[str], *, title: str = "Report") -> None:
        """Write the report as one page, which needs no other file and no network.

        It has small copies of the images of the worst mistakes.

        Args:
            path: the file, which is replaced if it exists.
            title: of the page.

        Raises:
            OutputError: if it cannot be written.
        """
        page = as_page(self, title)
        with replacing(path) as partial:
            # Names of files may hold what is no text, such as halves of characters.
            partial.write_text(page, "utf-8", errors="replace")

    def __repr__(self) -> str:
        return as_line(self)

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        """Return tables for notebooks."""
        return as_table(self)


def make_report(
    class_names: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    estimate: Estimate,
    *,
    rows: Tensor | None = None,
    paths: Sequence[str | None] | None = None,
    image_of: Callable[[int], Any] | None = None,
) -> Report:
    """Return the report of probabilities, whatever they come from.

    Args:
        class_names: C names.
        probabilities: (N, C), each row with the sum 1.
        labels: (N,) right classes, integers.
        estimate: how the probabilities were obtained.
        rows: (N,) the number by which each image is known; by default 0 to N - 1.
        paths: N files of the images.
        image_of: gives the image of such a number, or None; for the page.

    Raises:
        ConfigError: if there are no images, or shapes or values do not fit.

    Example:
        >>> import torch
        >>> sure = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
        >>> made = make_report(["cat", "dog"], sure, torch.tensor([0, 1, 1]), Estimate("by hand"))
        >>> made.accuracy, made.confusions
        (0.6666666666666666, [Confusion(true='dog', predicted='cat', count=1)])
    """
    if probabilities.ndim != 2 or probabilities.shape[1] != len(class_names):
        raise ConfigError(
            f"a report of {number_of_classes(len(class_names))} needs probabilities "
            f"(N, {len(class_names)}), not {tuple(probabilities.shape)}"
        )
    probabilities, labels = probabilities.detach().cpu(), labels.cpu()
    bins = metrics.reliability_bins(probabilities, labels)  # it checks both
    predicted = probabilities.argmax(dim=1)  # (N,)
    hits = int((predicted == labels).sum())
    return Report(
        estimate=estimate,
        images=len(labels),
        accuracy=metrics.accuracy(predicted, labels),
        interval=metrics.wilson_interval(hits, len(labels), LEVEL),
        balanced_accuracy=metrics.mean_per_class(predicted, labels),
        top_5=(
            metrics.top_k_accuracy(probabilities, labels, _TOP) if len(class_names) > _TOP else None
        ),
        calibration_error=metrics.expected_calibration_error(probabilities, labels),
        classes=_class_figures(class_names, predicted, labels),
        confusions=_confusions(class_names, predicted, labels),
        bins=bins,
        mistakes=_mistakes(class_names, probabilities, labels, rows, paths),
        image_of=image_of,
    )


def _class_figures(
    class_names: Sequence[str], predicted: Tensor, labels: Tensor
) -> list[ClassFigures]:
    """Return the figures of each class that occurs among labels or predictions."""
    count = len(class_names)
    columns = [part.bincount(minlength=count) for part in (labels, predicted)]
    columns.append(labels[predicted == labels].bincount(minlength=count))
    images, taken, right = (cast("list[int]", column.tolist()) for column in columns)
    return [
        ClassFigures(
            label=class_names[i],
            images=images[i],
            predicted=taken[i],
            right=right[i],
            precision=right[i] / taken[i] if taken[i] else None,
            recall=right[i] / images[i] if images[i] else None,
        )
        for i in range(count)
        if images[i] or taken[i]
    ]


def _confusions(class_names: Sequence[str], predicted: Tensor, labels: Tensor) -> list[Confusion]:
    """Return which class was taken for which; of equal counts in the order of the classes."""
    wrong = predicted != labels
    # A number for each pair: a matrix of thousands of classes would be large and nearly empty.
    pairs = labels[wrong] * len(class_names) + predicted[wrong]  # (wrong images,)
    found, counts = cast("tuple[Tensor, Tensor]", pairs.unique(return_counts=True))
    order = counts.argsort(descending=True, stable=True)
    return [
        Confusion(
            true=class_names[pair // len(class_names)],
            predicted=class_names[pair % len(class_names)],
            count=count,
        )
        for pair, count in zip(
            cast("list[int]", found[order].tolist()),
            cast("list[int]", counts[order].tolist()),
            strict=True,
        )
    ]


def _mistakes(
    class_names: Sequence[str],
    probabilities: Tensor,
    labels: Tensor,
    rows: Tensor | None,
    paths: Sequence[str | None] | None,
) -> list[Mistake]:
    """Return the worst mistakes, by how far the wrong label is ahead of the right one."""
    own = probabilities.gather(1, labels[:, None].long())[:, 0]  # (N, 1) -> (N,)
    lead, predicted = probabilities.max(dim=1)
    lead = lead - own
    lead[predicted == labels] = -1.0
    worst = lead.argsort(descending=True, stable=True)[:MOST_MISTAKES]
    mistakes: list[Mistake] = []
    for place in cast("list[int]", worst[lead[worst] >= 0].tolist()):
        row = probabilities[place]  # (C,)
        best = cast("list[int]", row.argsort(descending=True, stable=True)[:_RANKED].tolist())
        mistakes.append(
            Mistake(
                index=place if rows is None else int(rows[place]),
                path=None if paths is None else paths[place],
                true=class_names[int(labels[place])],
                true_probability=float(own[place]),
                predicted=class_names[int(predicted[place])],
                predicted_probability=float(row[predicted[place]]),
                top=[(class_names[i], float(row[i])) for i in best],
            )
        )
    return mistakes
