"""Fit every kind of head on k images a class, on sets of images or of features, ten draws.

    python examples/few_shot.py --features DIR [--draws 10] [--methods anchored lp_plus_plus ...]
    python examples/few_shot.py --data cifar100=DIR caltech101=DIR fruits360=DIR ucm=DIR cifar10=DIR
                                [--model tiny] [--draws 10] [--fresh] [--plot]

DIR of `--features` has a `.npz` for each set, as `examples/feature_sets.py` says; they can be of
any model. `examples/datasets.py` says what lies in the folders of `--data`. The features of a set
are computed once, into `--cache`. For each set: zero-shot; a linear probe on all images that
support sets are drawn from (`--data`); and for k = 1, 2, 4, 8, 16 every method of
`clipkit.fit_head`, each on the same random draws, measured on all test images. No method sees an
image that it is measured on before it is done. A number of images that most classes do not have is
left out.

A model that was trained on a set's training images knows them better than any others, so a support
set from there would mislead: `--fresh` draws from every second test image of each class, and
measures on the rest.

A JSON with every draw and, with `--plot`, an image of the curves for each set go to `--out`, and
tables are printed. Draws that are in the JSON already are kept, so a run can be cut and go on, and
a method can be added; remove the file to measure anew. Without `--features` and `--data` the tables
of what is there are printed again.

Cost: a minute a draw for a set of 100 classes on a core, most of it for `projection`,
`linear_probe` and `zero_shot_linear` at many images. Expected, on the files of OpenAI's features:
`anchored` first in most cells (`docs/few_shot.md`, `examples/results`).
"""

import argparse
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import SETS, TEMPLATES, Split, class_names_of
from feature_sets import FeatureSet, read_feature_sets
from few_shot_tables import Result, mean_of, overview, shots_of, summary, table
from torch import Tensor
from tqdm import tqdm

import clipkit
from clipkit.classify.few_shot import METHODS
from clipkit.classify.metrics import accuracy

SHOTS = (1, 2, 4, 8, 16)
NAMES = [
    "random_linear",
    "zero_shot_linear",
    "prompt_weights",
    "cache",
    "cache_finetuned",
    "gaussian",
    "linear_probe",
    "lp_plus_plus",
    "proker",
    "projection",
    "clap",
    "anchored",
]
PLOTTED = [name for name in NAMES if name not in ("prompt_weights", "cache")]
assert sorted(NAMES) == sorted(METHODS)


@dataclass(frozen=True)
class Task:
    """Hold what heads are fitted on and measured on.

    Attributes:
        features, labels: (N, D) and (N,), to draw support sets from.
        test_features, test_labels: (M, D) and (M,), to measure on.
        captions: (C, K, D), the features of each class's prompts; None if they are not known.
        zero_shot: the head of the mean captions.
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    captions: Tensor | None
    zero_shot: clipkit.CosineHead

    def fit(self, method: str, support: Tensor, seed: int = 0) -> tuple[clipkit.Head, Result]:
        """Return a head fitted on some of the images, and what its method chose."""
        captions = self.captions if method == "prompt_weights" else None
        features, labels = self.features[support], self.labels[support]
        return clipkit.fit_head(
            features, labels, self.zero_shot, method, seed=seed, captions=captions
        )

    def measure(self, head: clipkit.Head) -> float:
        """Return the head's accuracy on the test images."""
        return measure(head, self.test_features, self.test_labels)


def features_of(
    model: clipkit.CLIP, name: str, root: Path, split: Split, cache: Path
) -> tuple[Tensor, Tensor, list[str]]:
    """Return features, labels and class names of a set, from the cache if they are there."""
    pairs = SETS[name](root, split)
    cache.mkdir(parents=True, exist_ok=True)
    rows = list(zip(pairs.files, pairs.labels or [], strict=True))
    out = cache / f"{name}-{split}.safetensors"
    found = clipkit.extract_features(model, rows, out=out, batch_size=250, progress=True)
    assert found.labels is not None
    return found.features, found.labels, class_names_of(pairs)


def captions_of(model: clipkit.CLIP, names: list[str], templates: tuple[str, ...]) -> Tensor:
    """Return the features of every template around every name, (C, K, D)."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = clipkit.embed_texts(model, prompts)  # (C * K, D)
    return features.unflatten(0, (len(names), len(templates)))  # (C, K, D)


def cosine_head(model: clipkit.CLIP, captions: Tensor) -> clipkit.CosineHead:
    """Return the zero-shot head of captions (C, K, D)."""
    weights = torch.nn.functional.normalize(captions.mean(dim=1), dim=-1)  # (C, D)
    return clipkit.CosineHead(weights, model.logit_scale.detach().cpu())


def measure(head: clipkit.Head, features: Tensor, labels: Tensor) -> float:
    """Return a head's top-1 accuracy."""
    with torch.no_grad():
        return accuracy(head(features).argmax(dim=1), labels)


def halve(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of half of each class's images, and those of the rest."""
    first = torch.cat([torch.nonzero(labels == label).flatten()[::2] for label in labels.unique()])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[first] = False
    return first, rest.nonzero().flatten()


def read_task(model: clipkit.CLIP, name: str, root: Path, cache: Path, fresh: bool) -> Task:
    """Return the features of a set, split as the protocol asks."""
    test_features, test_labels, names = features_of(model, name, root, "test", cache)
    if fresh:
        first, rest = halve(test_labels)
        features, labels = test_features[first], test_labels[first]
        test_features, test_labels = test_features[rest], test_labels[rest]
    else:
        features, labels, train_names = features_of(model, name, root, "train", cache)
        assert names == train_names
    captions = captions_of(model, names, TEMPLATES[name])
    head = cosine_head(model, captions)
    return Task(features, labels, test_features, test_labels, captions, head)


def probe_on_all(task: Task) -> Result:
    """Return the accuracy of a linear probe on all images that support sets are drawn from."""
    probe, chosen = task.fit("linear_probe", torch.arange(len(task.labels)))
    return {"accuracy": task.measure(probe), "C": chosen["C"]}


def task_of(found: FeatureSet) -> Task:
    """Return the task of features that were read from a file."""
    return Task(found.pool, found.pool_labels, found.test, found.test_labels, None, found.zero_shot)


def possible_shots(labels: Tensor) -> list[int]:
    """Return the numbers of images a class that at least every second class has."""
    typical = labels.bincount().float().median().item()
    return [shots for shots in SHOTS if shots <= typical]


def methods_of(task: Task, names: list[str] | None) -> list[str]:
    """Return the methods to fit: those asked for that can be, in the order of `NAMES`."""
    asked = [name for name in NAMES if names is None or name in names]
    return [name for name in asked if name != "prompt_weights" or task.captions is not None]


def climb(task: Task, result: Result, methods: list[str], draws: int, path: Path) -> None:
    """Add to a result the accuracy of every method for every number of images, draw by draw.

    Draws that are there already are left, and the file is written after each number of images.
    """
    for shots in possible_shots(task.labels):
        for draw in tqdm(range(draws), desc=f"{result['set']}, k = {shots}"):
            support = clipkit.sample_shots(task.labels, shots, seed=draw)
            for method in methods:
                cell = result["shots"].setdefault(method, {}).setdefault(str(shots), [])
                if len(cell) <= draw:
                    head, _ = task.fit(method, support, seed=draw)
                    cell.append(task.measure(head))
        path.write_text(json.dumps(result, indent=1) + "\n")


def experiment(task: Task, name: str, args: argparse.Namespace, model: str) -> None:
    """Measure one set, and print its table."""
    path: Path = args.out / f"few_shot_{name}.json"
    result: Result = {
        "set": name,
        "model": model,
        "draws": args.draws,
        "train": len(task.labels),
        "test": len(task.test_labels),
        "classes": task.zero_shot.classes,
        "zero_shot": task.measure(task.zero_shot),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "shots": {},
    }
    if path.exists():
        result["shots"] = json.loads(path.read_text())["shots"]
    if task.captions is not None:
        result["all"] = probe_on_all(task)
    climb(task, result, methods_of(task, args.methods), args.draws, path)
    if args.plot:
        plot(result, args.out / f"few_shot_{name}.png")
    print(f"\n{table(result)}\n", flush=True)


def plot(result: Result, path: Path) -> None:
    """Write an image of accuracy over the number of images a class."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure: Any = Figure(figsize=(6, 4), layout="tight")
    axes = figure.add_subplot()
    shots = shots_of(result)
    for method in PLOTTED:
        if method in result["shots"]:
            means = [100 * mean_of(result, method, k) for k in shots]
            width = 2.5 if method == "anchored" else 1.2
            axes.plot(shots, means, marker="o", label=method, linewidth=width)
    axes.axhline(100 * result["zero_shot"], color="gray", linestyle="--", label="zero-shot")
    if "all" in result:
        probe = 100 * result["all"]["accuracy"]
        axes.axhline(probe, color="black", linestyle=":", label="probe on all")
    axes.set(xscale="log", xticks=shots, xticklabels=shots)
    axes.set(xlabel="images a class", ylabel="top-1, %", title=result["set"])
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, metavar="DIR")
    parser.add_argument("--data", nargs="+", default=[], metavar="SET=DIR")
    parser.add_argument("--only", nargs="+", metavar="SET", help="some of the files of --features")
    parser.add_argument("--methods", nargs="+", choices=NAMES, metavar="NAME")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    parser.add_argument("--plot", action="store_true", help="needs clipkit-torch[plots]")
    parser.add_argument(
        "--fresh", action="store_true", help="draw from half of the test images, measure on others"
    )
    return parser.parse_args()


def measure_features(args: argparse.Namespace) -> None:
    """Measure the sets of `--features`."""
    for found in read_feature_sets(args.features):
        if args.only is None or found.name in args.only:
            model = f"features, {found.kind}" if found.kind else "features"
            experiment(task_of(found), found.name, args, model)


def measure_images(args: argparse.Namespace) -> None:
    """Measure the sets of `--data` with the model."""
    model = clipkit.CLIP.from_pretrained(args.model).optimize()
    cache = args.cache / args.model.replace("/", "-")
    for name, root in (entry.split("=", 1) for entry in args.data):
        task = read_task(model, name, Path(root), cache, args.fresh)
        title = f"{name}_fresh" if args.fresh else name
        experiment(task, title, args, model=args.model)


def main() -> None:
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.features:
        measure_features(args)
    if args.data:
        measure_images(args)
    found = [json.loads(file.read_text()) for file in sorted(args.out.glob("few_shot_*.json"))]
    if not (args.features or args.data):
        for result in found:
            print(f"{table(result)}\n")
            if args.plot:
                plot(result, args.out / f"few_shot_{result['set']}.png")
    if found:
        print(f"{overview(found)}\n\n{summary(found)}")


if __name__ == "__main__":
    main()
