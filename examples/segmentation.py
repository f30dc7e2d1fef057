"""Measure what the frozen features of a CLIP hold for segmentation, on CamVid.

    python examples/segmentation.py --data CAMVID [--model tiny] [--methods frozen own ...]
        [--seeds 0 1] [--epochs 15] [--size 192 256] [--crop 96 128] [--limit N]
        [--work runs/segmentation] [--out examples/results/segmentation_camvid.json]
        [--figures DIR]

A decoder like U-Net's (`examples/segmenter.py`) is trained on the maps of an image tower, of which
the attention pool is taken away:

- `frozen`: CLIP's tower as it is. The decoder sees its last map alone; that map, made larger, is
  put where a U-Net has skip connections.
- `own`: the same decoder on a tower of the same architecture that begins at random weights and is
  trained with it.
- `frozen, skips` and `own, skips`: the same with skip connections from the tower's stages.
- `fine-tuned, skips`: CLIP's weights, trained further, at a lower rate.

All see the same crops of the training frames in the same order. Frames are halved, and masks are
compared at their full size. The epoch with the best mean IoU on the validation frames is measured
once on the test frames. Beside them, without training: `class_map` with names for the classes, as
it is, in one pass, and refined; and `place`, the most frequent class of each pixel in the training
masks, for which no image is looked at.

A run of a method and a seed is kept in `--work`, and what is there is not done again, so that a
script that was cut off goes on, and that two may share the seeds. The table, the JSON and, with
`--figures`, the images are made of what is there. Any ResNet or ViT will do; size and crop must be
multiples of twice the patch (`--size 196 252 --crop 84 112` for a patch of 14).

Cost with `tiny`: 2.5 minutes of a core for a run on a frozen tower, 4.5 where it is trained, 25 for
what is recorded. Expected: a mean IoU on the test frames of 41 % by `frozen`, 35 % by `own`, 48 %
by `frozen, skips`, and 3 % by `class_map`, no better than a guess: `tiny` never saw a street
(`examples/results/segmentation_camvid.json`, `docs/frozen_segmentation.md`).
"""

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any, cast

import camvid
import segmentation_report
import torch
import torch.nn.functional as F
from camvid import CLASSES, VOID, Part
from segmenter import METHODS, Segmenter
from torch import Tensor
from tqdm import tqdm

import clipkit
from clipkit.inspect import ClassMapper, towers

BATCH = 8
RATE, TOWER_RATE = 1e-3, 1e-4  # of what begins at random weights, and of CLIP's weights
WARM_UP = 0.1  # share of the steps
SHOWN = 3  # test frames whose segmentations are kept for the figure
MAPPERS: dict[str, dict[str, Any]] = {
    "class_map": {},
    "class_map, one pass": {"window": 4096},
    "class_map, refined": {"refine": True},
}
Run = dict[str, Any]


class Experiment:
    """Hold the data of all runs, and keep each run when it is done.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = clipkit.CLIP.from_pretrained(args.model, dtype=torch.float32)
        parts = [camvid.read_part(args.data, one, args.size, args.limit) for one in camvid.PARTS]
        self.train, self.val, self.test = parts
        self.small_masks = camvid.shrink(self.train.masks, args.size)
        self.weights = camvid.balance(self.small_masks).to(self.model.device)
        count = len(self.test.files)
        self.shown = [(2 * place + 1) * count // (2 * SHOWN) for place in range(SHOWN)]

    def settings(self) -> dict[str, Any]:
        """Return what a run must have in common with others of the same table."""
        names = ("model", "epochs", "size", "crop", "limit")
        common = {name: getattr(self.args, name) for name in names}
        rates = {"rate": RATE, "tower_rate": TOWER_RATE, "batch": BATCH}
        frames = [len(part.files) for part in (self.train, self.val, self.test)]
        return common | rates | {"frames": dict(zip(camvid.PARTS, frames, strict=True))}

    def keep(self, method: str, seed: int, run: Run) -> None:
        """Write a run with its settings."""
        path = self._path(method, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {"method": method, "seed": seed, "settings": self.settings(), **run}
        torch.save(whole, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def is_done(self, method: str, seed: int) -> bool:
        """Return whether a run is there."""
        return self._path(method, seed).exists()

    def kept(self) -> list[Run]:
        """Return all runs that are there."""
        paths = sorted(self.args.work.glob("*.pt"))
        runs = [cast(Run, torch.load(path, weights_only=True)) for path in paths]
        for path, run in zip(paths, runs, strict=True):
            if run["settings"] != self.settings():
                raise SystemExit(f"{path} was made with other settings: pass another --work")
        return runs

    def _path(self, method: str, seed: int) -> Path:
        return self.args.work / f"{method.replace(', ', '_')}_{seed}.pt"


def loss_of(experiment: Experiment, scores: Tensor, masks: Tensor) -> Tensor:
    """Return the mean loss of pixels whose class is known."""
    labels = masks.to(scores.device).long()
    return F.cross_entropy(scores, labels, experiment.weights, ignore_index=VOID)


@torch.no_grad()
def measure(
    experiment: Experiment, segmenter: Segmenter, part: Part, shown: list[int]
) -> tuple[Tensor, float, Tensor]:
    """Return the confusion matrix of a part, its loss, and the segmentations of some frames.

    Those are (len(shown), h, w) uint8 at the working size.
    """
    segmenter.eval()
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    losses: list[float] = []
    found: dict[int, Tensor] = {}
    for start in range(0, len(part.files), BATCH):
        images = part.images[start : start + BATCH].to(experiment.model.device)
        masks = part.masks[start : start + BATCH]
        scores = segmenter(images, (masks.shape[1], masks.shape[2]))  # (n, classes, H, W)
        losses += [float(loss_of(experiment, scores, masks))] * len(masks)
        predicted = scores.argmax(dim=1).byte().cpu()
        counts += camvid.count_pixels(predicted, masks)
        small = camvid.shrink(predicted, (images.shape[2], images.shape[3]))
        found |= {place: small[place - start] for place in shown if 0 <= place - start < len(small)}
    frames = torch.stack([found[place] for place in shown]) if shown else torch.empty(0)
    return counts, math.fsum(losses) / len(losses), frames


def rate_at(step: int, steps: int) -> float:
    """Return the share of the rate: it rises, then falls to 0 as half a cosine."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def optimizer_of(segmenter: Segmenter, tower_rate: float) -> torch.optim.Optimizer:
    """Return an optimizer of the decoder, and of the tower if it is trained."""
    tower = [one for one in segmenter.stages.parameters() if one.requires_grad]
    groups = [{"params": list(segmenter.decoder.parameters()), "lr": RATE}]
    if tower:
        groups.append({"params": tower, "lr": tower_rate})
    return torch.optim.AdamW(groups, weight_decay=0.01)


def train_epoch(
    experiment: Experiment,
    segmenter: Segmenter,
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Train on a crop of each training frame, and return the mean loss."""
    segmenter.train()
    data, losses = experiment.train, list[float]()
    order = torch.randperm(len(data.files), generator=generator)
    for places in order.split(BATCH):
        if len(places) == 1 < len(order):
            continue  # a batch norm cannot do with a single place
        images, masks = camvid.draw_crops(
            data.images[places], experiment.small_masks[places], experiment.args.crop, generator
        )
        loss = loss_of(experiment, segmenter(images.to(experiment.model.device)), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return math.fsum(losses) / len(losses)


def train(experiment: Experiment, name: str, seed: int) -> Run:
    """Train a method, and return its curves, its choice of the epoch and its test scores."""
    args, method = experiment.args, METHODS[name]
    torch.manual_seed(seed)
    segmenter = Segmenter(experiment.model, CLASSES, method).to(experiment.model.device)
    optimizer = optimizer_of(segmenter, TOWER_RATE if method.weights == "clip" else RATE)
    steps = args.epochs * math.ceil(len(experiment.train.files) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    generator = torch.Generator().manual_seed(seed)
    curves: list[dict[str, float]] = []
    best: dict[str, Any] = {"val_mean_iou": -1.0}
    began = time.process_time()
    for epoch in tqdm(range(1, args.epochs + 1), desc=f"{name}, seed {seed}"):
        row: dict[str, float] = {"epoch": epoch}
        row["loss"] = train_epoch(experiment, segmenter, generator, optimizer, schedule)
        if (args.epochs - epoch) % args.every == 0:
            counts, row["val_loss"], _ = measure(experiment, segmenter, experiment.val, [])
            row["val_mean_iou"] = cast(float, camvid.scores_of(counts)["mean_iou"])
            if row["val_mean_iou"] > best["val_mean_iou"]:
                best = row | {"state": copy.deepcopy(segmenter.state_dict())}
        curves.append({key: round(value, 4) for key, value in row.items()})
    segmenter.load_state_dict(best["state"])
    seconds = time.process_time() - began
    counts, _, frames = measure(experiment, segmenter, experiment.test, experiment.shown)
    trained = sum(one.numel() for one in segmenter.parameters() if one.requires_grad)
    return {
        "trained_parameters": trained,
        "seconds": round(seconds),
        "epoch": best["epoch"],
        "val_mean_iou": best["val_mean_iou"],
        **camvid.scores_of(counts),
        "curves": curves,
        "frames": frames,
    }


def map_classes(experiment: Experiment, options: dict[str, Any]) -> Run:
    """Return the test scores of `class_map`, for which nothing is trained."""
    test = experiment.test
    if "window" in options:
        options = options | {"short_side": min(experiment.args.size)}
    mapper = ClassMapper(experiment.model, camvid.NAMES, "imagenet", **options)
    counts = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)
    began = time.process_time()
    frames: list[Tensor] = []
    for place, file in enumerate(tqdm(test.files, desc=f"class_map {options}")):
        found = mapper.indices(file).byte()
        counts += camvid.count_pixels(found, test.masks[place])
        if place in experiment.shown:
            frames.append(camvid.shrink(found[None], experiment.args.size)[0])
    seconds = round(time.process_time() - began)
    return {"seconds": seconds, **camvid.scores_of(counts), "frames": torch.stack(frames)}


def guess_by_place(experiment: Experiment) -> Run:
    """Return the test scores of the most frequent class of each pixel in the training masks."""
    masks = experiment.train.masks
    guess = torch.stack([(masks == one).sum(dim=0) for one in range(CLASSES)]).argmax(dim=0)
    guesses = guess.byte().expand_as(experiment.test.masks)
    scores = camvid.scores_of(camvid.count_pixels(guesses, experiment.test.masks))
    frames = camvid.shrink(guesses[: len(experiment.shown)], experiment.args.size)
    return {"seconds": 0, **scores, "frames": frames}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="CAMVID")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--every", type=int, default=3, help="epochs between validations")
    parser.add_argument("--size", type=int, nargs=2, default=[192, 256], help="of the frames")
    parser.add_argument("--crop", type=int, nargs=2, default=[96, 128], help="in training")
    parser.add_argument("--limit", type=int, help="so many frames of each part, for a short try")
    parser.add_argument("--work", type=Path, default=Path("runs/segmentation"))
    parser.add_argument(
        "--out", type=Path, default=Path("examples/results/segmentation_camvid.json")
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="needs clipkit-torch[plots]")
    return parser.parse_args()


def main() -> None:
    """Do what is not done yet, and write the table, the JSON and the figures of all that is."""
    args = read_arguments()
    args.size, args.crop = tuple(args.size), tuple(args.crop)
    experiment = Experiment(args)
    cell = towers.cell_of(experiment.model.visual)
    if any(side % cell for side in args.size + args.crop):
        raise SystemExit(f"{args.model} sees {cell} pixels at once: --size and --crop must fit")
    experiment.kept()  # runs of other settings are told of before any work is done
    if not experiment.is_done("place", 0):
        experiment.keep("place", 0, guess_by_place(experiment))
    for name, options in MAPPERS.items():
        if not experiment.is_done(name, 0):
            experiment.keep(name, 0, map_classes(experiment, options))
    for seed in args.seeds:
        for name in args.methods:
            if not experiment.is_done(name, seed):
                experiment.keep(name, seed, train(experiment, name, seed))
    found = experiment.kept()
    print(segmentation_report.table(found))
    segmentation_report.write(args.out, found)
    if args.figures is not None:
        frames = experiment.test.images[experiment.shown]
        truth = camvid.shrink(experiment.test.masks[experiment.shown], args.size)
        segmentation_report.draw(args.figures, found, frames, truth)


if __name__ == "__main__":
    main()
