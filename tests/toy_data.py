"""Pictures whose content is known, and a model small enough to train on them in seconds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from clipkit import CLIPConfig, PreprocessConfig, TextConfig, ViTConfig

COLOURS = {"dark red": (150, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "white": (230, 230, 230)}


def toy_config(vocab_size: int = 600, context_length: int = 16) -> CLIPConfig:
    """A ViT of 32 pixels; by default with the vocabulary of the fixture `small_tokenizer`."""
    vision = ViTConfig(resolution=(32, 32), patch_size=16, width=32, layers=2, head_width=16, activation="gelu")
    text = TextConfig(
        width=64, layers=2, head_width=32, activation="gelu", context_length=context_length, vocab_size=vocab_size
    )
    return CLIPConfig(embed_dim=32, vision=vision, text=text, preprocess=PreprocessConfig(resize_mode="squash"))


def picture(left: tuple[int, int, int], right: tuple[int, int, int], seed: int, size=(40, 36)) -> Image.Image:
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
