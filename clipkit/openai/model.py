"""CLIP with OpenAI's classes, arguments, attributes and parameter names.

The layout is OpenAI's too. Transformers take (L, N, W), positions first. The parts of the text
tower belong to the model itself. Attention is `nn.MultiheadAttention`, and a text block has the
causal mask as `attn_mask`, which programs may set.

What other checkpoints need beside that (GELU, other widths of heads and MLPs) are keyword-only
arguments, with OpenAI's values as defaults.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from clipkit.checkpoints import layouts
from clipkit.config import Activation
from clipkit.errors import StateDictMismatchError
from clipkit.models.layers import ACTIVATIONS, QuickGELU
from clipkit.openai.build import (
    HEAD_WIDTH,
    SettingError,
    arguments_of,
    config_of,
    with_counters,
)
from clipkit.openai.resnet import AttentionPool2d, Bottleneck, ModifiedResNet

__all__ = [
    "AttentionPool2d",
    "Bottleneck",
    "CLIP",
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
]


class LayerNorm(nn.LayerNorm):
    """Compute a LayerNorm in float32, whatever the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Map any shape (..., W) and float dtype to the same."""
        return super().forward(input.float()).type(input.dtype)


class ResidualAttentionBlock(nn.Module):
    """Add to each token what attention and then an MLP make of the normed tokens.

    Args:
        d_model: W of each token.
        n_head: how many heads there are.
        attn_mask: (L, L), added to the attention's scores; none if not given.
        mlp_width: hidden width of the MLP; 4 W if not given.
        activation: of the MLP.
    """

    def __init__(
        self,
        d_model: int,
        n_head: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        hidden = 4 * d_model if mlp_width is None else mlp_width
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        fc, proj = nn.Linear(d_model, hidden), nn.Linear(hidden, d_model)
        self.mlp = nn.Sequential(
            OrderedDict({"c_fc": fc, "gelu": ACTIVATIONS[activation](), "c_proj": proj})
        )
        self.ln_2 = LayerNorm(d_model)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        """Return what each token gathers from the tokens that it attends to, (L, N, W)."""
        if self.attn_mask is not None:  # kept, so that it moves to a card once
            self.attn_mask = self.attn_mask.to(dtype=x.dtype, device=x.device)
        return self.attn(x, x, x, need_weights=False, attn_mask=self.attn_mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Map (L, N, W) to (L, N, W)."""
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Apply a stack of blocks to (L, N, W). Arguments are those of a block.

    Args:
        width: W of each token.
        layers: how many blocks there are.
        heads: of the attention in each.
        attn_mask: (L, L), added to the attention's scores; none if not given.
        mlp_width: hidden width of the MLPs; 4 W if not given.
        activation: of the MLPs.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        blocks = [
            ResidualAttentionBlock(
                width, heads, attn_mask, mlp_width=mlp_width, activation=activation
            )
            for _ in range(layers)
        ]
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (L, N, W) to (L, N, W)."""
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    """Turn images into features.

    Args:
        input_resolution: side of the square images in pixels.
        patch_size: side of a square patch in pixels.
        width, layers, heads, mlp_width, activation: of the transformer.
        output_dim: D, the width of the feature.
    """

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        std = width**-0.5
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(width), std=std))
        positions = torch.empty((input_resolution // patch_size) ** 2 + 1, width)
        self.positional_embedding = nn.Parameter(nn.init.normal_(positions, std=std))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width, layers, heads, mlp_width=mlp_width, activation=activation
        )
        self.ln_post = LayerNorm(width)
        # Programs set it to None to get features before the projection.
        self.proj: nn.Parameter | None = nn.Parameter(
            nn.init.normal_(torch.empty(width, output_dim), std=std)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, D), or to (N, W) without `proj`."""
        x = self.conv1(x)  # (N, W, rows, columns)
        x = x.flatten(2).transpose(1, 2)  # (N, W, patches) -> (N, patches, W)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1)  # (N, 1 + patches, W)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # (L, N, W) inside
        x = self.ln_post(x[:, 0])  # (N, W)
        return x if self.proj is None else x @ self.proj


class CLIP(nn.Module):
    """Turn images and texts into vectors of one space.

    Args:
        embed_dim: D, the width of that space.
        image_resolution: side of the square images in pixels.
        vision_layers: blocks of a vision transformer, or of each of the four stages of a ResNet.
        vision_width: channels of a vision transformer's tokens, or after a ResNet's stem.
        vision_patch_size: side of a square patch in pixels; None for a ResNet.
        context_length: tokens of a row.
        vocab_size: number of token ids.
        transformer_width, transformer_heads, transformer_layers: of the text transformer.
        vision_head_width: channels of one head of the image tower.
        vision_mlp_width, transformer_mlp_width: hidden widths; 4 times the width if not given.
        vision_activation, transformer_activation: of the MLPs. A ResNet has none.

    Raises:
        SettingError: if a vision transformer is given no `vision_patch_size`.
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: Sequence[int] | int,
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        *,
        vision_head_width: int = HEAD_WIDTH,
        vision_mlp_width: int | None = None,
        vision_activation: Activation = "quick_gelu",
        transformer_mlp_width: int | None = None,
        transformer_activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.visual: ModifiedResNet | VisionTransformer
        if isinstance(vision_layers, Sequence):
            heads = vision_width * 32 // vision_head_width
            self.visual = ModifiedResNet(
                vision_layers, embed_dim, heads, image_resolution, vision_width
            )
        else:
            if vision_patch_size is None:
                raise SettingError("a vision transformer needs a vision_patch_size, not None")
            self.visual = VisionTransformer(
                image_resolution,
                vision_patch_size,
                vision_width,
                vision_layers,
                vision_width // vision_head_width,
                embed_dim,
                mlp_width=vision_mlp_width,
                activation=vision_activation,
            )
        self.transformer = Transformer(
            transformer_width,
            transformer_layers,
            transformer_heads,
            self.build_attention_mask(),
            mlp_width=transformer_mlp_width,
            activation=transformer_activation,
        )
        self.vocab_size = vocab_size
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # 0.07 is the paper's
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draw new weights, in OpenAI's order: after the same seed they are the same."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        pool = getattr(self.visual, "attnpool", None)
        if isinstance(pool, AttentionPool2d):
            for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                nn.init.normal_(linear.weight, std=pool.c_proj.in_features**-0.5)
        for module in self.visual.modules():
            if isinstance(module, Bottleneck):  # each begins as the identity
                nn.init.zeros_(module.bn3.weight)
        width = self.transformer.width
        branch_std = width**-0.5 * (2 * self.transformer.layers) ** -0.5
        for block in self.transformer.resblocks:  # which may be a program's own
            nn.init.normal_(block.get_parameter("attn.in_proj_weight"), std=width**-0.5)
            nn.init.normal_(block.get_parameter("attn.out_proj.weight"), std=branch_std)
            nn.init.normal_(block.get_parameter("mlp.c_fc.weight"), std=(2 * width) ** -0.5)
            nn.init.normal_(block.get_parameter("mlp.c_proj.weight"), std=branch_std)
        projection = getattr(self, "text_projection", None)
        if isinstance(projection, Tensor):  # programs set it to None
            nn.init.normal_(projection, std=width**-0.5)

    def build_attention_mask(self) -> Tensor:
        """Return the causal mask (L, L): 0 for tokens that are seen, -inf for later ones."""
        shape = (self.context_length, self.context_length)
        return torch.full(shape, float("-inf"), device="cpu").triu_(1)

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the convolutions, in which both towers compute."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """Map images (N, 3, H, W) of any float dtype to features (N, D)."""
        return self.visual(image.type(self.dtype))

    def encode_text(self, text: Tensor) -> Tensor:
        """Map token ids (N, L) to features (N, D), read at the highest id of each row."""
        x = self.token_embedding(text).type(self.dtype)  # (N, L, W)
        x = x + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)  # (L, N, W) inside
        x = self.ln_final(x).type(self.dtype)
        ends = text.argmax(dim=-1)  # (N,)
        return x[torch.arange(x.shape[0]), ends] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled cosines of images (N, 3, H, W) and texts (M, L), (N, M) and (M, N)."""
        image_features = _normalize(self.encode_image(image))
        text_features = _normalize(self.encode_text(text))
        logits = self.logit_scale.exp() * image_features @ text_features.t()  # (N, M)
        return logits, logits.t()


def _normalize(features: Tensor) -> Tensor:
    """Scale rows to unit length: (N, D) -> (N, D)."""
    return features / cast("Tensor", features.norm(dim=1, keepdim=True))


# Parameters of nn.MultiheadAttention that are its own. Its output projection is a linear layer.
_ATTENTION = [
    *("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    *("in_proj_bias", "bias_k", "bias_v"),
]


def convert_weights(model: nn.Module) -> None:
    """Cast convolutions, linear layers, attention and both projections to float16, in place.

    Norms and embeddings keep their dtype.
    """
    for module in model.modules():
        names = ["text_projection", "proj"]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            names += ["weight", "bias"]
        if isinstance(module, nn.MultiheadAttention):
            names += _ATTENTION
        for name in names:
            value = getattr(module, name, None)
            if isinstance(value, Tensor):
                value.data = value.data.half()


def build_model(state_dict: Mapping[str, Tensor]) -> CLIP:
    """Build the model of a state dict of OpenAI's layout, half as `convert_weights` makes it.

    Heads are 64 wide and MLPs have QuickGELU, as in all of OpenAI's models. `state_dict` is left as
    it is.

    Args:
        state_dict: weights of any float dtype. They are copied.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError, SettingError: if these are not the weights of such a model. Both are
            RuntimeErrors.
    """
    weights = layouts.to_canonical(state_dict)
    model = CLIP(**arguments_of(config_of(weights)))
    convert_weights(model)
    expected = model.state_dict()
    found = with_counters(layouts.from_canonical(weights, "openai"), expected)
    if problem := layouts.describe_mismatch(expected, found):
        raise StateDictMismatchError(problem)
    model.load_state_dict(found)
    return model.eval()
