"""The vision transformer of CLIP (2103.00020, after 2010.11929)."""

import torch
from torch import Tensor, nn

from clipkit.config import Activation
from clipkit.models.kernels import Patches
from clipkit.models.layers import ImageTower, Transformer


class VisionTransformer(ImageTower):
    """Turn images into features.

    Patches and a class token pass a transformer; the class token is normed and projected.

    Args:
        resolution: (height, width) of the input in pixels.
        patch_size: side of a square patch in pixels. Pixels left over at the right and bottom edge
            are not seen.
        width, layers, heads, mlp_width, activation: of the transformer; `mlp_width` is the hidden
            width of its MLPs.
        output_dim: D, the width of the feature.
    """

    def __init__(
        self,
        *,
        resolution: tuple[int, int],
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        activation: Activation,
        output_dim: int,
    ) -> None:
        super().__init__(resolution, output_dim)
        patches = (resolution[0] // patch_size) * (resolution[1] // patch_size)
        self.conv1 = Patches(3, width, patch_size)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_width, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, output_dim))
        self.initialize()

    def initialize(self) -> None:
        """Draw new embeddings and a new projection, as in CLIP. The transformer does its own."""
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=self.transformer.width**-0.5)

    def embed(self, images: Tensor) -> Tensor:
        """Return the class token and the patch tokens as the first block takes them.

        (N, 3, H, W) -> (N, 1 + patches, W)
        """
        patches = self.conv1(images)  # (N, W, rows, columns)
        patches = patches.flatten(2).transpose(1, 2)  # (N, W, patches) -> (N, patches, W)
        class_token = self.class_embedding.to(patches.dtype).expand(images.shape[0], 1, -1)
        x = torch.cat([class_token, patches], dim=1)  # (N, 1 + patches, W)
        return self.ln_pre(x + self.positional_embedding.to(patches.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, 3, H, W) to features (N, output_dim)."""
        x = self.transformer(self.embed(images), at=0)  # (N, W)
        return self.ln_post(x) @ self.proj  # (N, W) -> (N, D)
