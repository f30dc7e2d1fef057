"""Find what a classifier says of images that its head was not fitted on, and say how.

Images of the fit are known again by their marks. They are judged by heads that are fitted anew
without them; all others by the classifier itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit.classify.calibration import HELD_OUT, Calibration
from clipkit.classify.cross_validation import CrossValidated, cross_validated
from clipkit.classify.few_shot import METHODS
from clipkit.classify.figures import Estimate
from clipkit.classify.fit_support import OPTIONS
from clipkit.classify.heads import CosineHead
from clipkit.classify.inputs import LabeledInputs, SupportSet, given_features
from clipkit.classify.judgement import softened
from clipkit.classify.report import Report, make_report
from clipkit.classify.seen import MOST_FILES, SEEN, which_seen
from clipkit.classify.stored import StoredClassifier
from clipkit.classify.words import made_by
from clipkit.classify.zero_shot import embed_prompts
from clipkit.data.labelled import Pairs
from clipkit.encode.features import Features
from clipkit.errors import DataError
from clipkit.plurals import number_of

# If no more than this share of images is not known from the fit, all are taken for those of it:
# features that are computed in other batches have other last bits, and a few marks miss them.
_MISSED = 0.1

# If more than this share of the other images may be of the fit too, they are not measured alone.
# A duplicate or two in a test set are far below, a folder of the fit among others is above.
_HIDDEN = 0.02


@dataclass(frozen=True, eq=False)
class Judged:
    """Hold probabilities of images that the heads behind them were not fitted on.

    Attributes:
        probabilities: (M, C) float32 on the CPU.
        rows: (M,) int64, which of the given images these are.
        estimate: how they were obtained.
    """

    probabilities: Tensor
    rows: Tensor
    estimate: Estimate


def report_of(
    classifier: StoredClassifier, given: LabeledInputs, support: SupportSet, seed: int
) -> Report:
    """Return the report of a classifier on labeled images.

    Args:
        classifier: what is measured.
        given: the images, as the caller gave them.
        support: features, labels and paths of those that can be read.
        seed: of the folds.

    Raises:
        DataError: as `judge_unseen`.
    """
    judged = judge_unseen(classifier, support, seed)
    estimate = judged.estimate
    clause = _calibration_clause(classifier.calibration, estimate.folds > 0)
    paths = paths_of(given, support)
    return make_report(
        classifier.labels,
        judged.probabilities,
        support.labels[judged.rows],
        replace(estimate, sentence=estimate.sentence + clause),
        rows=judged.rows,
        paths=[paths[int(row)] for row in judged.rows],
        image_of=_images_of(given, support),
    )


def judge_unseen(classifier: StoredClassifier, support: SupportSet, seed: int) -> Judged:
    """Return what is said of images by heads that were not fitted on them, of all in one way.

    If the head was fitted on some of the images, only the others are judged; if it was fitted on
    all, or all but a few, they are judged by cross-validation. So they are if too many of the
    others may be of the fit: of many images only a part is known again.

    Args:
        classifier: whose method it is.
        support: the images.
        seed: of the folds.

    Raises:
        DataError: if there are no images; or if the head was fitted on them in a way that cannot be
            done again without some of them.
    """
    seen = _check_and_find_seen(classifier, support)
    count, total = int(seen.sum()), len(seen)
    if count and not _are_others_clear(classifier, count, total):
        return _by_folds(classifier, support, seed, count)
    if count:
        rows = (~seen).nonzero().flatten()  # (images not seen, 1) -> (images not seen,)
        sentence = _left_out_sentence(count, total, _hidden(classifier, count))
        estimate = Estimate(sentence, left_out=count, skipped=support.skipped)
        return Judged(classifier.probabilities(support.features[rows]), rows, estimate)
    estimate = Estimate(_held_out_sentence(classifier, total), skipped=support.skipped)
    return Judged(
        classifier.probabilities(support.features), torch.arange(total, device="cpu"), estimate
    )


def judge_each(classifier: StoredClassifier, support: SupportSet, seed: int) -> Judged:
    """Return what is said of images by heads that were not fitted on them, of each in its way.

    Images of the fit are judged by cross-validation, all others by the classifier itself.

    Args:
        classifier, support, seed: as in `judge_unseen`.

    Raises:
        DataError: as `judge_unseen`.
    """
    seen = _check_and_find_seen(classifier, support)
    others = (~seen).nonzero().flatten()  # (images not seen, 1) -> (images not seen,)
    count, total = int(seen.sum()), len(seen)
    # Nothing can be held out of a single image.
    if count < 2 or not _are_others_clear(classifier, count, total):
        return judge_unseen(classifier, support, seed)
    rows = seen.nonzero().flatten()
    part = SupportSet(
        support.features[rows],
        support.labels[rows],
        [support.paths[int(row)] for row in rows],
        support.skipped,
    )
    folded = _by_folds(classifier, part, seed, count)
    found = classifier.probabilities(support.features[others])
    return Judged(
        torch.cat([folded.probabilities, found]),
        torch.cat([rows[folded.rows], others]),
        folded.estimate,
    )


def _check_and_find_seen(classifier: StoredClassifier, support: SupportSet) -> Tensor:
    """Return which images the head was fitted on, (N,) bool."""
    if len(support.features) == 0:
        raise DataError("there is no image to measure on: pass one at least, better hundreds")
    return find_seen(classifier, support)


def find_seen(classifier: StoredClassifier, support: SupportSet) -> Tensor:
    """Return which images the head was fitted on, (N,) bool.

    A zero-shot head was fitted on none, even where it was kept after others were fitted.
    """
    provenance = classifier.provenance
    if provenance.get("method") == "zero_shot" and "adapted" not in provenance:
        return torch.zeros(len(support.features), dtype=torch.bool, device="cpu")
    return which_seen(support.features, support.paths, provenance.get(SEEN))


def _fitted(classifier: StoredClassifier) -> int:
    """Return on how many images the head was fitted, as far as is known."""
    counts = classifier.provenance.get("counts")
    return sum(cast("list[int]", counts)) if isinstance(counts, list) else 0


def _hidden(classifier: StoredClassifier, count: int) -> float:
    """Return about how many more images than are known again are of the fit.

    Args:
        classifier: what was fitted.
        count: how many of some images are known again. Features may have been computed in another
            precision; then files alone tell, of which there are the fewest marks.
    """
    return count * max(0.0, _fitted(classifier) / MOST_FILES - 1)


def _are_others_clear(classifier: StoredClassifier, count: int, total: int) -> bool:
    """Return whether enough images are not known again, hardly any of which is of the fit."""
    others = total - count
    return others > _MISSED * total and _hidden(classifier, count) <= _HIDDEN * others


def _left_out_sentence(count: int, total: int, hidden: float) -> str:
    sentence = (
        f"held out: the classifier was fitted on {count:,} of these {total:,} images, so it was "
        f"measured on the other {total - count:,} alone"
    )
    if round(hidden):
        sentence += (
            f", about {hidden:,.0f} of which may be of the fit as well, since of so many images "
            "only a part is known again"
        )
    return sentence


def _held_out_sentence(classifier: StoredClassifier, total: int) -> str:
    images = number_of(total, "image")
    if classifier.provenance.get("method") == "zero_shot":
        return f"measured on {images}; the classifier is made of class names, and fitted on nothing"
    if SEEN not in classifier.provenance:
        return (
            f"measured on {images}; the classifier does not know what it was fitted on, and on "
            "those images it is better than on others"
        )
    if _fitted(classifier) > MOST_FILES:
        return (
            f"held out: measured on {images}, and on none of them is the classifier known to be "
            f"fitted; of the {_fitted(classifier):,} images of its fit a part is known again"
        )
    return f"held out: measured on {images} that the classifier is not known to be fitted on"


def _by_folds(classifier: StoredClassifier, support: SupportSet, seed: int, count: int) -> Judged:
    """Return what a classifier's method says of its support set, by cross-validation.

    Args:
        classifier, support, seed: as in `judge_unseen`.
        count: how many of the images are known to be of the fit.
    """
    of_fit = _of_fit(count, len(support.labels))
    provenance = classifier.provenance
    method = provenance.get("method")
    if method not in METHODS or "adapted" in provenance:
        raise DataError(
            f"the classifier is {made_by(provenance)} and was fitted on {of_fit}, which cannot be "
            "done again without some of them: measure it on other images"
        )
    options = dict(cast("dict[str, Any]", provenance.get(OPTIONS, {})))
    if method == "prompt_weights":
        options["captions"] = embed_prompts(classifier.model, classifier.prompts)
    zero_shot = classifier.zero_shot_head
    start = CosineHead(zero_shot.weight, zero_shot.logit_scale)  # float32
    with torch.autocast(classifier.model.device.type, enabled=False):
        found = cross_validated(
            support.features,
            support.labels,
            start,
            method,
            options,
            seed=seed,
            like=classifier.head,  # of its logits a temperature was learned
        )
    left_out = len(support.labels) - len(found.indices)
    estimate = Estimate(
        _folds_sentence(found, method, of_fit, left_out, len(support.labels), _fitted(classifier)),
        folds=found.folds,
        pessimistic=found.pessimistic,
        left_out=left_out,
        skipped=support.skipped,
    )
    probabilities = softened(found.logits, classifier.calibration).softmax(dim=-1)
    return Judged(probabilities, found.indices, estimate)


def _of_fit(count: int, total: int) -> str:
    """Return which of the given images are those of the fit, as far as they are known again."""
    if total - count <= _MISSED * total:
        return "these images"
    return f"at least {count:,} of these {total:,} images"


def _folds_sentence(
    found: CrossValidated, method: str, of_fit: str, left_out: int, given: int, fitted: int
) -> str:
    """Return how cross-validation was done, in words."""
    sentence = (
        f"cross-validated in {found.folds} folds: the classifier was fitted on {of_fit}, so its "
        f"method, {method}, was fitted again without each part of them, and measured on that part"
    )
    if found.pessimistic:
        sentence += (
            "; pessimistic, because each class has a single image, and nothing but its text was "
            "known of the class of an image that was held out"
        )
    if left_out:
        images = "1 image, which is" if left_out == 1 else f"{left_out:,} images, each of which is"
        sentence += f"; not measured on {images} the only one of its class"
    if fitted > (1 + _MISSED) * given:
        sentence += f"; the classifier itself was fitted on more, {fitted:,} images"
    return sentence


def _calibration_clause(calibration: Calibration | None, is_of_fit: bool) -> str:
    """Return what is to be said of a calibration error; nothing where nothing speaks against it.

    Args:
        calibration: of the classifier.
        is_of_fit: whether images of the fit are measured.
    """
    if calibration is None or not calibration.images:
        return ""
    if calibration.source == HELD_OUT:
        return (
            f"; probabilities are calibrated on {number_of(calibration.images, 'image')}: if "
            "these are among them, the calibration error is a trifle too low"
        )
    if not is_of_fit:
        return ""
    return (
        "; probabilities are calibrated on images of the fit, so the calibration error is a trifle "
        "too low"
    )


def paths_of(given: LabeledInputs, support: SupportSet) -> list[str | None]:
    """Return the file of each image that was read, None for one that has none.

    An image without a file goes by its number in a support set.
    """
    if isinstance(given, DataLoader):
        return [None] * len(support.features)
    return [
        None if path is None or (path.isdigit() and not Path(path).exists()) else path
        for path in support.paths
    ]


def _images_of(given: LabeledInputs, support: SupportSet) -> Callable[[int], Any] | None:
    """Return what gives the image of a row again, for a page; None if there are no images.

    Only what can be asked for by a number is asked: a generator has been used up.
    """
    if isinstance(given, Pairs | Features | DataLoader) or given_features(given) is not None:
        return None
    if not isinstance(given, list | tuple | Dataset):
        return None
    source = cast("Sequence[Any]", given)
    paths = support.paths

    def image_of(row: int) -> Any:
        name = paths[row]
        if name is None:
            return None
        # An image that has a file is known by that, all others by their number.
        return source[int(name)] if name.isdigit() and not Path(name).exists() else name

    return image_of
