"""Read CamVid: frames of street scenes with the class of each pixel, and score segmentations of it.

The folder is the one of SegNet's tutorial: `train`, `val` and `test` with 480 x 360 frames, and
`trainannot` and so on with a mask of the same name for each. Masks hold 0 to 10 for the classes of
`NAMES` in their order, and 11 where nobody said what it is, which is left out everywhere.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipkit.classify.metrics import confusion_matrix

PARTS = ("train", "val", "test")
VOID = 11
# What each class may be called. A caption names things: nobody writes "pole", but "lamp post".
NAMES: dict[str, list[str]] = {
    "sky": ["sky", "cloud", "clouds in the sky"],
    "building": ["building", "house", "skyscraper", "wall of a house"],
    "pole": ["pole", "lamp post", "street lamp"],
    "road": ["road", "street", "asphalt"],
    "pavement": ["pavement", "sidewalk"],
    "tree": ["tree", "trees", "bush", "hedge"],
    "sign": ["traffic sign", "street sign", "traffic light"],
    "fence": ["fence", "railing"],
    "car": ["car", "bus", "truck", "van"],
    "pedestrian": ["pedestrian", "man", "woman", "child"],
    "bicyclist": ["bicyclist", "bicycle", "motorcycle"],
}
CLASSES = len(NAMES)


@dataclass(frozen=True)
class Part:
    """Hold the frames of a part.

    Attributes:
        files: their paths.
        images: (N, 3, h, w) uint8, at the working size.
        masks: (N, H, W) uint8, at the size of the files.
    """

    files: list[Path]
    images: Tensor
    masks: Tensor


def read_part(root: Path, part: str, size: tuple[int, int], limit: int | None = None) -> Part:
    """Return a part, or `limit` frames of it at an even distance, at a working size (h, w)."""
    files = sorted((root / part).glob("*.png"))
    if not files:
        raise SystemExit(f"{root / part} has no frames: --data takes CamVid's own folder")
    if limit is not None and limit < len(files):
        files = [files[len(files) * place // limit] for place in range(limit)]
    images: list[Tensor] = []
    masks: list[Tensor] = []
    for file in files:
        with Image.open(file) as frame:
            small = frame.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))  # (h, w, 3) -> (3, h, w)
        with Image.open(root / f"{part}annot" / file.name) as mask:
            masks.append(torch.from_numpy(np.array(mask)))
    return Part(files, torch.stack(images), torch.stack(masks))


def shrink(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return masks at another size: (N, H, W) -> (N, h, w). No class is mixed from others."""
    return F.interpolate(masks[:, None], size, mode="nearest-exact")[:, 0]


def draw_crops(
    images: Tensor, masks: Tensor, crop: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a part of each image and of its mask, half of them mirrored.

    Args:
        images, masks: (n, 3, h, w) and (n, h, w).
        crop: rows and columns of a part.
        generator: draws where the parts lie.

    Returns:
        (n, 3, *crop) and (n, *crop).
    """
    free = torch.tensor([masks.shape[1] - crop[0] + 1, masks.shape[2] - crop[1] + 1])
    drawn = torch.rand(len(masks), 3, generator=generator)
    corners = (drawn[:, :2] * free).long()
    cut_images: list[Tensor] = []
    cut_masks: list[Tensor] = []
    for image, mask, corner, mirror in zip(images, masks, corners, drawn[:, 2], strict=True):
        top, left = int(corner[0]), int(corner[1])
        rows, columns = slice(top, top + crop[0]), slice(left, left + crop[1])
        flipped = [-1] if mirror < 0.5 else []
        cut_images.append(image[:, rows, columns].flip(flipped))
        cut_masks.append(mask[rows, columns].flip(flipped))
    return torch.stack(cut_images), torch.stack(cut_masks)


def balance(masks: Tensor) -> Tensor:
    """Return how much a pixel of each class counts in the loss, (classes,).

    It is the square root of SegNet's median frequency balancing (1511.00561). Without it poles and
    signs, one pixel in a hundred, are not learned in so few steps; without the root they are seen
    everywhere.
    """
    counts = masks.flatten().long().bincount(minlength=CLASSES)[:CLASSES].double()
    present = counts[counts > 0]
    return (present.median() / counts.clamp(min=1)).sqrt().where(counts > 0, 0).float()


def count_pixels(predicted: Tensor, masks: Tensor) -> Tensor:
    """Return how many pixels of each class (rows) were called what (columns), void left out."""
    seen = masks != VOID
    return confusion_matrix(predicted[seen].long(), masks[seen].long(), CLASSES)


def overlaps(counts: Tensor) -> Tensor:
    """Return the intersection over union of each class, (classes,); NaN for one nowhere seen."""
    right = counts.diagonal().double()
    return right / (counts.sum(dim=0) + counts.sum(dim=1) - right)


def scores_of(counts: Tensor) -> dict[str, object]:
    """Return mean IoU, share of right pixels and the IoU of each class of a confusion matrix."""
    each = overlaps(counts)
    return {
        "mean_iou": round(float(each.nanmean()), 4),
        "accuracy": round(float(counts.diagonal().sum() / counts.sum()), 4),
        "iou": {name: round(float(one), 4) for name, one in zip(NAMES, each, strict=True)},
    }
