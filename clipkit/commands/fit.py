"""`clipkit fit`: make a classifier from class folders."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clipkit import Features, ImageClassifier, extract_features, sample_shots
from clipkit.classify.few_shot import METHODS, check_method
from clipkit.classify.fitting import FOLDS
from clipkit.classify.report_text import interval_in_words, obtained
from clipkit.classify.words import calibration_in_words, choices_in_words
from clipkit.columns import align
from clipkit.commands.command import (
    DONE,
    Command,
    add_class_folders,
    add_out,
    add_seed,
    add_templates,
    add_workers,
)
from clipkit.commands.display import Style, is_terminal, tell_skipped, typed
from clipkit.commands.folders import (
    check_result_folder,
    print_classifier,
    read_class_folders,
)
from clipkit.commands.inputs import tell_unknown_ids
from clipkit.commands.model_choice import choose_classifier
from clipkit.commands.model_options import ModelChoice, add_model, take_model
from clipkit.errors import ConfigError, DataError
from clipkit.prompts import name_ids

_LONG = 60  # seconds; a fit that takes longer is not done four times more unasked


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_class_folders(parser)
    add_out(parser, help="folder for the classifier")
    add_templates(parser)
    parser.add_argument(
        "--method",
        default="anchored",
        metavar="NAME",
        help=f"{', '.join(METHODS)} (default: anchored)",
    )
    parser.add_argument(
        "--shots", type=int, metavar="N", help="images to draw from each class (default: all)"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="calibrate it by cross-validation, which four more fits take: for probabilities to "
        "trust, and for --coverage and --reject of clipkit classify",
    )
    parser.add_argument(
        "--no-estimate",
        action="store_false",
        dest="estimate",
        help="leave out the cross-validated accuracy, which takes about four fits more",
    )
    add_seed(parser)
    add_workers(parser)
    add_model(parser)


def fit(
    *,
    data: Path,
    out: Path,
    templates: list[str] | None,
    descriptors: Path | None,
    method: str,
    shots: int | None,
    calibrate: bool,
    estimate: bool,
    seed: int,
    workers: int,
    choice: ModelChoice,
) -> int:
    """Fit a classifier on class folders, save it, and print what was chosen and how good it is."""
    check_method(method)  # before many images are encoded, as are the folders
    if shots is not None and shots < 1:
        raise ConfigError(f"--shots must be at least 1, not {shots}")
    check_result_folder(out)
    pairs = read_class_folders(data)
    if shots is not None:
        names = pairs.class_names or []
        # By their names, so that the log names classes with fewer images.
        drawn = sample_shots([names[label] for label in pairs.labels or []], shots, seed)
        pairs = pairs.select([int(index) for index in drawn])
    names = pairs.class_names or []
    tell_unknown_ids(names)
    classifier = choose_classifier(None, name_ids(names), choice, templates, descriptors)
    found = embed_labelled(classifier, pairs.files, pairs.labels or [], workers)
    start = time.monotonic()
    classifier.fit(found, found.labels, method, seed=seed, calibrate=calibrate)
    fits = 1 + FOLDS if calibrate else 1
    seconds = (time.monotonic() - start) / fits
    classifier.save(out)
    accuracy: dict[str, str] = {}
    if estimate:
        later = f"clipkit eval {typed(data)} --classifier {typed(out)}"
        accuracy["accuracy"] = _estimate(classifier, found, seed, seconds, later)
    _print_choices(classifier, len(found), accuracy)
    print_classifier(out)
    return DONE


def embed_labelled(
    classifier: ImageClassifier, files: Sequence[Path], labels: Sequence[int], workers: int
) -> Features:
    """Return the features of the images that can be read, with labels, and tell which cannot."""
    rows = list(zip(files, labels, strict=True))
    progress = is_terminal(sys.stderr)
    found = extract_features(
        classifier.model, rows, workers=workers, progress=progress, views=classifier.views
    )
    tell_skipped([problem for _, problem in found.skipped])
    return found


def _estimate(
    classifier: ImageClassifier, found: Features, seed: int, seconds: float, later: str
) -> str:
    """Return the accuracy on other images in words, as cross-validation estimates it.

    Args:
        classifier: what was fitted.
        found: the features that it was fitted on.
        seed: of the folds.
        seconds: how long a fit took, without the calibration.
        later: the command that estimates it where it would take too long now.
    """
    if seconds > _LONG:
        words = f"not estimated, which would take about four times the {seconds:.0f} s of a fit"
        return f"{words}: {later}"
    try:
        report = classifier.report(found, found.labels, seed=seed)
    except DataError as error:  # the classifier is fitted and saved all the same
        return f"not estimated: {error}"
    words = f"{report.accuracy:.1%} ({interval_in_words(report)}), {obtained(report)}"
    if report.estimate.pessimistic:
        words += ", pessimistic since each class has a single image"
    return words


def _print_choices(classifier: ImageClassifier, images: int, accuracy: dict[str, str]) -> None:
    provenance = classifier.provenance
    lines = {
        "classes": str(len(classifier.labels)),
        "images": str(images),
        "method": str(provenance["method"]),
        **choices_in_words(provenance),
        **accuracy,
    }
    if classifier.calibration is not None:
        lines["calibration"] = calibration_in_words(classifier.calibration)
    style = Style.of(sys.stdout)
    for name, value in align(list(lines.items())):
        print(f"{style.dim(name)}  {value.rstrip()}")


FIT = Command(
    name="fit",
    examples="clipkit fit train_folders/ --out pets/ --model ViT-B/32 --shots 16\n"
    "clipkit fit train_folders/ --out pets/ --calibrate",
    add_arguments=_add_arguments,
    run=fit,
    prepare=take_model,
)
