"""Say of images what a calibrated classifier can say beside probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from clipkit.classify.calibration import Calibration
from clipkit.classify.conformal import check_share, label_sets, nonconformity
from clipkit.classify.contrast import confidence
from clipkit.classify.prediction import Prediction
from clipkit.errors import ConfigError

_REMEDY = (
    "call classifier.calibrate(images, labels) with images that it was not fitted on, or "
    "fit(..., calibrate=True)"
)


@dataclass(frozen=True)
class Wanted:
    """Hold what is asked of predictions beside probabilities; see `Predictor.predict`."""

    coverage: float | None = None
    reject: bool = False
    several: bool = False


def check_wanted(wanted: Wanted, calibration: Calibration | None) -> None:
    """Raise `ConfigError` if a classifier cannot say what is wanted, with what would let it."""
    for name in ("reject", "several"):
        if not isinstance(value := getattr(wanted, name), bool):
            raise ConfigError(f"{name} must be True or False, not {value!r:.60}")
    if wanted.coverage is not None:
        check_share("coverage", wanted.coverage)
    one_label = [
        *([f"coverage={wanted.coverage}"] if wanted.coverage is not None else []),
        *(["reject=True"] if wanted.reject else []),
    ]
    if one_label and (calibration is None or not calibration.images):
        raise ConfigError(f"{one_label[0]} needs a calibrated classifier: {_REMEDY}")
    if wanted.several and (calibration is None or calibration.presence is None):
        raise ConfigError(
            "several=True needs a classifier that was calibrated for several labels: call "
            "classifier.calibrate(images, labels) with a list of names for each image"
        )
    if calibration is None:
        return
    if wanted.coverage is not None:
        calibration.quantile(wanted.coverage)
    if wanted.reject:
        calibration.threshold()


def softened(logits: Tensor, calibration: Calibration | None) -> Tensor:
    """Return logits (N, C) divided by the temperature; the same ones without a calibration."""
    if calibration is None or calibration.temperature == 1:
        return logits
    return logits / calibration.temperature


def judge(
    labels: list[str],
    logits: Tensor,
    paths: Sequence[str | None],
    calibration: Calibration | None,
    wanted: Wanted,
) -> list[Prediction]:
    """Return a prediction for each image, with all that is wanted.

    Args:
        labels: C names.
        logits: (N, C) float32.
        paths: of the images, N.
        calibration: what `check_wanted` has approved of.
        wanted: what to say.
    """
    soft = softened(logits, calibration)
    rows = soft.softmax(dim=-1).cpu()
    predictions = [Prediction(labels, row, path) for row, path in zip(rows, paths, strict=True)]
    if calibration is None:
        return predictions
    logits, soft = logits.cpu(), soft.cpu()
    if wanted.coverage is not None:
        members = label_sets(nonconformity(soft), calibration.quantile(wanted.coverage))
        for prediction, own in zip(predictions, members, strict=True):
            prediction.set = _ranked(labels, prediction.probabilities, own)
    if wanted.reject:
        rejected = confidence(logits) < calibration.threshold()
        for prediction, own in zip(predictions, rejected, strict=True):
            prediction.rejected = bool(own)
    if wanted.several and calibration.presence is not None:
        shares = calibration.presence.probabilities(logits)
        for prediction, own in zip(predictions, shares, strict=True):
            prediction.presence = own
            prediction.present = _ranked(labels, own, own > calibration.presence.thresholds)
    return predictions


def _ranked(labels: list[str], shares: Tensor, members: Tensor) -> list[str]:
    """Return the labels that are members, (C,) bool, those with the highest shares (C,) first."""
    places = members.nonzero().flatten()  # (labels that are members, 1) -> (those labels,)
    order = shares[places].argsort(descending=True, stable=True)
    return [labels[place] for place in cast("list[int]", places[order].tolist())]
