"""Calibrate a classifier on images that its head was not fitted on, or on its support set."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.classify.calibration import (
    FALSE_ALARMS,
    Calibration,
    calibrate_by_cross_validation,
    calibrate_labels,
    calibrate_several,
)
from clipkit.classify.cross_validation import cross_validated
from clipkit.classify.few_shot import Method
from clipkit.classify.heads import CosineHead, Head
from clipkit.classify.inputs import LabeledInputs, SupportSet, support_set
from clipkit.classify.labels import Labels
from clipkit.classify.reading import Reading
from clipkit.classify.several import SeveralLabels, has_several, read_several
from clipkit.errors import ConfigError, DataError


def read_held_out(
    model: nn.Module,
    given: LabeledInputs,
    labels: Labels | SeveralLabels | None,
    class_names: Sequence[str],
    reading: Reading,
) -> tuple[SupportSet, Tensor | None]:
    """Return images to calibrate on, and which labels each has if it can have several.

    Args:
        model: what encodes images.
        given: as in `ImageClassifier.fit`.
        labels: as in `ImageClassifier.fit`, or as `read_several` takes them.
        class_names: C names.
        reading: how images are read.

    Returns:
        features, labels and paths of M images that could be read; and (M, C) bool, or None where
        each image has one label. With several labels those of the first are row numbers.

    Raises:
        DataError: as `support_set` and `read_several`.
    """
    if labels is None or not has_several(labels):
        one: Any = labels
        return support_set(model, given, one, class_names, reading), None
    truth = read_several(labels, class_names)
    # Rows stand in for labels, so that those of images that cannot be read are left out.
    rows = [f"row {place}" for place in range(len(truth))]
    places = torch.arange(len(truth), device="cpu")
    support = support_set(model, given, places, rows, reading)
    return support, truth[support.labels]


def calibrated(
    support: SupportSet,
    truth: Tensor | None,
    logits: Tensor,
    before: Calibration | None,
    false_alarms: float,
) -> Calibration:
    """Return a calibration by images that a head was not fitted on.

    Args:
        support, truth: as from `read_held_out`.
        logits: (M, C), what the head makes of them.
        before: the calibration so far. The part of it that these images say nothing of is kept.
        false_alarms: see `Calibration`.

    Raises:
        ConfigError: if `false_alarms` is impossible, or another one than by default for images with
            several labels, which are not rejected.
    """
    if truth is None:
        found = calibrate_labels(logits, support.labels, false_alarms=false_alarms)
        presence = None if before is None else before.presence
        return replace(found, presence=presence, views=_views_of(support, before, presence))
    if false_alarms != FALSE_ALARMS:
        raise ConfigError(
            f"false_alarms={false_alarms} would be ignored, since images with several labels each "
            "do not calibrate what rejects: leave it out"
        )
    found = calibrate_several(logits, truth, before)
    return replace(found, views=_views_of(support, before, found.images))


def kept_views(before: Calibration | None, labels: Labels | SeveralLabels | None) -> int | None:
    """Return the views of the part of a calibration that another calibration leaves as it is.

    Args:
        before: the calibration so far.
        labels: of the other one.
    """
    if before is None:
        return None
    is_several = labels is not None and has_several(labels)
    return before.views if (before.images if is_several else before.presence) else None


def _views_of(support: SupportSet, before: Calibration | None, kept: object) -> int | None:
    """Return how often images were seen, of what is kept of a calibration where it is not known."""
    if support.views is None and before is not None and kept:
        return before.views
    return support.views


def check_unseen(support: SupportSet, seen: int) -> None:
    """Raise `DataError` unless there are images, none of which the head was fitted on.

    Args:
        support: the images to calibrate on.
        seen: how many of them the head was fitted on.
    """
    if len(support.features) == 0:
        raise DataError("there is no image to calibrate on: pass one at least, better hundreds")
    if seen:
        raise DataError(
            f"the classifier was fitted on {seen:,} of these {len(support.features):,} images, of "
            "which it is surer than of others: calibrate on other images, or on those of the fit "
            "by cross-validation, fit(..., calibrate=True)"
        )


def calibrated_by_folds(
    support: SupportSet,
    head: Head,
    zero_shot: CosineHead,
    method: Method | str,
    seed: int,
    options: dict[str, Any],
) -> Calibration:
    """Return a calibration by cross-validation of the support set that a head is fitted on.

    Args:
        support: features and labels.
        head: fitted on all of it.
        zero_shot: where fits start; it is not changed.
        method, seed, options: as in `fit_head`.
    """
    start = CosineHead(zero_shot.weight, zero_shot.logit_scale)  # float32
    found = cross_validated(
        support.features, support.labels, start, method, options, seed=seed, like=head
    )
    calibration = calibrate_by_cross_validation(found, support.labels)
    return replace(calibration, views=support.views)
