"""Fine-tune on 200 captioned photos with the defaults of `clipkit finetune`, and measure retrieval on all others.

    python examples/finetune_coco.py --coco DIR [--model tiny] [--draws 5]

`--coco` is a folder with `captions.csv` (file name, caption; no header) and `images/`. For each draw 200 random pairs
become a table as a user would have it; the function behind `clipkit finetune TABLE -o OUT` fine-tunes on all of it; and
recall is measured among the 1,000 pairs that come next in the draw, before and after. Cost: about a minute a draw on
two cores. Its table is in `examples/results`; `tiny`, whose text tower knows few of COCO's words, is a weak start.
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
from clipkit.data.labelled import Pairs, read_table


def read(root: Path) -> list[tuple[Path, str]]:
    with (root / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = [(root / "images" / name, caption) for name, caption in csv.reader(file)]
    return [row for row in rows if row[0].exists()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model, dtype=torch.float32)
    everything, before, after = read(args.coco), [], []
    for draw in range(args.draws):
        rows = random.Random(draw).sample(everything, 1200)
        training, rest = rows[:200], Pairs([p for p, _ in rows[200:]], [[c] for _, c in rows[200:]])
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "captions.csv"
            with table.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(
                    [("path", "caption"), *((path.resolve(), text) for path, text in training)]
                )
            tuned = clipkit.finetune_captions(model, read_table(table), Path(folder) / "out")
        before.append(retrieval(model, rest))
        after.append(retrieval(tuned, rest))
    print(f"| among {len(rest)} pairs, {args.draws} draws | before | after | draws that gained |")
    print("|---|---|---|---|")
    for name in before[0]:
        old, new = ([figures[name] for figures in side] for side in (before, after))
        gained = sum(a > b for a, b in zip(new, old, strict=True))
        cells = [
            f"{statistics.mean(side):.2%} ± {statistics.stdev(side):.2%}" for side in (old, new)
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} | {gained} |")


if __name__ == "__main__":
    main()
