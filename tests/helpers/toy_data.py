"""Images with known content, and a model small enough to train on them in seconds."""

import json
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import CLIPConfig, PreprocessConfig, TextConfig, ViTConfig
from clipkit.training.batches import Batch

Color = tuple[int, int, int]

COLORS: dict[str, Color] = {
    "dark red": (150, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 200),
    "white": (230, 230, 230),
}


def toy_config(vocab_size: int = 600, context_length: int = 16) -> CLIPConfig:
    """Return a ViT for 32 x 32 pixels; by default with the vocabulary of `small_tokenizer`."""
    vision = ViTConfig(
        resolution=(32, 32), patch_size=16, width=32, layers=2, head_width=16, activation="gelu"
    )
    text = TextConfig(
        width=64,
        layers=2,
        head_width=32,
        activation="gelu",
        context_length=context_length,
        vocab_size=vocab_size,
    )
    return CLIPConfig(
        embed_dim=32, vision=vision, text=text, preprocess=PreprocessConfig(resize_mode="squash")
    )


def two_colors(
    left: Color, right: Color, seed: int, size: tuple[int, int] = (40, 36)
) -> Image.Image:
    """Return an image of (width, height) with two halves, each of a color, under noise."""
    width, height = size
    pixels = np.empty((height, width, 3))
    pixels[:, : width // 2] = left
    pixels[:, width // 2 :] = right
    pixels += np.random.default_rng(seed).normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def color_folders(root: Path, each: int, seed: int = 0) -> Path:
    """Fill a folder with class folders, one for each color, of `each` images."""
    for label, (name, color) in enumerate(COLORS.items()):
        folder = root / name.replace(" ", "_")
        folder.mkdir(parents=True)
        for i in range(each):
            image = two_colors(color, color, seed=seed + 1000 * label + i)
            image.save(folder / f"{i:02}.png")
    return root


def caption_table(root: Path, each: int = 1, seed: int = 0) -> Path:
    """Fill a folder with `each` images of every pair of two colors, and a table of captions.

    Only the order of words tells some captions apart.
    """
    root.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for i in range(each):
        for first, left in COLORS.items():
            for second, right in COLORS.items():
                name = f"{i}-{first}-{second}.png"
                two_colors(left, right, seed=seed + len(rows)).save(root / name)
                rows.append({"path": name, "caption": f"{first}, then {second}"})
    table = root / "captions.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def take(batches: Callable[[int], Iterator[Batch]], steps: int, start: int = 0) -> list[Batch]:
    """Return the batches of some steps."""
    return list(islice(batches(start), steps))


def assert_same_batches(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    """Fail unless names, skipped images and tensors are the same to the bit."""
    assert [list(batch.names) for batch in first] == [list(batch.names) for batch in second]
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a.inputs, b.inputs, strict=True):
            assert torch.equal(x, y)
        assert list(a.skipped) == list(b.skipped)


@contextmanager
def within(seconds: float) -> Generator[None, None, None]:
    """Fail after a time, in place of waiting for ever."""

    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
