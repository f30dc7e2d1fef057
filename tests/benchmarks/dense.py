"""Time `class_map` of one large photo beside the image tower's own work for as many windows.

    PYTHONPATH=. python tests/benchmarks/dense.py [--model ViT-B/16] [--size 768 1024]
        [--classes 20] [--rounds 5] [--device cpu] [--refine] [--json FILE]

A photo of 768 x 1,024 pixels and 20 classes, at random weights: the architecture decides the cost.
The tower's own work is `encode_image` of the same windows in the same batches, which has one token
in the last block and no map. Text embeddings are made once, before. Both take turns, and each first
call is not counted. Memory is what each adds at its peak in a process of its own.

Prints seconds, the ratio of the medians with the least and the greatest ratio of a round, and MiB.
It means little on a busy machine. Cost with the defaults: about two minutes and 2 GB on two cores.
Needs Linux.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from memory import alone, peak_of
from torch import Tensor

from clipkit import CLIP
from clipkit.checkpoints import registry
from clipkit.inspect import ClassMapper

BATCH = 8  # windows


@dataclass(frozen=True)
class Setting:
    """Hold what is measured: the names of the options, and their values."""

    model: str
    size: tuple[int, int]
    classes: int
    device: str
    refine: bool


class Work:
    """Map a photo, or only encode its windows.

    Attributes:
        windows: (n, 3, h, w), how many there are and how large.
    """

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(0)
        model = CLIP(registry.MODELS[setting.model].config).eval().to(setting.device)
        names = [f"thing {number}" for number in range(setting.classes)]
        self.mapper = ClassMapper(model, names, batch_size=BATCH, refine=setting.refine)
        self.photo = torch.rand(3, *setting.size)
        self.windows: list[tuple[int, ...]] = []
        hook = model.visual.conv1.register_forward_pre_hook(
            lambda _, given: self.windows.append(tuple(given[0].shape))
        )
        self.map()
        hook.remove()
        self.batches = [torch.rand(shape, device=setting.device) for shape in self.windows]

    def map(self) -> Tensor:
        """Return the scores of all classes."""
        return self.mapper(self.photo)

    def encode(self) -> None:
        """Encode as many windows as the photo has."""
        with torch.no_grad():
            for batch in self.batches:
                self.mapper.model.encode_image(batch).cpu()


def peak(setting: Setting, name: str) -> tuple[float, float]:
    """Return the seconds and the MiB at the peak of one kind of work. It runs by itself."""
    work = Work(setting)
    return peak_of(getattr(work, name))


def times_of(work: Work, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round of both, in alternating order."""
    seconds: dict[str, list[float]] = {"map": [], "encode": []}
    for number in range(rounds + 1):
        names = list(seconds) if number % 2 else list(reversed(seconds))
        for name in names:
            started = time.perf_counter()
            getattr(work, name)()
            if number:  # the first call is not counted
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--size", type=int, nargs=2, default=(768, 1024))
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    height, width = args.size
    setting = Setting(args.model, (height, width), args.classes, args.device, args.refine)
    work = Work(setting)
    seconds = times_of(work, args.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = sorted(one / other for one, other in zip(*seconds.values(), strict=True))
    memory = {name: alone(peak, setting, name)[1] for name in seconds}
    count = sum(shape[0] for shape in work.windows)
    print(f"{setting.model}, {height} x {width}, {setting.classes} classes, {count} windows")
    for name, words in (("map", "class_map"), ("encode", "encode_image of the windows")):
        print(f"  {words}: {medians[name]:.2f} s, {memory[name]:.0f} MiB")
    ratio = medians["map"] / medians["encode"]
    print(f"  ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in single rounds)")
    if args.json is not None:
        found = {"setting": asdict(setting), "seconds": seconds, "mebibytes": memory}
        args.json.write_text(json.dumps(found | {"ratio": ratio}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
