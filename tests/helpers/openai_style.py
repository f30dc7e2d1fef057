"""Build a small model with OpenAI's names, arithmetic and mixture of dtypes.

It is written plainly, and computes every token.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn


class Norm(nn.LayerNorm):
    """Compute a LayerNorm in float32, whatever the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class QuickGELU(nn.Module):
    """Approximate GELU by a sigmoid."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Attend within a sequence of the shape (L, N, W), then apply the MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)
        self.ln_1 = Norm(width)
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            c_fc=nn.Linear(width, 4 * width), gelu=QuickGELU(), c_proj=nn.Linear(4 * width, width)
        )
        self.mlp = nn.Sequential(layers)
        self.ln_2 = Norm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    """Stack two blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width), Block(width)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x.transpose(0, 1)  # (N, L, W) -> (L, N, W), as MultiheadAttention had it then
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Vision(nn.Module):
    """Encode images as a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 128, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(128))
        self.positional_embedding = nn.Parameter(torch.randn(10, 128))
        self.ln_pre = Norm(128)
        self.transformer = Blocks(128)
        self.ln_post = Norm(128)
        self.proj = nn.Parameter(torch.randn(128, 32) / 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)  # (N, 128, 3, 3) -> (N, 9, 128)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, 128)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype))
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenAIStyle(nn.Module):
    """Encode images of 48 x 48 pixels, and texts of up to 16 of 600 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Vision()
        self.transformer = Blocks(64)
        self.token_embedding = nn.Embedding(600, 64)
        self.positional_embedding = nn.Parameter(torch.randn(16, 64))
        self.ln_final = Norm(64)
        self.text_projection = nn.Parameter(torch.randn(64, 32) / 8)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        for name, value in (("input_resolution", 48), ("context_length", 16), ("vocab_size", 600)):
            self.register_buffer(name, torch.tensor(value))

    def halve(self) -> "OpenAIStyle":
        """Cast convolutions, linear layers, attention and projections to float16."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
                module.half()
        self.visual.proj.data = self.visual.proj.half()
        self.text_projection.data = self.text_projection.half()
        return self.eval()

    def encode_text(self, tokens: Tensor) -> Tensor:
        dtype = self.visual.conv1.weight.dtype
        x = (self.token_embedding(tokens) + self.positional_embedding).to(dtype)
        mask = torch.full((16, 16), float("-inf"), dtype=dtype).triu(1)
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual(images.to(self.visual.conv1.weight.dtype)), self.encode_text(tokens)


def two_rows_of_tokens() -> Tensor:
    """Return two rows that end at different places, with 599 as the end of text."""
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([598, 5, 6, 599])
    tokens[1, :7] = torch.tensor([598, 7, 8, 9, 300, 400, 599])
    return tokens
