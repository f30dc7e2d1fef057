"""Pictures whose content is known, and a model small enough to train on them in seconds."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit import CLIPConfig, PreprocessConfig, TextConfig, ViTConfig
from clipkit.training.batches import Batch

COLOURS = {
    "dark red": (150, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 200),
    "white": (230, 230, 230),
}


def toy_config(vocab_size: int = 600, context_length: int = 16) -> CLIPConfig:
    """A ViT of 32 pixels; by default with the vocabulary of the fixture `small_tokenizer`."""
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


def picture(
    left: tuple[int, int, int], right: tuple[int, int, int], seed: int, size: Any = (40, 36)
) -> Image.Image:
    """Two halves, each of a colour, under noise."""
    width, height = size
    pixels = np.empty((height, width, 3))
    pixels[:, : width // 2], pixels[:, width // 2 :] = left, right
    pixels += np.random.default_rng(seed).normal(0, 12, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def colour_folders(root: Path, each: int, seed: int = 0) -> Path:
    """A folder of `each` pictures for every colour."""
    for label, (name, colour) in enumerate(COLOURS.items()):
        folder = root / name.replace(" ", "_")
        folder.mkdir(parents=True)
        for i in range(each):
            picture(colour, colour, seed=seed + 1000 * label + i).save(folder / f"{i:02}.png")
    return root


def caption_table(root: Path, each: int = 1, seed: int = 0) -> Path:
    """A table of all pairs of two colours, `each` pictures of every pair; only word order tells some of them apart."""
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(each):
        for first, left in COLOURS.items():
            for second, right in COLOURS.items():
                name = f"{i}-{first}-{second}.png"
                picture(left, right, seed=seed + len(rows)).save(root / name)
                rows.append({"path": name, "caption": f"{first}, then {second}"})
    table = root / "captions.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def take(batches: Any, steps: int, start: int = 0) -> list[Batch]:
    """The batches of some steps."""
    return list(islice(batches(start), steps))


def assert_same_batches(first: list[Batch], second: list[Batch]) -> None:
    assert [list(batch.names) for batch in first] == [list(batch.names) for batch in second]
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a.inputs, b.inputs, strict=True):
            assert torch.equal(x, y)
        assert list(a.skipped) == list(b.skipped)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail, instead of waiting for ever."""

    def stop(*_):
        pytest.fail(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
