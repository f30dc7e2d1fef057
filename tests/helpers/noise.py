"""Make images of noise, and preprocess them as OpenAI's transform does."""

from collections.abc import Callable
from typing import Literal, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)
from typing_extensions import Unpack

from clipkit.config import Interpolation, PreprocessConfig, ResizeMode
from clipkit.data.preprocess import Preprocess

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LEVEL = torch.tensor(STD).view(3, 1, 1) * 255  # from normalized units to 8-bit levels

Color = tuple[int, int, int]


class Options(TypedDict, total=False):
    """Name the fields of a `PreprocessConfig`."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    resize_mode: ResizeMode


def make_preprocess(
    resolution: tuple[int, int] = (224, 224),
    backend: Literal["pil", "tensor"] = "pil",
    **options: Unpack[Options],
) -> Preprocess:
    """Return a preprocessing; options are those of `PreprocessConfig`."""
    return Preprocess(resolution, PreprocessConfig(**options), backend)


def openai_transform(size: int) -> Callable[[Image.Image], Tensor]:
    """Return what openai/CLIP, clip.py makes of torchvision's transforms."""
    return Compose([
        Resize(size, interpolation=InterpolationMode.BICUBIC),
        CenterCrop(size),
        lambda image: image.convert("RGB"),
        ToTensor(),
        Normalize(MEAN, STD),
    ])  # fmt: skip


def noise(width: int = 60, height: int = 40, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return an image of noise, in which every rounding error shows."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if channels == 1 else (height, width, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def as_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (3, h, w) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def normalized(color: Color) -> Tensor:
    """Return what an image of one color becomes: (3,), computed in float64."""
    return torch.tensor((np.array(color) / 255 - MEAN) / STD, dtype=torch.float32)
