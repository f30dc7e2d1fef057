"""The modified ResNet of CLIP: a stem of three convolutions, anti-aliased strides, attention pooling (2103.00020)."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.models.kernels import Linear
from clipkit.models.layers import ImageTower

EXPANSION = 4  # of a bottleneck's width into its output channels


class Bottleneck(nn.Module):
    """A bottleneck whose every convolution has stride 1; an average pool strides instead (1904.11486)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            conv, norm = nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)
            self.downsample = nn.Sequential(
                OrderedDict({"-1": nn.AvgPool2d(stride), "0": conv, "1": norm})
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 x width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return self.relu3(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool2d(nn.Module):
    """One query, the mean over the map, attends to every position and itself; only that one is computed."""

    def __init__(self, grid: tuple[int, int], width: int, heads: int, output_dim: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(grid[0] * grid[1] + 1, width))
        nn.init.normal_(self.positional_embedding, std=width**-0.5)
        self.k_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.c_proj = Linear(width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Feature map (N, C, H, W) -> (N, output_dim)."""
        x = x.flatten(2).transpose(1, 2)  # (N, C, H, W) -> (N, HW, C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # (N, 1 + HW, C)
        x = x + self.positional_embedding.to(x.dtype)
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(
                1, 2
            )  # (N, L, C) -> (N, heads, L, C / heads)
            for part in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        pooled = F.scaled_dot_product_attention(q, k, v)  # (N, heads, 1, C / heads)
        return self.c_proj(pooled.transpose(1, 2).flatten(1))


class ModifiedResNet(ImageTower):
    """The convolutional image tower.

    Replace `attnpool` by `torch.nn.Identity()` for the feature map (N, 32 x width, H / 32, W / 32).

    Args:
        resolution: (height, width) of its input in pixels.
        layers: bottlenecks in each of the four stages.
        width: channels after the stem.
        heads: of the attention pool.
        output_dim: width D of the feature.
    """

    def __init__(
        self,
        *,
        resolution: tuple[int, int],
        layers: tuple[int, int, int, int],
        width: int,
        heads: int,
        output_dim: int,
    ) -> None:
        super().__init__(resolution, output_dim)
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = self._stage(width, width, layers[0], stride=1)
        self.layer2 = self._stage(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = self._stage(width * 8, width * 4, layers[2], stride=2)
        self.layer4 = self._stage(width * 16, width * 8, layers[3], stride=2)
        grid = (
            (resolution[0] + 1) // 32,
            (resolution[1] + 1) // 32,
        )  # the first stride rounds up, four round down
        self.attnpool: nn.Module = AttentionPool2d(grid, width * 32, heads, output_dim)
        self.pixels_at_once: int | None = (
            None  # by `CLIP.optimize`: how many the feature maps may come from at a time
        )
        self.initialize()

    @staticmethod
    def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        first = Bottleneck(channels, width, stride)
        return nn.Sequential(
            first, *(Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
        )

    def initialize(self) -> None:
        """Each bottleneck starts as the identity; the attention pool as in CLIP."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            if isinstance(module, AttentionPool2d):
                for linear in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, output_dim), or the feature map where `attnpool` is an `Identity`."""
        if self.pixels_at_once is not None:
            most = max(1, self.pixels_at_once // (images.shape[2] * images.shape[3]))
            if len(images) > most:
                return torch.cat([self.forward(part) for part in images.split(most)])
        x = self.relu1(self.bn1(self.conv1(images)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.avgpool(x)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.attnpool(x)
