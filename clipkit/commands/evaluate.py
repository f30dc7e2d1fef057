"""`clipkit eval`: measure a classifier on class folders."""

import argparse
import json
import sys
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from clipkit import ImageClassifier
from clipkit.classify import metrics
from clipkit.classify.evaluate import warn_of_seen
from clipkit.classify.labels import find_classes
from clipkit.columns import align
from clipkit.commands.command import (
    DONE,
    Command,
    add_class_folders,
    add_classifier,
    add_json,
    add_templates,
    add_workers,
)
from clipkit.commands.display import Style, count
from clipkit.commands.fit import embed_labelled
from clipkit.commands.folders import read_class_folders
from clipkit.commands.model_choice import ModelChoice, add_model, choose_classifier
from clipkit.prompts import name_ids
from clipkit.visible import visible

_WITHOUT_BAR = "calibration error"  # the only figure of which less is better


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_class_folders(parser)
    add_classifier(parser)
    add_templates(parser)
    add_workers(parser)
    add_json(parser, help="print one JSON object")
    add_model(parser)


def evaluate(
    *,
    data: Path,
    classifier: Path | None,
    templates: list[str] | None,
    workers: int,
    as_json: bool,
    choice: ModelChoice,
) -> int:
    """Measure a classifier on class folders and print the figures."""
    pairs = read_class_folders(data)
    folders = pairs.class_names or []
    chosen = choose_classifier(classifier, name_ids(folders), choice, templates)
    # A classifier may know its classes in another order, and more of them.
    places = _places(chosen.labels, folders)
    indices = [places[label] for label in pairs.labels or []]
    found = embed_labelled(chosen, pairs.files, indices, workers)
    warn_of_seen(chosen, found.features, found.paths)
    labels = found.labels
    assert labels is not None  # each image came with one
    probabilities = chosen.probabilities(found.features)
    figures = _figures(probabilities, labels)
    confused = _confused(chosen, probabilities, labels)
    images, classes = len(labels), len(chosen.labels)
    if as_json:
        counts = {"images": images, "classes": classes}
        print(json.dumps({**counts, **figures, "most confused": confused}))
    else:
        print(f"{count(images, 'image')}, {count(classes, 'class', 'classes')}")
        _print_figures(figures, confused)
    return DONE


def _places(labels: list[str], folders: list[str]) -> list[int]:
    """Return the index of the label of each folder.

    A folder and a label are of one class if they are alike but for underscores and spaces, or if
    one is a WordNet id and the other its name.
    """
    readable_labels = list(name_ids(labels))
    readable = dict(zip(labels, readable_labels, strict=True))
    names = [
        readable.get(folder, name) for folder, name in zip(folders, name_ids(folders), strict=True)
    ]
    places = find_classes(names, readable_labels)
    return [places[name] for name in names]


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
    # Few of many classes occur among the images, and a matrix has a cell for each pair of classes.
    every = torch.cat([probabilities.argmax(dim=1), labels])
    occurring, places = cast("tuple[Tensor, Tensor]", every.unique(return_inverse=True))
    predicted, right = places[: len(labels)], places[len(labels) :]
    matrix = metrics.confusion_matrix(predicted, right, len(occurring))
    names = [classifier.labels[int(index)] for index in occurring]
    return [(names[i], names[j], share) for i, j, share in metrics.most_confused(matrix)]


def _print_figures(figures: dict[str, float], confused: list[tuple[str, str, float]]) -> None:
    _print_shares(figures)
    if not confused:
        return
    style = Style.of(sys.stdout)
    print(style.dim("most confused (of the images of both classes, the share taken for the other)"))
    _print_shares(
        {f"{visible(first)}, {visible(second)}": share for first, second, share in confused}
    )


def _print_shares(shares: dict[str, float]) -> None:
    """Print a table of shares, on a terminal with bars."""
    style = Style.of(sys.stdout)
    rows = align([[name, f"{share:8.2%}"] for name, share in shares.items()])
    for (name, figure), share in zip(rows, shares.values(), strict=True):
        has_bar = style.has_bars and name.strip() != _WITHOUT_BAR
        print(f"  {name}  {figure}" + (f"  {style.bar(share)}" if has_bar else ""))


EVAL = Command(
    name="eval",
    summary="measure a classifier, or zero-shot, on class folders of images",
    examples="clipkit eval test_folders/ --classifier pets/",
    add_arguments=_add_arguments,
    run=evaluate,
    takes_model=True,
)
