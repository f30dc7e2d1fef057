"""Measure which explanation is faithful: insertion, deletion and the pointing game, by method.

    python examples/faithfulness.py --data DIR [--model tiny] [--images 200] [--masks 2000]
                                    [--steps 24] [--largest 0.5] [--methods grad_cam rise ...]
                                    [--out examples/results/faithfulness.json]

DIR is Tiny-ImageNet (`wnids.txt`, `words.txt`, `val/` with boxes) or Pascal VOC (`JPEGImages/` and
`Annotations/` with boxes). Images are squashed to the model's size, and taken in a random order.
Used are those that the model gets right by zero-shot, and of which the boxes of the right class
cover at most `--largest` of the image: elsewhere every map would point at the object. The score of
both curves is the probability of the right class among all of the set, and what is explained is the
similarity with that class's weights.

Beside the methods of `clipkit.inspect.explain` there are `dense` (the similarity of each place of
`dense_features` with the class), `center` (the nearer to the middle, the higher) and `random` (a
map of the tower's grid, as smooth as the others).

RISE comes last, since it takes longer than all others together. A run that was cut off goes on when
it is started again. The table is printed at the end, with the number of images of each method.
Deletion is the better the lower it is, the others the higher.

Cost: with `tiny`, 200 images, 200 masks and 8 steps 15 to 30 minutes on one core. Expected of that
run: deletion 0.090 by `rise`, 0.148 by `grad_eclip`, 0.161 by `grad_cam` and 0.216 by `random`
(`examples/results/faithfulness.json`, `docs/explain.md`).
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, cast
from xml.etree import ElementTree

import datasets
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import clipkit
from clipkit.inspect.dense import dense_features
from clipkit.inspect.explain import METHODS, Method, explain
from clipkit.inspect.faithfulness import (
    area_under,
    box_mask,
    deletion_curve,
    insertion_curve,
    pointing_hit,
)
from clipkit.inspect.towers import grid_of, is_vit

TEMPLATES = ("{}", "a photo of a {}.", "a photo of the {}.", "a close-up photo of a {}.")
FIGURES = ("deletion", "insertion", "pointing")
Box = tuple[float, float, float, float]  # left, top, right, bottom; shares of width and height
Figures: TypeAlias = dict[str, list[float]]  # of an image, by method
Table: TypeAlias = dict[str, dict[str, list[float]]]  # by method, then by figure


@dataclass(frozen=True)
class Sample:
    """Hold an image with the boxes of the objects of its class."""

    path: Path
    label: int
    boxes: list[Box]


def read_tiny_imagenet(root: Path) -> tuple[list[Sample], list[str]]:
    """Return the validation images of Tiny-ImageNet, one box each, and the class names."""
    pairs = datasets.tiny_imagenet(root, "test")
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    samples: list[Sample] = []
    for path, label, line in zip(pairs.files, pairs.labels or [], lines, strict=True):
        left, top, right, bottom = (int(value) / 64 for value in line.split("\t")[2:])
        samples.append(Sample(Path(path), label, [(left, top, right, bottom)]))
    return samples, datasets.class_names_of(pairs)


def read_voc(root: Path) -> tuple[list[Sample], list[str]]:
    """Return the images of Pascal VOC with the class that has the largest box, and its names."""
    found: list[tuple[Path, str, list[Box]]] = []
    for path in sorted((root / "Annotations").glob("*.xml")):
        tree = ElementTree.parse(path).getroot()
        width, height = (float(tree.findtext(f"size/{side}", "0")) for side in ("width", "height"))
        boxes: dict[str, list[Box]] = {}
        for item in tree.iter("object"):
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{name}", "0"))
                for name in ("xmin", "ymin", "xmax", "ymax")
            )
            box = (left / width, top / height, right / width, bottom / height)
            boxes.setdefault(item.findtext("name", ""), []).append(box)
        if boxes:
            name = max(boxes, key=lambda one: max(map(area, boxes[one])))
            found.append((root / "JPEGImages" / f"{path.stem}.jpg", name, boxes[name]))
    names = sorted({name for _, name, _ in found})
    return [Sample(path, names.index(name), boxes) for path, name, boxes in found], names


def area(box: Box) -> float:
    """Return the share of an image that a box covers."""
    left, top, right, bottom = box
    return (right - left) * (bottom - top)


class Judge:
    """Explain an image by every method, and measure each map.

    Args:
        model: explains.
        names: of the classes.
        masks: of RISE.
        steps: of the curves.
    """

    def __init__(self, model: clipkit.CLIP, names: list[str], masks: int, steps: int) -> None:
        self.model, self.masks, self.steps = model, masks, steps
        self.fast = model.optimize()
        self.weights = clipkit.zero_shot_weights(model, names, TEMPLATES)  # (C, D)
        config = replace(model.config.preprocess, resize_mode="squash")
        self.preprocess = clipkit.Preprocess(model.config.vision.resolution, config)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probabilities of all classes: (n, 3, H, W) -> (n, C)."""
        features = F.normalize(self.fast.encode_image(images).float(), dim=-1)
        scale = self.model.logit_scale.detach().float().exp()
        return (scale * features @ self.weights.to(features).T).softmax(dim=-1)

    def measure(self, method: str, image: Tensor, sample: Sample, seed: int) -> list[float]:
        """Return deletion, insertion and pointing of a method."""
        height, width = image.shape[-2:]
        boxes = [(a * width, b * height, c * width, d * height) for a, b, c, d in sample.boxes]
        image = image.to(self.model.device)

        def score(images: Tensor) -> Tensor:
            return self.probabilities(images)[:, sample.label]

        found = self.heat_map(method, image, sample.label, seed)
        figures = [
            area_under(deletion_curve(score, image, found, steps=self.steps)),
            area_under(insertion_curve(score, image, found, steps=self.steps)),
            pointing_hit(found, box_mask(boxes, height, width)),
        ]
        return [round(figure, 4) for figure in figures]

    def heat_map(self, method: str, image: Tensor, label: int, seed: int) -> Tensor:
        """Return the map of an image for a class by a method, (H, W)."""
        height, width = image.shape[-2:]
        weights = self.weights[label]
        if method == "random":
            grid = grid_of(self.model.visual, image.unsqueeze(0))
            places = torch.rand(1, 1, *grid, generator=torch.Generator().manual_seed(seed))
            return F.interpolate(places, (height, width), mode="bilinear")[0, 0]
        if method == "center":
            y, x = torch.meshgrid(
                torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
            )
            return -(x**2 + y**2)
        if method == "dense":
            with torch.no_grad():
                features = dense_features(self.model, image.unsqueeze(0)).float()
            dense = F.cosine_similarity(features, weights.to(features).view(1, -1, 1, 1))
            full = F.interpolate(dense.unsqueeze(1), (height, width), mode="bilinear")
            return full[0, 0].cpu()
        if method == "rise":
            return explain(
                self.fast, image, weights, "rise", masks=self.masks, seed=seed
            ).upsample()
        return explain(self.model, image, weights, cast(Method, method)).upsample()


def methods_of(model: clipkit.CLIP) -> list[str]:
    """Return the methods that a model's image tower can have, and those beside."""
    left_out = "grad_cam" if is_vit(model.visual) else "rollout"
    names = [name for name in METHODS if name not in (left_out, "rise")]
    return [*names, "dense", "center", "random", "rise"]


def usable(judge: Judge, samples: list[Sample], largest: float) -> Iterator[tuple[Sample, Tensor]]:
    """Yield samples with small objects that the model gets right, and the prepared images."""
    for sample in samples:
        if sum(map(area, sample.boxes)) > largest:
            continue
        with Image.open(sample.path) as file:
            image = judge.preprocess(file.convert("RGB"))
        if int(judge.probabilities(image.unsqueeze(0))[0].argmax()) == sample.label:
            yield sample, image


def summarize(images: dict[str, Figures]) -> Table:
    """Return the number of images, and mean and standard error of each figure, by method."""
    table: Table = {}
    for method in {method: None for row in images.values() for method in row}:
        rows = [row[method] for row in images.values() if method in row]
        table[method] = {"images": [len(rows)]}
        for place, figure in enumerate(FIGURES):
            values = [row[place] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            error = spread / math.sqrt(len(values))
            table[method][figure] = [round(statistics.mean(values), 4), round(error, 4)]
    return table


def show(table: Table) -> None:
    """Print the table, the best deletion first."""
    print("| method | images | deletion | insertion | pointing |\n|---|---|---|---|---|")
    for method, row in sorted(table.items(), key=lambda item: item[1]["deletion"]):
        cells = [f"{row[figure][0]:.3f} ± {row[figure][1]:.3f}" for figure in FIGURES]
        print(f"| {method} | {row['images'][0]} | {' | '.join(cells)} |")


def run(
    judge: Judge, samples: list[Sample], methods: list[str], settings: dict[str, Any], out: Path
) -> None:
    """Measure what the file has not yet, and write it after each image. Print the table."""
    results: dict[str, Any] = {"settings": settings, "table": {}, "images": {}}
    if out.exists():
        results = json.loads(out.read_text())
        if results["settings"] != settings:
            raise SystemExit(f"{out} was made with other settings: name another with --out")
    done: dict[str, Figures] = results["images"]
    found = islice(usable(judge, samples, settings["largest"]), settings["images"])
    chosen = list(tqdm(found, "choosing", settings["images"]))
    for rounds in ([name for name in methods if name != "rise"], ["rise"]):
        for seed, (sample, image) in enumerate(tqdm(chosen, " ".join(rounds))):
            row = done.setdefault(sample.path.name, {})
            missing = [name for name in rounds if name in methods and name not in row]
            for method in missing:
                row[method] = judge.measure(method, image, sample, seed)
            if missing:
                results["table"] = summarize(done)
                out.write_text(compact(json.dumps(results, indent=1)) + "\n")
    show(results["table"])


def compact(text: str) -> str:
    """Put lists of numbers on one line."""
    parts = text.split("[")
    for place, part in enumerate(parts[1:], start=1):
        inside, end, rest = part.partition("]")
        parts[place] = " ".join(inside.split()) + end + rest
    return "[".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--masks", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--largest", type=float, default=0.5)
    parser.add_argument("--methods", nargs="+")
    out = Path(__file__).parent / "results" / "faithfulness.json"
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model)
    read = read_voc if (args.data / "Annotations").exists() else read_tiny_imagenet
    samples, names = read(args.data)
    random.Random(0).shuffle(samples)
    methods = args.methods or methods_of(model)
    settings = {
        "model": args.model,
        "data": read.__name__.removeprefix("read_"),
        "images": args.images,
        "masks": args.masks,
        "steps": args.steps,
        "largest": args.largest,
    }
    run(Judge(model, names, args.masks, args.steps), samples, methods, settings, args.out)


if __name__ == "__main__":
    main()
