"""Time the fit of `anchored` on 1,000 classes of 16 images, and the memory that it takes.

    PYTHONPATH=. python tests/benchmarks/anchored.py [--classes 1000] [--shots 16] [--width 768]

The features are made: a center for each class, which is also its text with as much noise again, in
a space whose directions differ in their scatter as those of CLIP do. Time is that of one fit, since
it takes most of a minute; memory is the peak of the process, less what it had before the fit.
"""

import argparse
import resource
import time

import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit

_KILOBYTES = 2**20  # in a gigabyte


def make_world(classes: int, shots: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features (N, D), labels (N,) and texts (C, D)."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(2, 0.2, width)
    centers = scale * torch.randn(classes, width, generator=generator)
    texts = centers + scale * torch.randn(classes, width, generator=generator)
    labels = torch.arange(classes).repeat_interleave(shots)
    noise = scale * torch.randn(len(labels), width, generator=generator)
    return F.normalize(centers[labels] + 1.5 * noise, dim=1), labels, F.normalize(texts, dim=1)


def peak() -> float:
    """Return the most memory that the process has held so far, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KILOBYTES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--method", default="anchored")
    args = parser.parse_args()
    features, labels, texts = make_world(args.classes, args.shots, args.width)
    zero_shot = clipkit.CosineHead(texts, torch.tensor(100.0).log())
    before, started = peak(), time.perf_counter()
    head, chosen = clipkit.fit_head(features, labels, zero_shot, args.method)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        fitted = (head(features).argmax(dim=1) == labels).float().mean().item()
        start = (zero_shot(features).argmax(dim=1) == labels).float().mean().item()
    print(
        f"{args.classes} x {args.shots} images, D = {args.width}, {torch.get_num_threads()} threads"
    )
    print(f"{seconds:.1f} s, {peak() - before:.2f} GB more than before, {chosen}")
    print(f"right of the support set: zero-shot {start:.3f}, fitted {fitted:.3f}")


if __name__ == "__main__":
    main()
