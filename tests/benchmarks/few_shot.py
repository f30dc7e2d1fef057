"""Seconds of fitting each head on cached features, and of one logistic regression beside scikit-learn's.

    python tests/benchmarks/few_shot.py [--classes 100] [--shots 16] [--width 512] [--repeats 3] [--threads 2]
                                        [--json FILE]

Features of unit length with the structure of classes are drawn at random; no model is needed. Runs on the CPU, with
scikit-learn. Cost with the defaults: about two minutes on two quiet cores.

- Seconds of `fit_head` for every method, with the sweep or cross-validation that it does by default: by the clock, and
  of processor time, which sums both threads and means something on a busy machine as well. By turns; a turn before
  them, in which torch loads what it loads late, is not counted.
- Top-1 accuracy on other features, so that it is seen that something was fitted, and what the method chose.
- Logistic regression with one C: `linear_probe` against scikit-learn, both until converged, and by how much their
  coefficients differ, relative to the largest.

Prints medians, lowest and highest; the file has all.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import sklearn
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clipkit.classify.few_shot import METHODS, fit_head
from clipkit.classify.heads import CosineHead
from clipkit.classify.metrics import accuracy

PROMPTS, TEST_SHOTS = 8, 20
FULL_C = 1.0


def draw(classes: int, shots: int, width: int) -> dict[str, Any]:
    """A support set, other pictures, a zero-shot head that is right of some of them, and its prompts.

    As CLIP's, features of pictures and texts lie in two narrow cones, and few directions have most of the variance.
    """
    seeded = torch.Generator().manual_seed(0)

    def cloud(count: int, length: float, power: float = 0.0) -> Tensor:
        points = torch.randn(count, width, generator=seeded) * torch.arange(1, width + 1) ** -power
        return length * points / points.square().sum(dim=1).mean().sqrt()

    common, centres = cloud(1, 1), cloud(classes, 0.4, 0.75)
    own = cloud(1, 1) + centres + cloud(classes, 0.25)
    prompts = F.normalize(
        own[:, None] + cloud(classes * PROMPTS, 0.3).view(classes, PROMPTS, width), dim=-1
    )

    def pictures(each: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(classes).repeat_interleave(each)
        return F.normalize(common + centres[labels] + cloud(len(labels), 1.0, 0.25), dim=-1), labels

    zero_shot = CosineHead(F.normalize(prompts.mean(dim=1), dim=-1), torch.tensor(math.log(100)))
    return {
        "support": pictures(shots),
        "others": pictures(TEST_SHOTS),
        "zero_shot": zero_shot,
        "prompts": prompts,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """What it returns; seconds by the clock and of processor time."""
    clock, busy = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - clock, time.process_time() - busy)


def compare(data: dict[str, Any], repeats: int) -> dict[str, Any]:
    (features, labels), (others, answers) = data["support"], data["others"]
    zero_shot, options = data["zero_shot"], {"prompt_weights": {"captions": data["prompts"]}}
    work: dict[str, Callable[[], Any]] = {
        method: lambda method=method: fit_head(
            features, labels, zero_shot, method, **options.get(method, {})
        )
        for method in METHODS
    }
    one, theirs = f"linear_probe, C = {FULL_C:g}", f"scikit-learn, C = {FULL_C:g}"
    work[one] = lambda: fit_head(features, labels, zero_shot, "linear_probe", C=FULL_C)
    peer = LogisticRegression(C=FULL_C, tol=1e-6, max_iter=10000)
    work[theirs] = lambda: peer.fit(features.double().numpy(), labels.numpy())
    found: dict[str, dict[str, Any]] = {name: {"clock": [], "processor": []} for name in work}
    results: dict[str, Any] = {}
    for turn in range(-1, repeats):  # the first is not counted
        for name in list(work)[:: 1 if turn % 2 else -1]:
            results[name], seconds = timed(work[name])
            for kind, value in zip(("clock", "processor"), seconds, strict=True):
                found[name][kind] += [value] * (turn >= 0)
    for name, result in results.items():
        if name == theirs:
            found[name]["accuracy"] = float(peer.score(others.double().numpy(), answers.numpy()))
        else:
            found[name] |= {
                "accuracy": accuracy(result[0](others).argmax(dim=1), answers),
                "chosen": result[1],
            }
    weight, exact = (
        results[one][0].weight.detach().double(),
        torch.from_numpy(results[theirs].coef_),
    )
    start = accuracy(zero_shot(others).argmax(dim=1), answers)
    off = ((weight - exact).abs().max() / exact.abs().max()).item()
    return {"zero-shot accuracy": start, "coefficients differ by": off, "seconds": found}


def show(result: dict[str, Any]) -> None:
    print(
        "  ".join(f"{key} {value}" for key, value in result.items() if not isinstance(value, dict))
    )
    print(f"{'':24}{'seconds':>24}{'processor seconds':>24}{'top-1':>8}")
    for name, row in result["seconds"].items():
        cells = [
            f"{median(x):.2f} ({min(x):.2f} to {max(x):.2f})"
            for x in (row["clock"], row["processor"])
        ]
        print(f"{name:24}" + "".join(f"{x:>24}" for x in cells) + f"{100 * row['accuracy']:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = (
        ("--classes", 100),
        ("--shots", 16),
        ("--width", 512),
        ("--repeats", 3),
        ("--threads", 2),
    )
    for name, default in defaults:
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        name: vars(args)[name] for name in ("classes", "shots", "width", "threads")
    }
    result |= {
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "load": os.getloadavg()[0],
    }
    result |= compare(draw(args.classes, args.shots, args.width), args.repeats)
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
