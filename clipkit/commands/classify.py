"""`clipkit classify`: rank labels for images."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from clipkit import ImageClassifier, Prediction
from clipkit.classify.judgement import Wanted, check_wanted
from clipkit.columns import align
from clipkit.commands.command import (
    DONE,
    FAILED,
    SOME_LEFT_OUT,
    Command,
    add_classifier,
    add_json,
    add_templates,
)
from clipkit.commands.display import Style, is_terminal, tell_skipped, typed, warn
from clipkit.commands.inputs import (
    add_images,
    check_standard_input,
    find_inputs,
    images_among,
    read_labels,
)
from clipkit.commands.model_choice import choose_classifier
from clipkit.commands.model_options import ModelChoice, add_model, take_model
from clipkit.encode.embed import stream_features
from clipkit.encode.features import Features
from clipkit.errors import ConfigError
from clipkit.prompts import ClassNames
from clipkit.visible import visible

BATCH = 32  # images; results appear after each batch


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    # argparse would write images last, where --labels takes them for labels.
    parser.usage = "clipkit classify IMAGE ... (--labels LABEL ... | --classifier DIR) [OPTION ...]"
    add_images(parser)
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="class names to choose from")
    parser.add_argument(
        "--labels-file",
        metavar="FILE",
        help="the same from a file, one in each line, or JSON; - is standard input",
    )
    add_classifier(parser)
    add_templates(parser)
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="N",
        help="labels to show for each image (default: 5)",
    )
    _add_trust(parser)
    add_json(parser, help="print one JSON object for each image")
    add_model(parser)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    """Add what only a calibrated classifier can say."""
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="SHARE",
        help="show a set of labels that has the right one as often as this, such as 0.9; needs a "
        "--classifier that was fitted with --calibrate",
    )
    parser.add_argument(
        "--reject",
        action="store_true",
        help="say which images show none of the labels; needs such a --classifier too",
    )


def classify(
    *,
    images: list[str],
    images_from: str | None,
    labels: list[str] | None,
    labels_file: str | None,
    classifier: Path | None,
    templates: list[str] | None,
    descriptors: Path | None,
    top: int,
    coverage: float | None,
    reject: bool,
    as_json: bool,
    choice: ModelChoice,
) -> int:
    """Print the likeliest labels of each image, and tell which images could not be read.

    Returns:
        0 if all images were classified, 1 if some were left out, 2 if none could be classified.
    """
    _check_labels(images, images_from, labels, labels_file, classifier)
    check_standard_input(images, images_from, labels_file)
    if top < 1:
        raise ConfigError(f"--top must be at least 1, not {top}")
    wanted = Wanted(coverage, reject)
    _check_calibrated(wanted, classifier)
    names: ClassNames = [] if classifier is not None else read_labels(labels, labels_file)
    if classifier is None:
        _warn_of_one_label(names)
    found = find_inputs(images, images_from)
    problems = found.problems
    classified = 0
    if found.images:
        chosen = choose_classifier(classifier, names, choice, templates, descriptors)
        check_wanted(wanted, chosen.calibration)
        for part in _encode(chosen, found.images):
            shown = _Shown(top, as_json, wanted)
            _print_rows(chosen, part, found.names(), shown, is_first=classified == 0)
            classified += len(part.paths)
            problems += [problem for _, problem in part.skipped]
    tell_skipped(problems)
    if classified == 0:
        return FAILED
    return SOME_LEFT_OUT if problems else DONE


def _check_labels(
    images: list[str],
    images_from: str | None,
    labels: list[str] | None,
    labels_file: str | None,
    classifier: Path | None,
) -> None:
    """Raise `ConfigError` unless there are images, and labels for them from one source."""
    if swallowed := images_among(labels or []):
        kept = [label for label in labels or [] if label not in swallowed]
        raise ConfigError(
            f"--labels takes all words behind it, {' and '.join(swallowed)} as well: write images "
            f"first, as in  clipkit classify {typed(*images, *swallowed)} "
            f"--labels {typed(*kept) or 'LABEL ...'}"
        )
    if not images and images_from is None:
        raise ConfigError(
            "there is no image to classify: clipkit classify IMAGE ... --labels LABEL ..."
        )
    if classifier is not None and (labels is not None or labels_file is not None):
        option = "--labels" if labels is not None else "--labels-file"
        raise ConfigError(f"--classifier knows its own labels: leave {option} out")
    if classifier is None and labels is None and labels_file is None:
        raise ConfigError(
            "give --labels (or --labels-file) to choose from, or a --classifier that knows its own"
        )


def _check_calibrated(wanted: Wanted, classifier: Path | None) -> None:
    """Raise `ConfigError` if labels alone are to say what only calibrated classifiers can."""
    if classifier is None and (wanted.reject or wanted.coverage is not None):
        option = "--reject" if wanted.reject else "--coverage"
        raise ConfigError(
            f"{option} needs a calibrated classifier, which labels alone do not make: fit one by "
            "clipkit fit FOLDERS --out DIR --calibrate, and give --classifier DIR"
        )


def _warn_of_one_label(names: ClassNames) -> None:
    """Warn where there is nothing to choose from."""
    if len(names) == 1:
        (label,) = names
        hint = "; labels are separated by spaces" if "," in label else ""
        warn(f"the only label, {label!r}, gets 100 % whatever the image shows{hint}")


def _encode(classifier: ImageClassifier, images: list[Path | bytes]) -> Iterator[Features]:
    """Yield the features of each batch as soon as it is encoded.

    There is a bar if there are many and no results appear on the same terminal, which would share
    a line with it, and tell of the progress as well.
    """
    progress = len(images) > BATCH and is_terminal(sys.stderr) and not is_terminal(sys.stdout)
    views = classifier.views  # as often as those that it is calibrated on
    stream = stream_features(
        classifier.model, images, batch_size=BATCH, progress=progress, views=views
    )
    with closing(stream):
        yield from stream


@dataclass(frozen=True)
class _Shown:
    """Hold what is shown of each image, and in which form."""

    top: int
    as_json: bool
    wanted: Wanted


def _print_rows(
    classifier: ImageClassifier,
    part: Features,
    names: dict[str, str],
    shown: _Shown,
    is_first: bool,
) -> None:
    """Print the results of a batch."""
    if not part.paths:
        return
    style = Style.of(sys.stdout)
    wanted = shown.wanted
    predictions = classifier.predict(part.features, coverage=wanted.coverage, reject=wanted.reject)
    for index, (path, prediction) in enumerate(zip(part.paths, predictions, strict=True)):
        name = names.get(path, path)
        if shown.as_json:
            print(_as_json(name, prediction, shown.top), flush=True)
            continue
        if style.for_people and not (is_first and index == 0):
            print()
        print(_as_text(name, prediction, shown.top, style), flush=True)


def _as_json(path: str, prediction: Prediction, top: int) -> str:
    values = prediction.to_dict(top)
    row = {"image": path, "labels": values["top"]}
    return json.dumps(row | {name: values[name] for name in ("set", "rejected") if name in values})


def _as_text(path: str, prediction: Prediction, top: int, style: Style) -> str:
    """Return an image's name and below it its labels, on a terminal with bars."""
    ranked = prediction.top(top)
    cells = align([[visible(label), f"{share:7.2%}"] for label, share in ranked])
    lines = [style.bold(visible(path))]
    for place, ((label, figure), (_, share)) in enumerate(zip(cells, ranked, strict=True)):
        if place == 0:
            label, figure = style.strong(label), style.strong(figure)
        bar = f"{style.bar(share)}  " if style.has_bars else ""
        lines.append(f"  {label}  {bar}{figure}")
    if prediction.set is not None:
        lines.append(f"  set: {', '.join(visible(label) for label in prediction.set)}")
    if prediction.rejected:
        lines.append(f"  {style.strong('none of these')}")
    return "\n".join(lines)


CLASSIFY = Command(
    name="classify",
    examples="clipkit classify photo.jpg --labels cat dog --model ViT-B/32\n"
    "clipkit classify photos/ --classifier pets/ --json\n"
    "clipkit classify photos/ --classifier pets/ --coverage 0.9 --reject\n"
    "find . -name '*.jpg' -print0 | clipkit classify --images-from - --labels-file labels.txt",
    add_arguments=_add_arguments,
    run=classify,
    prepare=take_model,
)
