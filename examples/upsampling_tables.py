"""Compare ways to enlarge images: paired differences, decibels, tables and a figure."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from super_resolution import Generator, bicubic, psnr, to_levels
from torch import Tensor

METHODS = ("bilinear", "bicubic", "SRResNet", "SRGAN", "full")
Generators = dict[str, list[Generator]]  # of each kind, one for each seed
Right = dict[str, dict[str, Tensor]]  # by head and method, (generators, draws, N) bool


def summary(right: Right, labels: Tensor) -> dict[str, Any]:
    """Return accuracies, differences to bicubic, and the accuracy of every run."""
    result: dict[str, Any] = {"accuracy": {}, "difference": {}, "runs": {}}
    for head, ways in right.items():
        shares = {method: found.double().mean(dim=2) for method, found in ways.items()}
        result["accuracy"][head] = {name: float(share.mean()) for name, share in shares.items()}
        result["runs"][head] = {name: share.tolist() for name, share in shares.items()}
        result["difference"][head] = {
            method: paired(found, ways["bicubic"], labels) for method, found in ways.items()
        }
    return result


def paired(right: Tensor, base: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the mean difference of two ways, and its standard error.

    Args:
        right: (generators, draws, N) bool, of one way.
        base: (1, draws, N) bool, of the way that it is compared with.
        labels: (N,), the classes of the images. Images of a class are alike, so the error over the
            images is that of a sample of classes.
    """
    gaps = right.double() - base.double()  # (generators, draws, N)
    mean = gaps.mean()
    rest = gaps.mean(dim=(0, 1)) - mean  # (N,)
    sums = torch.zeros(int(labels.max()) + 1).double().index_add(0, labels, rest)  # (C,)
    parts = {
        "classes": float(sums.square().sum().sqrt() / len(labels)),
        "generators": error_of(gaps.mean(dim=(1, 2))),
        "draws": error_of(gaps.mean(dim=(0, 2))),
    }
    total = sum(part**2 for part in parts.values()) ** 0.5
    return {"mean": float(mean), "error": total} | parts


def error_of(values: Tensor) -> float:
    """Return the standard error of a mean of (n,) values; 0 of a single one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0


def table(result: dict[str, Any]) -> str:
    """Return accuracies with bicubic, and what the others have beyond it, in per cent."""
    others = [method for method in METHODS if method in result["accuracy"]["zero-shot"]]
    others.remove("bicubic")
    lines = [
        f"**{result['set']}**, {result['classes']} classes, {result['test']:,} test images",
        "",
        "| classifier | bicubic | " + " | ".join(others) + " |",
        "|---" * (len(others) + 2) + "|",
    ]
    for head, accuracies in result["accuracy"].items():
        gaps = [result["difference"][head][method] for method in others]
        shown = [f"{100 * gap['mean']:+.1f} ± {100 * gap['error']:.1f}" for gap in gaps]
        lines.append(f"| {head} | {100 * accuracies['bicubic']:.1f} | " + " | ".join(shown) + " |")
    if result["psnr"]:
        means = {name: sum(each) / len(each) for name, each in result["psnr"].items()}
        lines += ["", ", ".join(f"{name} {mean:.2f} dB" for name, mean in means.items())]
    return "\n".join(lines)


def enlarged(small: Tensor, generators: Generators, scale: int) -> list[tuple[str, list[Tensor]]]:
    """Return images (N, 3, h, w) uint8 enlarged in each way, once for each generator."""
    floats = small.float().div(255)
    bilinear = F.interpolate(floats, scale_factor=scale, mode="bilinear")
    found = [("bilinear", [bilinear]), ("bicubic", [bicubic(floats, scale)])]
    with torch.no_grad():
        for kind, trained in generators.items():
            made = [[generator(part) for part in floats.split(50)] for generator in trained]
            found.append((kind, [torch.cat(parts) for parts in made]))
    return [(name, [to_levels(images) for images in ways]) for name, ways in found]


def decibels(small: Tensor, full: Tensor, generators: Generators) -> dict[str, list[float]]:
    """Return the mean signal-to-noise ratio of each way, once for each generator."""
    ways = enlarged(small, generators, full.shape[2] // small.shape[2])
    return {name: [float(psnr(images, full).mean()) for images in found] for name, found in ways}


def rows_of(
    small: Tensor, full: Tensor | None, generators: Generators, scale: int, count: int
) -> list[Tensor]:
    """Return some images side by side, enlarged in each way, (3, H, columns * W) uint8 each."""
    places = [len(small) * (2 * place + 1) // (2 * count) for place in range(count)]
    chosen = small[places]
    nearest = chosen.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    columns = [nearest, *[ways[0] for _, ways in enlarged(chosen, generators, scale)]]
    columns.append(torch.full_like(nearest, 255) if full is None else full[places])
    return list(torch.cat(columns, dim=3))


def draw_figure(rows: list[Tensor], file: Path) -> None:
    """Write an image of all rows, with the names of the columns above them."""
    pixels = torch.cat(rows, dim=1).permute(1, 2, 0)  # (3, rows * H, W) -> (rows * H, W, 3)
    body = Image.fromarray(pixels.contiguous().numpy())
    names = ("small", *METHODS)
    figure = Image.new("RGB", (body.width, body.height + 16), "white")
    figure.paste(body, (0, 16))
    for column, name in enumerate(names):
        ImageDraw.Draw(figure).text((body.width * column // len(names) + 4, 2), name, "black")
    figure.save(file, quality=70)
