"""Measure whether learned upsampling helps a CLIP classifier on small images, with spread.

    python examples/upsampling.py --data caltech101=DIR fruits360=DIR cifar100=DIR [--model tiny]
                                  [--scale 3] [--seeds 3] [--draws 3] [--steps 500]

`examples/datasets.py` says what lies in the folders. Images are reduced by `--scale` from what the
tower takes, and enlarged again: bilinear, bicubic, by an SRResNet (a generator trained by the error
of pixels alone) and by an SRGAN (the same, trained on against a discriminator), both of
`examples/super_resolution.py`. The full image is the ceiling. Each generator learns from training
images of the set, and is measured on its test images. CIFAR's images are small by nature: nothing
is reduced, there is no ceiling, and the generators are those of the first set with large images.

Each way is measured with four classifiers: zero-shot; `cosine`, the nearest class mean; `linear`, a
linear probe; and `anchored`, the default of `fit_head`. The last three are fitted on `--shots`
images of each of `--classes` classes, enlarged in the same way as the test images, and once more on
full images (`anchored, full`), as a classifier that meets small images after it was made.

Every difference to bicubic is paired: same test images, same support sets. Its standard error has
three parts, added as squares: over the classes of test images, over the seeds of generators and
over the draws of support sets. `upsampling.json` in `--out` has them one by one, and all runs.

`tiny` was trained on CIFAR-100's training images, enlarged by bicubic, so both parts of that set
are test images. Generators and features are kept in `--cache`, so a run can be cut and go on.
Cost with `tiny`: about 15 minutes of one core. Expected: see `docs/upsampling.md`.
"""

import argparse
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import SETS, TEMPLATES, class_names_of
from few_shot import captions_of, cosine_head
from low_rank import at_most, read_parts
from robustness import processor
from super_resolution import (
    Crops,
    Generator,
    LearnedUpsampling,
    load_generator,
    reduce,
    save_generator,
    to_levels,
    train_by_adversary,
    train_by_pixels,
)
from torch import Tensor
from upsampling_tables import Generators, Right, decibels, draw_figure, rows_of, summary, table

import clipkit
from clipkit.classify.fitting import class_means

SMALL = ("cifar10", "cifar100")  # sets of small images
LEARNED = ("SRResNet", "SRGAN")
NOT_SETTINGS = ("data", "shown", "cache", "out")  # options on which no figure depends
Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Material:
    """Hold images of a set, small and as large as the tower takes them.

    Attributes:
        small: (N, 3, h, w) uint8.
        full: (N, 3, H, W) uint8; None for a set of small images.
        labels: (N,) int64.
    """

    small: Tensor
    full: Tensor | None
    labels: Tensor


def read_images(pairs: clipkit.Pairs, like: clipkit.Preprocess, side: int) -> Tensor:
    """Return the middle squares of images, (N, 3, side, side) uint8."""
    config = replace(like.config, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    prepare = clipkit.Preprocess((side, side), config)
    return torch.stack([to_levels(prepare(file)) for file in pairs.files])


def read_material(
    pairs: clipkit.Pairs, like: clipkit.Preprocess, scale: int, small: bool
) -> Material:
    """Return images of a set, reduced unless they are small by nature."""
    side = like.resolution[0]
    labels = torch.tensor(pairs.labels)
    if small:
        return Material(read_images(pairs, like, side // scale), None, labels)
    full = read_images(pairs, like, side)
    return Material(reduce(full, scale), full, labels)


def train_generators(
    source: str, root: Path, like: clipkit.Preprocess, args: argparse.Namespace
) -> Generators:
    """Return generators of both kinds for each seed; the second kind starts at the first.

    Those that are in the cache are read, the others trained and written.
    """
    found: Generators = {kind: [] for kind in LEARNED}
    for seed in range(args.seeds):
        files = [args.cache / f"{kind.lower()}-{source}-{seed}.safetensors" for kind in LEARNED]
        if not all(file.exists() for file in files):
            images = training_images(source, root, like, args.training_images)
            train_both(Crops(images, args.scale, seed), seed, files, args)
        for kind, file in zip(LEARNED, files, strict=True):
            found[kind].append(load_generator(file))
    return found


def train_both(crops: Crops, seed: int, files: list[Path], args: argparse.Namespace) -> None:
    """Train one generator by pixels, train it on against an adversary, and write both."""
    torch.manual_seed(seed)
    generator = Generator(args.scale, args.width, args.blocks)
    train_by_pixels(generator, crops, args.steps)
    save_generator(generator, files[0])
    train_by_adversary(generator, crops, args.adversarial_steps)
    save_generator(generator, files[1])


def transforms_of(like: clipkit.Preprocess, generators: Generators) -> dict[str, list[Transform]]:
    """Return for each way to enlarge what prepares an image, once for each generator."""
    found: dict[str, list[Transform]] = {
        mode: [replace(like, config=replace(like.config, interpolation=mode))]
        for mode in ("bilinear", "bicubic")
    }
    for kind, trained in generators.items():
        found[kind] = [LearnedUpsampling(generator, like) for generator in trained]
    return found


def features_of(
    model: clipkit.CLIP, material: Material, transforms: dict[str, list[Transform]], cache: Path
) -> dict[str, list[Tensor]]:
    """Return the features (N, D) of images enlarged in each way, and of the full images.

    Those that are in files already, named from `cache` on, are read.
    """
    found: dict[str, list[Tensor]] = {}
    for name, ways in transforms.items():
        files = [Path(f"{cache}-{name}-{way}.safetensors") for way in range(len(ways))]
        pairs = zip(ways, files, strict=True)
        found[name] = [encode(model, material.small, transform, file) for transform, file in pairs]
    if material.full is not None:
        file = Path(f"{cache}-full.safetensors")
        found["full"] = [encode(model, material.full, model.preprocess, file)]
    return found


def encode(model: clipkit.CLIP, images: Tensor, transform: Transform, file: Path) -> Tensor:
    """Return the features of images (N, 3, h, w) uint8, from the file if they are there."""
    rows = list(images.unbind())
    found = clipkit.extract_features(model, rows, out=file, transform=transform, batch_size=64)
    return found.features


def heads_of(
    features: Tensor, labels: Tensor, zero_shot: clipkit.CosineHead, strength: float, seed: int
) -> dict[str, clipkit.Head]:
    """Return the heads that are fitted on a support set.

    Args:
        features, labels: (n, D) and (n,), of the support set.
        zero_shot: where `anchored` starts.
        strength: C of the linear probe.
        seed: of what the fits draw.
    """
    means, _ = class_means(features, labels, zero_shot.classes)
    linear, _ = clipkit.fit_head(features, labels, zero_shot, "linear_probe", C=strength, seed=seed)
    anchored, _ = clipkit.fit_head(features, labels, zero_shot, "anchored", seed=seed)
    return {
        "cosine": clipkit.CosineHead(F.normalize(means, dim=1), zero_shot.logit_scale),
        "linear": linear,
        "anchored": anchored,
    }


def is_right(head: clipkit.Head, features: Tensor, labels: Tensor) -> Tensor:
    """Return for each image (N, D) whether the head names its label, (N,) bool."""
    with torch.no_grad():
        return head(features).argmax(dim=1) == labels


class Measurement:
    """Hold the features of a set's images, enlarged in each way, and what heads make of them.

    Args:
        model: what encodes.
        pool: images from which support sets are drawn.
        test: images to measure on.
        transforms: as `transforms_of` returns them.
        zero_shot: the head of the class names.
        draws: support sets, as indices of `pool`.
        cache: where files of features begin.
    """

    def __init__(
        self,
        model: clipkit.CLIP,
        pool: Material,
        test: Material,
        transforms: dict[str, list[Transform]],
        zero_shot: clipkit.CosineHead,
        draws: list[Tensor],
        cache: Path,
    ) -> None:
        self.pool, self.test, self.zero_shot, self.draws = pool, test, zero_shot, draws
        self.support = features_of(model, pool, transforms, Path(f"{cache}-support"))
        self.features = features_of(model, test, transforms, Path(f"{cache}-test"))
        first = draws[0]
        seen = self.support["bicubic"][0][first], pool.labels[first]
        _, chosen = clipkit.fit_head(*seen, zero_shot, "linear_probe")
        self.strength: float = chosen["C"]  # the same one for all ways to enlarge

    def measure(self) -> Right:
        """Return which test images are classified rightly."""
        right: Right = {}
        for method, ways in self.features.items():
            runs = [
                [self.answers(method, way, draw) for draw in range(len(self.draws))]
                for way in range(len(ways))
            ]
            for head in runs[0][0]:
                found = [torch.stack([answers[head] for answers in row]) for row in runs]
                right.setdefault(head, {})[method] = torch.stack(found)
        return right

    def answers(self, method: str, way: int, draw: int) -> dict[str, Tensor]:
        """Return for each head whether it is right about each test image, (N,) bool."""
        heads = {"zero-shot": self.zero_shot, **self.fit(self.support[method][way], draw)}
        if self.on_full:
            heads["anchored, full"] = self.on_full[draw]
        features = self.features[method][way]
        return {name: is_right(head, features, self.test.labels) for name, head in heads.items()}

    @cached_property
    def on_full(self) -> list[clipkit.Head]:
        """Return `anchored` fitted on the full images of each support set, if there are any."""
        full = self.support.get("full", [])
        return [self.fit(full[0], draw)["anchored"] for draw in range(len(self.draws)) if full]

    def fit(self, support: Tensor, draw: int) -> dict[str, clipkit.Head]:
        """Return heads fitted on one of the support sets."""
        chosen = self.draws[draw]
        labels = self.pool.labels[chosen]
        return heads_of(support[chosen], labels, self.zero_shot, self.strength, draw)


def draw_supports(
    pool: clipkit.Pairs, args: argparse.Namespace
) -> tuple[clipkit.Pairs, list[Tensor]]:
    """Return the images that are in any support set, and the sets as indices of these images."""
    draws = [clipkit.sample_shots(pool.labels or [], args.shots, s) for s in range(args.draws)]
    used = torch.cat(draws).unique()  # in rising order
    return pool.select(used.tolist()), [torch.searchsorted(used, draw) for draw in draws]


def experiment(
    name: str, root: Path, model: clipkit.CLIP, generators: Generators, args: argparse.Namespace
) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the figures of one set, and rows of the figure."""
    like = preprocess_of(model)
    pool, test = read_parts(name, root, args.classes)
    test = at_most(test, args.test_images)
    pool, draws = draw_supports(pool, args)
    seen = read_material(pool, like, args.scale, name in SMALL)
    unseen = read_material(test, like, args.scale, name in SMALL)
    zero_shot = cosine_head(model, captions_of(model, class_names_of(test), TEMPLATES[name]))
    transforms = transforms_of(like, generators)
    measurement = Measurement(model, seen, unseen, transforms, zero_shot, draws, args.cache / name)
    result = summary(measurement.measure(), unseen.labels)
    counts = {"classes": zero_shot.classes, "test": len(test), "support": len(draws[0])}
    full = unseen.full
    # Every third image is enough for decibels.
    quality = None if full is None else decibels(unseen.small[::3], full[::3], generators)
    rows = rows_of(unseen.small, full, generators, args.scale, args.shown)
    return {"set": name, **counts, "C": measurement.strength, "psnr": quality, **result}, rows


def preprocess_of(model: clipkit.CLIP) -> clipkit.Preprocess:
    """Return the preprocessing of a model, which must be of clipkit's kind."""
    if not isinstance(model.preprocess, clipkit.Preprocess):
        raise SystemExit("this model prepares images by a function of its own")
    return model.preprocess


def training_images(name: str, root: Path, like: clipkit.Preprocess, count: int) -> Tensor:
    """Return training images of a set, drawn at random, (N, 3, H, W) uint8."""
    pairs = SETS[name](root, "train")
    random = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(pairs), generator=random)[:count]
    return read_images(pairs.select(chosen.tolist()), like, like.resolution[0])


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scale", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of generators")
    parser.add_argument("--draws", type=int, default=3, help="of support sets")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--test-images", type=int, default=20, help="of each class")
    parser.add_argument("--training-images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=500, help="by pixels")
    parser.add_argument("--adversarial-steps", type=int, default=150)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--shown", type=int, default=2, help="images of each set in the figure")
    parser.add_argument("--cache", type=Path, default=Path("runs/upsampling"))
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    return parser.parse_args()


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a reader needs to make the figures again."""
    kept = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    date = datetime.date.today().isoformat()
    return {"date": date, "processor": processor(), **kept}


def known_sets(file: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sets that a file has figures of.

    Raises:
        SystemExit: if they are of other settings.
    """
    known = json.loads(file.read_text()) if file.exists() else {**settings, "sets": []}
    if any(known.get(name) != value for name, value in settings.items() if name != "date"):
        raise SystemExit(f"{file} is of other settings: give another --out and --cache")
    return known["sets"]


def keep_settings(cache: Path, settings: dict[str, Any]) -> None:
    """Write down what the cache is of, or raise `SystemExit` if it is of something else."""
    cache.mkdir(parents=True, exist_ok=True)
    write(cache / "settings.json", settings, [])


def write(file: Path, settings: dict[str, Any], sets: list[dict[str, Any]]) -> None:
    """Write the figures of some sets, beside those of other sets that the file has."""
    names = [found["set"] for found in sets]
    others = [found for found in known_sets(file, settings) if found["set"] not in names]
    file.write_text(json.dumps({**settings, "sets": [*others, *sets]}, indent=1) + "\n")


def main() -> None:
    args = read_arguments()
    model = clipkit.CLIP.from_pretrained(args.model, device="cpu", dtype=torch.float32).optimize()
    like = preprocess_of(model)
    if like.resolution[0] % args.scale:
        raise SystemExit(f"--scale must divide {like.resolution[0]}, the model's resolution")
    entries = [entry.split("=", 1) for entry in args.data]
    entries.sort(key=lambda entry: entry[0] in SMALL)  # their generators come from other sets
    if entries[0][0] in SMALL:
        raise SystemExit("one of the sets must have larger images, for the generators")
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "upsampling.json"
    settings = settings_of(args)
    known_sets(file, settings)
    keep_settings(args.cache, settings)
    sets: list[dict[str, Any]] = []
    trained: dict[str, Generators] = {}
    rows: list[Tensor] = []
    for name, root in entries:
        source = entries[0][0] if name in SMALL else name
        if source not in trained:
            trained[source] = train_generators(source, Path(root), like, args)
        result, more = experiment(name, Path(root), model, trained[source], args)
        rows += more
        sets.append({"generators": source, **result})
        write(file, settings, sets)
        draw_figure(rows, args.out / f"upsampling_{entries[0][0]}.jpg")
        print(f"\n{table(result)}\n", flush=True)


if __name__ == "__main__":
    main()
