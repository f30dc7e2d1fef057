"""Segment images by an image tower of CLIP and a decoder like U-Net's (1505.04597) behind it."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clipkit
from clipkit.inspect import towers
from clipkit.models.build import build_visual

CHANNELS = (96, 64, 32)  # of the decoder, at a 16th, an 8th and a 4th of the image's sides


@dataclass(frozen=True)
class Method:
    """Say where the tower's weights come from, and what the decoder sees of it.

    Attributes:
        weights: "clip", or "random" for the same architecture from its initialization.
        trained: train the tower with the decoder.
        skips: the decoder takes the maps of the earlier stages, too. Otherwise the last map, made
            larger, stands in their place.
    """

    weights: str
    trained: bool
    skips: bool


METHODS = {
    "frozen": Method("clip", trained=False, skips=False),
    "own": Method("random", trained=True, skips=False),
    "frozen, skips": Method("clip", trained=False, skips=True),
    "own, skips": Method("random", trained=True, skips=True),
    "fine-tuned, skips": Method("clip", trained=True, skips=True),
}


class Stages(nn.Module):
    """Return the maps after four parts of an image tower, from the first to the last.

    The parts are the stages of a ResNet, without its attention pool. Those of a vision transformer
    are the quarters of its blocks, all on one grid.
    """

    def __init__(self, visual: nn.Module, frozen: bool) -> None:
        super().__init__()
        self.visual = visual
        self.frozen = frozen
        visual.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> "Stages":
        """Set the mode; the batch norms of a frozen tower keep CLIP's statistics."""
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map (N, 3, H, W) to four maps (N, C, h, w)."""
        if self.frozen:
            with torch.no_grad():
                return list(self._maps(images))
        return list(self._maps(images))

    def _maps(self, images: Tensor) -> Iterator[Tensor]:
        if not towers.is_vit(self.visual):
            resnet = towers.resnet_of(self.visual)
            x = resnet.run_to(images, 0)
            yield x
            for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
                x = stage(x)
                yield x
            return
        x = towers.embed_any_size(self.visual, images)  # (N, 1 + places, C)
        rows, columns = towers.grid_of(self.visual, images)
        blocks = self.visual.transformer.resblocks
        for number, block in enumerate(blocks, start=1):
            x = block(x, at="all")
            if number * 4 // len(blocks) > (number - 1) * 4 // len(blocks):
                yield x[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


def convolve(channels: int, out: int, kernel: int) -> nn.Sequential:
    """Return a convolution that keeps the size, a batch norm and a ReLU."""
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps at another size: (N, C, h, w) -> (N, C, *size)."""
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """Go from the last map of a tower to classes at a quarter of the image's sides, in three steps.

    At each step the map is made larger, put beside what comes over the skip connection, and both
    pass two convolutions.

    Args:
        widths: channels of the tower's four maps.
        classes: of the pixels.
        skips: take the tower's own maps for skip connections, not its last one.
    """

    def __init__(self, widths: list[int], classes: int, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        sources = widths[-2::-1] if skips else [widths[-1]] * 3
        befores = (CHANNELS[0], *CHANNELS)
        self.enter = convolve(widths[-1], CHANNELS[0], 1)
        self.reduce = nn.ModuleList(
            convolve(source, own, 1) for source, own in zip(sources, CHANNELS, strict=True)
        )
        self.steps = nn.ModuleList(
            nn.Sequential(convolve(before + own, own, 3), convolve(own, own, 3))
            for before, own in zip(befores, CHANNELS, strict=False)
        )
        self.classify = nn.Conv2d(CHANNELS[-1], classes, 1)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Map a tower's maps to (N, classes, H / 4, W / 4) for images of a size (H, W)."""
        skips = maps[-2::-1] if self.skips else [maps[-1]] * 3
        x = self.enter(maps[-1])
        for place, (reduce, step) in enumerate(zip(self.reduce, self.steps, strict=True)):
            own = size[0] * 2**place // 16, size[1] * 2**place // 16
            # It has fewer channels to enlarge once it is reduced.
            beside = enlarge(reduce(skips[place]), own)
            x = step(torch.cat([enlarge(x, own), beside], dim=1))
        return self.classify(x)


class Segmenter(nn.Module):
    """Map images as they are, (N, 3, H, W) uint8, to scores of the classes.

    Args:
        model: gives the architecture of the tower, its weights, and its mean and deviation.
        classes: of the pixels.
        method: what is trained, and from what.
    """

    def __init__(self, model: clipkit.CLIP, classes: int, method: Method) -> None:
        super().__init__()
        self.stages = Stages(tower_of(model, method), frozen=not method.trained)
        cell = towers.cell_of(self.stages.visual)
        with torch.no_grad():
            maps = self.stages.eval()(torch.zeros(1, 3, 2 * cell, 2 * cell))
        self.decoder = Decoder([one.shape[1] for one in maps], classes, method.skips)
        config = model.config.preprocess
        self.register_buffer("mean", 255 * torch.tensor(config.mean).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(config.std).view(3, 1, 1))

    def forward(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return scores (N, classes, *size); `size` is that of the images if not given."""
        shape = images.shape[2], images.shape[3]
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        # This order of memory makes convolutions a third faster on a CPU.
        pixels = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        return enlarge(self.decoder(self.stages(pixels), shape), size or shape)


def tower_of(model: clipkit.CLIP, method: Method) -> nn.Module:
    """Return a copy of a model's image tower without pooling, or one of random weights."""
    if method.weights == "clip":
        visual = copy.deepcopy(model.visual)
    else:
        visual = build_visual(model.config.vision, model.config.embed_dim)
    if not towers.is_vit(visual):
        towers.resnet_of(visual).attnpool = nn.Identity()
    return visual
