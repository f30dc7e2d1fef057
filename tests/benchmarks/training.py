"""Training side by side with open_clip, and clipkit's contrastive loss side by side with the plain formula.

    python tests/benchmarks/training.py [--model ViT-B/32] [--batch 16] [--repeats 7] [--pairs 32768] [--json FILE]

`--model` is one of `clipkit.list_models()`, of which only the architecture is taken. Needs open_clip 3.3, and Linux,
whose /proc tells peaks of memory. Runs on the CPU. Cost with the defaults: about a quarter of an hour on two quiet
cores, 6 GB, and what is free for the plain loss.

- Seconds of forward and backward of both towers and the loss; and the same with a step of AdamW, torch's for both. By
  turns, in training mode, as both train by default: not compiled, no gradient checkpointing, open_clip's factory model
  and ClipLoss. Captions have 8 to 14 words; both get the same token ids, padded to 77.
- MiB that forward and backward add at their peak to a process of its own that holds the weights, in its second step.
- The loss alone, forward and backward, in processes of their own, 3 times at most. The plain formula runs at the most
  pairs, halved as often as needed, that the free memory has room for.
- Differences, first of all: if losses or gradients of the two libraries differ on the same random weights and batch,
  it stops there. Those of the loss from the plain formula are measured at no more than 4,096 pairs, in 8 tiles.

Prints medians, lowest and highest; the file has all. They mean little on a busy machine, for which see the load.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipkit
from clipkit.checkpoints import registry
from clipkit.checkpoints.layouts import from_canonical
from clipkit.training import losses
from clipkit.training.optimizer import adamw, train_mode
from clipkit.training.tasks import ContrastiveTask

LIBRARIES, PRECISIONS = ("clipkit", "open_clip"), ("float32", "bfloat16")
CAPTION = (  # a part of each row makes 8 to 14 words, in the manner of COCO
    (
        "a man",
        "two women",
        "a brown dog",
        "three young children",
        "an orange cat",
        "the baseball player",
        "a train",
    ),
    (
        "riding a skateboard",
        "sitting on a bench",
        "standing next to each other",
        "playing with a red frisbee",
    ),
    (
        "in the park",
        "on a city street",
        "near a large brick building",
        "in a very small white kitchen",
    ),
)
Side = tuple[
    Callable[[Tensor, Tensor], Tensor], nn.Module
]  # the loss, of images and token ids; the model


def batch_of(name: str, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Images (size, 3, H, W) float32, each of its own colour; token ids (size, 77); captions."""
    seeded, rng = torch.Generator().manual_seed(0), random.Random(0)
    colours = torch.randn(size, 3, 1, 1, generator=seeded)
    images = colours + 0.5 * torch.randn(
        size, 3, *registry.MODELS[name].config.vision.resolution, generator=seeded
    )
    captions = [" ".join(map(rng.choice, CAPTION)).capitalize() + "." for _ in range(size)]
    return images, clipkit.tokenize(captions), captions


def build(library: str, folder: str) -> Side:
    """As the library's own trainer makes them."""
    if library == "clipkit":
        task = ContrastiveTask(clipkit.load(folder, "cpu")[0])
        if hasattr(task.model.visual, "attnpool"):  # a ResNet
            task.model.visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        train_mode(task)
        return task, task.model
    import open_clip

    theirs, loss = (
        open_clip.create_model(f"local-dir:{folder}").train(),
        open_clip.ClipLoss(cache_labels=True),
    )
    return lambda images, tokens: loss(*theirs(images, tokens)), theirs


def run(side: Side, images: Tensor, tokens: Tensor, precision: str) -> float:
    """Forward and backward."""
    with torch.autocast("cpu", torch.bfloat16) if precision == "bfloat16" else nullcontext():
        loss = side[0](images, tokens)
    loss.backward()
    return loss.item()


def gradient(model: nn.Module) -> Tensor:
    """By all weights, in the order of open_clip's names, as one vector; the model's own is cleared."""
    found = {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad()
    named = from_canonical(found, "openai") if isinstance(model, clipkit.CLIP) else found
    return torch.cat([named[name].flatten() for name in sorted(named)])


def check(sides: dict[str, Side], images: Tensor, tokens: Tensor) -> dict[str, float]:
    """Differences of losses; and of gradients, as a norm relative to that of the second."""
    found: dict[str, tuple[float, Tensor]] = {}
    for library, side in sides.items():
        for precision in PRECISIONS:
            found[f"{library} {precision}"] = (
                run(side, images, tokens, precision),
                gradient(side[1]),
            )
    out: dict[str, float] = {}
    for one, to in [
        ("clipkit float32", "open_clip float32"),
        *((f"{x} bfloat16", f"{x} float32") for x in LIBRARIES),
    ]:
        (value, vector), (value_, vector_) = found[one], found[to]
        out[f"loss, {one} to {to}"] = abs(value - value_)
        out[f"gradients, {one} to {to}"] = float((vector - vector_).norm() / vector_.norm())
    # bfloat16 is compared with the same library's float32; clipkit may not be much further off
    exact, ours, theirs = (list(out.values())[i : i + 2] for i in (0, 2, 4))
    if not all(x < 1e-3 for x in exact) or not all(
        x < 2 * y + 1e-2 for x, y in zip(ours, theirs, strict=True)
    ):
        raise SystemExit(f"the two do not compute the same: {out}")
    return out


def compare_steps(folder: str, name: str, size: int, repeats: int) -> dict[str, Any]:
    import open_clip

    torch.manual_seed(0)
    clipkit.CLIP(registry.MODELS[name].config).save_pretrained(folder, layout="open_clip")
    sides = {library: build(library, folder) for library in LIBRARIES}
    images, tokens, captions = batch_of(name, size)
    if not open_clip.tokenize(captions).equal(tokens):
        raise SystemExit("the two tokenizers disagree")
    found = check(sides, images, tokens)
    adam = {
        library: adamw(model, 1e-6, 0.2, 1.0, (0.9, 0.98)) for library, (_, model) in sides.items()
    }
    parts = ("forward and backward", "with AdamW")
    times = {
        f"seconds, {p}, {part}": {library: [] for library in LIBRARIES}
        for p in PRECISIONS
        for part in parts
    }
    for turn in range(-1, repeats):  # the first is not counted
        for precision in PRECISIONS:
            for library in LIBRARIES[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                run(sides[library], images, tokens, precision)
                half = time.perf_counter()
                adam[library].step()
                for part, end in zip(parts, (half, time.perf_counter()), strict=True):
                    times[f"seconds, {precision}, {part}"][library] += [end - started] * (turn >= 0)
                adam[library].zero_grad()
    return {
        "longest caption in tokens": int(tokens.argmax(dim=1).max()) + 1,
        "check": found,
        "steps": times,
    }


def kilobytes(file: str, key: str) -> int:
    return next(
        int(line.split()[1])
        for line in Path(file).read_text().splitlines()
        if line.startswith(key + ":")
    )


def peak_of(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of `work`, and the MiB that it adds at its peak to what this process holds."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # forgets the peak of loading; ru_maxrss knows even the parent's
    before, started = kilobytes("/proc/self/status", "VmRSS"), time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return seconds, (kilobytes("/proc/self/status", "VmHWM") - before) / 1024


def alone(function: Callable[..., tuple[float, float]], *args: Any) -> tuple[float, float]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def step_memory(
    library: str, folder: str, name: str, size: int, precision: str
) -> tuple[float, float]:
    side, (images, tokens, _) = build(library, folder), batch_of(name, size)
    run(
        side, images, tokens, precision
    )  # loads what is loaded late, and compiles kernels for these sizes
    side[1].zero_grad()
    return peak_of(lambda: run(side, images, tokens, precision))


def plain(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """The formula of figure 3 of 2103.00020."""
    logits = logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


LOSSES: dict[str, Callable[..., Tensor]] = {"clip_loss": losses.clip_loss, "plain": plain}


def pairs_of(count: int) -> list[Tensor]:
    """Features (count, 512) of images and of texts near them, and the temperature's logarithm at its start."""
    seeded = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(count, 512, generator=seeded) for _ in range(2))
    return [x.requires_grad_() for x in (images, images + 4 * noise, torch.tensor(2.6592))]


def loss_and_gradients(kind: str, inputs: list[Tensor]) -> list[Tensor]:
    loss = LOSSES[kind](*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def loss_cost(kind: str, count: int) -> tuple[float, float]:
    loss_and_gradients(kind, pairs_of(64))
    inputs = pairs_of(count)
    return peak_of(lambda: loss_and_gradients(kind, inputs))


def compare_losses(count: int, repeats: int) -> dict[str, Any]:
    fits, few = count, min(count, 4096)
    while 5 * 4 * fits**2 > 1024 * kilobytes(
        "/proc/meminfo", "MemAvailable"
    ):  # it holds 4 to 5 matrices of scores
        fits //= 2
    costs: dict[str, list[list[float]]] = {}
    for _ in range(repeats):
        for kind, n in dict.fromkeys([("clip_loss", count), ("clip_loss", fits), ("plain", fits)]):
            for column, x in zip(
                costs.setdefault(f"{kind}, {n}", [[], []]), alone(loss_cost, kind, n), strict=True
            ):
                column.append(x)
    with mock.patch.object(losses, "TILE", few**2 // 8):
        found = [loss_and_gradients(kind, pairs_of(few)) for kind in LOSSES]
    off: dict[str, float] = {}
    for name, tiled, exact in zip(
        ("value", "image gradients", "text gradients", "scale's"), *found, strict=True
    ):
        off[name] = (tiled - exact).abs().max().item()
        off[f"{name}, relative to the largest"] = off[name] / exact.abs().max().item()
    return {"seconds, MiB": costs, f"clip_loss and plain, {few} pairs": off}


def show(result: dict[str, Any]) -> None:
    print(
        "  ".join(f"{key} {value}" for key, value in result.items() if not isinstance(value, dict))
    )
    rows: list[tuple[str, list[Any]]] = [("", [*LIBRARIES, "open_clip / clipkit"])]
    for name, row in (result["steps"] | result["memory"]).items():
        rows.append(
            (name, [*row.values(), f"{median(row['open_clip']) / median(row['clipkit']):.2f}"])
        )
    rows += [("loss alone, pairs", ["seconds", "MiB"]), *result["loss"]["seconds, MiB"].items()]
    for name, cells in rows:
        texts = [
            x if isinstance(x, str) else f"{median(x):.4g} ({min(x):.4g} to {max(x):.4g})"
            for x in cells
        ]
        print(f"{name:40}" + "".join(f"{x:>27}" for x in texts))
    for title, values in (("the libraries", result["check"]), list(result["loss"].items())[1]):
        print(
            f"differences of {title}",
            *(f"{value:9.2g}  {name}" for name, value in values.items()),
            sep="\n",
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B/32", choices=registry.MODELS, metavar="NAME")
    for name, default in (("--batch", 16), ("--repeats", 7), ("--pairs", 32768)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"model": args.model, "batch": args.batch, "torch": torch.__version__}
    result |= {"threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as folder:
        result |= compare_steps(folder, args.model, args.batch, args.repeats)
        result["memory"] = {
            f"MiB, {p}": {
                x: [alone(step_memory, x, folder, args.model, args.batch, p)[1]] for x in LIBRARIES
            }
            for p in PRECISIONS
        }
    result["loss"] = compare_losses(args.pairs, min(args.repeats, 3))
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
