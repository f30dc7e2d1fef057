"""Measure `classifier.adapt` (StatA) on batches of all kinds, from few of the classes to all.

    python examples/adapt.py --features DIR [--only SET ...] [--batches 20] [--shots 0 4]

DIR has a `.npz` for each set of images, as `examples/feature_sets.py` says. Each batch is drawn
from the test images: 64 images of 1 to 4, 2 to 10 or 5 to 25 classes; 1,000 images of 5 to 25, 25
to 50 or 50 to 100 classes, or of all, as in the paper (2501.03729); and a stream of 64 images after
one another, whose classes come and go. A set that has fewer images gives what it has. A start is
zero-shot, or `anchored` fitted on some images a class of the pool (`--shots`).

The mean accuracy of the start, of what `adapt` predicts for the batch, and their paired difference
with its standard error go to `--out`, and a table is printed. Cost: half a minute a set on a core.
Expected, on OpenAI's features: far above the start where a batch has few of the classes
(`docs/few_shot.md`).
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from feature_sets import FeatureSet, read_feature_sets
from torch import Tensor

import clipkit
from clipkit.classify.adapt import adapted_head

# The number of images, and the least and the most classes of them; 0 stands for all.
KINDS = {
    "64 of 1-4": (64, 1, 4),
    "64 of 2-10": (64, 2, 10),
    "64 of 5-25": (64, 5, 25),
    "1000 of 5-25": (1000, 5, 25),
    "1000 of 25-50": (1000, 25, 50),
    "1000 of 50-100": (1000, 50, 100),
    "1000 of all": (1000, 0, 0),
}
STREAM = "stream of 64"
Figures = dict[str, float]


def batches_of(labels: Tensor, kind: str, count: int) -> Iterator[Tensor]:
    """Yield the indices (n,) of each batch of a kind."""
    generator = torch.Generator().manual_seed(0)
    if kind == STREAM:
        yield from _stream(labels, count, generator)
        return
    size, fewest, most = KINDS[kind]
    classes = labels.unique()
    for _ in range(count):
        wanted = len(classes)
        if most:
            wanted = int(torch.randint(fewest, most + 1, (1,), generator=generator))
        chosen = classes[torch.randperm(len(classes), generator=generator)[:wanted]]
        members = torch.isin(labels, chosen).nonzero().flatten()  # (m, 1) -> (m,)
        yield members[torch.randperm(len(members), generator=generator)[:size]]


def _stream(labels: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches in which most images are of a few classes that follow on each other."""
    noise = torch.rand(len(labels), generator=generator) * 4
    order = torch.randperm(int(labels.max()) + 1, generator=generator)
    line = (order[labels] + noise).argsort()
    starts = torch.linspace(0, max(0, len(line) - 64), count).long()
    yield from (line[start : start + 64] for start in starts.tolist())


def start_of(found: FeatureSet, shots: int) -> clipkit.Head:
    """Return zero-shot, or a head that is fitted on some images a class."""
    if shots == 0:
        return found.zero_shot
    support = clipkit.sample_shots(found.pool_labels, shots)
    rows, labels = found.pool[support], found.pool_labels[support]
    head, _ = clipkit.fit_head(rows, labels, found.zero_shot)
    return head


def measure(found: FeatureSet, head: clipkit.Head, kind: str, count: int) -> Figures:
    """Return mean accuracies of the start and of the adapted predictions, in per cent."""
    before: list[float] = []
    gains: list[float] = []
    for batch in batches_of(found.test_labels, kind, count):
        rows, labels = found.test[batch], found.test_labels[batch]
        with torch.no_grad():
            right = (head(rows).argmax(dim=1) == labels).float().mean().item()
        _, probabilities = adapted_head(head, found.zero_shot, rows, anchor=1.0)
        after = (probabilities.argmax(dim=1) == labels).float().mean().item()
        before.append(100 * right)
        gains.append(100 * (after - right))
    start = statistics.mean(before)
    gain = statistics.mean(gains)
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return {"start": start, "adapted": start + gain, "gain": gain, "error": error}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="SET")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--shots", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("examples/results/adapt.json"))
    args = parser.parse_args()
    results: dict[str, dict[str, Figures]] = {}
    for found in read_feature_sets(args.features):
        if args.only is not None and found.name not in args.only:
            continue
        for shots in args.shots:
            head = start_of(found, shots)
            name = f"{found.name}, k = {shots}"
            results[name] = {}
            for kind in (*KINDS, STREAM):
                figures = measure(found, head, kind, args.batches)
                results[name][kind] = figures
                row = "{start:6.1f} -> {adapted:5.1f}  ({gain:+5.1f} ± {error:.1f})"
                print(f"{name:28} {kind:15} {row.format(**figures)}", flush=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
