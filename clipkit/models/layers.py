"""The parts that the vision and the text transformer share: attention, blocks, and their stack.

A pooled tower keeps one token of each sample. Its last block therefore computes only keys and
values of the other tokens: one query attends to all of them, and one token passes the MLP. The
skipped work could not have reached the output, so the result is exact. Where a program has put
hooks on that block, all tokens pass it, as a hook may want any of them; so they do in a symbolic
trace.
"""

from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.config import Activation
from clipkit.errors import ConfigError
from clipkit.models.kernels import apply_linear, is_watched, linear, values_are_known
from clipkit.models.prefixes import Prefixes
from clipkit.moved import BLOCK, moved

# The tokens that are wanted: all of them, or one of each sample, whose position is the same for all
# samples or given for each, (N,).
At: TypeAlias = Literal["all"] | int | Tensor


class QuickGELU(nn.Module):
    """Compute x * sigmoid(1.702 x), an approximation of GELU (Hendrycks and Gimpel, 1606.08415).

    OpenAI trained with it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape (..., W) to the same shape."""
        if torch.is_grad_enabled() or not values_are_known(x):
            return x * torch.sigmoid(1.702 * x)
        # In place the bits are the same, and on a CPU fresh memory costs more than the arithmetic.
        return (1.702 * x).sigmoid_().mul_(x)


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Let tokens attend to tokens with several heads, batch first.

    One projection makes queries, keys and values together.

    Args:
        width: W of each token, the heads' widths together.
        num_heads: how many heads there are.
        causal: hide later tokens from each token.
    """

    def __init__(self, width: int, num_heads: int, causal: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))  # rows: q, then k, then v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        # What `clipkit.lora` adds: it maps (..., W) to (..., 3W).
        self.change: nn.Module | None = None

    def forward(self, x: Tensor, *, at: At = "all", tree: Prefixes | None = None) -> Tensor:
        """Return what each token gathers from the tokens that it attends to.

        Args:
            x: (N, L, W); or with a `tree`, its P nodes (P, W).
            at: "all", or the one position that attends, the same for all samples or (N,) of them.
                With a `tree`, "all" or nodes (R,).
            tree: prefixes, which say what each node attends to.

        Returns:
            (N, L, W), or (N, 1, W) for one position. With a `tree`, (P, W), or (R, W) for nodes.
        """
        qkv = linear(x, self.in_proj_weight, self.in_proj_bias)  # (..., W) -> (..., 3W)
        if self.change is not None:
            qkv = qkv + self.change(x)
        if tree is not None:
            attended = self._attend_in_tree(qkv, tree, at)
        elif isinstance(at, str):
            attended = self._attend(qkv)
        else:
            attended = self._attend_from(qkv, at)
        return apply_linear(self.out_proj, attended)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Let every token attend to all, or to those up to itself.

        (N, L, 3W) -> (N, L, W)
        """
        q, k, v = self._split_heads(qkv)
        return self._merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))

    def _attend_from(self, qkv: Tensor, at: Tensor | int) -> Tensor:
        """Let one token of each sample attend to all, or to those up to itself.

        (N, L, 3W) -> (N, 1, W)
        """
        q, _, _ = self._split_heads(pick(qkv, at))  # (N, 1, 3W) -> (N, heads, 1, W / heads)
        _, k, v = self._split_heads(qkv)
        mask = None
        if self.causal:
            positions = torch.arange(qkv.shape[1], device=qkv.device).view(1, 1, 1, -1)
            last = at if isinstance(at, int) else at.view(-1, 1, 1, 1)  # (N, 1, 1, 1)
            mask = positions <= last  # (N or 1, 1, 1, L), for every head and the one query
        return self._merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def _attend_in_tree(self, qkv: Tensor, tree: Prefixes, at: At) -> Tensor:
        """Let every node attend to its prefix, in G groups of S nodes.

        (P, 3W) -> (P, W), or (R, W) for the nodes `at`
        """
        groups = qkv[tree.groups]  # (P, 3W) -> (G, S, 3W)
        q, k, v = self._split_heads(groups)  # (G, heads, S, W / heads) each
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=tree.mask)
        attended = self._merge_heads(attended).flatten(0, 1)  # (G, S, W) -> (G x S, W)
        return attended[tree.places if isinstance(at, str) else tree.places[at]]

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values: (N, L, 3W) -> three of (N, heads, L, W / heads)."""
        count, length, width = qkv.shape
        heads = self.num_heads
        qkv = qkv.view(count, length, 3, heads, width // (3 * heads))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, L, 3, ...) -> (3, N, heads, L, W / heads)

    def _merge_heads(self, x: Tensor) -> Tensor:
        """Put the heads side by side: (N, heads, L, W / heads) -> (N, L, W)."""
        return x.transpose(1, 2).flatten(2)


def pick(x: Tensor, at: Tensor | int) -> Tensor:
    """Return one token of each sample: (N, L, W) -> (N, 1, W).

    Args:
        x: all tokens.
        at: the token's position, one for all samples or (N,).
    """
    if isinstance(at, int):
        return x[:, at, None]
    return x[torch.arange(x.shape[0], device=x.device), at, None]


class MLP(nn.Module):
    """Apply two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., W) to (..., W)."""
        x = self.gelu(apply_linear(self.c_fc, x))  # (..., hidden)
        return apply_linear(self.c_proj, x)


class ResidualAttentionBlock(nn.Module):
    """Add to each token what attention and then an MLP make of the normed tokens."""

    def __init__(
        self, width: int, num_heads: int, mlp_width: int, activation: Activation, causal: bool
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, num_heads, causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x: Tensor, *, at: At | None = None, tree: Prefixes | None = None) -> Tensor:
        """Map tokens to tokens, or to those at `at` alone.

        Arguments and shapes are those of `Attention`. `at` must be given.
        """
        at = _wanted(at)
        attended = self.attn(self.ln_1(x), at=at, tree=tree)
        x = _keep(x, at, tree) + attended
        return x + self.mlp(self.ln_2(x))

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a mask, which OpenAI's blocks have and which nothing here would look at."""
        if name in BLOCK:
            raise moved("a clipkit block", name, BLOCK)
        super().__setattr__(name, value)


def _wanted(at: At | None) -> At:
    """Return which tokens are wanted, or refuse a call that does not say it.

    OpenAI's transformers take (L, N, W). A program written for them says nothing, and would let the
    samples of a batch attend to each other.
    """
    if at is None:
        raise ConfigError(
            "clipkit's transformers take (N, L, W), batch first, and OpenAI's (L, N, W): pass "
            'at="all" to say that the batch comes first. visual.tokens(images) and '
            "text.tokens(ids) run a tower up to any block, and programs written for OpenAI's "
            "package run with `import clipkit.openai as clip`"
        )
    return at


def _keep(x: Tensor, at: At, tree: Prefixes | None) -> Tensor:
    """Return the tokens of the input that `Attention` gives outputs for."""
    if isinstance(at, str):
        return x
    if tree is not None:
        return x[at]  # (P, W) -> (R, W)
    return pick(x, at)  # (N, L, W) -> (N, 1, W)


class Transformer(nn.Module):
    """Apply a stack of blocks, batch first.

    Args:
        width: W of each token.
        layers: how many blocks there are.
        heads: of the attention in each.
        mlp_width: hidden width of the MLPs.
        activation: of the MLPs.
        causal: hide later tokens from each token.
    """

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
        """Draw new weights as in CLIP (2103.00020), after GPT-2.

        The more layers there are, the smaller their residual branches start.
        """
        layers = len(self.resblocks)
        branch_std = self.width**-0.5 * (2 * layers) ** -0.5
        for block in self.resblocks:
            assert isinstance(block, ResidualAttentionBlock)
            nn.init.normal_(block.attn.in_proj_weight, std=self.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=branch_std)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=branch_std)

    def forward(self, x: Tensor, *, at: At | None = None, tree: Prefixes | None = None) -> Tensor:
        """Map tokens to tokens, or to those at `at` alone.

        The values are the same. The last block leaves out what cannot reach the tokens at `at`,
        unless it has hooks.

        Args:
            x: (N, L, W); or with a `tree`, its P nodes (P, W).
            at: "all", or the position to keep of each sample, the same for all or (N,). With a
                `tree`, "all" or the nodes to keep, (R,). It must be given.
            tree: prefixes, in which each node stands for a token with all that come before it.

        Returns:
            (N, L, W), or (N, W) for one position. With a `tree`, (P, W), or (R, W) for nodes.

        Raises:
            ConfigError: if `at` is not given, as by a program that means (L, N, W).
        """
        at = _wanted(at)
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, at="all", tree=tree)
        if isinstance(at, str) or tree is not None:
            return last(x, at=at, tree=tree)
        if is_watched(last, x):
            return pick(last(x, at="all"), at).squeeze(1)
        return last(x, at=at).squeeze(1)  # (N, 1, W) -> (N, W)

    def run_to(self, x: Tensor, block: int) -> Tensor:
        """Return all tokens after a block, (N, L, W) -> (N, L, W).

        Args:
            x: tokens as the first block takes them.
            block: its number, from 0; or from -1 for the last, backwards.

        Raises:
            ConfigError: if there is no such block.
        """
        count = len(self.resblocks)
        if type(block) is not int or not -count <= block < count:
            raise ConfigError(
                f"there is no block {block!r} among {count}: pass 0 to {count - 1}, or -1 to "
                f"{-count} counted from the last"
            )
        for module in self.resblocks[: block % count + 1]:
            x = module(x, at="all")
        return x


class ImageTower(nn.Module):
    """Hold the attributes that both image towers have.

    Attributes:
        resolution: (height, width) of the input in pixels.
        input_resolution: the same by OpenAI's name and in its form, one integer for a square.
        output_dim: D, the width of the feature.
    """

    def __init__(self, resolution: tuple[int, int], output_dim: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.output_dim = output_dim
        height, width = resolution
        self.input_resolution = height if height == width else resolution
