"""Read the data sets of the examples from folders; each function says what lies where.

Each returns `clipkit.Pairs`: files, labels and class names. Nothing is downloaded.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from clipkit import Pairs, prompt_set, read_folder

Split = Literal["train", "test"]
CLUTTER = "BACKGROUND_Google"  # a folder of Caltech-101 without a class


def without_captions(files: list[Path], labels: list[int], class_names: list[str]) -> Pairs:
    """Return pairs for which no captions are known."""
    return Pairs(files, [[] for _ in files], labels, class_names)


def tiny_imagenet(root: Path, split: Split) -> Pairs:
    """Return the 10,000 labeled images of `val/`, with the first names of `words.txt`."""
    if split != "test":
        raise ValueError("only the validation images are read here")
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    classes = (root / "wnids.txt").read_text().split()
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    files = [root / "val" / "images" / row[0] for row in rows]
    labels = [classes.index(row[1]) for row in rows]
    return without_captions(files, labels, [words[wnid].split(",")[0] for wnid in classes])


def cifar(root: Path, split: Split) -> Pairs:
    """Return CIFAR-10 or CIFAR-100 from `train/<class>/` or `test/<class>/`."""
    return read_folder(root / split)


def caltech101(root: Path, split: Split) -> Pairs:
    """Return what `train.txt` or `test.txt` lists of `101_ObjectCategories/`, but no clutter."""
    rows = (root / f"{split}.txt").read_text().split()
    rows = [row for row in rows if not row.startswith(CLUTTER)]
    folders = sorted({row.split("/")[0] for row in rows})
    files = [root / "101_ObjectCategories" / row for row in rows]
    labels = [folders.index(row.split("/")[0]) for row in rows]
    return without_captions(files, labels, [name.replace("_", " ").lower() for name in folders])


def fruits360(root: Path, split: Split) -> Pairs:
    """Return Fruits-360 of 95 classes from `Training/<class>/` or `Test/<class>/`."""
    folders = {"train": "Training", "test": "Test"}
    pairs = read_folder(root / folders[split])
    return replace(pairs, class_names=[name.lower() for name in class_names_of(pairs)])


UCM_CLASSES = (
    "agricultural land",
    "airplane",
    "baseball diamond",
    "beach",
    "buildings",
    "chaparral",
    "dense residential area",
    "forest",
    "freeway",
    "golf course",
    "harbor",
    "intersection",
    "medium residential area",
    "mobile home park",
    "overpass",
    "parking lot",
    "river",
    "runway",
    "sparse residential area",
    "storage tanks",
    "tennis court",
)


def ucm(root: Path, split: Split) -> Pairs:
    """Return the 2,100 aerial images of UC Merced from `imgs/1.tif` on, a hundred of each class.

    The first half of a class is for training.
    """
    numbers = [n for n in range(2100) if (n % 100 < 50) == (split == "train")]
    files = [root / "imgs" / f"{n + 1}.tif" for n in numbers]
    return without_captions(files, [n // 100 for n in numbers], list(UCM_CLASSES))


def class_names_of(pairs: Pairs) -> list[str]:
    """Return the class names of pairs that have some."""
    if pairs.class_names is None:
        raise ValueError("these images have no classes")
    return pairs.class_names


SETS: dict[str, Callable[[Path, Split], Pairs]] = {
    "tiny_imagenet": tiny_imagenet,
    "cifar100": cifar,
    "cifar10": cifar,
    "caltech101": caltech101,
    "fruits360": fruits360,
    "ucm": ucm,
}

# Fruits-360 has no published prompts. It shows fruits that turn on a white ground.
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
AERIAL_TEMPLATES = (
    "an aerial photo of {}.",
    "a satellite photo of {}.",
    "a photo of {} from above.",
)
TEMPLATES = {
    "cifar10": prompt_set("cifar10").templates,
    "cifar100": prompt_set("cifar100").templates,
    "caltech101": prompt_set("caltech101").templates,
    "fruits360": FRUIT_TEMPLATES,
    "ucm": AERIAL_TEMPLATES,
}
