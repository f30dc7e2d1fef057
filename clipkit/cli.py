"""The command line: thin commands over the public API. `clipkit --help` lists them."""

import argparse
import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCH = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 if `classify` left images out, 2 if the command could not run."""
    args = _parser().parse_args(arguments)
    from clipkit.errors import ClipkitError

    try:
        return args.run(args)
    except ClipkitError as error:
        print(f"clipkit: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    from clipkit.classify.few_shot import METHODS

    parser = argparse.ArgumentParser(
        prog="clipkit", description="CLIP checkpoints and classifiers."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    classify = commands.add_parser(
        "classify", help="rank labels for images, without training or by a fitted classifier"
    )
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    classify.add_argument("--labels", nargs="+", help="class names to choose from")
    _add_model(classify)
    classify.add_argument(
        "--top", type=int, default=5, help="labels to show for each image (default: 5)"
    )
    classify.add_argument(
        "--json", action="store_true", help="print one JSON object for each image"
    )
    classify.set_defaults(run=_classify)

    fit = commands.add_parser(
        "fit", help="make a classifier from class folders of pictures, a few each or many"
    )
    fit.add_argument(
        "data", type=Path, help="a folder with a folder of pictures for each class, named by it"
    )
    fit.add_argument("-o", "--out", type=Path, required=True, help="folder for the classifier")
    _add_model(fit, classifier=False)
    fit.add_argument(
        "--method", default="anchored", help=f"{', '.join(METHODS)} (default: anchored)"
    )
    fit.add_argument("--shots", type=int, help="pictures to draw of each class (default: all)")
    fit.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    fit.add_argument(
        "--workers", type=int, default=0, help="processes that read pictures (default: 0)"
    )
    fit.set_defaults(run=_fit)

    measure = commands.add_parser(
        "eval", help="measure a classifier, or zero-shot, on class folders of pictures"
    )
    measure.add_argument(
        "data", type=Path, help="a folder with a folder of pictures for each class, named by it"
    )
    _add_model(measure)
    measure.add_argument(
        "--workers", type=int, default=0, help="processes that read pictures (default: 0)"
    )
    measure.add_argument("--json", action="store_true", help="print one JSON object")
    measure.set_defaults(run=_eval)

    train = commands.add_parser(
        "train", help="train as a JSON file says; under torchrun on many processes"
    )
    train.add_argument("config", type=Path, help="fields of clipkit.training.run.RunConfig")
    train.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    train.set_defaults(run=_train)

    finetune = commands.add_parser(
        "finetune", help="adapt a model to your captioned pictures or class folders"
    )
    finetune.add_argument(
        "data",
        type=Path,
        help="a .csv or .jsonl of paths and captions, a folder with one, or class folders",
    )
    finetune.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="folder for the model, the log and checkpoints",
    )
    finetune.add_argument("--model", default="tiny", help="what to start from (default: tiny)")
    finetune.add_argument(
        "--epochs", type=int, default=20, help="passes over the pictures (default: 20)"
    )
    finetune.add_argument(
        "--batch-size", type=int, default=64, help="pictures of a step (default: 64)"
    )
    finetune.add_argument(
        "--blocks", type=int, help="with classes: train so many last blocks (default: all)"
    )
    finetune.add_argument(
        "--lr", type=float, help="peak of the learning rate (default: follows the model's width)"
    )
    finetune.add_argument(
        "--alpha", type=float, default=0.5, help="0 keeps the old weights, 1 the new (default: 0.5)"
    )
    finetune.add_argument(
        "--held-out", type=float, default=0.1, help="share to measure on (default: 0.1)"
    )
    finetune.add_argument(
        "--workers", type=int, default=0, help="processes that read pictures (default: 0)"
    )
    finetune.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    finetune.set_defaults(run=_finetune)

    models = commands.add_parser("models", help="list the checkpoints that can be loaded by name")
    models.set_defaults(run=_models)
    return parser


def _add_model(parser: argparse.ArgumentParser, classifier: bool = True) -> None:
    """The choice of a model and templates, or of a fitted classifier."""
    if classifier:
        parser.add_argument(
            "--classifier",
            type=Path,
            metavar="DIR",
            help="what `clipkit fit` made, in place of names",
        )
    parser.add_argument(
        "--templates",
        nargs="+",
        help="texts with {} where the label goes, averaged; or the name of a prompt set such as imagenet "
        "(default: 'a photo of a {}.')",
    )
    parser.add_argument(
        "--model", help="a name from `clipkit models`, a hub id, or a path (default: tiny)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")


def _classifier(args: argparse.Namespace, labels: list[str] | None) -> Any:
    """The fitted classifier that was named, or the zero-shot one of the labels."""
    from clipkit.classify.classifier import ImageClassifier
    from clipkit.clip import CLIP
    from clipkit.errors import ConfigError
    from clipkit.prompts import TEMPLATES

    if getattr(args, "classifier", None):
        if args.model or args.templates:
            raise ConfigError(
                "--classifier brings its own model and texts: leave --model and --templates out"
            )
        return ImageClassifier.load(args.classifier, device=args.device)
    if not labels:
        raise ConfigError("give --labels to choose from, or a --classifier that knows its own")
    if args.model is None:
        print(
            "Using the small embedded model 'tiny'; --model ViT-L/14 takes a published one.",
            file=sys.stderr,
        )
    texts = args.templates or TEMPLATES
    templates = texts[0] if len(texts) == 1 and "{}" not in texts[0] else texts  # the name of a set
    return ImageClassifier.zero_shot(
        CLIP.from_pretrained(args.model or "tiny", device=args.device), labels, templates
    )


def _classify(args: argparse.Namespace) -> int:
    from clipkit.classify.classifier import Prediction
    from clipkit.data.pictures import Pictures
    from clipkit.encode.embed import stream_features
    from clipkit.errors import ConfigError

    if args.top < 1:
        raise ConfigError(f"--top must be at least 1, not {args.top}")
    if args.classifier and args.labels:
        raise ConfigError("--classifier knows its own labels: leave --labels out")
    files, missing = _expand(args.images)
    if files:
        classifier = _classifier(args, args.labels)
        shown = len(files) > BATCH and sys.stderr.isatty()
        pictures = Pictures(classifier.model, files, None, BATCH, 0)
        for part in stream_features(classifier.model, pictures, progress=shown):
            rows = classifier.probabilities(part.features) if part.paths else []
            for path, row in zip(part.paths, rows, strict=True):
                ranked = Prediction(classifier.labels, row).top(args.top)
                print(_as_json(path, ranked) if args.json else _as_text(path, ranked), flush=True)
            missing += [problem for _, problem in part.skipped]
    for problem in missing:
        print(f"clipkit: skipped: {problem}", file=sys.stderr)
    return 0 if not missing else 1 if files else 2


def _labelled(
    args: argparse.Namespace, shots: int | None = None, seed: int = 0
) -> tuple[Any, Any, Any]:
    """A classifier of the folder's classes, and the features and labels of its pictures."""
    import torch

    from clipkit.classify.few_shot import sample_shots
    from clipkit.data.labelled import read_folder
    from clipkit.encode.store import extract_features
    from clipkit.errors import DataError

    pairs, names = read_folder(args.data)
    classifier = _classifier(args, names)
    if unknown := sorted(set(names) - set(classifier.labels)):
        raise DataError(
            f"the classifier has no class for these folders of {args.data}: {', '.join(unknown)}"
        )
    labels = torch.tensor(pairs.labels)
    chosen = range(len(pairs)) if shots is None else sample_shots(labels, shots, seed).tolist()
    place = [classifier.labels.index(name) for name in names]
    rows = [(pairs.files[i], place[labels[i]]) for i in chosen]
    found = extract_features(
        classifier.model, rows, workers=args.workers, progress=sys.stderr.isatty()
    )
    for _, problem in found.skipped:
        print(f"clipkit: skipped: {problem}", file=sys.stderr)
    return classifier, found.features, found.labels


def _fit(args: argparse.Namespace) -> int:
    from clipkit.classify.few_shot import check_method

    check_method(args.method)  # before many pictures are encoded
    classifier, features, labels = _labelled(args, args.shots, args.seed)
    classifier.fit(features, labels, args.method, seed=args.seed).save(args.out)
    about = {"classes": len(classifier.labels)} | classifier.provenance
    for name in ("classes", "pictures", "method", "strength", "C", "alpha", "beta", "lr"):
        if name in about:
            print(f"{name:<10}{about[name]}")
    print(f"Saved to {args.out}; go on with: clipkit classify --classifier {args.out} IMAGE ...")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from clipkit.classify import metrics

    classifier, features, labels = _labelled(args)
    probabilities = classifier.probabilities(features)
    predicted, classes = probabilities.argmax(dim=1), len(classifier.labels)
    figures = {
        "top-1": metrics.accuracy(predicted, labels),
        **({"top-5": metrics.top_k_accuracy(probabilities, labels, 5)} if classes > 5 else {}),
        "mean per class": metrics.mean_per_class(predicted, labels),
        "calibration error": metrics.expected_calibration_error(probabilities, labels),
    }
    confused = metrics.most_confused(metrics.confusion_matrix(predicted, labels, classes))
    pairs = [(classifier.labels[i], classifier.labels[j], iou) for i, j, iou in confused]
    if args.json:
        print(
            json.dumps(
                {"pictures": len(labels), "classes": classes, **figures, "most confused": pairs}
            )
        )
        return 0
    print(f"{len(labels)} pictures, {classes} classes")
    for name, value in figures.items():
        print(f"  {name:<20}{value:8.2%}")
    if pairs:
        print("most confused (of the pictures of both, the share taken for the other)")
        width = max(len(f"{first}, {second}") for first, second, _ in pairs)
        for first, second, iou in pairs:
            print(f"  {f'{first}, {second}':<{width}}{iou:8.2%}")
    return 0


def _expand(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files, the images in folders and what globs match, in order and once each; and what led to nothing."""
    from clipkit.data.pictures import list_images

    found: dict[Path, None] = {}
    missing = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = list_images(path)
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(
                Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()
            )
        if not matches:
            missing.append(f"no image at {pattern}")
        found |= dict.fromkeys(matches)
    return list(found), missing


def _as_json(file: str, ranked: list[tuple[str, float]]) -> str:
    return json.dumps(
        {"image": file, "labels": [{"label": label, "probability": p} for label, p in ranked]}
    )


def _as_text(file: str, ranked: list[tuple[str, float]]) -> str:
    width = max(len(label) for label, _ in ranked)
    return "\n".join(
        [file, *(f"  {label:<{width}}  {probability:7.2%}" for label, probability in ranked)]
    )


def _train(args: argparse.Namespace) -> int:
    from clipkit import distributed
    from clipkit.training.run import RunConfig, train

    try:
        train(RunConfig.read(args.config), args.device)
    finally:
        distributed.stop()
    return 0


def _finetune(args: argparse.Namespace) -> int:
    import torch

    from clipkit import distributed
    from clipkit.clip import CLIP
    from clipkit.training.run import finetune_from

    names = ("epochs", "batch_size", "blocks", "alpha", "lr", "held_out", "workers")
    try:
        model = CLIP.from_pretrained(args.model, device=args.device, dtype=torch.float32)
        figures = finetune_from(
            args.data, args.out, model, **{name: getattr(args, name) for name in names}
        )
        main = distributed.rank() == 0
    finally:
        distributed.stop()
    if main:
        print(f"{'on held-out pictures':<22}{'before':>9}{'after':>9}")
        for name, (before, after) in figures.items():
            print(f"{name:<22}{before:>9.1%}{after:>9.1%}")
        print(
            f"Saved to {args.out}; load the model with clipkit.load({str(args.out / 'model')!r})."
        )
    return 0


def _models(args: argparse.Namespace) -> int:
    from clipkit.checkpoints.registry import MODELS
    from clipkit.checkpoints.source import resolve

    embedded = resolve("tiny").config
    rows = [("tiny", embedded, "MIT", "embedded in clipkit")] if embedded else []
    rows += [(row.name, row.config, row.licence, row.hub) for row in MODELS.values()]
    print(f"{'name':<34}{'input':>7}{'dim':>6}  {'licence':<14}source")
    for name, config, licence, source in rows:
        print(
            f"{name:<34}{config.vision.resolution[0]:>7}{config.embed_dim:>6}  {licence:<14}{source}"
        )
    return 0
