"""Attention, blocks and the stack they form: what the vision and the text transformer share.

A pooled tower keeps one token per sample, so the last block computes nothing for the others but keys and values: one
query attends to all, and one token passes the MLP. Every token that is skipped could not have reached the output,
which makes it exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.config import Activation
from clipkit.models.kernels import Linear, linear, recording
from clipkit.models.prefixes import Prefixes


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI trained with (Hendrycks and Gimpel, 1606.08415)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or recording():
            return x * torch.sigmoid(1.702 * x)
        return (
            (1.702 * x).sigmoid_().mul_(x)
        )  # the same bits; fresh memory would cost more than the arithmetic


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head attention with one fused projection for queries, keys and values, batch first.

    `causal` hides later tokens from each token.
    """

    def __init__(self, width: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.in_proj_weight = nn.Parameter(
            torch.empty(3 * width, width)
        )  # rows in the order q, k, v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(
        self, x: Tensor, at: Tensor | int | None = None, tree: Prefixes | None = None
    ) -> Tensor:
        """(N, L, W) -> (N, L, W); or only the output at `at`, one position for all or (N,) of them: (N, 1, W).

        With a `tree`, its P nodes (P, W) -> (P, W); or, with nodes (R,) as `at`, only theirs: (R, W).
        """
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias)  # (..., W) -> (..., 3W)
        if tree is not None:
            q, k, v = self._heads(qkv[tree.groups])  # (P, 3W) -> (G, S, 3W)
            x = F.scaled_dot_product_attention(
                q, k, v, attn_mask=tree.mask
            )  # (G, heads, S, W / heads)
            x = x.transpose(1, 2).flatten(2).flatten(0, 1)  # (G, S, heads, W / heads) -> (G x S, W)
            return self.out_proj(x[tree.places if at is None else tree.places[at]])
        q, k, v = self._heads(qkv)
        if at is None:
            return self._merge(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))
        mask = None
        if self.causal:
            last = torch.as_tensor(at, device=x.device).view(-1, 1, 1, 1)  # (N or 1, 1, 1, 1)
            mask = (
                torch.arange(x.shape[1], device=x.device) <= last
            )  # (N or 1, 1, 1, L), the same for every head
        q = pick(q.transpose(1, 2), at).transpose(
            1, 2
        )  # (N, heads, L, W / heads) -> (N, heads, 1, W / heads)
        return self._merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(N, L, 3W) -> three of (N, heads, L, W / heads)."""
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _merge(self, x: Tensor) -> Tensor:
        return self.out_proj(x.transpose(1, 2).flatten(2))  # (N, heads, L, W / heads) -> (N, L, W)


def pick(x: Tensor, at: Tensor | int) -> Tensor:
    """One token of each sample, by one position for all or (N,) positions: (N, L, W) -> (N, 1, W)."""
    return x[torch.arange(x.shape[0], device=x.device), at, None]


class MLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, activation: Activation, causal: bool
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(
        self, x: Tensor, at: Tensor | int | None = None, tree: Prefixes | None = None
    ) -> Tensor:
        """Shapes, `at` and `tree` as in `Attention`."""
        attended = self.attn(self.ln_1(x), at, tree)
        x = (x if at is None else pick(x, at) if tree is None else x[at]) + attended
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks, batch first. With `causal`, no token sees a later one."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        activation: Activation,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(width, heads, mlp_width, activation, causal)
            for _ in range(layers)
        )
        self.initialize()

    def initialize(self) -> None:
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

    def forward(
        self, x: Tensor, at: Tensor | int | None = None, tree: Prefixes | None = None
    ) -> Tensor:
        """(N, L, W) -> (N, L, W); or, with one position for all or (N,) positions in `at`, only those: (N, W).

        The result is the same either way: the last block alone leaves out what could not reach it. With a `tree` of
        prefixes, its nodes (P, W) -> (P, W), or only those that `at` names: (R, W).
        """
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, None, tree)
        x = last(x, at, tree)
        return x if at is None or tree is not None else x.squeeze(1)


class ImageTower(nn.Module):
    """What both image towers tell of themselves: (height, width) of the input in pixels, and the feature's width D."""

    def __init__(self, resolution: tuple[int, int], output_dim: int) -> None:
        super().__init__()
        self.resolution, self.output_dim = resolution, output_dim
        height, width = resolution
        self.input_resolution = (
            height if height == width else resolution
        )  # OpenAI's name, and its form for a square
