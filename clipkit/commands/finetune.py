"""`clipkit finetune`: adapt a model to captioned images or class folders."""

import argparse
from pathlib import Path
from typing import Any

import torch

from clipkit import distributed, read_pairs
from clipkit.classify.folder import load_parts
from clipkit.columns import align
from clipkit.commands.command import DONE, Command, add_out, add_workers, path_of
from clipkit.commands.display import tell, tell_skipped, typed
from clipkit.commands.folders import (
    check_result_folder,
    print_classifier,
    tell_left_out,
    tell_size,
    ways_to_load,
)
from clipkit.commands.model_choice import load_model
from clipkit.commands.model_options import ModelChoice, add_model, take_model
from clipkit.errors import DataError
from clipkit.plurals import number_of
from clipkit.training.run import finetune_from


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=path_of,
        metavar="DATA",
        help="a .csv or .jsonl of paths and captions, a folder with one, or class folders",
    )
    add_out(parser, help="folder for the model, the log and the checkpoints")
    _add_schedule(parser)
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="0 keeps the old weights, 1 the new (default: 0.5, with --lora 1)",
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the images to measure on (default: 0.1)",
    )
    add_workers(parser)
    add_model(parser)


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained, how long and how fast."""
    parser.add_argument(
        "--head-only", action="store_true", help="with classes: train no tower, only the head"
    )
    parser.add_argument(
        "--lora",
        type=int,
        metavar="RANK",
        help="with classes: train low-rank changes of both towers, 2 for example, and keep them if "
        "images that are held out are told apart better",
    )
    parser.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the images (default: 20; with --lora 500 steps for each image of a "
        "class)",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images of a step (default: 64, with --lora 32)"
    )
    parser.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help="with classes: train this many last blocks of the image tower (default: all)",
    )
    parser.add_argument(
        "--lr",
        type=float,
        metavar="R",
        help="peak of the learning rate (default: follows the model's width, with --lora 2e-4)",
    )


def finetune(
    *,
    data: Path,
    out: Path,
    head_only: bool,
    epochs: int | None,
    batch_size: int | None,
    blocks: int | None,
    lr: float | None,
    alpha: float | None,
    lora: int | None,
    held_out: float,
    workers: int,
    choice: ModelChoice,
) -> int:
    """Fine-tune a model, save it, and print figures on held-out images before and after."""
    if not data.exists():
        raise DataError(f"there is no file or folder {data}")
    check_result_folder(out)
    pairs = read_pairs(data)
    if distributed.is_first():
        tell_left_out(data, pairs)
    try:
        start = load_model(choice, torch.float32)
        if distributed.is_first():
            tell(f"Starting from {choice.model or 'tiny'}, {start!r}.")
        figures = finetune_from(
            pairs,
            out,
            start,
            held_out=held_out,
            head_only=head_only,
            epochs=epochs,
            batch_size=batch_size,
            blocks=blocks,
            alpha=alpha,
            lr=lr,
            lora=lora,
            workers=workers,
        )
        is_first = distributed.is_first()
    finally:
        distributed.stop()
    if is_first:
        _tell_result(out, figures, head_only)
    return DONE


def _tell_result(out: Path, figures: dict[str, tuple[float, float]], head_only: bool) -> None:
    if head_only:  # a run of training tells of them itself
        _tell_skipped(out)
    _print_before_and_after(figures)
    if "accuracy" in figures:
        _print_what_was_kept(load_parts(out).provenance.get("lora"))
    tell_size(out)
    _print_way_on(out, is_classifier="accuracy" in figures)


def _tell_skipped(out: Path) -> None:
    """Tell which images a classifier was not fitted on, because they cannot be read."""
    skipped = load_parts(out).provenance.get("skipped", [])
    tell_skipped([str(problem) for _, problem in skipped])


def _print_before_and_after(figures: dict[str, tuple[float, float]]) -> None:
    rows = [["on held-out images", "before", "after"]]
    for name, (before, after) in figures.items():
        rows.append([name, f"{before:.1%}", f"{after:.1%}"])
    for row in align(rows, right=(1, 2)):
        print("  ".join(row))


def _print_what_was_kept(about: dict[str, Any] | None) -> None:
    """Print which of zero-shot, head and low-rank changes was kept, and what spoke for it.

    Args:
        about: what provenance says of low-rank changes; None if none were trained.
    """
    if about is None:
        return
    print(f"kept: {about['chosen']} (--lora {about['rank']})")
    held_out = dict(about.get("held_out", {}))
    images = held_out.pop("images", 0)
    if not images:
        print("  no class has two images, so that none were held out to decide on the changes")
        return
    print(f"  accuracy on {number_of(images, 'training image')}, held out in turn to decide:")
    rows = [[name, f"{figures['accuracy']:.1%}"] for name, figures in held_out.items()]
    for row in align(rows, right=(1,)):
        print("  " + "  ".join(row))


def _print_way_on(out: Path, is_classifier: bool) -> None:
    """Say what to do with the result. A classifier's model alone would lack the fitted head."""
    if is_classifier:
        print_classifier(out)
        return
    model = out / "model"
    print(f"Saved to {typed(out)}; load the model by {ways_to_load(model)}")


FINETUNE = Command(
    name="finetune",
    examples="clipkit finetune my_photos/captions.csv --out tuned/ --model ViT-B/32\n"
    "clipkit finetune my_folders/ --out tuned/ --blocks 2 --epochs 10",
    add_arguments=_add_arguments,
    run=finetune,
    prepare=take_model,
)
