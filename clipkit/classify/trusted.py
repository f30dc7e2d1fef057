"""Say how far a classifier can be trusted."""

import logging
from typing import TypeVar

from clipkit.classify.calibrating import calibrated, check_unseen, kept_views, read_held_out
from clipkit.classify.calibration import FALSE_ALARMS
from clipkit.classify.estimate import find_seen, judge_each, paths_of, report_of
from clipkit.classify.inputs import LabeledInputs, support_set
from clipkit.classify.labels import Labels
from clipkit.classify.reading import Reading
from clipkit.classify.report import Report
from clipkit.classify.several import SeveralLabels
from clipkit.classify.stored import StoredClassifier
from clipkit.classify.suspects import CUT, Suspect, check_cut, find_suspects

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
        views: int | None = None,
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
            views: how often each image is seen, 1, 2 or 10, as in `embed`; once by default, or as
                often as in the part of a calibration that is left as it is. From then on the
                classifier sees images as often wherever `views` is not given, and refuses others.
            batch_size, workers, progress: as in `embed`, for images.

        Returns:
            The classifier itself, with its `calibration`. If an error is raised, it is as it was.

        Raises:
            DataError: if labels or images cannot be used, or the head was fitted on some of them.
            ConfigError: if `false_alarms` or `views` is impossible, there is a single class, or
                features come with views.
        """
        kept = kept_views(self.calibration, labels)
        reading = Reading(batch_size, workers, progress, views, kept)
        support, truth = read_held_out(self.model, images_or_features, labels, self.labels, reading)
        check_unseen(support, int(find_seen(self, support).sum()))
        logits = self._logits(support.features)
        self.calibration = calibrated(support, truth, logits, self.calibration, false_alarms)
        return self

    def report(
        self,
        images_or_features: LabeledInputs,
        labels: Labels | None = None,
        *,
        seed: int = 0,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> Report:
        """Return how good the classifier is, measured on no image that its head was fitted on.

        Images that it was not fitted on are classified as they are. If it was fitted on some of
        them, which it knows by their marks (see `count_seen`), only the others are measured. If it
        was fitted on all, or all but a tenth, its method is cross-validated: fitted again without
        each part of them, and measured on that part. `report.estimate` says which it was.

        Example:
            report = classifier.report(clipkit.read_folder("test"))
            print(report)
            report.to_html("report.html")

        Args:
            images_or_features, labels: as in `fit`. Images that cannot be read are left out. Each
                is seen as often as those of a calibration, or once.
            seed: of what is drawn for cross-validation.
            batch_size, workers, progress: as in `embed`, for images.

        Raises:
            DataError: if labels or images cannot be used, or the classifier was fitted on them in a
                way that cannot be done again, as by `clipkit.finetune`.
        """
        reading = self._reading(None, batch_size, workers, progress)
        support = support_set(self.model, images_or_features, labels, self.labels, reading)
        return report_of(self, images_or_features, support, seed)

    def suspects(
        self,
        images_or_features: LabeledInputs,
        labels: Labels | None = None,
        *,
        cut: float = CUT,
        seed: int = 0,
        batch_size: int = 64,
        workers: int = 0,
        progress: bool = False,
    ) -> list[Suspect]:
        """Return the images whose own label may be wrong, the most suspicious first.

        Their label is improbable to a head that was not fitted on them: those of the fit are judged
        by cross-validation, as in `report`, all others by the classifier itself.

        Example:
            for suspect in classifier.suspects("photos/", labels):
                print(suspect.path, suspect.label, suspect.likelier)

        Args:
            images_or_features, labels: as in `report`.
            cut: an image is listed if its own label is less than this times as probable as the
                likeliest one; above 0, at most 1. Higher ones find more, and more that are right.
            seed: of what is drawn for cross-validation.
            batch_size, workers, progress: as in `embed`, for images.

        Raises:
            DataError: as `report`.
            ConfigError: for an impossible `cut`.
        """
        check_cut(cut)
        reading = self._reading(None, batch_size, workers, progress)
        support = support_set(self.model, images_or_features, labels, self.labels, reading)
        judged = judge_each(self, support, seed)
        paths = paths_of(images_or_features, support)
        return find_suspects(
            self.labels,
            judged.probabilities,
            support.labels[judged.rows],
            cut=cut,
            rows=judged.rows,
            paths=[paths[int(row)] for row in judged.rows],
        )

    def _drop_calibration(self, reason: str) -> None:
        """Forget a calibration that no longer holds, and tell the log "clipkit" of it."""
        if self.calibration is not None:
            _LOG.warning("%s, so the calibration is dropped: calibrate again", reason)
        self.calibration = None
