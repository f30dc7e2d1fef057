"""Measure how a classifier does on images that are masked, noisy, blurred or written on."""

import os
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from clipkit.classify.classifier import ImageClassifier
from clipkit.classify.estimate import find_seen
from clipkit.classify.inputs import LabeledInputs, SupportSet
from clipkit.classify.labels import Labels
from clipkit.classify.metric_inputs import check_seed, is_number
from clipkit.classify.metrics import wilson_interval
from clipkit.encode.embed import stream_features
from clipkit.errors import ConfigError, DataError
from clipkit.files import write_json
from clipkit.inspect.corrupted_images import CorruptedImages, Variant
from clipkit.inspect.corruptions import Blur, Corruption, GaussianNoise, Jpeg, Masking
from clipkit.inspect.plot_robustness import robustness_figure
from clipkit.inspect.robustness_figures import RobustnessFigures, RobustnessRow, as_line, as_text
from clipkit.inspect.typographic import TypographicAttack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_CLASS = -1


@dataclass(frozen=True, repr=False)
class Robustness(RobustnessFigures):
    """Hold how a classifier does on corrupted images. `robustness` makes it.

    Example:
        found = clipkit.inspect.robustness(classifier, images, labels)
        print(found)
        found.figure().savefig("robustness.png")

    Attributes:
        images: how many images were measured.
        accuracy, interval, confidence: as in `RobustnessRow`, of the images as they are.
        rows: a `RobustnessRow` for each severity of each corruption.
        seed: of what was drawn.
        left_out: how many images are not measured, since the classifier was fitted on them.
        skipped: path or index of each image that could not be read or corrupted, and why.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as plain values, which JSON can hold."""
        return {**asdict(self), "mean_accuracy": self.mean_accuracy()}

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as a JSON file.

        Args:
            path: the file, which is replaced if it exists.

        Raises:
            OutputError: if it cannot be written.
        """
        write_json(self.to_dict(), path)

    def figure(self) -> "Figure":
        """Return accuracy and confidence over the severities as a figure; needs matplotlib.

        Raises:
            ConfigError: if matplotlib is missing.
        """
        return robustness_figure(self)

    def __repr__(self) -> str:
        return as_line(self)

    def __str__(self) -> str:
        return as_text(self)


def robustness(
    classifier: ImageClassifier,
    images: LabeledInputs,
    labels: Labels | None = None,
    *,
    corruptions: Sequence[Corruption] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> Robustness:
    """Return how a classifier does on images that are corrupted, severity by severity.

    Images are corrupted as they are read, before the model prepares them, since that is where real
    ones go bad. Each is read once, and encoded once for each severity. Images that the classifier
    was fitted on are left out.

    Args:
        classifier: what is measured.
        images: images as `classifier.fit` takes them, but neither features nor a DataLoader.
        labels: as in `classifier.fit`.
        corruptions: what is done to the images, each under a name of its own. By default `Masking`,
            `GaussianNoise`, `Blur`, `Jpeg` and `TypographicAttack`, as they are by default.
        seed: of all that is drawn. The same seed gives the same images, whatever the batch size
            and the number of processes.
        batch_size, workers, progress: as in `classifier.embed`.

    Raises:
        ConfigError: if a corruption cannot be done, there are no images, or the classifier or the
            seed is none.
        DataError: if the labels do not fit, or there is no image to measure on.

    Example:
        found = clipkit.inspect.robustness(classifier, clipkit.read_folder("test"))
        print(found)
    """
    _check(classifier)
    check_seed("robustness", seed)
    chosen = _chosen(corruptions, classifier.labels)
    variants = [Variant(None, 0.0)]
    variants += [Variant(one, severity) for one in chosen for severity in one.severities]
    corrupted = CorruptedImages(images, labels, classifier.labels, variants, seed)
    answers = _Answers(len(corrupted.source), len(variants))
    stream = stream_features(
        classifier.model,
        corrupted,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
        views=classifier.views,  # as often as those that it is calibrated on
    )
    with closing(stream):
        for part in stream:
            answers.skip(part.skipped)
            if part.labels is not None:
                probabilities = classifier.probabilities(part.features)
                answers.add(part.paths, part.features, part.labels, probabilities)
    return _measured(classifier, corrupted, answers)


class _Answers:
    """Hold what a classifier says of N images in V variants.

    Attributes:
        predicted, confidence: (N, V) classes, and their probabilities.
        labels: (N,) right classes.
        features: those of each image as it is, by its index.
        problems: why an image cannot be used, by its index.
    """

    def __init__(self, images: int, variants: int) -> None:
        self.predicted = torch.full((images, variants), _NO_CLASS, device="cpu")
        self.confidence = torch.zeros(images, variants, dtype=torch.float32, device="cpu")
        self.labels = torch.full((images,), _NO_CLASS, device="cpu")
        self.features: dict[int, Tensor] = {}
        self.problems: dict[int, str] = {}

    def skip(self, skipped: Sequence[tuple[str, str]]) -> None:
        """Note images that cannot be used. The names are places among all variants."""
        for name, problem in skipped:
            self.problems.setdefault(int(name) // self.predicted.shape[1], problem)

    def add(
        self, names: Sequence[str], features: Tensor, labels: Tensor, probabilities: Tensor
    ) -> None:
        """Note what is said of some variants, whose names are places among all variants."""
        places = torch.tensor([int(name) for name in names], device="cpu")
        confidence, predicted = probabilities.max(dim=1)
        self.predicted.view(-1)[places] = predicted
        self.confidence.view(-1)[places] = confidence
        index, variant = places // self.predicted.shape[1], places % self.predicted.shape[1]
        self.labels[index] = labels
        for row in cast("list[int]", (variant == 0).nonzero().flatten().tolist()):
            self.features[int(index[row])] = features[row].clone()


def _chosen(
    corruptions: Sequence[Corruption] | None, class_names: Sequence[str]
) -> list[Corruption]:
    """Return the corruptions to measure, or raise `ConfigError` if one cannot be done."""
    chosen = corruptions
    if chosen is None:
        chosen = [Masking(), GaussianNoise(), Blur(), Jpeg(), TypographicAttack()]
    given: object = chosen
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(
            f"robustness needs corruptions, such as corruptions=[Blur()], not {corruptions!r:.60}"
        )
    for one in chosen:
        _check_corruption(one)
    names = [one.name for one in chosen]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two corruptions are called {twice[0]!r}: give one of them a name=")
    for one in chosen:
        if isinstance(one, TypographicAttack):
            one.check(class_names)
    return list(chosen)


def _check_corruption(one: object) -> None:
    """Raise `ConfigError` unless something is what `Corruption` describes."""
    words = [getattr(one, name, None) for name in ("name", "unit")]
    if isinstance(one, type) or not callable(one) or not all(isinstance(w, str) for w in words):
        raise ConfigError(
            "a corruption is an object to call with a name, a unit and severities, such as Blur(), "
            f"not {one!r:.60}"
        )
    given = getattr(one, "severities", None)
    severities = list(cast("Collection[object]", given)) if isinstance(given, Collection) else []
    if not severities or not all(
        is_number(one) and isfinite(cast("float", one)) for one in severities
    ):
        raise ConfigError(
            f"{words[0]} needs severities, one or more finite numbers, such as "
            f"severities = (0.1, 0.2), not {given!r:.60}"
        )


def _check(classifier: object) -> None:
    """Raise `ConfigError` unless this is a classifier."""
    if not isinstance(classifier, ImageClassifier):
        raise ConfigError(
            "robustness measures a clipkit.ImageClassifier, such as ImageClassifier.zero_shot("
            f"model, labels), not {classifier!r:.60}"
        )


def _measured(
    classifier: ImageClassifier, corrupted: CorruptedImages, answers: _Answers
) -> Robustness:
    """Return the figures of all images that can be used and were not fitted on."""
    sound = [index for index in answers.features if index not in answers.problems]
    skipped = [
        (corrupted.path(index) or str(index), problem)
        for index, problem in sorted(answers.problems.items())
    ]
    if not sound:
        raise DataError(f"no image can be read; the first: {skipped[0][1]}")
    rows = torch.tensor(sound, device="cpu")
    support = SupportSet(
        torch.stack([answers.features[index] for index in sound]),
        answers.labels[rows],
        [corrupted.path(index) for index in sound],
        [],
    )
    seen = find_seen(classifier, support)
    if seen.all():
        raise DataError(
            f"the classifier was fitted on all of these {len(sound):,} images, on which it is "
            "better than on others: measure it on others"
        )
    rows = rows[~seen]
    right = answers.predicted[rows] == answers.labels[rows, None]  # (n, V)
    found = [
        _row(corrupted, answers, rows, right, number)
        for number, variant in enumerate(corrupted.variants)
        if variant.corruption is not None
    ]
    return Robustness(
        images=len(rows),
        accuracy=_share(right[:, 0]),
        interval=wilson_interval(int(right[:, 0].sum()), len(rows)),
        confidence=float(answers.confidence[rows, 0].double().mean()),
        rows=found,
        seed=corrupted.seed,
        left_out=int(seen.sum()),
        skipped=skipped,
    )


def _row(
    corrupted: CorruptedImages, answers: _Answers, rows: Tensor, right: Tensor, number: int
) -> RobustnessRow:
    """Return the figures of a variant.

    Args:
        corrupted, answers: of all images.
        rows: (n,) the images to measure.
        right: (n, V) bool, which answers are right.
        number: of the variant.
    """
    corruption, severity = corrupted.variants[number]
    assert corruption is not None
    targets = torch.full((len(rows),), _NO_CLASS, device="cpu")
    if isinstance(corruption, TypographicAttack):
        for place, index in enumerate(cast("list[int]", rows.tolist())):
            sample = corrupted.sample(index, int(answers.labels[index]), corruption)
            target = corruption.target(sample)
            targets[place] = _NO_CLASS if target is None else target
    counted = targets != answers.labels[rows]  # no label is written on images of its class
    if not counted.any():
        raise DataError(
            f"{corruption.name!r} writes the right label on all images: pass images of other "
            "classes, or another label="
        )
    rows, right, targets = rows[counted], right[counted], targets[counted]
    hits = int(right[:, number].sum())
    is_written = bool((targets != _NO_CLASS).all())
    return RobustnessRow(
        corruption=corruption.name,
        severity=float(severity),
        unit=corruption.unit,
        images=len(rows),
        accuracy=_share(right[:, number]),
        interval=wilson_interval(hits, len(rows)),
        confidence=float(answers.confidence[rows, number].double().mean()),
        clean_accuracy=_share(right[:, 0]),
        fooled=_share(answers.predicted[rows, number] == targets) if is_written else None,
    )


def _share(hits: Tensor) -> float:
    """Return the share of True in (n,)."""
    return float(hits.double().mean())
