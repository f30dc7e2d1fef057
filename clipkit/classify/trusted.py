"""Say how far a classifier can be trusted."""

import logging
from typing import TypeVar

from clipkit.classify.calibrating import calibrated, check_unseen, read_held_out
from clipkit.classify.calibration import FALSE_ALARMS
from clipkit.classify.inputs import LabeledInputs, Reading
from clipkit.classify.labels import Labels
from clipkit.classify.several import SeveralLabels
from clipkit.classify.stored import StoredClassifier

_LOG = logging.getLogger("clipkit")

Trusted = TypeVar("Trusted", bound="TrustedClassifier")


class TrustedClassifier(StoredClassifier):
    """Say how far what a classifier predicts can be trusted; see `StoredClassifier`."""

    def calibrate(
        self: Trusted,
        images_or_features: LabeledInputs,
        labels: Labels | SeveralLabels | None = None,
        *,
        false_alarms: float = FALSE_ALARMS,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Trusted:
        """Learn from held-out images how far predictions can be trusted, in place.

        Images with one label each give a temperature, with which probabilities are as high as
        predictions are often right; how far labels must stand out in images of the classes, by
        which `predict(reject=True)` tells others; and how improbable right labels can be, by which
        `predict(coverage=0.9)` makes sets. Images with several labels give what
        `predict(several=True)` needs. Whichever comes second leaves the other as it is.

        The images must be like those that will come, and not those of the fit. Where there are no
        others, `fit(..., calibrate=True)` calibrates by cross-validation. A hundred images are
        enough for most; a coverage or a share of false alarms of 1 % takes several hundreds.

        Example:
            classifier.calibrate(clipkit.read_folder("validation"))
            classifier.predict("photo.jpg", coverage=0.9, reject=True)
            classifier.calibrate(["street.jpg", "beach.jpg"], [["car", "dog"], []])

        Args:
            images_or_features: as in `fit`. Images that cannot be read are left out.
            labels: as in `fit`; or, for images with several labels each, a list of names for each
                image, which may be empty, or booleans (N, C).
            false_alarms: the share of images of the classes that may be taken for others, between
                0 and 1. For images with one label each.
            batch_size, workers, progress: as in `embed`, for images.

        Returns:
            The classifier itself, with its `calibration`. If an error is raised, it is as it was.

        Raises:
            DataError: if labels or images cannot be used, or the head was fitted on some of them.
            ConfigError: if `false_alarms` is impossible, or there is a single class.
        """
        reading = Reading(batch_size, workers, progress)
        support, truth = read_held_out(self.model, images_or_features, labels, self.labels, reading)
        check_unseen(support, self.count_seen(support.features, support.paths))
        logits = self._logits(support.features)
        self.calibration = calibrated(support, truth, logits, self.calibration, false_alarms)
        return self

    def _drop_calibration(self, reason: str) -> None:
        """Forget a calibration that no longer holds, and tell the log "clipkit" of it."""
        if self.calibration is not None:
            _LOG.warning("%s, so the calibration is dropped: calibrate again", reason)
        self.calibration = None
