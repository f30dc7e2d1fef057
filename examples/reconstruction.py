"""Measure what a frozen image tower keeps of images, by drawing them again from its maps (VQ-VAE).

    python examples/reconstruction.py --data tiny_imagenet=DIR [--model tiny] [--steps 500]
                                      [--seeds 2] [--out FILE] [--figures FOLDER]

A VQ-VAE (1711.00937) turns an image into a map, each place of the map into the nearest of a few
codes, and draws the image again from the codes. Here its encoder is an image tower up to a block
(`--after-block`), in three ways, all else being equal:

    frozen            the model's own weights; only the projection to the codes is trained
    trained           the same architecture, trained from random weights with the rest
    frozen, no codes  frozen, and the decoder gets the projected map without a codebook

`--data` names a set and its folder, as in `examples/datasets.py`; images are drawn from its test
half. They are cut to squares of `--size` pixels, which is what the tower gets and what is drawn.
Frozen maps are computed once. Loss is the squared error over the pixels' variance, plus a quarter
of the commitment. Measured are error and PSNR on held-out images, and how many codes they use;
beside them an image that is shrunk to the grid's size and enlarged again.

Writes a JSON with every run and its curve to `--out`, and three figures (these need matplotlib):
curves, images drawn again, and images drawn from random codes. Cost with `tiny`: ten minutes of a
core for each seed. Expected (`examples/results/reconstruction.json`,
`docs/frozen_reconstruction.md`): a trained encoder is ahead by 0.1 dB after the last stage, where
32 bits bound both, and by 1.3 dB at stride 8.
"""

import argparse
import datetime
import json
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import SETS
from PIL import Image, ImageOps
from reconstruction_figures import Strips, draw_figures
from robustness import processor
from torch import Tensor, nn
from vq_vae import VQVAE, Tower, side_of

import clipkit
from clipkit.data.decode import read_image
from clipkit.inspect import towers

ARMS = ("frozen", "trained", "frozen, no codes")
MEASURED = ("psnr", "training_psnr", "perplexity", "cpu_seconds")
COMMITMENT = 0.25  # weight of the commitment, as in the paper
POINTS = 10  # of a curve
SHOWN = 10  # images in a figure
CURVE_IMAGES = 256  # held-out images at each point of a curve
EXAMPLES = Path(__file__).parent
Row = dict[str, Any]
Source = Callable[[Tensor], Tensor]  # from places of images to what an encoder takes


@dataclass(frozen=True)
class Photos:
    """Hold images: those to train on, then those that are held out.

    Attributes:
        pixels: (N, 3, size, size) uint8.
        training: how many are to train on.
        mean, std: of the model's preprocessing, (3, 1, 1).
    """

    pixels: Tensor
    training: int
    mean: Tensor
    std: Tensor

    @property
    def held_out(self) -> Tensor:
        """Return the places of images that are held out."""
        return torch.arange(self.training, len(self.pixels))

    def prepared(self, places: Tensor) -> Tensor:
        """Return images as the tower takes them, (n, 3, size, size) float32."""
        return (self.pixels[places].float() / 255 - self.mean) / self.std

    def targets(self, places: Tensor, side: int) -> Tensor:
        """Return images as they are to be drawn, (n, 3, side, side) float32 from 0 to 1."""
        pixels = self.pixels[places].float() / 255
        if side == pixels.shape[-1]:
            return pixels
        return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)


def read_photos(files: list[Any], model: clipkit.CLIP, args: argparse.Namespace) -> Photos:
    """Return images drawn at random among files, cut to squares."""
    chosen = random.Random(0).sample(files, args.images + args.held_out)
    pixels = np.empty((len(chosen), args.size, args.size, 3), np.uint8)
    for place, file in enumerate(chosen):
        photo = read_image(file).convert("RGB")
        square = ImageOps.fit(photo, (args.size, args.size), Image.Resampling.BICUBIC)
        pixels[place] = np.asarray(square)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in preprocessing_of(model))
    return Photos(torch.from_numpy(pixels).permute(0, 3, 1, 2), args.images, mean, std)


def preprocessing_of(model: clipkit.CLIP) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return model.config.preprocess.mean, model.config.preprocess.std


@torch.no_grad()
def frozen_maps(model: clipkit.CLIP, photos: Photos, block: int) -> Tensor:
    """Return the map of each image after a block, (N, C, grid, grid) float16 to save memory."""
    batches = torch.arange(len(photos.pixels)).split(250)
    maps = [
        clipkit.inspect.dense_features(model, photos.prepared(batch), "raw", after_block=block)
        for batch in batches
    ]
    return torch.cat([some.half() for some in maps])


def reader_of(maps: Tensor) -> Source:
    """Return a function from places of images to their maps in float32."""

    def read(places: Tensor) -> Tensor:
        return maps[places].float()

    return read


def fit(vae: VQVAE, source: Source, photos: Photos, side: int, args: argparse.Namespace) -> Row:
    """Train a VQ-VAE, and return its curve: steps, errors in training, and on held-out images."""
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    variance = photos.targets(torch.arange(min(1000, photos.training)), side).var().item()
    every = max(1, args.steps // POINTS)
    curve: Row = {"steps": [], "training": [], "held_out": []}
    recent: list[float] = []
    order = torch.randperm(photos.training)
    for step in range(1, args.steps + 1):
        if len(order) < args.batch_size:
            order = torch.randperm(photos.training)
        places, order = order[: args.batch_size], order[args.batch_size :]
        drawn = vae.train()(source(places))
        error = F.mse_loss(drawn.images, photos.targets(places, side))
        optimizer.zero_grad()
        (error / variance + COMMITMENT * drawn.commitment).backward()
        optimizer.step()
        schedule.step()
        recent.append(error.item())
        if step % every == 0 or step == args.steps:
            errors, _ = evaluate(vae, source, photos, photos.held_out[:CURVE_IMAGES], side)
            curve["steps"].append(step)
            curve["training"].append(round(statistics.mean(recent), 6))
            curve["held_out"].append(round(errors.mean().item(), 6))
            recent.clear()
    return curve


@torch.no_grad()
def evaluate(
    vae: VQVAE, source: Source, photos: Photos, places: Tensor, side: int
) -> tuple[Tensor, Tensor | None]:
    """Return the mean squared error of each image (n,), and its codes (n, grid, grid) if any."""
    vae.eval()
    errors: list[Tensor] = []
    indices: list[Tensor] = []
    for batch in places.split(128):
        drawn = vae(source(batch))
        errors.append(squared_errors(drawn.images, photos.targets(batch, side)))
        if drawn.indices is not None:
            indices.append(drawn.indices)
    return torch.cat(errors), torch.cat(indices) if indices else None


def squared_errors(drawn: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of each image, from 0 to 1: (n, 3, h, w) -> (n,)."""
    return (drawn.clamp(0, 1) - targets).square().mean(dim=(1, 2, 3))


def psnr(errors: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio of images in decibels, by their errors (n,)."""
    return (-10 * errors.clamp(min=1e-10).log10()).mean().item()


def perplexity(indices: Tensor, codes: int) -> float:
    """Return how many codes would be in use if all were as frequent: exp of their entropy."""
    shares = torch.bincount(indices.flatten(), minlength=codes).double() / indices.numel()
    return torch.special.entr(shares).sum().exp().item()


def shrunk_and_enlarged(targets: Tensor, grid: int) -> Tensor:
    """Return images (n, 3, h, w) as what is left of them in so many pixels a side."""
    small = F.adaptive_avg_pool2d(targets, grid)
    return F.interpolate(small, targets.shape[2:], mode="bicubic").clamp(0, 1)


@torch.no_grad()
def random_codes(indices: Tensor, codes: int, count: int) -> tuple[Tensor, Tensor]:
    """Return codes at random, each (count, grid, grid) int64.

    The first are uniform over all codes. For the second, each place takes the code that it has in
    an image drawn for this place, so frequent ones are frequent, but no place knows the others.

    Args:
        indices: codes of images, (n, grid, grid).
        codes: how many there are.
        count: of maps to draw.
    """
    _, rows, columns = indices.shape
    uniform = torch.randint(codes, (count, rows, columns))
    drawn = torch.randint(len(indices), (count, rows, columns))
    by_place = indices.gather(0, drawn)
    return uniform, by_place


@dataclass
class Experiment:
    """Measure the arms of one model at one depth after the other."""

    model: clipkit.CLIP
    photos: Photos
    args: argparse.Namespace
    strips: Strips

    def at(self, block: int) -> list[Row]:
        """Return what was found after a block, an entry for each arm and seed."""
        maps = frozen_maps(self.model, self.photos, block)
        rows: list[Row] = []
        for seed in range(self.args.seeds):
            for arm in ARMS:
                rows.append(self.measure(block, arm, seed, maps))
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "curve"}), flush=True)
        return rows

    def build(self, block: int, arm: str, maps: Tensor) -> tuple[VQVAE, Source, int]:
        """Return a VQ-VAE of random weights, what it reads images from, and the side it draws."""
        channels, grid = maps.shape[1], maps.shape[2]
        side = side_of(grid, self.args.size)
        encoder: nn.Module = nn.Identity()
        source = reader_of(maps)
        if arm == "trained":
            visual = clipkit.CLIP(self.model.config).visual
            # On CPUs convolutions are a fifth faster so.
            encoder = Tower(visual, block).to(memory_format=torch.channels_last)
            source = self.photos.prepared
        codes = 0 if arm == "frozen, no codes" else self.args.codes
        return VQVAE(encoder, channels=channels, grid=grid, side=side, codes=codes), source, side

    def measure(self, block: int, arm: str, seed: int, maps: Tensor) -> Row:
        """Return errors, use of codes and the curve of one VQ-VAE."""
        torch.manual_seed(seed)
        begin = time.process_time()
        vae, source, side = self.build(block, arm, maps)
        curve = fit(vae, source, self.photos, side, self.args)
        seconds = time.process_time() - begin
        held_out = self.photos.held_out
        errors, indices = evaluate(vae, source, self.photos, held_out, side)
        seen, seen_indices = evaluate(
            vae, source, self.photos, torch.arange(min(1000, self.photos.training)), side
        )
        row: Row = {
            "after_block": block,
            "arm": arm,
            "seed": seed,
            "grid": maps.shape[2],
            "error": round(errors.mean().item(), 6),
            "psnr": round(psnr(errors), 3),
            "training_psnr": round(psnr(seen), 3),
            "cpu_seconds": round(seconds),
        }
        if indices is not None and seen_indices is not None:
            row["bits"] = round(maps.shape[2] ** 2 * math.log2(self.args.codes))
            row["perplexity"] = round(perplexity(indices, self.args.codes), 1)
            row["codes_used"] = len(indices.unique())
        if seed == 0:
            self.keep_strips(vae, source, row, side, seen_indices)
        return row | {"curve": curve}

    @torch.no_grad()
    def keep_strips(
        self, vae: VQVAE, source: Source, row: Row, side: int, indices: Tensor | None
    ) -> None:
        """Keep some images that were drawn, for the figures."""
        shown = self.photos.held_out[:SHOWN]
        targets = self.photos.targets(shown, side)
        self.strips.images.setdefault("original", targets)
        depth = f"block {row['after_block']}"
        self.strips.images[f"{depth}, {row['arm']}"] = vae.eval()(source(shown)).images
        if indices is None:
            return
        drawn = random_codes(indices, self.args.codes, SHOWN // 2)
        for kind, codes in zip(("uniform", "by place"), drawn, strict=True):
            samples = self.strips.samples.setdefault(f"{depth}, {kind}", {})
            samples[row["arm"]] = vae.decode(codes)


def thumbnails(photos: Photos, grids: list[int], size: int) -> dict[str, float]:
    """Return the PSNR of held-out images that were shrunk to each grid and enlarged again."""
    found: dict[str, float] = {}
    for grid in grids:
        targets = photos.targets(photos.held_out, side_of(grid, size))
        errors = squared_errors(shrunk_and_enlarged(targets, grid), targets)
        found[str(grid)] = round(psnr(errors), 3)
    return found


def default_blocks(visual: nn.Module) -> list[int]:
    """Return the last block and two before: of a ResNet its stages 3, 2 and 1."""
    if not towers.is_vit(visual):
        return [3, 2, 1]
    last = len(towers.vit_of(visual).transformer.resblocks) - 1
    return sorted({last, last // 2, last // 4}, reverse=True)


def table(results: Row) -> str:
    """Return means over the seeds and standard deviations, as Markdown."""
    lines = [
        "| after block | grid | bits | encoder | PSNR, dB | in training | perplexity | CPU s |",
        "|---" * 8 + "|",
    ]
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in results["rows"]:
        groups.setdefault((row["after_block"], row["arm"]), []).append(row)
    for (block, arm), rows in groups.items():
        grid = f"{rows[0]['grid']} x {rows[0]['grid']}"
        found = {key: [row.get(key, 0.0) for row in rows] for key in MEASURED}
        uses = with_spread(found["perplexity"], 0) if "bits" in rows[0] else ""
        cells = [str(block), grid, str(rows[0].get("bits", "")), arm]
        cells += [with_spread(found["psnr"], 2), with_spread(found["training_psnr"], 2), uses]
        cells.append(f"{statistics.mean(found['cpu_seconds']):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    for grid, value in results["thumbnails"].items():
        name = f"the image in {grid} x {grid} pixels"
        lines.append(f"| | {grid} x {grid} | | {name} | {value:.2f} | | | |")
    return "\n".join(lines)


def with_spread(values: list[float], digits: int) -> str:
    """Return a mean, and the standard deviation if there are several values."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="NAME=DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--after-block", type=int, nargs="+", help="by default three of them")
    parser.add_argument("--size", type=int, default=64, help="pixels of an image's side")
    parser.add_argument("--images", type=int, default=6000, help="to train on")
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=EXAMPLES / "results" / "reconstruction.json")
    parser.add_argument("--figures", type=Path, default=EXAMPLES.parent / "docs", metavar="FOLDER")
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    name, _, folder = args.data.partition("=")
    model = clipkit.CLIP.from_pretrained(args.model, device="cpu", dtype=torch.float32)
    photos = read_photos(SETS[name](Path(folder), "test").files, model, args)
    strips = Strips()
    experiment = Experiment(model, photos, args, strips)
    kept = ("model", "size", "images", "held_out", "codes", "steps", "batch_size", "lr", "seeds")
    results: Row = {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "data": name,
        "settings": {key: getattr(args, key) for key in kept},
        "rows": [],
    }
    for block in args.after_block or default_blocks(model.visual):
        results["rows"] += experiment.at(block)
        grids = list(dict.fromkeys(row["grid"] for row in results["rows"]))
        results["thumbnails"] = thumbnails(photos, grids, args.size)
        args.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(f"\n{table(results)}")
    draw_figures(results["rows"], strips, args.figures)


if __name__ == "__main__":
    main()
