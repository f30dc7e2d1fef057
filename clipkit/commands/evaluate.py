"""`clipkit eval`: measure a classifier on class folders."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from clipkit import Report, Suspect
from clipkit.classify.labels import find_classes
from clipkit.classify.report_text import MOST_CONFUSIONS, confusion_table, sentences
from clipkit.columns import align
from clipkit.commands.command import (
    DONE,
    Command,
    add_class_folders,
    add_classifier,
    add_json,
    add_templates,
    add_workers,
    check_page,
    path_of,
)
from clipkit.commands.display import Style, tell
from clipkit.commands.fit import embed_labelled
from clipkit.commands.folders import read_class_folders
from clipkit.commands.model_choice import choose_classifier
from clipkit.commands.model_options import ModelChoice, add_model, take_model
from clipkit.errors import ConfigError
from clipkit.plurals import number_of, number_of_classes
from clipkit.prompts import name_ids
from clipkit.visible import visible

_WITHOUT_BAR = "calibration error"  # the only figure of which less is better
_INTERVAL = "95% interval"  # of the first figure; the only row of two figures


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_class_folders(parser)
    add_classifier(parser)
    add_templates(parser)
    parser.add_argument(
        "--html",
        type=path_of,
        metavar="FILE",
        help="write a page with all figures, a diagram of the probabilities and the worst mistakes",
    )
    parser.add_argument(
        "--suspects",
        type=int,
        metavar="N",
        help="list up to N images in whose folder they may not belong, the most suspicious first",
    )
    add_workers(parser)
    add_json(parser, help="print one JSON object")
    add_model(parser)


def evaluate(
    *,
    data: Path,
    classifier: Path | None,
    templates: list[str] | None,
    descriptors: Path | None,
    html: Path | None,
    suspects: int | None,
    workers: int,
    as_json: bool,
    choice: ModelChoice,
) -> int:
    """Measure a classifier on class folders, print the figures, and write a page if one is wanted.

    Images that it was fitted on are not measured by what was fitted; see `ImageClassifier.report`.
    """
    if suspects is not None and suspects < 1:
        raise ConfigError(f"--suspects must be at least 1, not {suspects}")
    check_page(html)  # before many images are encoded
    pairs = read_class_folders(data)
    folders = pairs.class_names or []
    chosen = choose_classifier(classifier, name_ids(folders), choice, templates, descriptors)
    # A classifier may know its classes in another order, and more of them.
    places = _places(chosen.labels, folders)
    indices = [places[label] for label in pairs.labels or []]
    found = embed_labelled(chosen, pairs.files, indices, workers)
    report = chosen.report(found)
    listed = [] if suspects is None else chosen.suspects(found)
    if html is not None:
        report.to_html(html, title=f"{data.resolve().name}: how good the classifier is")
        tell(f"The page is in {html}.")
    classes = len(chosen.labels)
    if as_json:
        print(json.dumps(_as_json(report, classes, listed[:suspects], suspects is not None)))
        return DONE
    print(f"{number_of(report.images, 'image')}, {number_of_classes(classes)}")
    _print_report(report)
    if suspects is not None:
        _print_suspects(listed, suspects)
    return DONE


def _as_json(
    report: Report, classes: int, suspects: Sequence[Suspect], has_suspects: bool
) -> dict[str, object]:
    """Return what `--json` prints."""
    values: dict[str, object] = {
        "images": report.images,
        "classes": classes,
        "estimate": asdict(report.estimate),
        **_figures(report),
        "top-1 interval": list(report.interval),
        "confusions": _confusions(report),
    }
    return values | ({"suspects": [asdict(one) for one in suspects]} if has_suspects else {})


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


def _figures(report: Report) -> dict[str, float]:
    """Return what `clipkit eval` prints, by name, each from 0 to 1."""
    figures = {
        "top-1": report.accuracy,
        "top-5": report.top_5,
        "mean per class": report.balanced_accuracy,
        "calibration error": report.calibration_error,
    }
    return {name: share for name, share in figures.items() if share is not None}


def _confusions(report: Report) -> list[dict[str, object]]:
    """Return which class was most often predicted as which other, the most frequent first."""
    images = {row.label: row.images for row in report.classes}
    return [
        {**asdict(pair), "share": pair.count / images[pair.true]}
        for pair in report.confusions[:MOST_CONFUSIONS]
    ]


def _print_report(report: Report) -> None:
    style = Style.of(sys.stdout)
    print(style.dim(visible(sentences(report))))
    low, high = report.interval
    _print_shares(_figures(report), {_INTERVAL: f"{low:.2%} to {high:.2%}"})
    if table := confusion_table(report):
        title, *rows = table.splitlines()
        print("\n".join([style.dim(title), *rows]))


def _print_shares(shares: dict[str, float], more: dict[str, str] | None = None) -> None:
    """Print a table of shares, on a terminal with bars, and below the first one what else is said.

    Args:
        shares: by name, from 0 to 1.
        more: rows of words.
    """
    style = Style.of(sys.stdout)
    cells = [[name, f"{share:8.2%}"] for name, share in shares.items()]
    words = [[name, value] for name, value in (more or {}).items()]
    rows = align([*cells, *words])
    bars = [style.bar(share) if name != _WITHOUT_BAR else "" for name, share in shares.items()]
    lines = [f"  {name}  {figure}  {bar}" for (name, figure), bar in zip(rows, bars, strict=False)]
    lines[1:1] = [f"  {name}  {value}" for name, value in rows[len(cells) :]]
    for line in lines:
        print(line.rstrip())


def _print_suspects(suspects: Sequence[Suspect], most: int) -> None:
    """Print the images whose label may be wrong, the most suspicious first."""
    if not suspects:
        print("no image whose own label is unlikely")
        return
    style = Style.of(sys.stdout)
    shown = suspects[:most]
    print(style.dim(f"labels that may be wrong ({len(shown):,} of {len(suspects):,})"))
    rows = [
        [
            visible(one.path or f"image {one.index}"),
            f"{visible(one.label)} {one.probability:.1%}",
            f"likelier {visible(one.likelier)} {one.likelier_probability:.1%}",
        ]
        for one in shown
    ]
    for row in align(rows):
        print("  " + "  ".join(row).rstrip())


EVAL = Command(
    name="eval",
    examples="clipkit eval test_folders/ --classifier pets/ --html report.html\n"
    "clipkit eval train_folders/ --classifier pets/ --suspects 20",
    add_arguments=_add_arguments,
    run=evaluate,
    prepare=take_model,
)
