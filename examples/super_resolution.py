"""Enlarge images by a network: SRResNet and SRGAN of Ledig et al. (1609.04802), small.

What is the paper's: residual blocks of two 3 x 3 convolutions with PReLU, a skip around all of
them, sub-pixel convolutions (1609.05158) and a last convolution of 9 x 9; a discriminator with
LeakyReLU that halves the image four times; training by the squared error of pixels alone, and then
by that error plus a small part of the adversarial loss, which is its "SRGAN-MSE".

What is not, so that a generator can be trained on a CPU in a minute or two: fewer blocks and
channels; no batch norm in the generator, which later work left out, too (1707.02921); the generator
adds to the bicubic image what is missing in it, so training starts there; fewer steps at higher
rates. The content loss of the paper's other variant compares features of VGG19, whose weights need
a network.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from clipkit import Preprocess
from clipkit.data.decode import read_image

CROP = 16  # pixels of the small image's side in training
BATCH = 8
PIXEL_RATE = 1e-3  # the paper takes 1e-4, over a million steps
ADVERSARIAL_RATE = 3e-4
DISCRIMINATOR_RATE = 1e-3
ADVERSARIAL_WEIGHT = 0.01  # the paper takes 0.001, over many more steps


class ResidualBlock(nn.Module):
    """Add to a map what two convolutions make of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Turn (N, width, h, w) into the same shape."""
        return features + self.change(features)


class Generator(nn.Module):
    """Enlarge images by a whole number.

    It begins as the bicubic resize, since its last convolution begins at zero.

    Args:
        scale: how many times the sides grow.
        width: channels of the residual blocks. The enlarged map has half as many.
        blocks: residual blocks.
    """

    def __init__(self, scale: int, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(blocks)])
        self.enlarge = nn.Sequential(
            nn.Conv2d(width, width // 2 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
            nn.PReLU(),
        )
        self.tail = nn.Conv2d(width // 2, 3, 9, padding=4)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)
        # In this layout the convolutions take half the time on a CPU.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        """Turn (N, 3, h, w) in 0-1 into (N, 3, scale * h, scale * w), about in 0-1."""
        features = self.head(2 * images - 1)  # (N, width, h, w)
        features = features + self.blocks(features)
        missing = self.tail(self.enlarge(features))  # (N, 3, scale * h, scale * w)
        return bicubic(images, self.scale) + missing


class Discriminator(nn.Module):
    """Say of an image how much it looks like a photo, as a logit.

    The mean over all places takes the place of the paper's fully connected layer over them, so that
    images may be of any size. There is no batch norm: it would hide from the later layers that one
    batch is sharper than the other, which is the first thing to be learned.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for after, stride in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2)):
            layers += [
                nn.Conv2d(before, after * width, 3, stride, padding=1),
                nn.LeakyReLU(0.2),
            ]
            before = after * width
        self.layers = nn.Sequential(*layers)
        self.judge = nn.Sequential(nn.Linear(before, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, 0.2)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Tensor) -> Tensor:
        """Turn (N, 3, H, W) in 0-1 into (N,)."""
        features = self.layers(2 * images - 1).mean(dim=(2, 3))  # (N, 8 * width)
        return self.judge(features).squeeze(1)


class LearnedUpsampling:
    """Enlarge small images by a generator, then prepare them for an image tower.

    It goes wherever a model's preprocessing goes: to `extract_features(..., transform=)`, or to
    `model.preprocess`. Images that have as many pixels as the tower takes are not enlarged.

    Args:
        generator: what enlarges.
        preprocess: of the model.
    """

    def __init__(self, generator: Generator, preprocess: Preprocess) -> None:
        self.generator = generator.eval()
        self.preprocess = preprocess

    def __call__(self, image: Any) -> Tensor:
        """Turn an image, a path or a uint8 tensor (3, h, w) into (3, H, W) float32."""
        pixels = as_pixels(image)
        if min(pixels.shape[1:]) >= min(self.preprocess.resolution):
            return self.preprocess(pixels)
        with torch.no_grad():
            enlarged = self.generator(pixels.float().div(255).unsqueeze(0)).squeeze(0)
        return self.preprocess(enlarged.clamp(0, 1))


def as_pixels(image: Any) -> Tensor:
    """Return an image as (3, h, w) uint8."""
    if isinstance(image, Tensor):
        return image
    return torch.from_numpy(np.array(read_image(image).convert("RGB"))).permute(2, 0, 1)


def to_levels(images: Tensor) -> Tensor:
    """Round (..., 3, h, w), about in 0-1, to the levels of 8-bit images."""
    return images.mul(255).round().clamp(0, 255).to(torch.uint8)


def bicubic(images: Tensor, scale: int) -> Tensor:
    """Enlarge (N, 3, h, w) floating by a whole number, as Pillow does."""
    return F.interpolate(images, scale_factor=scale, mode="bicubic", antialias=True)


def reduce(images: Tensor, scale: int) -> Tensor:
    """Reduce (N, 3, H, W) uint8 by a whole number, with the bicubic filter."""
    size = (images.shape[2] // scale, images.shape[3] // scale)
    parts = [
        F.interpolate(part, size, mode="bicubic", antialias=True) for part in images.split(250)
    ]
    return torch.cat(parts)


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Return the signal-to-noise ratio of each image (N, 3, H, W) uint8, (N,) in decibels."""
    errors = (images.double() - truth.double()).square().mean(dim=(1, 2, 3))  # (N,)
    return 10 * torch.log10(255**2 / errors.clamp(min=1e-3))


class Crops:
    """Draw crops of small images and of the same places of the large ones, mirrored at random.

    Args:
        images: (N, 3, H, W) uint8.
        scale: how many times smaller the small images are.
        seed: of the draws.
    """

    def __init__(self, images: Tensor, scale: int, seed: int) -> None:
        self.large, self.small = images, reduce(images, scale)
        self.scale = scale
        self.random = torch.Generator().manual_seed(seed)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return (n, 3, c, c) and (n, 3, scale * c, scale * c), floating in 0-1."""
        side = min(CROP, *self.small.shape[2:])
        pairs = [self._one(side) for _ in range(BATCH)]
        small, large = (torch.stack(part).float().div(255) for part in zip(*pairs, strict=True))
        return small, large

    def _one(self, side: int) -> tuple[Tensor, Tensor]:
        index = self._below(len(self.small))
        top, left = (self._below(size - side + 1) for size in self.small.shape[2:])
        small = self.small[index, :, top : top + side, left : left + side]
        rows, columns = (
            slice(self.scale * start, self.scale * (start + side)) for start in (top, left)
        )
        large = self.large[index, :, rows, columns]
        return (small.flip(2), large.flip(2)) if self._below(2) else (small, large)

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (), generator=self.random))


def pixel_loss(made: Tensor, large: Tensor) -> Tensor:
    """Return the mean squared error of images in -1 to 1, which is the paper's range."""
    return 4 * F.mse_loss(made, large)


def train_by_pixels(generator: Generator, crops: Crops, steps: int) -> list[float]:
    """Train a generator by the error of pixels alone, and return the loss of each step."""
    generator.train()
    optimizer = torch.optim.Adam(generator.parameters(), PIXEL_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    losses: list[float] = []
    for _ in tqdm(range(steps), desc="pixels"):
        small, large = crops.draw()
        loss = pixel_loss(generator(small), large)
        descend(optimizer, loss)
        schedule.step()
        losses.append(loss.item())
    generator.eval()
    return losses


def train_by_adversary(generator: Generator, crops: Crops, steps: int) -> list[float]:
    """Train a generator against a discriminator, and return the latter's loss of each step."""
    generator.train()
    discriminator = Discriminator()
    optimizer = torch.optim.Adam(generator.parameters(), ADVERSARIAL_RATE)
    opponent = torch.optim.Adam(discriminator.parameters(), DISCRIMINATOR_RATE)
    losses: list[float] = []
    for _ in tqdm(range(steps), desc="adversary"):
        small, large = crops.draw()
        made = generator(small)
        real, false = discriminator(large), discriminator(made.detach())
        error = (F.softplus(-real) + F.softplus(false)).mean()  # cross-entropy of both answers
        descend(opponent, error)
        for parameter in discriminator.parameters():
            parameter.requires_grad_(False)
        adversarial = F.softplus(-discriminator(made)).mean()
        descend(optimizer, pixel_loss(made, large) + ADVERSARIAL_WEIGHT * adversarial)
        for parameter in discriminator.parameters():
            parameter.requires_grad_(True)
        losses.append(error.item())
    generator.eval()
    return losses


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step down a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def save_generator(generator: Generator, file: Path) -> None:
    """Write the weights of a generator, and what is needed to build it again."""
    width, blocks = generator.head[0].out_channels, len(generator.blocks)
    shape = {"scale": generator.scale, "width": width, "blocks": blocks}
    weights = {name: weight.contiguous() for name, weight in generator.state_dict().items()}
    save_file(weights, file, {name: str(value) for name, value in shape.items()})


def load_generator(file: Path) -> Generator:
    """Return a generator that `save_generator` wrote."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        shape = {name: int(value) for name, value in opened.metadata().items()}
    generator = Generator(**shape)
    generator.load_state_dict(load_file(file))
    return generator.eval()
