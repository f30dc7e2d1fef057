"""The vision transformer of CLIP (2103.00020, after 2010.11929)."""

import torch
from torch import Tensor, nn

from clipkit.config import Activation
from clipkit.models.inputs import check_images
from clipkit.models.kernels import PackedWeight, is_watched, linear
from clipkit.models.layers import ImageTower, Transformer


class Patches(nn.Conv2d):
    """Embed the square patches of images.

    This is a convolution, computed as one product of all patches with the weight. With another
    `stride`, which some set for denser maps, it is the ordinary convolution.

    Args:
        channels: of the images.
        width: of the embedding.
        size: side of a patch in pixels.
    """

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__(channels, width, size, stride=size, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map images (N, C, H, W) to (N, width, rows, columns).

        Pixels left over at the right and bottom edge are not seen.
        """
        if self.stride != self.kernel_size:
            return super().forward(input)
        size = self.kernel_size[0]
        count, channels, height, width = input.shape
        rows, columns = height // size, width // size
        x = input[:, :, : rows * size, : columns * size]
        x = x.view(count, channels, rows, size, columns, size)
        x = x.permute(0, 2, 4, 1, 3, 5)  # -> (N, rows, columns, C, size, size)
        x = x.flatten(3)  # (N, rows, columns, C x size x size)
        packed = type(self.weight) is PackedWeight
        weight = self.weight if packed else self.weight.flatten(1)  # (width, C x size x size)
        return linear(x, weight).permute(0, 3, 1, 2)  # -> (N, width, rows, columns)


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

    Attributes:
        proj: (W, D), the projection. Set it to None for features before the projection, (N, W).
    """

    proj: nn.Parameter | None

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
            if parameter is not None:
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
        """Map (N, 3, H, W) of any float dtype to features (N, output_dim)."""
        x = self.embed(images.to(self.conv1.weight.dtype))  # (N, 1 + patches, W)
        if is_watched(self.transformer, x):
            x = self.transformer(x, at="all")[:, 0]
        else:
            x = self.transformer(x, at=0)
        x = self.ln_post(x)  # (N, W)
        return x if self.proj is None else x @ self.proj  # (N, W) -> (N, D)

    def tokens(self, images: Tensor, *, block: int = -1, norm: bool = True) -> Tensor:
        """Return all tokens after a block: the class token, then the patches row by row.

        The feature is the first of them, after the last block and normed, times `proj`.

        Args:
            images: preprocessed, (N, 3, H, W), any float dtype, any device.
            block: after which block, from 0; -1 is the last, -2 the one before it.
            norm: pass each token through `ln_post`, as the tower does with the class token.

        Returns:
            (N, 1 + patches, W), on the model's device and in its dtype.

        Raises:
            ImageError: for any other shape, or an integer dtype.
            ConfigError: if there is no such block.

        Example:
            tokens = model.visual.tokens(images)  # (N, 50, 768) of ViT-B/32
            patches = tokens[:, 1:] @ model.visual.proj  # (N, 49, 512), of the texts' space
        """
        check_images(images, self.resolution, "visual.tokens")
        weight = self.conv1.weight
        x = self.transformer.run_to(self.embed(images.to(weight.device, weight.dtype)), block)
        return self.ln_post(x) if norm else x
