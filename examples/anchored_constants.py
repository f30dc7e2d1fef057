"""Show what the constants of `anchored` rest on: its accuracy at strengths around the usual one.

    python examples/anchored_constants.py --features DIR [--only SET ...] [--draws 5]

DIR has a `.npz` for each set of images, as `examples/feature_sets.py` says. Measured are fits on
one image a class, for which nothing can be held out: of all classes, and of two classes drawn at
random (four pairs a draw). The table has zero-shot, each strength, and what `anchored` takes by
itself. A JSON goes to `--out`. Cost: half a minute a set on a core.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from feature_sets import FeatureSet, read_feature_sets
from torch import Tensor

import clipkit

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01)
PAIRS = 4  # of classes, for each draw
Row = dict[str, float]


def accuracy(head: clipkit.Head, features: Tensor, labels: Tensor) -> float:
    """Return the share of images whose likeliest class is right, in per cent."""
    with torch.no_grad():
        return 100 * (head(features).argmax(dim=1) == labels).float().mean().item()


def measure(found: FeatureSet, seed: int) -> Row:
    """Return the accuracy of every strength on one draw of one image a class."""
    support = clipkit.sample_shots(found.pool_labels, 1, seed=seed)
    rows, labels = found.pool[support], found.pool_labels[support]
    measured = {"zero-shot": accuracy(found.zero_shot, found.test, found.test_labels)}
    for strength in (*STRENGTHS, None):
        head, _ = clipkit.fit_head(rows, labels, found.zero_shot, strength=strength)
        name = "by itself" if strength is None else f"{strength:g}"
        measured[name] = accuracy(head, found.test, found.test_labels)
    return measured


def pairs_of(found: FeatureSet, draws: int) -> list[FeatureSet]:
    """Return sets of two classes each, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    classes = found.zero_shot.classes
    drawn = [torch.randperm(classes, generator=generator)[:2] for _ in range(PAIRS * draws)]
    return [found.only(pair) for pair in drawn]


def mean(rows: list[Row]) -> Row:
    """Return the mean of each column."""
    return {name: statistics.mean(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", metavar="SET")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, default=Path("examples/results/anchored_constants.json")
    )
    args = parser.parse_args()
    results: dict[str, Row] = {}
    for found in read_feature_sets(args.features):
        if args.only is not None and found.name not in args.only:
            continue
        results[found.name] = mean([measure(found, seed) for seed in range(args.draws)])
        two = pairs_of(found, args.draws)
        results[f"{found.name}, pairs"] = mean([measure(pair, 0) for pair in two])
        for name in (found.name, f"{found.name}, pairs"):
            cells = " ".join(f"{key} {value:.1f}" for key, value in results[name].items())
            print(f"{name:28} {cells}", flush=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
