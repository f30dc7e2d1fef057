"""What a classifier learns from held-out images about how far it can be trusted."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clipkit.classify.conformal import check_share, conformal_quantile, nonconformity
from clipkit.classify.contrast import confidence
from clipkit.classify.cross_validation import CrossValidated
from clipkit.classify.fitting import temperature
from clipkit.classify.presence import Presence, fit_presence
from clipkit.classify.rejection import rejection_threshold
from clipkit.errors import ConfigError
from clipkit.plurals import number_of

HELD_OUT = "held-out images"
CROSS_VALIDATION = "cross-validation"
SOURCES = (HELD_OUT, CROSS_VALIDATION)
FALSE_ALARMS = 0.05


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """Hold what held-out images say about a classifier; `ImageClassifier.calibrate` makes it.

    Example:
        classifier.fit(images, labels, calibrate=True)
        print(classifier.calibration.temperature)
        classifier.calibration = dataclasses.replace(classifier.calibration, false_alarms=0.01)

    Attributes:
        temperature: what logits are divided by before the softmax; 1 if the images had several
            labels each.
        scores: (n,) float32 in rising order, the nonconformity of each image's right label, from
            which any coverage can be had; see `clipkit.classify.conformal`.
        confidences: (n,) float32 in rising order, how far the highest logit of each image stands
            out, from which any rate of false alarms can be had.
        false_alarms: the share of images of the classes that `predict(reject=True)` rejects.
        source: "held-out images" or "cross-validation".
        pessimistic: whether it is by cross-validation where each class has a single image. Then
            sets are larger, and probabilities less sure, than they would have to be.
        presence: of labels of which an image can have several; None if it is not known.
        views: how often each image was seen, and is from then on; None where that is not known,
            since features were given.
    """

    temperature: float = 1.0
    scores: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    confidences: Tensor = field(default_factory=lambda: torch.empty(0, device="cpu"))
    false_alarms: float = FALSE_ALARMS
    source: str = HELD_OUT
    pessimistic: bool = False
    presence: Presence | None = None
    views: int | None = None

    @property
    def images(self) -> int:
        """Return the number of images with one label each that this comes from."""
        return len(self.scores)

    def quantile(self, coverage: float) -> float:
        """Return the nonconformity up to which labels belong to sets of this coverage.

        Raises:
            ConfigError: if `coverage` is not between 0 and 1, or needs more images.
        """
        return conformal_quantile(self.scores, coverage)

    def threshold(self, false_alarms: float | None = None) -> float:
        """Return the confidence below which images are rejected.

        Args:
            false_alarms: by default those of this calibration.

        Raises:
            ConfigError: if the rate is not between 0 and 1, or needs more images.
        """
        rate = self.false_alarms if false_alarms is None else false_alarms
        return rejection_threshold(self.confidences, rate)

    def __repr__(self) -> str:
        parts: list[str] = []
        if self.images:
            images = number_of(self.images, "held-out image")
            if self.source != HELD_OUT:
                images = f"{number_of(self.images, 'image')} by {self.source}"
            parts += [images, f"temperature {self.temperature:.3g}"]
        if self.presence is not None:
            parts.append(f"several labels from {number_of(self.presence.images, 'image')}")
        return f"Calibration({'; '.join(parts)})"


def calibrate_labels(
    logits: Tensor,
    labels: Tensor,
    *,
    false_alarms: float = FALSE_ALARMS,
    source: str = HELD_OUT,
    pessimistic: bool = False,
) -> Calibration:
    """Return what images with one label each say about a classifier.

    The temperature is fitted to the images, and to half a mistake besides: where none of them is
    taken for another class there is no best temperature.

    Args:
        logits: (n, C), of images that the head was not fitted on.
        labels: (n,) int64.
        false_alarms, source, pessimistic: see `Calibration`.

    Raises:
        ConfigError: if there is a single class, or `false_alarms` is not between 0 and 1.
    """
    check_share("false_alarms", false_alarms)
    if logits.shape[1] < 2:
        raise ConfigError("there is a single class, so there is nothing to calibrate")
    logits, labels = logits.detach().float().cpu(), labels.cpu()
    softness = 1 / temperature(logits, labels)
    scores = nonconformity(logits / softness).gather(1, labels[:, None])[:, 0]  # (n, 1) -> (n,)
    return Calibration(
        temperature=softness,
        scores=scores.sort().values,
        confidences=confidence(logits).sort().values,
        false_alarms=float(false_alarms),
        source=source,
        pessimistic=pessimistic,
    )


def calibrate_by_cross_validation(found: CrossValidated, labels: Tensor) -> Calibration:
    """Return what a cross-validated support set says about a classifier fitted on all of it.

    Args:
        found: as from `cross_validated`.
        labels: (N,) int64, of the whole support set.
    """
    return calibrate_labels(
        found.logits,
        labels.cpu()[found.indices],
        source=CROSS_VALIDATION,
        pessimistic=found.pessimistic,
    )


def calibrate_several(
    logits: Tensor, truth: Tensor, before: Calibration | None = None
) -> Calibration:
    """Return what images with several labels each say about a classifier.

    Args:
        logits: (n, C), of images that the head was not fitted on.
        truth: (n, C) bool.
        before: a calibration by images with one label each, which is kept beside it.
    """
    presence = fit_presence(logits.detach().float().cpu(), truth.cpu())
    return replace(before or Calibration(), presence=presence)
