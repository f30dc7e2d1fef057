"""The data sets of the examples, read from folders: see each function for what lies where.

Each gives files, labels and class names; nothing is downloaded.
"""

from dataclasses import replace
from pathlib import Path

from clipkit.data.labelled import Pairs, read_folder
from clipkit.prompts import prompt_set

CLUTTER = "BACKGROUND_Google"


def _pairs(files: list[Path], labels: list[int], class_names: list[str]) -> Pairs:
    return Pairs(files, [[] for _ in files], labels, class_names)


def tiny_imagenet(root: Path, split: str) -> Pairs:
    """The 10,000 labelled pictures of `val/`; `words.txt` has the names, of which a class goes by the first."""
    if split != "test":
        raise ValueError("only the validation pictures are read here")
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    classes = (root / "wnids.txt").read_text().split()
    rows = [
        line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()
    ]
    files = [root / "val" / "images" / row[0] for row in rows]
    labels = [classes.index(row[1]) for row in rows]
    return _pairs(files, labels, [words[wnid].split(",")[0] for wnid in classes])


def cifar(root: Path, split: str) -> Pairs:
    """CIFAR-10 and CIFAR-100: `train/<class>/` and `test/<class>/`."""
    return read_folder(root / split)


def caltech101(root: Path, split: str) -> Pairs:
    """`101_ObjectCategories/`, and the lists `train.txt` and `test.txt`; the clutter is left out."""
    rows = [
        row for row in (root / f"{split}.txt").read_text().split() if not row.startswith(CLUTTER)
    ]
    folders = sorted({row.split("/")[0] for row in rows})
    files = [root / "101_ObjectCategories" / row for row in rows]
    names = [folder.replace("_", " ").lower() for folder in folders]
    return _pairs(files, [folders.index(row.split("/")[0]) for row in rows], names)


def fruits360(root: Path, split: str) -> Pairs:
    """`Training/<class>/` and `Test/<class>/`, of 95 classes."""
    pairs = read_folder(root / {"train": "Training", "test": "Test"}[split])
    return replace(pairs, class_names=[name.lower() for name in pairs.class_names or []])


SETS = {
    "tiny_imagenet": tiny_imagenet,
    "cifar100": cifar,
    "cifar10": cifar,
    "caltech101": caltech101,
}
SETS["fruits360"] = fruits360

# Fruits-360 has no published prompts. Its pictures are fruits that turn on a white ground.
FRUIT_TEMPLATES = (
    "{}",
    "a photo of a {}.",
    "a photo of a {}, a type of fruit.",
    "a close-up photo of a {}.",
    "a photo of a {} on a white background.",
    "a single {}, cut out.",
    "an image of the fruit {}.",
    "a small photo of a {}.",
)
TEMPLATES = {
    "cifar100": prompt_set("cifar100").templates,
    "caltech101": prompt_set("caltech101").templates,
    "fruits360": FRUIT_TEMPLATES,
}
