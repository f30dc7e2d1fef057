"""`clipkit fit`: make a classifier from class folders."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clipkit import Features, ImageClassifier, extract_features, sample_shots
from clipkit.classify.few_shot import METHODS, check_method
from clipkit.classify.words import choices_in_words
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
from clipkit.commands.display import Style, is_terminal, tell_skipped
from clipkit.commands.folders import (
    check_result_folder,
    print_classifier,
    read_class_folders,
)
from clipkit.commands.inputs import tell_unknown_ids
from clipkit.commands.model_choice import ModelChoice, add_model, choose_classifier
from clipkit.errors import ConfigError
from clipkit.prompts import name_ids


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
    add_seed(parser)
    add_workers(parser)
    add_model(parser)


def fit(
    *,
    data: Path,
    out: Path,
    templates: list[str] | None,
    method: str,
    shots: int | None,
    seed: int,
    workers: int,
    choice: ModelChoice,
) -> int:
    """Fit a classifier on class folders, save it, and print what was chosen."""
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
    classifier = choose_classifier(None, name_ids(names), choice, templates)
    found = embed_labelled(classifier, pairs.files, pairs.labels or [], workers)
    classifier.fit(found, found.labels, method, seed=seed).save(out)
    _print_choices(classifier, len(found))
    print_classifier(out)
    return DONE


def embed_labelled(
    classifier: ImageClassifier, files: Sequence[Path], labels: Sequence[int], workers: int
) -> Features:
    """Return the features of the images that can be read, with labels, and tell which cannot."""
    rows = list(zip(files, labels, strict=True))
    progress = is_terminal(sys.stderr)
    found = extract_features(classifier.model, rows, workers=workers, progress=progress)
    tell_skipped([problem for _, problem in found.skipped])
    return found


def _print_choices(classifier: ImageClassifier, images: int) -> None:
    provenance = classifier.provenance
    lines = {
        "classes": str(len(classifier.labels)),
        "images": str(images),
        "method": str(provenance["method"]),
        **choices_in_words(provenance),
    }
    style = Style.of(sys.stdout)
    for name, value in align(list(lines.items())):
        print(f"{style.dim(name)}  {value.rstrip()}")


FIT = Command(
    name="fit",
    summary="make a classifier from class folders of images, a few each or many",
    examples="clipkit fit train_folders/ --out pets/ --model ViT-B/32 --shots 16",
    add_arguments=_add_arguments,
    run=fit,
    takes_model=True,
)
