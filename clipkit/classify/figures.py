"""Hold the figures of a report: of each class, each mistake, and how they were obtained."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from clipkit.classify.metrics import ReliabilityBin


@dataclass(frozen=True)
class ClassFigures:
    """Hold how good a classifier is at one class.

    Attributes:
        label: the class.
        images: how many images of it were measured.
        predicted: how many images were taken for it.
        right: how many of its images were taken for it.
        precision: right / predicted; None if no image was taken for it.
        recall: right / images; None if no image of it was measured.
    """

    label: str
    images: int
    predicted: int
    right: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Confusion:
    """Hold how many images of the class `true` were taken for the class `predicted`."""

    true: str
    predicted: str
    count: int


@dataclass(frozen=True)
class Mistake:
    """Hold one image that was taken for another class.

    Attributes:
        index: the image's row among those that were given and can be read.
        path: its file; None for an image that has none.
        true, true_probability: its label, and how probable that was said to be.
        predicted, predicted_probability: the class that it was taken for.
        top: the three most probable labels, with their probabilities.
    """

    index: int
    path: str | None
    true: str
    true_probability: float
    predicted: str
    predicted_probability: float
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Estimate:
    """Hold how the figures of a report were obtained.

    Attributes:
        sentence: the same in words.
        folds: in how many folds the method was cross-validated; 0 where images were measured that
            nothing was fitted on.
        pessimistic: whether each class has a single image, so that nothing but its text was known
            of the class of an image that was held out.
        left_out: how many of the images that were given are not measured: the classifier was fitted
            on them, or they are the only ones of their class.
        skipped: path or index of each image that could not be read, and why.
    """

    sentence: str
    folds: int = 0
    pessimistic: bool = False
    left_out: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


@dataclass(frozen=True, repr=False)
class Figures:
    """Hold all figures of a report, which texts and pages are made of.

    Its attributes are explained by `clipkit.classify.report.Report`.
    """

    estimate: Estimate
    images: int
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    top_5: float | None
    calibration_error: float
    classes: list[ClassFigures]
    confusions: list[Confusion]
    bins: list[ReliabilityBin]
    mistakes: list[Mistake]
    # Gives the image of a mistake for the page, by its row; None without images.
    image_of: Callable[[int], Any] | None = field(default=None, compare=False)
