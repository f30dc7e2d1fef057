"""The modified ResNet of CLIP (2103.00020).

It has a stem of three convolutions, anti-aliased strides and attention pooling.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.errors import ConfigError
from clipkit.models.inputs import check_images
from clipkit.models.kernels import apply_linear
from clipkit.models.layers import ImageTower

EXPANSION = 4  # a bottleneck's output channels over its width


class Bottleneck(nn.Module):
    """Apply three convolutions, and add the input.

    All have stride 1, and an average pool strides instead (1904.11486).

    Args:
        channels: of the input.
        width: of the convolution in the middle; the output has four times as many channels.
        stride: by which the map shrinks.
    """

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
            pool = nn.AvgPool2d(stride)
            conv = nn.Conv2d(channels, out, 1, bias=False)
            norm = nn.BatchNorm2d(out)
            self.downsample = nn.Sequential(OrderedDict({"-1": pool, "0": conv, "1": norm}))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, 4 x width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu3(out + shortcut)


class AttentionPool2d(nn.Module):
    """Pool a map by attention.

    The one query is the mean of the map. It attends to itself and to every position.

    Args:
        grid: rows and columns of the map.
        width: C, its channels.
        heads: of the attention.
        output_dim: D, the width of the feature.
    """

    def __init__(self, grid: tuple[int, int], width: int, heads: int, output_dim: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(grid[0] * grid[1] + 1, width))
        nn.init.normal_(self.positional_embedding, std=width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, output_dim)."""
        x = x.flatten(2).transpose(1, 2)  # (N, C, H, W) -> (N, HW, C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # (N, 1 + HW, C)
        x = x + self.positional_embedding.to(x.dtype)
        q = self._split_heads(apply_linear(self.q_proj, x[:, :1]))  # (N, heads, 1, C / heads)
        k = self._split_heads(apply_linear(self.k_proj, x))  # (N, heads, 1 + HW, C / heads)
        v = self._split_heads(apply_linear(self.v_proj, x))
        pooled = F.scaled_dot_product_attention(q, k, v)  # (N, heads, 1, C / heads)
        pooled = pooled.transpose(1, 2).flatten(1)  # (N, 1, heads, C / heads) -> (N, C)
        return apply_linear(self.c_proj, pooled)

    def _split_heads(self, x: Tensor) -> Tensor:
        """Split each token into its heads: (N, L, C) -> (N, heads, L, C / heads)."""
        count, length, width = x.shape
        x = x.view(count, length, self.num_heads, width // self.num_heads)
        return x.transpose(1, 2)


class ModifiedResNet(ImageTower):
    """Turn images into features by convolutions and an attention pool.

    Replace `attnpool` by `torch.nn.Identity()` for the feature map (N, 32 x width, H / 32, W / 32).

    Args:
        resolution: (height, width) of the input in pixels.
        layers: how many bottlenecks each of the four stages has.
        width: channels after the stem.
        heads: of the attention pool.
        output_dim: D, the width of the feature.

    Attributes:
        pixels_at_once: how many pixels of a batch are computed at a time; all if None.
            `CLIP.optimize` sets it.
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
        self.layer1 = _make_stage(width, width, layers[0], stride=1)
        self.layer2 = _make_stage(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = _make_stage(width * 8, width * 4, layers[2], stride=2)
        self.layer4 = _make_stage(width * 16, width * 8, layers[3], stride=2)
        # The map is halved five times: the first time an odd side rounds up, then down.
        grid = ((resolution[0] + 1) // 32, (resolution[1] + 1) // 32)
        self.attnpool: nn.Module = AttentionPool2d(grid, width * 32, heads, output_dim)
        self.pixels_at_once: int | None = None
        self.initialize()

    def initialize(self) -> None:
        """Make each bottleneck the identity, and draw a new attention pool, as in CLIP."""
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            if isinstance(module, AttentionPool2d):
                for linear in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                    nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) of any float dtype to (N, output_dim).

        It is a map (N, 32 x width, H / 32, W / 32) if `attnpool` is an `Identity`.
        """
        images = images.to(self.conv1.weight.dtype)
        if self.pixels_at_once is None:
            return self._encode(images)
        at_once = max(1, self.pixels_at_once // (images.shape[2] * images.shape[3]))  # images
        if len(images) <= at_once:
            return self._encode(images)
        # Parts of nearly one size: packed weights stay as they are while the size does.
        parts = -(-len(images) // at_once)
        return torch.cat([self._encode(part) for part in images.tensor_split(parts)])

    def tokens(self, images: Tensor, *, stage: int = -1) -> Tensor:
        """Return the positions of a stage's map row by row, before the attention pool.

        Args:
            images: preprocessed, (N, 3, H, W), any float dtype, any device.
            stage: 0 to 3, or -1 for the last, which the attention pool takes.

        Returns:
            (N, rows x columns, channels), on the model's device and in its dtype.

        Raises:
            ImageError: for any other shape, or an integer dtype.
            ConfigError: if there is no such stage.

        Example:
            tokens = model.visual.tokens(images)  # (N, 49, 2048) of RN50
        """
        check_images(images, self.resolution, "visual.tokens")
        weight = self.conv1.weight
        x = self.run_to(images.to(weight.device, weight.dtype), stage)
        return x.flatten(2).transpose(1, 2)  # (N, C, H, W) -> (N, HW, C)

    def run_to(self, images: Tensor, stage: int) -> Tensor:
        """Return the map after a stage, for images of any size.

        Args:
            images: (N, 3, H, W), on the tower's device and in its dtype.
            stage: 0 to 3, or -1 to -4 counted from the last.

        Returns:
            (N, channels, rows, columns); after the last stage (N, 32 x width, H / 32, W / 32).

        Raises:
            ConfigError: if there is no such stage.
        """
        if type(stage) is not int or not -4 <= stage <= 3:
            raise ConfigError(
                f"there is no stage {stage!r} in a ResNet: pass 0 to 3, or -1 to -4 counted from "
                "the last"
            )
        x = self._stem(images)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        for module in stages[: stage % 4 + 1]:
            x = module(x)
        return x

    def _encode(self, images: Tensor) -> Tensor:
        x = self._stem(images)  # (N, width, H / 4, W / 4)
        x = self.layer1(x)  # (N, 4 x width, H / 4, W / 4)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)  # (N, 32 x width, H / 32, W / 32)
        return self.attnpool(x)

    def _stem(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, width, H / 4, W / 4)."""
        x = self.relu1(self.bn1(self.conv1(images)))  # (N, width / 2, H / 2, W / 2)
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))  # (N, width, H / 2, W / 2)
        return self.avgpool(x)


def _make_stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    """Return bottlenecks one after another. The first strides."""
    first = Bottleneck(channels, width, stride)
    others = (Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)
