"""Compare steps of training in clipkit and open_clip, on the same weights, batch and token ids."""

import importlib
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from memory import peak_of
from torch import Tensor, nn

import clipkit
from clipkit.checkpoints import registry
from clipkit.checkpoints.layouts import from_canonical
from clipkit.training.optimizer import adamw, train_mode

LIBRARIES = ("clipkit", "open_clip")
PRECISIONS = ("float32", "bfloat16")
PARTS = ("forward and backward", "with AdamW")
# A part of each row makes 8 to 14 words, in the manner of COCO.
CAPTION = (
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
# The loss of images and token ids; and the model.
Side = tuple[Callable[[Tensor, Tensor], Tensor], nn.Module]
Times = dict[str, dict[str, list[float]]]


def batch_of(name: str, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (size, 3, H, W), each of its own color; token ids (size, 77); captions."""
    seeded = torch.Generator().manual_seed(0)
    rng = random.Random(0)
    height, width = registry.MODELS[name].config.vision.resolution
    colors = torch.randn(size, 3, 1, 1, generator=seeded)
    images = colors + 0.5 * torch.randn(size, 3, height, width, generator=seeded)
    captions = [" ".join(map(rng.choice, CAPTION)).capitalize() + "." for _ in range(size)]
    return images, clipkit.tokenize(captions), captions


def build(library: str, folder: str) -> Side:
    """Return loss and model as the library's own trainer makes them."""
    if library == "clipkit":
        task = clipkit.ContrastiveTask(clipkit.load(folder, "cpu")[0])
        visual: nn.Module = task.model.visual
        if hasattr(visual, "attnpool"):  # a ResNet
            visual.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        train_mode(task)
        return task, task.model
    open_clip: Any = importlib.import_module("open_clip")
    model = open_clip.create_model(f"local-dir:{folder}").train()
    loss = open_clip.ClipLoss(cache_labels=True)
    return lambda images, tokens: loss(*model(images, tokens)), model


def run(side: Side, images: Tensor, tokens: Tensor, precision: str) -> float:
    """Run forward and backward, and return the loss."""
    loss_of, _ = side
    half = precision == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        loss = loss_of(images, tokens)
    loss.backward()
    return loss.item()


def gradient(model: nn.Module) -> Tensor:
    """Return the gradients of all weights, in the order of open_clip's names, and clear them."""
    found = {
        name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None
    }
    model.zero_grad()
    named = from_canonical(found, "openai") if isinstance(model, clipkit.CLIP) else found
    return torch.cat([named[name].flatten() for name in sorted(named)])


def check(
    sides: dict[str, Side], images: Tensor, tokens: Tensor, precisions: Sequence[str]
) -> dict[str, float]:
    """Return the differences of losses and of gradients, and stop if they are too large.

    Those of gradients are norms relative to that of the second. bfloat16 is compared with the same
    library's float32; clipkit may not be much further off than open_clip.
    """
    found: dict[str, tuple[float, Tensor]] = {}
    for library, side in sides.items():
        for precision in precisions:
            loss = run(side, images, tokens, precision)
            found[f"{library} {precision}"] = (loss, gradient(side[1]))
    differences: dict[str, float] = {}
    compared = [("clipkit float32", "open_clip float32")]
    if "bfloat16" in precisions:
        compared += [(f"{library} bfloat16", f"{library} float32") for library in LIBRARIES]
    for one, other in compared:
        (loss, vector), (other_loss, other_vector) = found[one], found[other]
        relative = (vector - other_vector).norm() / other_vector.norm()
        differences[f"loss, {one} to {other}"] = abs(loss - other_loss)
        differences[f"gradients, {one} to {other}"] = float(relative)
    values = list(differences.values())
    exact, ours, theirs = values[0:2], values[2:4], values[4:6]
    close = all(x < 1e-3 for x in exact)
    if not close or any(x >= 2 * y + 1e-2 for x, y in zip(ours, theirs, strict=True)):
        raise SystemExit(f"the two do not compute the same: {differences}")
    return differences


def compare_steps(
    folder: str, name: str, size: int, repeats: int, precisions: Sequence[str]
) -> dict[str, Any]:
    """Return differences and seconds of steps in both libraries. float32 is always among them."""
    open_clip: Any = importlib.import_module("open_clip")
    torch.manual_seed(0)
    clipkit.CLIP(registry.MODELS[name].config).save_pretrained(folder, layout="open_clip")
    sides = {library: build(library, folder) for library in LIBRARIES}
    images, tokens, captions = batch_of(name, size)
    if not open_clip.tokenize(captions).equal(tokens):
        raise SystemExit("the two tokenizers disagree")
    return {
        "longest caption in tokens": int(tokens.argmax(dim=1).max()) + 1,
        "check": check(sides, images, tokens, precisions),
        "steps": time_steps(sides, images, tokens, repeats, precisions),
    }


def time_steps(
    sides: dict[str, Side],
    images: Tensor,
    tokens: Tensor,
    repeats: int,
    precisions: Sequence[str],
) -> Times:
    """Return the seconds of each part of a step, by turns. The first turn is not counted."""
    optimizers = {
        library: adamw(model, 1e-6, 0.2, 1.0, (0.9, 0.98)) for library, (_, model) in sides.items()
    }
    names = [f"seconds, {precision}, {part}" for precision in precisions for part in PARTS]
    times: Times = {name: {library: [] for library in LIBRARIES} for name in names}
    for turn in range(-1, repeats):
        for precision in precisions:
            for library in LIBRARIES[:: 1 if turn % 2 else -1]:
                started = time.perf_counter()
                run(sides[library], images, tokens, precision)
                after_backward = time.perf_counter()
                optimizers[library].step()
                ends = (after_backward, time.perf_counter())
                optimizers[library].zero_grad()
                if turn < 0:
                    continue
                for part, end in zip(PARTS, ends, strict=True):
                    times[f"seconds, {precision}, {part}"][library].append(end - started)
    return times


def step_memory(
    library: str, folder: str, name: str, size: int, precision: str
) -> tuple[float, float]:
    """Return the seconds and MiB of a second step; the first loads and compiles what it needs."""
    side = build(library, folder)
    images, tokens, _ = batch_of(name, size)
    run(side, images, tokens, precision)
    side[1].zero_grad()
    return peak_of(lambda: run(side, images, tokens, precision))
