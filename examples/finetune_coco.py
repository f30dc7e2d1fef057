"""Fine-tune on 200 captioned photos as `clipkit finetune` does, and measure retrieval on others.

    python examples/finetune_coco.py --coco DIR [--model tiny] [--draws 5]

`--coco` is a folder with `captions.csv` (file name, caption; no header) and `images/`. For each
draw 200 random pairs become a table as a user would have it; `clipkit.finetune_captions`, the
function behind `clipkit finetune TABLE -o OUT`, fine-tunes on all of it; and recall is measured
among the 1,000 pairs that come next in the draw, before and after.

Cost: about a minute a draw on two cores. Expected with `tiny`: recall at 5 from image to text
rises from 3.24 % to 4.44 %, from text to image from 3.42 % to 4.14 % (`examples/results`). Its text
tower knows few of COCO's words, so it is a weak start.
"""

import argparse
import csv
import random
import statistics
import tempfile
from pathlib import Path

import torch

import clipkit
from clipkit.classify.evaluate import retrieval

TRAINING = 200
MEASURED = 1000
Rows = list[tuple[Path, str]]
Figures = dict[str, float]


def read(root: Path) -> Rows:
    """Return the images that are there, with their captions."""
    with (root / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = [(root / "images" / name, caption) for name, caption in csv.reader(file)]
    return [row for row in rows if row[0].exists()]


def write_table(rows: Rows, table: Path) -> None:
    """Write a table of captions as a user would have it."""
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "caption"))
        writer.writerows((path.resolve(), caption) for path, caption in rows)


def before_and_after(model: clipkit.CLIP, rows: Rows) -> tuple[Figures, Figures]:
    """Return recall before and after fine-tuning on the first rows, measured on the others."""
    training, rest = rows[:TRAINING], rows[TRAINING:]
    held_out = clipkit.Pairs([path for path, _ in rest], [[caption] for _, caption in rest])
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "captions.csv"
        write_table(training, table)
        tuned = clipkit.finetune_captions(model, clipkit.read_table(table), Path(folder) / "out")
        return retrieval(model, held_out).figures, retrieval(tuned, held_out).figures


def mean_and_spread(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2%} ± {spread:.2%}"


def report(before: list[Figures], after: list[Figures]) -> None:
    """Print a row for each figure, with its mean over the draws."""
    print(f"| among {MEASURED} pairs, {len(before)} draws | before | after | draws that gained |")
    print("|---|---|---|---|")
    for name in before[0]:
        old = [figures[name] for figures in before]
        new = [figures[name] for figures in after]
        gained = sum(later > earlier for later, earlier in zip(new, old, strict=True))
        print(f"| {name} | {mean_and_spread(old)} | {mean_and_spread(new)} | {gained} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model, dtype=torch.float32)
    everything = read(args.coco)
    before: list[Figures] = []
    after: list[Figures] = []
    for draw in range(args.draws):
        rows = random.Random(draw).sample(everything, TRAINING + MEASURED)
        first, then = before_and_after(model, rows)
        before.append(first)
        after.append(then)
    report(before, after)


if __name__ == "__main__":
    main()
