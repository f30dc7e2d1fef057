"""Hold the parts of a VQ-VAE (1711.00937): codebook, decoder, and encoders made of an image tower.

`examples/reconstruction.py` trains it. An encoder's map (N, C, rows, columns) is projected to the
width of the codes; each place takes the nearest code; the decoder draws an image from the codes.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.inspect import towers

WIDTH = 64  # numbers of a code, as in the paper's program
CHANNELS = 128  # of the decoder where its map is small
DECAY = 0.97  # of the codebook's averages; the paper's 0.99 is for runs that are 100 times as long
DEAD = 0.1  # a code is dead if it is chosen less often than this share of the mean


class Quantized(NamedTuple):
    """Hold what a codebook makes of a map.

    Attributes:
        codes: the nearest code of each place, (N, D, rows, columns); its gradient is the map's.
        indices: numbers of these codes, (N, rows, columns) int64.
        commitment: mean squared distance of the map to its codes, with a gradient for the map.
    """

    codes: Tensor
    indices: Tensor
    commitment: Tensor


def straight_through(values: Tensor, replaced: Tensor) -> Tensor:
    """Return `replaced`, with a gradient as if it were `values`. Shapes are equal."""
    return values + (replaced - values).detach()


class Codebook(nn.Module):
    """Replace each vector by its nearest code.

    Codes follow the vectors that choose them, as exponential moving averages (appendix A.1 of the
    paper), so they need no gradient. The first batch gives the first codes. A code that is hardly
    chosen any more starts anew from a vector of the batch (2005.00341), else most would go unused.

    Args:
        count: K, the number of codes.
        width: D, the numbers of each.
        decay: of the moving averages, a step.
        dead: the share of the mean use below which a code starts anew.

    Attributes:
        codes: (K, D) float32.
        counts: (K,) float32, average number of vectors a batch that choose a code.
        sums: (K, D) float32, average sum of these vectors.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self, count: int, width: int = WIDTH, decay: float = DECAY, dead: float = DEAD
    ) -> None:
        super().__init__()
        self.decay = decay
        self.dead = dead
        self.register_buffer("codes", torch.randn(count, width))
        self.register_buffer("counts", torch.ones(count))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("started", torch.tensor(False))

    def forward(self, x: Tensor) -> Quantized:
        """Quantize a map (N, D, rows, columns); in training, let the codes follow it."""
        vectors = x.permute(0, 2, 3, 1).flatten(0, 2)  # (N, D, rows, columns) -> (N x places, D)
        if self.training and not self.started:
            self.start(vectors.detach())
        indices = self.nearest(vectors.detach())
        chosen = self.look_up(indices.view(len(x), *x.shape[2:]))
        if self.training:
            self.update(vectors.detach(), indices)
            self.restart(vectors.detach())
        return Quantized(
            straight_through(x, chosen),
            indices.view(len(x), *x.shape[2:]),
            F.mse_loss(x, chosen),
        )

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the number of the nearest code of each vector: (n, D) -> (n,) int64."""
        # |v - c|^2 without |v|^2, which is the same for all codes
        return (self.codes.square().sum(dim=1) - 2 * vectors @ self.codes.T).argmin(dim=1)

    def look_up(self, indices: Tensor) -> Tensor:
        """Return codes by their numbers: (N, rows, columns) -> (N, D, rows, columns)."""
        return self.codes[indices].permute(0, 3, 1, 2)

    def start(self, vectors: Tensor) -> None:
        """Draw the first codes among vectors (n, D)."""
        self._put(torch.arange(len(self.codes)), vectors, len(vectors) / len(self.codes))
        self.started.fill_(True)

    def update(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the codes towards the vectors (n, D) that chose them by `indices` (n,)."""
        counts = torch.bincount(indices, minlength=len(self.codes)).to(self.counts.dtype)
        sums = torch.zeros_like(self.sums).index_add_(0, indices, vectors)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self.codes.copy_(self.sums / self.counts[:, None])

    def restart(self, vectors: Tensor) -> None:
        """Put vectors (n, D), drawn at random, in the place of codes that are dead."""
        mean = float(self.counts.mean())
        dead = (self.counts < self.dead * mean).nonzero().flatten()
        self._put(dead, vectors, mean)

    def _put(self, places: Tensor, vectors: Tensor, count: float) -> None:
        """Put vectors, drawn at random, at some places of the codebook, as if chosen so often."""
        drawn = vectors[torch.randint(len(vectors), (len(places),))]
        self.codes[places] = drawn
        self.counts[places] = count
        self.sums[places] = count * drawn


class Residual(nn.Module):
    """Add two convolutions of a map to it, as in the paper."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 4, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Decoder(nn.Module):
    """Draw images from maps of codes.

    Two residual blocks, and a transposed convolution for each time that the map doubles. It becomes
    narrower where the map is an eighth of the image or more, so that cost is about the same for
    any grid.

    Args:
        width: D, the numbers of a code.
        grid: places of the map's side.
        side: pixels of the image's side, `grid` times a power of two.
    """

    def __init__(self, width: int, grid: int, side: int) -> None:
        super().__init__()
        channels = _channels_at(grid, side)
        parts: list[nn.Module] = [nn.Conv2d(width, channels, 3, padding=1)]
        parts += [Residual(channels), Residual(channels)]
        while grid < side:
            grid *= 2
            out = 3 if grid == side else _channels_at(grid, side)
            parts += [nn.ReLU(), nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)]
            channels = out
        self.layers = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, D, grid, grid) to (N, 3, side, side), where black is about 0 and white 1."""
        return 0.5 + self.layers(x)


def _channels_at(grid: int, side: int) -> int:
    return min(CHANNELS, CHANNELS * side // (8 * grid))


def side_of(grid: int, size: int) -> int:
    """Return the side of images to draw: the largest power of two times `grid` up to `size`."""
    return grid * 2 ** int(math.log2(size / grid))


class Tower(nn.Module):
    """Run an image tower up to a block or a stage, in training or not, with gradients.

    `clipkit.inspect.dense_features` gives the same map, but always by batch norms in eval mode.
    """

    def __init__(self, visual: nn.Module, block: int) -> None:
        super().__init__()
        self.visual = visual
        self.block = block

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) to (N, C, rows, columns)."""
        if not towers.is_vit(self.visual):
            return towers.feature_map(self.visual, images, self.block)
        rows, columns = towers.grid_of(self.visual, images)
        tokens = towers.tokens_after(self.visual, images, self.block)[:, 1:]  # (N, places, C)
        return tokens.transpose(1, 2).unflatten(2, (rows, columns))


class Drawn(NamedTuple):
    """Hold images (N, 3, side, side), the codes they were drawn from, and the commitment."""

    images: Tensor
    indices: Tensor | None
    commitment: Tensor


class VQVAE(nn.Module):
    """Draw images again from the codes of their maps.

    Args:
        encoder: makes maps (N, C, grid, grid), or is an `Identity` for maps that are there already.
        channels: C. They are normed and projected to the codes' width.
        grid: places of a map's side.
        side: pixels of the images to draw.
        codes: how many there are; with 0 the projected map goes to the decoder as it is.
    """

    def __init__(
        self, encoder: nn.Module, *, channels: int, grid: int, side: int, codes: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Sequential(
            nn.BatchNorm2d(channels, affine=False), nn.Conv2d(channels, WIDTH, 1)
        )
        self.codebook = Codebook(codes) if codes else None
        self.decoder = Decoder(WIDTH, grid, side)

    def forward(self, x: Tensor) -> Drawn:
        """Encode what the encoder takes, and draw it."""
        z = self.project(self.encoder(x))
        if self.codebook is None:
            return Drawn(self.decoder(z), None, z.new_zeros(()))
        found: Quantized = self.codebook(z)
        return Drawn(self.decoder(found.codes), found.indices, found.commitment)

    def decode(self, indices: Tensor) -> Tensor:
        """Draw images (N, 3, side, side) from codes by their numbers, (N, grid, grid) int64."""
        if self.codebook is None:
            raise ValueError("there are no codes to draw from")
        return self.decoder(self.codebook.look_up(indices))
