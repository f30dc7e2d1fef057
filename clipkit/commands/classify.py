"""`clipkit classify`: rank labels for images."""

import argparse
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from clipkit import ImageClassifier, Prediction
from clipkit.commands.command import (
    DONE,
    FAILED,
    SOME_LEFT_OUT,
    Command,
    add_classifier,
    add_device,
    add_json,
    add_model,
    choose_classifier,
    tell_skipped,
)
from clipkit.data.pictures import list_images
from clipkit.encode.embed import Features, stream_features
from clipkit.errors import ConfigError

BATCH = 32  # images; results appear after each batch


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="class names to choose from")
    add_classifier(parser)
    add_model(parser)
    add_device(parser)
    parser.add_argument(
        "--top",
        type=int,
        default=5,
        metavar="N",
        help="labels to show for each image (default: 5)",
    )
    add_json(parser, help="print one JSON object for each image")


def classify(
    *,
    images: list[str],
    labels: list[str] | None,
    classifier: Path | None,
    model: str | None,
    templates: list[str] | None,
    device: str | None,
    top: int,
    as_json: bool,
) -> int:
    """Print the likeliest labels of each image, and tell which images could not be read.

    Returns:
        0 if all images were classified, 1 if some were left out, 2 if none could be classified.
    """
    if top < 1:
        raise ConfigError(f"--top must be at least 1, not {top}")
    if classifier is not None and labels is not None:
        raise ConfigError("--classifier knows its own labels: leave --labels out")
    if classifier is None and labels is None:
        raise ConfigError("give --labels to choose from, or a --classifier that knows its own")
    files, problems = find_images(images)
    classified = 0
    if files:
        chosen = choose_classifier(
            classifier, labels or [], model=model, templates=templates, device=device
        )
        for part in _encode(chosen, files):
            _print_rows(chosen, part, top, as_json)
            classified += len(part.paths)
            problems += [problem for _, problem in part.skipped]
    tell_skipped(problems)
    if classified == 0:
        return FAILED
    return SOME_LEFT_OUT if problems else DONE


def find_images(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the images that the patterns lead to, in order and once each; and what led nowhere.

    Args:
        patterns: files, folders to search for images, or globs.
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        matches = _matches(pattern)
        if not matches:
            problems.append(f"no image at {pattern}")
        found |= dict.fromkeys(matches)
    return list(found), problems


def _matches(pattern: str) -> list[Path]:
    if not pattern:
        return []  # Path("") would be the working directory
    path = Path(pattern)
    if path.is_dir():
        return list_images(path)
    if path.exists():
        return [path]
    # A file whose name holds brackets exists, so only what is no file is taken as a glob.
    return sorted(p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file())


def _encode(classifier: ImageClassifier, files: list[Path]) -> Iterator[Features]:
    """Yield the features of each batch as soon as it is encoded, under a bar if there are many."""
    progress = len(files) > BATCH and sys.stderr.isatty()
    stream = stream_features(classifier.model, files, batch_size=BATCH, progress=progress)
    with closing(stream):
        yield from stream


def _print_rows(classifier: ImageClassifier, part: Features, top: int, as_json: bool) -> None:
    if not part.paths:
        return
    for path, row in zip(part.paths, classifier.probabilities(part.features), strict=True):
        ranked = Prediction(classifier.labels, row).top(top)
        print(_as_json(path, ranked) if as_json else _as_text(path, ranked), flush=True)


def _as_json(path: str, ranked: list[tuple[str, float]]) -> str:
    entries = [{"label": label, "probability": probability} for label, probability in ranked]
    return json.dumps({"image": path, "labels": entries})


def _as_text(path: str, ranked: list[tuple[str, float]]) -> str:
    width = max(len(label) for label, _ in ranked)
    lines = [f"  {label:<{width}}  {probability:7.2%}" for label, probability in ranked]
    return "\n".join([path, *lines])


CLASSIFY = Command(
    name="classify",
    summary="rank labels for images, without training or by a fitted classifier",
    example="clipkit classify photo.jpg --labels cat dog --model ViT-B/32",
    add_arguments=_add_arguments,
    run=classify,
)
