"""The command line: thin commands over the public API. `clipkit --help` lists them."""

import argparse
import glob
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH = 32


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 1 if some images could not be read, 2 if the command could not run."""
    args = _parser().parse_args(arguments)
    from clipkit.errors import ClipkitError

    try:
        return args.run(args)
    except ClipkitError as error:
        print(f"clipkit: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clipkit", description="CLIP checkpoints and classifiers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    classify = commands.add_parser("classify", help="rank labels for images, without training")
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    classify.add_argument("--labels", nargs="+", required=True, help="class names to choose from")
    classify.add_argument(
        "--templates",
        nargs="+",
        default=["a photo of a {}."],
        help="texts with {} where the label goes; several are averaged",
    )
    classify.add_argument("--model", help="a name from `clipkit models`, a hub id, or a path (default: tiny)")
    classify.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    classify.add_argument("--top", type=int, default=5, help="labels to show for each image (default: 5)")
    classify.add_argument("--json", action="store_true", help="print one JSON object for each image")
    classify.set_defaults(run=_classify)

    train = commands.add_parser("train", help="train as a JSON file says; under torchrun on many processes")
    train.add_argument("config", type=Path, help="fields of clipkit.training.run.RunConfig")
    train.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    train.set_defaults(run=_train)

    finetune = commands.add_parser("finetune", help="adapt a model to your captioned pictures or class folders")
    finetune.add_argument(
        "data", type=Path, help="a .csv or .jsonl of paths and captions, a folder with one, or class folders"
    )
    finetune.add_argument("-o", "--out", type=Path, required=True, help="folder for the model, the log and checkpoints")
    finetune.add_argument("--model", default="tiny", help="what to start from (default: tiny)")
    finetune.add_argument("--epochs", type=int, default=10, help="passes over the pictures (default: 10)")
    finetune.add_argument("--batch-size", type=int, default=64, help="pictures of a step (default: 64)")
    finetune.add_argument("--blocks", type=int, help="with classes: train so many last blocks (default: all)")
    finetune.add_argument("--alpha", type=float, default=0.5, help="0 keeps the old weights, 1 the new (default: 0.5)")
    finetune.add_argument("--held-out", type=float, default=0.1, help="share to measure on (default: 0.1)")
    finetune.add_argument("--workers", type=int, default=0, help="processes that read pictures (default: 0)")
    finetune.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: CUDA if there is one)")
    finetune.set_defaults(run=_finetune)

    models = commands.add_parser("models", help="list the checkpoints that can be loaded by name")
    models.set_defaults(run=_models)
    return parser


def _classify(args: argparse.Namespace) -> int:
    from clipkit import load, zero_shot_weights
    from clipkit.errors import ConfigError

    if args.top < 1:
        raise ConfigError(f"--top must be at least 1, not {args.top}")
    files, missing = _expand(args.images)
    if args.model is None:
        print("Using the small embedded model 'tiny'; --model ViT-L/14 takes a published one.", file=sys.stderr)
    if files:
        model, preprocess = load(args.model or "tiny", args.device)
        weights = zero_shot_weights(model, args.labels, args.templates)
        for file, result in _predict(model, preprocess, weights, files):
            if isinstance(result, Exception):
                missing.append(str(result))
                continue
            ranked = sorted(zip(args.labels, result, strict=True), key=lambda pair: -pair[1])[: args.top]
            print(_as_json(file, ranked) if args.json else _as_text(file, ranked), flush=True)
    for problem in missing:
        print(f"clipkit: skipped: {problem}", file=sys.stderr)
    return 0 if not missing else 1 if files else 2


def _predict(model: Any, preprocess: Any, weights: Any, files: list[Path]) -> Iterator[tuple[Path, Any]]:
    """Each file with its probabilities over the labels, or with the error that it cannot be read."""
    import torch
    import torch.nn.functional as F
    from tqdm import tqdm

    from clipkit.errors import ImageError

    with tqdm(total=len(files), unit="image", disable=len(files) <= BATCH or not sys.stderr.isatty()) as progress:
        for start in range(0, len(files), BATCH):
            batch, results = files[start : start + BATCH], []
            for file in batch:
                try:
                    results.append(preprocess(file))
                except ImageError as error:
                    results.append(error)
            images = [result for result in results if not isinstance(result, Exception)]
            if images:
                with torch.inference_mode():
                    features = F.normalize(model.encode_image(torch.stack(images)).float(), dim=-1)
                    logits = model.logit_scale.float().exp() * features @ weights.T  # (N, C)
                    rows = iter(logits.softmax(dim=-1).tolist())
                results = [result if isinstance(result, Exception) else next(rows) for result in results]
            yield from zip(batch, results, strict=True)
            progress.update(len(batch))


def _expand(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Files, the images in folders and what globs match, in order and once each; and what led to nothing."""
    from clipkit.preprocess import IMAGE_SUFFIXES

    found: dict[Path, None] = {}
    missing = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        elif path.exists():
            matches = [path]
        else:
            matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())
        if not matches:
            missing.append(f"no image at {pattern}")
        found |= dict.fromkeys(matches)
    return list(found), missing


def _as_json(file: Path, ranked: list[tuple[str, float]]) -> str:
    return json.dumps({"image": str(file), "labels": [{"label": label, "probability": p} for label, p in ranked]})


def _as_text(file: Path, ranked: list[tuple[str, float]]) -> str:
    width = max(len(label) for label, _ in ranked)
    return "\n".join([str(file), *(f"  {label:<{width}}  {probability:7.2%}" for label, probability in ranked)])


def _train(args: argparse.Namespace) -> int:
    from clipkit.training import distributed
    from clipkit.training.run import RunConfig, train

    try:
        train(RunConfig.read(args.config), args.device)
    finally:
        distributed.stop()
    return 0


def _finetune(args: argparse.Namespace) -> int:
    import torch

    from clipkit.loading import load_model
    from clipkit.training import distributed
    from clipkit.training.run import finetune_from

    names = ("epochs", "batch_size", "blocks", "alpha", "held_out", "workers")
    try:
        model = load_model(args.model, device=args.device or distributed.local_device(), dtype=torch.float32)
        figures = finetune_from(args.data, args.out, model, **{name: getattr(args, name) for name in names})
        main = distributed.rank() == 0
    finally:
        distributed.stop()
    if main:
        print(f"{'on held-out pictures':<22}{'before':>9}{'after':>9}")
        for name, (before, after) in figures.items():
            print(f"{name:<22}{before:>9.1%}{after:>9.1%}")
        print(f"Saved to {args.out}; load the model with clipkit.load({str(args.out / 'model')!r}).")
    return 0


def _models(args: argparse.Namespace) -> int:
    from clipkit.checkpoints.source import resolve
    from clipkit.registry import MODELS

    embedded = resolve("tiny").config
    rows = [("tiny", embedded, "MIT", "embedded in clipkit")] if embedded else []
    rows += [(row.name, row.config, row.licence, row.hub) for row in MODELS.values()]
    print(f"{'name':<34}{'input':>7}{'dim':>6}  {'licence':<14}source")
    for name, config, licence, source in rows:
        print(f"{name:<34}{config.vision.resolution[0]:>7}{config.embed_dim:>6}  {licence:<14}{source}")
    return 0
