"""Measure low-rank fine-tuning (CLIP-LoRA) with and without its guard, on real images.

    python examples/low_rank.py --data cifar100=DATA/cifar100 caltech101=DATA/caltech101

Of each set some classes are taken, at an even distance from each other. For each number of images a
class, support sets are drawn, and four classifiers are measured on other images of those classes:
zero-shot, the head alone (`anchored`), low-rank changes in any case, and what the guard keeps. No
method sees an image that it is measured on before it is done.

`tiny` was trained on CIFAR-100's training images, so of that set both parts are test images.

CLIP-LoRA makes 500 steps for each image of a class, at a rate of 2e-4. The defaults here are fewer
steps at a higher rate, because they are for `tiny` on a CPU: about a second a step. A JSON with
every draw goes to `--out`. Cost: about 20 minutes a set on one core.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import SETS, class_names_of

import clipkit
from clipkit.classify.metrics import accuracy

FRESH = ("cifar100",)  # sets that `tiny` was trained on
METHODS = ("zero_shot", "anchored", "low_rank", "guarded")
Result = dict[str, Any]


def some_classes(pairs: clipkit.Pairs, count: int) -> clipkit.Pairs:
    """Return the images of some classes, at an even distance from each other."""
    names = class_names_of(pairs)
    kept = [len(names) * place // count for place in range(min(count, len(names)))]
    labels = pairs.labels or []
    indices = [index for index, label in enumerate(labels) if label in kept]
    return clipkit.Pairs(
        [pairs.files[index] for index in indices],
        [[] for _ in indices],
        [kept.index(labels[index]) for index in indices],
        [names[label] for label in kept],
    )


def read_parts(name: str, root: Path, classes: int) -> tuple[clipkit.Pairs, clipkit.Pairs]:
    """Return images to draw support sets from, and others to measure on."""
    test = some_classes(SETS[name](root, "test"), classes)
    if name not in FRESH:
        return some_classes(SETS[name](root, "train"), classes), test
    places = range(len(test))
    return test.select(places[::2]), test.select(places[1::2])


def at_most(pairs: clipkit.Pairs, each: int) -> clipkit.Pairs:
    """Return at most so many images of each class."""
    return pairs.select([int(index) for index in clipkit.sample_shots(pairs.labels or [], each)])


def measure(classifier: clipkit.ImageClassifier, test: clipkit.Pairs) -> float:
    """Return the accuracy of a classifier on images with labels."""
    predicted = classifier.probabilities(test.files, batch_size=250).argmax(dim=1)
    return accuracy(predicted, torch.tensor(test.labels))


def draw(
    model: clipkit.CLIP, support: clipkit.Pairs, test: clipkit.Pairs, args: argparse.Namespace
) -> Result:
    """Return the accuracy of each method for one support set, and what the guard saw."""
    shots = max((support.labels or []).count(label) for label in set(support.labels or []))
    config = clipkit.TrainConfig(
        steps=args.steps * shots,
        lr=args.lr,
        weight_decay=0.01,
        betas=(0.9, 0.999),
        warm_up=0,
        clip_grad=None,
    )
    zero_shot = clipkit.ImageClassifier.zero_shot(model, class_names_of(support))
    found: Result = {"zero_shot": measure(zero_shot, test)}
    found["anchored"] = measure(zero_shot.fit(support), test)
    with tempfile.TemporaryDirectory() as out:
        # The second call finds the changes trained that the first one left.
        plain = clipkit.finetune(model, support, out, lora=args.rank, guard=False, config=config)
        found["low_rank"] = measure(plain, test)
        guarded = clipkit.finetune(model, support, out, lora=args.rank, config=config)
    guard = guarded.provenance["lora"]
    found["guarded"] = found[guard["chosen"]]
    return found | {"guard": guard}


def experiment(name: str, root: Path, args: argparse.Namespace) -> Result:
    """Return the accuracies of all draws of a set, by the number of images a class."""
    model = clipkit.CLIP.from_pretrained(args.model, device="cpu")
    pool, test = read_parts(name, root, args.classes)
    test = at_most(test, args.test_images)
    rows: dict[str, list[Result]] = {}
    for shots in args.shots:
        rows[str(shots)] = []
        for seed in range(args.draws):
            chosen = clipkit.sample_shots(pool.labels or [], shots, seed)
            support = pool.select([int(index) for index in chosen])
            rows[str(shots)].append(draw(model, support, test, args))
            print(name, shots, seed, rows[str(shots)][-1], flush=True)
    return {
        "set": name,
        "model": args.model,
        "classes": len(class_names_of(test)),
        "test": len(test),
        "rank": args.rank,
        "steps_per_shot": args.steps,
        "lr": args.lr,
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "shots": rows,
    }


def table(result: Result) -> str:
    """Return the mean accuracies, in per cent, and in how many draws the guard was below."""
    lines = [
        f"**{result['set']}**: {result['classes']} classes, {result['test']:,} test images, "
        f"`{result['model']}`",
        "",
        "| images a class | " + " | ".join(METHODS) + " | kept | below zero-shot |",
        "|---" * (len(METHODS) + 3) + "|",
    ]
    for shots, rows in result["shots"].items():
        means = [f"{100 * statistics.mean(row[name] for row in rows):.1f}" for name in METHODS]
        kept = ", ".join(row["guard"]["chosen"] for row in rows)
        below = sum(row["guarded"] < row["zero_shot"] for row in rows)
        lines.append(f"| {shots} | " + " | ".join(means) + f" | {kept} | {below} of {len(rows)} |")
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="SET=DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--test-images", type=int, default=25, help="of each class")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15, help="for each image of a class")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("examples/results"))
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    for entry in args.data:
        name, root = entry.split("=", 1)
        result = experiment(name, Path(root), args)
        (args.out / f"low_rank_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"\n{table(result)}\n", flush=True)


if __name__ == "__main__":
    main()
