"""Draw the figures of `examples/reconstruction.py`: curves, images drawn again, random codes.

They need matplotlib. Each file has at most 60 KB, so that it can go with a page.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.inspect import plot_style

COLORS = {  # of each arm
    "frozen": plot_style.BLUE,
    "trained": plot_style.VERMILION,
    "frozen, no codes": plot_style.GREEN,
}
TILE = 0.64  # inches of an image's side, at 100 pixels an inch
MARGIN = 1.55  # inches for the names of rows
LARGEST = 60_000  # bytes of a file
GAP = 8  # white pixels between two groups of samples


@dataclass
class Strips:
    """Hold rows of images (n, 3, side, side) by what they show.

    Attributes:
        images: originals, and the same images drawn again.
        samples: images drawn from random codes, by the kind of codes and the arm.
    """

    images: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    samples: dict[str, dict[str, Tensor]] = field(default_factory=dict[str, dict[str, Tensor]])


def draw_figures(rows: list[dict[str, Any]], strips: Strips, folder: Path) -> None:
    """Write the three figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = as_image(curves(rows))
    # Few colors are enough for lines, and make the file a third as large.
    figure.quantize(64).save(folder / "frozen_reconstruction_curves.png", optimize=True)
    again = panels(strips.images)
    save_small(as_image(again), folder / "frozen_reconstruction.jpg")
    samples = {name: side_by_side(arms) for name, arms in strips.samples.items()}
    arms = " | ".join(next(iter(strips.samples.values())))
    save_small(as_image(panels(samples, arms)), folder / "frozen_reconstruction_samples.jpg")


def as_image(figure: Any) -> Image.Image:
    """Return a figure of matplotlib's as an image."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer).convert("RGB")


def save_small(image: Image.Image, path: Path) -> None:
    """Write a JPEG in the best of some qualities that makes it small enough."""
    for quality in (90, 80, 70, 60, 50):
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST:
            return


def curves(rows: list[dict[str, Any]]) -> Any:
    """Return errors over steps: held-out as lines, training dotted, a panel for each depth."""
    blocks = list(dict.fromkeys(row["after_block"] for row in rows))
    figure = plot_style.new_figure(3.0 * len(blocks), 3.2)
    handles: dict[str, Any] = {}
    for place, block in enumerate(blocks):
        axes = plot_style.add_axes(figure, 100 + 10 * len(blocks) + place + 1)
        own = [row for row in rows if row["after_block"] == block]
        for arm, color in COLORS.items():
            found = [row["curve"] for row in own if row["arm"] == arm]
            steps = found[0]["steps"]
            held_out = np.array([curve["held_out"] for curve in found])  # (seeds, points)
            training = np.array([curve["training"] for curve in found])
            line = axes.plot(steps, held_out.mean(0), "-", color=color)[0]
            axes.fill_between(steps, held_out.min(0), held_out.max(0), color=color, alpha=0.2)
            dots = axes.plot(steps, training.mean(0), ":", color=color, linewidth=1.2)[0]
            handles |= {arm: line, f"{arm}, training images": dots}
        grid = own[0]["grid"]
        axes.set_ylim(bottom=0)
        plot_style.add_grid(axes)
        plot_style.set_title(axes, f"after block {block}: {grid} x {grid} places")
        plot_style.set_labels(axes, "step", "" if place else "mean squared error")
    plot_style.add_legend(
        figure, list(handles.values()), list(handles), above=True, columns=len(COLORS)
    )
    return figure


def side_by_side(arms: dict[str, Tensor]) -> Tensor:
    """Return images of several arms as one wide image (1, 3, side, width), with gaps between."""
    strips = [torch.cat(list(images), dim=2) for images in arms.values()]  # (3, side, n x side)
    gap = torch.ones(*strips[0].shape[:2], GAP)
    parts = [part for strip in strips for part in (gap, strip)]
    return torch.cat(parts[1:], dim=2).unsqueeze(0)


def panels(strips: dict[str, Tensor], title: str = "") -> Any:
    """Return rows of images with a name beside each, and a title above."""
    wide = {name: torch.cat(list(images), dim=2) for name, images in strips.items()}
    _, side, width = next(iter(wide.values())).shape
    above = 0.3 if title else 0.0
    size = MARGIN + TILE * width / side, above + TILE * 1.05 * len(strips)
    figure = plot_style.new_figure(*size)
    figure.set_layout_engine("none")  # the names have a margin of their own
    for place, (name, strip) in enumerate(wide.items()):
        bottom = size[1] - above - TILE * 1.05 * (place + 1)
        box = (MARGIN, bottom, size[0] - MARGIN, TILE)
        axes = figure.add_axes(
            (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1])
        )
        pixels = (255 * strip.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
        axes.imshow(pixels, interpolation="antialiased", aspect="auto")
        axes.set_axis_off()
        middle = (bottom + TILE / 2) / size[1]
        figure.text(
            (MARGIN - 0.08) / size[0], middle, name, ha="right", va="center", fontsize=8, wrap=False
        )
    if title:
        center = (1 + MARGIN / size[0]) / 2
        figure.text(center, 1 - 0.15 / size[1], title, ha="center", va="center", fontsize=9)
    return figure
