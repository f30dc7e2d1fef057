"""`clipkit train` and `clipkit finetune`: train as a file says, or adapt a model to your images."""

import argparse
from pathlib import Path

import torch

from clipkit import CLIP, RunConfig, distributed
from clipkit import train as train_model
from clipkit.commands.command import DONE, Command, add_device, add_out, add_workers, path_of
from clipkit.training.run import finetune_from


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", type=path_of, metavar="CONFIG.json", help="the fields of clipkit.RunConfig"
    )
    add_device(parser)


def train(*, config: Path, device: str | None) -> int:
    """Train as the file says, or go on where an earlier run of it stopped."""
    try:
        train_model(RunConfig.read(config), device)
    finally:
        distributed.stop()
    return DONE


def _add_finetune_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        type=path_of,
        metavar="DATA",
        help="a .csv or .jsonl of paths and captions, a folder with one, or class folders",
    )
    add_out(parser, help="folder for the model, the log and the checkpoints")
    parser.add_argument(
        "--model", default="tiny", metavar="NAME", help="what to start from (default: tiny)"
    )
    add_device(parser)
    _add_schedule(parser)
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.5,
        metavar="A",
        help="0 keeps the old weights, 1 the new (default: 0.5)",
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share of the images to measure on (default: 0.1)",
    )
    add_workers(parser)


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is trained, how long and how fast."""
    parser.add_argument(
        "--head-only", action="store_true", help="with classes: train no tower, only the head"
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="passes over the images (default: 20)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images of a step (default: 64)"
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
        help="peak of the learning rate (default: follows the model's width)",
    )


def finetune(
    *,
    data: Path,
    out: Path,
    model: str,
    device: str | None,
    head_only: bool,
    epochs: int | None,
    batch_size: int | None,
    blocks: int | None,
    lr: float | None,
    alpha: float,
    held_out: float,
    workers: int,
) -> int:
    """Fine-tune a model, save it, and print figures on held-out images before and after."""
    try:
        start = CLIP.from_pretrained(model, device=device, dtype=torch.float32)
        figures = finetune_from(
            data,
            out,
            start,
            held_out=held_out,
            head_only=head_only,
            epochs=epochs,
            batch_size=batch_size,
            blocks=blocks,
            alpha=alpha,
            lr=lr,
            workers=workers,
        )
        is_first = distributed.is_first()
    finally:
        distributed.stop()
    if is_first:
        _print_before_and_after(figures)
        if "accuracy" in figures:  # of a classifier, whose model alone would lack the fitted head
            print(f"Saved to {out}; go on with: clipkit classify --classifier {out} IMAGE ...")
        else:
            folder = str(out / "model")
            print(f"Saved to {out}; load the model with clipkit.load({folder!r}).")
    return DONE


def _print_before_and_after(figures: dict[str, tuple[float, float]]) -> None:
    print(f"{'on held-out images':<22}{'before':>9}{'after':>9}")
    for name, (before, after) in figures.items():
        print(f"{name:<22}{before:>9.1%}{after:>9.1%}")


TRAIN = Command(
    name="train",
    summary="train as a JSON file says; under torchrun on many processes",
    example="clipkit train run.json --device cuda",
    add_arguments=_add_train_arguments,
    run=train,
)
FINETUNE = Command(
    name="finetune",
    summary="adapt a model to your captioned images or class folders",
    example="clipkit finetune my_photos/captions.csv --out tuned/ --model ViT-B/32",
    add_arguments=_add_finetune_arguments,
    run=finetune,
)
