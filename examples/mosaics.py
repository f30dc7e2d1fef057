"""Measure how well dense maps tell which of four photos in a mosaic a pixel belongs to.

    python examples/mosaics.py --data FOLDER [--model tiny] [--mosaics 200] [--out FILE]

FOLDER has one folder of images for each class. A mosaic is two rows of two photos of different
classes, each cropped to a square of 96 pixels; the names of its four classes are given, in the
templates of ImageNet. A pixel is right if its class is that of its photo. That is no segmentation
(nobody drew the outlines of things), but needs no masks: a map that says everywhere what the whole
image shows gets a quarter of the pixels right.

Each method is measured on the same mosaics: at the defaults of `class_map`, in one pass over the
whole mosaic, and refined. Printed are shares of pixels, with standard errors over the mosaics, and
the paired difference to `neighbors`. Cost: about three minutes on a core with `tiny`. Expected with
`tiny` on the test images of CIFAR-100, which it knows: `values` in three quarters of the pixels,
and `neighbors` in half of them (`examples/results/mosaics.json`, `docs/dense.md`).
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import clipkit
from clipkit.data.decode import read_image
from clipkit.inspect import ClassMapper

TILE = 96  # pixels of a photo's side
IGNORED = {"BACKGROUND_Google"}  # a folder of Caltech-101 without a class
VARIANTS: dict[str, dict[str, Any]] = {
    "neighbors": {"method": "neighbors"},
    "queries": {"method": "queries"},
    "values": {"method": "values"},
    "neighbors, one pass": {"method": "neighbors", "window": 4096, "short_side": 2 * TILE},
    "queries, one pass": {"method": "queries", "window": 4096, "short_side": 2 * TILE},
    "values, one pass": {"method": "values", "window": 4096, "short_side": 2 * TILE},
    "neighbors, refined": {"method": "neighbors", "refine": True},
    "queries, refined": {"method": "queries", "refine": True},
    "values, refined": {"method": "values", "refine": True},
}


def tile_of(path: Path) -> Image.Image:
    """Return the middle of a photo as a square of `TILE` pixels."""
    photo = read_image(path).convert("RGB")
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return square.resize((TILE, TILE), Image.Resampling.BICUBIC)


def mosaics_of(folder: Path, count: int) -> Iterator[tuple[Image.Image, list[str]]]:
    """Yield mosaics, and the names of their four classes row by row."""
    draw = random.Random(0)
    classes = sorted(path for path in folder.iterdir() if path.name not in IGNORED)
    for _ in range(count):
        chosen = draw.sample(classes, 4)
        mosaic = Image.new("RGB", (2 * TILE, 2 * TILE))
        for place, own in enumerate(chosen):
            tile = tile_of(draw.choice(sorted(own.iterdir())))
            mosaic.paste(tile, (TILE * (place % 2), TILE * (place // 2)))
        yield mosaic, [own.name.replace("_", " ").lower() for own in chosen]


def truth() -> Tensor:
    """Return the place of the photo of each pixel, (2 x TILE, 2 x TILE) int64."""
    return torch.arange(4).view(2, 2).repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)


def main() -> None:
    """Measure all variants, print a table, and write what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--mosaics", type=int, default=200)
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model)
    right: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for mosaic, names in mosaics_of(args.data, args.mosaics):
        for variant, options in VARIANTS.items():
            mapper = ClassMapper(model, names, "imagenet", **options)
            indices = mapper.indices(mosaic)
            right[variant].append(float((indices == truth()).double().mean()))
    print(f"{args.model}, {args.mosaics} mosaics of {args.data.name}: % of pixels")
    for variant, shares in right.items():
        reference = right["neighbors" + variant[len(variant.split(",")[0]) :]]
        gaps = [one - other for one, other in zip(shares, reference, strict=True)]
        print(f"  {variant:<22} {with_error(shares)}  to neighbors {with_error(gaps)}")
    if args.out is not None:
        rounded = {name: [round(share, 4) for share in shares] for name, shares in right.items()}
        found = {"model": args.model, "mosaics": args.mosaics, "right": rounded}
        args.out.write_text(json.dumps(found) + "\n", "utf-8")


def with_error(shares: list[float]) -> str:
    """Return a mean with its standard error, in per cent."""
    error = statistics.stdev(shares) / len(shares) ** 0.5
    return f"{100 * statistics.mean(shares):5.1f} ± {100 * error:.1f}"


if __name__ == "__main__":
    main()
