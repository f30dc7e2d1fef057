"""Time training beside open_clip, and clipkit's contrastive loss beside the plain formula.

    python tests/benchmarks/training.py [--model ViT-B/32] [--batch 16] [--repeats 7]
                                        [--pairs 32768] [--precisions float32 bfloat16]
                                        [--json FILE]

`--model` is one of `clipkit.list_models()`; only its architecture is taken. Needs open_clip 3.3,
and Linux, because /proc tells peaks of memory. Runs on the CPU. Cost with the defaults: about a
quarter of an hour on two quiet cores, 6 GB, and what is free for the plain loss.

- Seconds of forward and backward of both towers and the loss; and the same with a step of AdamW,
  torch's for both. The libraries take turns, in training mode, as both train by default: not
  compiled, nothing recomputed, open_clip's factory model and ClipLoss. Captions have 8 to 14 words;
  both get the same token ids, padded to 77.
- MiB that forward and backward add at their peak to a process of its own that holds the weights, in
  its second step.
- The loss alone, forward and backward, in processes of their own, 3 times at most. The plain
  formula runs at the most pairs, halved as often as needed, that the free memory has room for.
- Differences, first of all: if losses or gradients of the two libraries differ on the same random
  weights and batch, it stops there. Those of the loss from the plain formula are measured at no
  more than 4,096 pairs, in 8 tiles.

Prints medians, lowest and highest; the file has all. They mean little on a busy machine, for which
see the load.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from memory import alone
from side_by_side import hardware
from training_loss import compare_losses
from training_steps import LIBRARIES, PRECISIONS, compare_steps, step_memory

from clipkit.checkpoints import registry


def span(values: list[float]) -> str:
    return f"{median(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def show(result: dict[str, Any]) -> None:
    """Print the settings, the times and memory, and the differences."""
    plain = {key: value for key, value in result.items() if not isinstance(value, dict)}
    plain |= result["hardware"]
    print("  ".join(f"{key} {value}" for key, value in plain.items()))
    print(line("", [*LIBRARIES, "open_clip / clipkit"]))
    for name, row in (result["steps"] | result["memory"]).items():
        ratio = median(row["open_clip"]) / median(row["clipkit"])
        print(line(name, [*(span(values) for values in row.values()), f"{ratio:.2f}"]))
    costs, *others = result["loss"].values()
    print(line("loss alone, pairs", ["seconds", "MiB"]))
    for name, columns in costs.items():
        print(line(name, [span(values) for values in columns]))
    show_differences("the libraries", result["check"])
    for title, differences in zip(list(result["loss"])[1:], others, strict=True):
        show_differences(title, differences)


def line(name: str, cells: list[str]) -> str:
    return f"{name:40}" + "".join(f"{cell:>27}" for cell in cells)


def show_differences(title: str, differences: dict[str, float]) -> None:
    print(f"differences of {title}")
    for name, value in differences.items():
        print(f"{value:9.2g}  {name}")


def compare_memory(
    folder: str, name: str, size: int, precisions: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return the MiB of a step, by precision and library."""
    return {
        f"MiB, {precision}": {
            library: [alone(step_memory, library, folder, name, size, precision)[1]]
            for library in LIBRARIES
        }
        for precision in precisions
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B/32", choices=registry.MODELS, metavar="NAME")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=32768)
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=PRECISIONS,
        choices=PRECISIONS,
        help="float32 alone where a processor has no bfloat16",
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {
        "hardware": hardware(torch.device("cpu")),
        "model": args.model,
        "batch": args.batch,
        "load": os.getloadavg()[0],
    }
    precisions = sorted({"float32", *args.precisions}, key=PRECISIONS.index)
    with tempfile.TemporaryDirectory() as folder:
        result |= compare_steps(folder, args.model, args.batch, args.repeats, precisions)
        result["memory"] = compare_memory(folder, args.model, args.batch, precisions)
    result["loss"] = compare_losses(args.pairs, min(args.repeats, 3))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
