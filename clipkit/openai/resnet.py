"""The modified ResNet with OpenAI's arguments and attributes (2103.00020)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.models import resnet

DOWNSAMPLING = 32  # five halvings, from pixels to the last feature map


class Bottleneck(resnet.Bottleneck):
    """Apply clipkit's bottleneck, which is OpenAI's with other names of the arguments.

    Args:
        inplanes: channels of the input.
        planes: channels in the middle; the output has `expansion` times as many.
        stride: by which the map shrinks.
    """

    expansion = resnet.EXPANSION

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__(inplanes, planes, stride)
        self.stride = stride


class AttentionPool2d(nn.Module):
    """Pool a map by the attention of its mean to itself and to every position.

    It calls torch's own attention with the positions first, as OpenAI's does: clipkit's pool agrees
    with it up to float noise, and this one to the bit.

    Args:
        spacial_dim: rows and columns of the map. OpenAI spells it so.
        embed_dim: C, the channels of the map.
        num_heads: of the attention.
        output_dim: D, the width of the feature; C if not given.
    """

    def __init__(
        self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None
    ) -> None:
        super().__init__()
        positions = torch.empty(spacial_dim**2 + 1, embed_dim)
        self.positional_embedding = nn.Parameter(positions)
        with torch.no_grad():
            nn.init.normal_(self.positional_embedding).div_(embed_dim**0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, output_dim or embed_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, D)."""
        tokens = x.flatten(2).permute(2, 0, 1)  # (N, C, H, W) -> (HW, N, C)
        tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens])  # (1 + HW, N, C)
        tokens = tokens + self.positional_embedding.unsqueeze(1).to(tokens.dtype)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        pooled, _ = F.multi_head_attention_forward(
            tokens[:1],
            tokens,
            tokens,
            embed_dim_to_check=tokens.shape[-1],
            num_heads=self.num_heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([projection.bias for projection in projections]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            training=self.training,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return pooled.squeeze(0)  # (1, N, D) -> (N, D)


class ModifiedResNet(nn.Module):
    """Turn images into features by convolutions and an attention pool.

    Args:
        layers: how many bottlenecks each of the four stages has.
        output_dim: D, the width of the feature.
        heads: of the attention pool.
        input_resolution: side of the square images in pixels.
        width: channels after the stem.
    """

    def __init__(
        self,
        layers: Sequence[int],
        output_dim: int,
        heads: int,
        input_resolution: int = 224,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.input_resolution = input_resolution
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
        self._inplanes = width  # the channels that the next bottleneck takes
        self.layer1 = self._make_layer(width, layers[0])
        self.layer2 = self._make_layer(2 * width, layers[1], stride=2)
        self.layer3 = self._make_layer(4 * width, layers[2], stride=2)
        self.layer4 = self._make_layer(8 * width, layers[3], stride=2)
        side = input_resolution // DOWNSAMPLING
        # Programs put nn.Identity() or None in its place.
        self.attnpool: nn.Module = AttentionPool2d(side, self._inplanes, heads, output_dim)

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        """Return bottlenecks one after another. The first strides."""
        stage: list[nn.Module] = []
        for number in range(blocks):
            stage.append(Bottleneck(self._inplanes, planes, 1 if number else stride))
            self._inplanes = planes * Bottleneck.expansion
        return nn.Sequential(*stage)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) of any float dtype to (N, D)."""
        x = x.type(self.conv1.weight.dtype)
        x = self.relu1(self.bn1(self.conv1(x)))  # (N, width / 2, H / 2, W / 2)
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.relu3(self.bn3(self.conv3(x)))  # (N, width, H / 2, W / 2)
        x = self.avgpool(x)
        x = self.layer1(x)  # (N, 4 x width, H / 4, W / 4)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)  # (N, 32 x width, H / 32, W / 32)
        return self.attnpool(x)
