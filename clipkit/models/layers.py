"""Attention, blocks and the stack they form: what the vision and the text transformer share.

A pooled tower keeps one token per sample, so the last block has nothing to compute for the others: there, one query
attends to all keys and one token passes the MLP. Every token that is skipped could not have reached the output, which
makes it exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.config import Activation


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI trained with (Hendrycks and Gimpel, 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head attention with one fused projection for queries, keys and values, batch first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows in the order q, k, v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """(N, L, W) -> (N, L, W). `causal` hides later tokens."""
        q, k, v = self._heads(F.linear(x, self.in_proj_weight, self.in_proj_bias), 3)
        return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=causal))

    def query(self, q: Tensor, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """One query per sample, (N, 1, W), over the tokens x (N, L, W) -> (N, 1, W).

        `visible` (N, L) is True where the query may look.
        """
        width = x.shape[-1]
        (q,) = self._heads(F.linear(q, self.in_proj_weight[:width], self.in_proj_bias[:width]), 1)
        k, v = self._heads(F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]), 2)
        mask = None if visible is None else visible[:, None, None, :]  # (N, 1, 1, L), the same for every head
        return self._merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(N, L, parts x W) -> parts tensors of (N, heads, L, W / heads)."""
        return x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _merge(self, x: Tensor) -> Tensor:
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (N, heads, L, W / heads) -> (N, L, W)


class MLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """(N, L, W) -> (N, L, W)."""
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))

    def pooled(self, x: Tensor, at: Tensor | int, visible: Tensor | None = None) -> Tensor:
        """The block's output for one token per sample: x (N, L, W) -> (N, W).

        `at` is that token's position, one for all or (N,). `visible` (N, L) says which tokens it may look at.
        """
        rows = torch.arange(x.shape[0], device=x.device)
        h = self.ln_1(x)
        pooled = x[rows, at, None] + self.attn.query(h[rows, at, None], h, visible)  # (N, 1, W)
        return (pooled + self.mlp(self.ln_2(pooled))).squeeze(1)


class Transformer(nn.Module):
    """A stack of blocks that ends in one token per sample."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.width = width
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, mlp_width, activation) for _ in range(layers)
        )
        self.initialise()

    def initialise(self) -> None:
        """Residual branches scaled down with depth, as in CLIP (2103.00020) after GPT-2."""
        layers = len(self.resblocks)
        branch_std = self.width**-0.5 * (2 * layers) ** -0.5
        for block in self.resblocks:
            assert isinstance(block, ResidualAttentionBlock)
            nn.init.normal_(block.attn.in_proj_weight, std=self.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=branch_std)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=branch_std)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """Every token through every block: (N, L, W) -> (N, L, W)."""
        for block in self.resblocks:
            x = block(x, causal)
        return x

    def pooled(self, x: Tensor, at: Tensor | int, causal: bool = False, visible: Tensor | None = None) -> Tensor:
        """The final state of one token per sample: (N, L, W) -> (N, W), equal to `forward(x, causal)` at that token.

        With `causal`, `visible` (N, L) must hide the tokens after `at`.
        """
        for block in self.resblocks[:-1]:
            x = block(x, causal)
        return self.resblocks[-1].pooled(x, at, visible)  # pyright: ignore[reportCallIssue]
