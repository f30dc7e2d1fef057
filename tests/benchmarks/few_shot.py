"""Time the fit of every head on cached features, and one logistic regression beside scikit-learn's.

    python tests/benchmarks/few_shot.py [--classes 100] [--shots 16] [--width 512] [--repeats 3]
                                        [--threads 2] [--methods NAME ...] [--json FILE]

Features of unit length with the structure of classes are drawn at random; no model is needed. Runs
on the CPU, with scikit-learn. Cost with the defaults: about two minutes on two quiet cores.

- Seconds of `fit_head` for every method, with the sweep or cross-validation that it does by
  default: by the clock, and of processor time, which sums both threads and means something on a
  busy machine as well. The methods take turns; a turn before them, in which torch loads what it
  loads late, is not counted.
- Top-1 accuracy on other features, so that it is seen that something was fitted, and what the
  method chose.
- Memory: by how much the first fit raises the highest that the process has held. The methods come
  one after the other, so a later one may find room that an earlier one has held and given back: for
  the memory of one method give `--methods` it alone.
- Logistic regression with one C: `linear_probe` against scikit-learn, both until converged, and by
  how much their coefficients differ, relative to the largest. It is left out with `--methods`.

Prints medians, lowest and highest; the file has all.
"""

import argparse
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import sklearn
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clipkit import CosineHead, Head, fit_head
from clipkit.classify.few_shot import METHODS
from clipkit.classify.metrics import accuracy

PROMPTS = 8  # of each class
TEST_SHOTS = 20
FULL_C = 1.0
OURS = f"linear_probe, C = {FULL_C:g}"
THEIRS = f"scikit-learn, C = {FULL_C:g}"


@dataclass(frozen=True)
class Problem:
    """Hold a support set, other images, a zero-shot head that is right of some, and its prompts."""

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    zero_shot: CosineHead
    prompts: Tensor

    def fit(self, method: Any, C: float | None = None) -> tuple[Head, dict[str, Any]]:
        captions = self.prompts if method == "prompt_weights" else None
        return fit_head(self.features, self.labels, self.zero_shot, method, C=C, captions=captions)

    def fit_peer(self, peer: LogisticRegression) -> LogisticRegression:
        return peer.fit(self.features.double().numpy(), self.labels.numpy())

    def score(self, head: Head) -> float:
        with torch.no_grad():
            return accuracy(head(self.test_features).argmax(dim=1), self.test_labels)

    def score_peer(self, peer: LogisticRegression) -> float:
        return float(peer.score(self.test_features.double().numpy(), self.test_labels.numpy()))


def draw(classes: int, shots: int, width: int) -> Problem:
    """Draw a problem in which features lie as CLIP's do.

    Those of images and of texts lie in two narrow cones, and few directions have most of the
    variance.
    """
    seeded = torch.Generator().manual_seed(0)

    def cloud(count: int, length: float, power: float = 0.0) -> Tensor:
        points = torch.randn(count, width, generator=seeded) * torch.arange(1, width + 1) ** -power
        return length * points / points.square().sum(dim=1).mean().sqrt()

    common = cloud(1, 1)
    centers = cloud(classes, 0.4, 0.75)
    own = cloud(1, 1) + centers + cloud(classes, 0.25)
    spread = cloud(classes * PROMPTS, 0.3)  # (C * K, D)
    spread = spread.view(classes, PROMPTS, width)  # (C, K, D)
    prompts = F.normalize(own[:, None] + spread, dim=-1)

    def images(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(classes).repeat_interleave(each)
        return F.normalize(common + centers[labels] + cloud(len(labels), 1.0, 0.25), dim=-1), labels

    support, others = images(shots), images(TEST_SHOTS)
    weights = F.normalize(prompts.mean(dim=1), dim=-1)
    return Problem(*support, *others, CosineHead(weights, torch.tensor(math.log(100))), prompts)


def peak() -> float:
    """Return the most memory that the process has held so far, in gigabytes."""
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kilobytes here


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return what `work` returns; and seconds by the clock and of processor time."""
    clock = time.perf_counter()
    busy = time.process_time()
    result = work()
    seconds = {
        "clock": time.perf_counter() - clock,
        "processor": time.process_time() - busy,
    }
    return result, seconds


@dataclass(frozen=True)
class Turns:
    """Hold what several turns gave, by the name of the work.

    Attributes:
        results: of the last turn.
        seconds: by the clock and of processor time, of each turn but the first.
        memory: gigabytes by which the first turn raised the peak of the process.
    """

    results: dict[str, Any]
    seconds: dict[str, dict[str, list[float]]]
    memory: dict[str, float]


def take_turns(work: dict[str, Callable[[], Any]], repeats: int) -> Turns:
    """Do all work in turns. The time of the first turn is not counted."""
    turns = Turns({}, {name: {"clock": [], "processor": []} for name in work}, {})
    for turn in range(-1, repeats):
        for name in list(work)[:: 1 if turn % 2 else -1]:
            before = peak()
            turns.results[name], spent = timed(work[name])
            if turn < 0:
                turns.memory[name] = peak() - before
                continue
            for kind, value in spent.items():
                turns.seconds[name][kind].append(value)
    return turns


def compare(problem: Problem, repeats: int, methods: list[str] | None) -> dict[str, Any]:
    """Return seconds, memory and accuracy of each method; and how far two regressions are apart.

    Args:
        problem: what is fitted.
        repeats: turns that count.
        methods: by default all, and the regressions.
    """
    peer = LogisticRegression(C=FULL_C, tol=1e-6, max_iter=10000)
    chosen = METHODS if methods is None else methods
    work: dict[str, Callable[[], Any]] = {name: partial(problem.fit, name) for name in chosen}
    if methods is None:
        work[OURS] = partial(problem.fit, "linear_probe", FULL_C)
        work[THEIRS] = partial(problem.fit_peer, peer)
    turns = take_turns(work, repeats)
    found: dict[str, dict[str, Any]] = {
        name: dict(spent) | {"memory": turns.memory[name]} for name, spent in turns.seconds.items()
    }
    results = dict(turns.results)
    values: dict[str, Any] = {"zero-shot accuracy": problem.score(problem.zero_shot)}
    if methods is None:
        del results[THEIRS]
        found[THEIRS]["accuracy"] = problem.score_peer(peer)
        exact = torch.from_numpy(peer.coef_)
        difference = results[OURS][0].weight.detach().double() - exact
        values["coefficients differ by"] = (difference.abs().max() / exact.abs().max()).item()
    for name, (head, settings) in results.items():
        found[name] |= {"accuracy": problem.score(head), "chosen": settings}
    return values | {"seconds": found}


def span(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def show(result: dict[str, Any]) -> None:
    """Print the settings and a line for each method."""
    plain = {key: value for key, value in result.items() if not isinstance(value, dict)}
    print("  ".join(f"{key} {value}" for key, value in plain.items()))
    print(f"{'':24}{'seconds':>24}{'processor seconds':>24}{'GB':>8}{'top-1':>8}")
    for name, row in result["seconds"].items():
        top_1 = 100 * row["accuracy"]
        times = f"{span(row['clock']):>24}{span(row['processor']):>24}"
        print(f"{name:24}{times}{row['memory']:8.2f}{top_1:8.1f}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = read_arguments()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "classes": args.classes,
        "shots": args.shots,
        "width": args.width,
        "threads": args.threads,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "load": os.getloadavg()[0],
    }
    result |= compare(draw(args.classes, args.shots, args.width), args.repeats, args.methods)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
