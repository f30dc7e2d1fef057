"""A small model with a meaning: the color of an image and the word for it lie near each other."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from clipkit import Tokenizer

COLORS = {"red": (220, 20, 30), "green": (30, 210, 40), "blue": (20, 30, 220)}
WIDTH = 8


class ColorModel:
    """Encode images by their mean color, and texts by the colors that they name.

    Attributes:
        encoded: how many images were encoded.
    """

    def __init__(self, turn: float = 0.0) -> None:
        self.encoded = 0
        self.tokenizer = Tokenizer()
        self._words = {name: self.tokenizer.encode(name)[0] for name in COLORS}
        self._turn = turn  # another model has other features

    def preprocess(self, image: Image.Image) -> Tensor:
        small = image.resize((4, 4))
        pixels = torch.tensor(list(small.tobytes()), dtype=torch.float32).view(4, 4, 3) / 255
        return pixels.permute(2, 0, 1)  # (3, 4, 4)

    def encode_image(self, image: Tensor) -> Tensor:
        self.encoded += len(image)
        means = image.mean(dim=(2, 3))  # (N, 3)
        return self._widen(means, image.std(dim=(2, 3)) + 0.01)

    def encode_text(self, text: Tensor) -> Tensor:
        rows = [[(row == self._words[name]).any() for name in COLORS] for row in text]
        named = torch.tensor(rows, dtype=torch.float32)  # (N, 3)
        return self._widen(named + 0.05, torch.full_like(named, 0.02))

    def _widen(self, colors: Tensor, spread: Tensor) -> Tensor:
        features = torch.cat([colors, spread, torch.full_like(colors[:, :2], 0.1)], dim=1)
        return features.roll(round(self._turn), dims=1)  # (N, 8)


@pytest.fixture
def model() -> ColorModel:
    return ColorModel()


@pytest.fixture
def other_model() -> ColorModel:
    return ColorModel(turn=2)


Paint = Callable[[Path, str, int], Path]


def paint(path: Path, color: str, number: int = 0) -> Path:
    """Write an image of a color, each number another shade, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    red, green, blue = COLORS[color]
    shade = (min(255, red + number), min(255, green + 2 * number), max(0, blue - number))
    image = Image.new("RGB", (12, 10), shade)
    image.putpixel((number % 12, number % 10), (0, 0, 0))
    image.save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of nine images in three folders."""
    root = tmp_path / "photos"
    for color in COLORS:
        for number in range(3):
            paint(root / color / f"{number}.png", color, number)
    return root


def names(paths: Sequence[str]) -> list[str]:
    """Return the last two parts of each path."""
    return ["/".join(Path(path).parts[-2:]) for path in paths]
