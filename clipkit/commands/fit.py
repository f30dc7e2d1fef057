"""`clipkit fit` and `clipkit eval`: make a classifier from class folders, and measure one."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from clipkit import ImageClassifier, extract_features, read_folder, sample_shots
from clipkit.classify import metrics
from clipkit.classify.few_shot import METHODS, check_method
from clipkit.commands.command import (
    DONE,
    Command,
    add_class_folders,
    add_classifier,
    add_device,
    add_json,
    add_model,
    add_out,
    add_seed,
    add_workers,
    choose_classifier,
    tell_skipped,
)
from clipkit.errors import DataError

# What a method may choose by itself, in the order in which it is printed.
CHOICES = ("strength", "C", "alpha", "beta", "lr")


def _add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    add_class_folders(parser)
    add_out(parser, help="folder for the classifier")
    add_model(parser)
    add_device(parser)
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


def fit(
    *,
    data: Path,
    out: Path,
    model: str | None,
    templates: list[str] | None,
    device: str | None,
    method: str,
    shots: int | None,
    seed: int,
    workers: int,
) -> int:
    """Fit a classifier on class folders, save it, and print what was chosen."""
    check_method(method)  # before many images are encoded
    pairs = read_folder(data)
    classifier = choose_classifier(
        None, pairs.class_names or [], model=model, templates=templates, device=device
    )
    if shots is not None:
        drawn = sample_shots(pairs.labels or [], shots, seed)
        pairs = pairs.select([int(index) for index in drawn])
    features, labels = _embed(classifier, pairs.files, pairs.labels or [], workers)
    classifier.fit(features, labels, method, seed=seed).save(out)
    _print_choices(classifier, len(labels))
    print(f"Saved to {out}; go on with: clipkit classify --classifier {out} IMAGE ...")
    return DONE


def _embed(
    classifier: ImageClassifier, files: Sequence[Path], labels: Sequence[int], workers: int
) -> tuple[Tensor, Tensor]:
    """Return features and labels of the images that can be read, and tell which cannot."""
    rows = list(zip(files, labels, strict=True))
    found = extract_features(classifier.model, rows, workers=workers, progress=sys.stderr.isatty())
    tell_skipped([problem for _, problem in found.skipped])
    assert found.labels is not None  # each row came with one
    return found.features, found.labels


def _print_choices(classifier: ImageClassifier, images: int) -> None:
    provenance = classifier.provenance
    lines = {
        "classes": len(classifier.labels),
        "images": images,
        "method": provenance["method"],
        **{name: provenance[name] for name in CHOICES if name in provenance},
    }
    for name, value in lines.items():
        print(f"{name:<10}{value}")


def _add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    add_class_folders(parser)
    add_classifier(parser)
    add_model(parser)
    add_device(parser)
    add_workers(parser)
    add_json(parser, help="print one JSON object")


def evaluate(
    *,
    data: Path,
    classifier: Path | None,
    model: str | None,
    templates: list[str] | None,
    device: str | None,
    workers: int,
    as_json: bool,
) -> int:
    """Measure a classifier on class folders and print the figures."""
    pairs = read_folder(data)
    names = pairs.class_names or []
    chosen = choose_classifier(classifier, names, model=model, templates=templates, device=device)
    # A classifier may know its classes in another order, and more of them.
    places = _places(chosen, names, data)
    indices = [places[label] for label in pairs.labels or []]
    features, labels = _embed(chosen, pairs.files, indices, workers)
    probabilities = chosen.probabilities(features)
    figures = _figures(probabilities, labels)
    confused = _confused(chosen, probabilities, labels)
    counts = {"images": len(labels), "classes": len(chosen.labels)}
    if as_json:
        print(json.dumps({**counts, **figures, "most confused": confused}))
    else:
        print(f"{counts['images']} images, {counts['classes']} classes")
        _print_figures(figures, confused)
    return DONE


def _places(classifier: ImageClassifier, names: list[str], data: Path) -> list[int]:
    """Return the classifier's index of each name."""
    if unknown := sorted(set(names) - set(classifier.labels)):
        raise DataError(
            f"the classifier has no class for these folders of {data}: {', '.join(unknown)}"
        )
    return [classifier.labels.index(name) for name in names]


def _figures(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return what `clipkit eval` prints, by name, each from 0 to 1."""
    predicted = probabilities.argmax(dim=1)
    figures = {"top-1": metrics.accuracy(predicted, labels)}
    if probabilities.shape[1] > 5:  # of five classes or fewer it would always be 1
        figures["top-5"] = metrics.top_k_accuracy(probabilities, labels, 5)
    figures["mean per class"] = metrics.mean_per_class(predicted, labels)
    figures["calibration error"] = metrics.expected_calibration_error(probabilities, labels)
    return figures


def _confused(
    classifier: ImageClassifier, probabilities: Tensor, labels: Tensor
) -> list[tuple[str, str, float]]:
    """Return the pairs of classes that are taken for each other most often."""
    matrix = metrics.confusion_matrix(probabilities.argmax(dim=1), labels, len(classifier.labels))
    names = classifier.labels
    return [(names[i], names[j], share) for i, j, share in metrics.most_confused(matrix)]


def _print_figures(figures: dict[str, float], confused: list[tuple[str, str, float]]) -> None:
    for name, value in figures.items():
        print(f"  {name:<20}{value:8.2%}")
    if not confused:
        return
    print("most confused (of the images of both classes, the share taken for the other)")
    pairs = [(f"{first}, {second}", share) for first, second, share in confused]
    width = max(len(pair) for pair, _ in pairs)
    for pair, share in pairs:
        print(f"  {pair:<{width}}{share:8.2%}")


FIT = Command(
    name="fit",
    summary="make a classifier from class folders of images, a few each or many",
    example="clipkit fit train_folders/ --out pets/ --model ViT-B/32 --shots 16",
    add_arguments=_add_fit_arguments,
    run=fit,
)
EVAL = Command(
    name="eval",
    summary="measure a classifier, or zero-shot, on class folders of images",
    example="clipkit eval test_folders/ --classifier pets/",
    add_arguments=_add_eval_arguments,
    run=evaluate,
)
