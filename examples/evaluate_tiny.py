"""Measure zero-shot accuracy with a prompt ensemble: the figures of the embedded checkpoint's model card.

    python examples/evaluate_tiny.py [--tiny-imagenet DIR] [--cifar100 DIR] [--cifar10 DIR] [--caltech101 DIR]

`--tiny-imagenet` is the folder with `wnids.txt`, `words.txt` and `val/`; `--cifar100` and `--cifar10` those with
`test/<class>/`; `--caltech101` the one with `101_ObjectCategories/` and `test.txt`, its clutter left out. A class
goes by its first WordNet synonym or its folder's name; the templates are those of `train_tiny.py`. Cost: under
three minutes on two cores.
"""

import argparse
from pathlib import Path

import torch
from train_tiny import TEMPLATES

import clipkit
from clipkit.features import embed_images
from clipkit.training.data import Pairs, read_folder

CLUTTER = "BACKGROUND_Google"


def tiny_imagenet(root: Path) -> tuple[Pairs, list[str]]:
    """The 10,000 labelled validation pictures, and the class names."""
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    classes = (root / "wnids.txt").read_text().split()
    rows = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    files = [root / "val" / "images" / row[0] for row in rows]
    labels = [classes.index(row[1]) for row in rows]
    return Pairs(files, [[] for _ in files], labels), [words[wnid].split(",")[0] for wnid in classes]


def cifar(root: Path) -> tuple[Pairs, list[str]]:
    """The 10,000 test pictures, and the class names."""
    return read_folder(root / "test")


def caltech101(root: Path) -> tuple[Pairs, list[str]]:
    """The pictures of `test.txt` in 101 classes, and the class names."""
    rows = [row for row in (root / "test.txt").read_text().split() if not row.startswith(CLUTTER)]
    folders = sorted({row.split("/")[0] for row in rows})
    labels = [folders.index(row.split("/")[0]) for row in rows]
    files = [root / "101_ObjectCategories" / row for row in rows]
    return Pairs(files, [[] for _ in files], labels), [folder.replace("_", " ").lower() for folder in folders]


SETS = {"tiny_imagenet": tiny_imagenet, "cifar100": cifar, "cifar10": cifar, "caltech101": caltech101}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SETS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="DIR")
    parser.add_argument("--model", default="tiny")
    args = parser.parse_args()
    model = clipkit.CLIP.from_pretrained(args.model)
    print("| set | prompts | top-1 | top-5 |\n|---|---|---|---|")
    for name, read in SETS.items():
        if not (root := getattr(args, name)):
            continue
        pairs, class_names = read(root)
        features = embed_images(model, pairs.files, batch_size=250, progress=True)
        for templates in (TEMPLATES, ["a photo of a {}."]):
            weights = clipkit.zero_shot_weights(model, class_names, templates).cpu()
            top = (features @ weights.T).topk(5).indices == torch.tensor(pairs.labels)[:, None]  # (N, 5)
            top1, top5 = top[:, 0].double().mean().item(), top.any(dim=1).double().mean().item()
            print(f"| {name} ({len(pairs):,}) | {len(templates)} | {top1:.2%} | {top5:.2%} |", flush=True)


if __name__ == "__main__":
    main()
