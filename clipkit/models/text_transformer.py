"""The causal text transformer of CLIP, pooled at the end-of-text token (2103.00020)."""

import torch
from torch import Tensor, nn

from clipkit.config import Activation
from clipkit.models.kernels import values_are_known
from clipkit.models.layers import Transformer
from clipkit.models.prefixes import cut, grow, sort_rows

# Nodes of a tree that are computed at once. On a CPU more would fall out of its cache; a card needs
# more to be busy.
CPU_NODES = 1024
CUDA_NODES = 16384


class TextTransformer(nn.Module):
    """Turn token ids into text features.

    The feature is read at the end-of-text token, where it occurs first. Attention is causal, so
    nothing after that token can matter, and nothing after the last one of the batch is computed.
    Without gradients only the tree of the rows' prefixes is computed (see
    `clipkit.models.prefixes`), in parts of bounded memory. While a graph is recorded, its shapes
    must not depend on the data, and everything is computed.

    Args:
        context_length: length of the longest row of ids.
        vocab_size: how many tokens there are.
        width, layers, heads, mlp_width, activation: of the transformer; `mlp_width` is the hidden
            width of its MLPs.
        output_dim: D, the width of the feature.
        end_of_text: the id of the end-of-text token; None for the highest id of each row.
    """

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        activation: Activation,
        output_dim: int,
        end_of_text: int | None = None,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.output_dim = output_dim
        self.end_of_text = end_of_text
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Transformer(width, layers, heads, mlp_width, activation, causal=True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, output_dim))
        self.initialize()

    def initialize(self) -> None:
        """Draw new embeddings and a new projection, as in CLIP. The transformer does its own."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.text_projection.shape[0] ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (N, L), L at most `context_length`, to features (N, output_dim)."""
        if not values_are_known(tokens):
            return self._encode_rows(tokens)
        if tokens.shape[0] > 1 and not torch.is_grad_enabled():
            return self._encode_prefixes(tokens)
        if tokens.shape[0] > 0:
            last_end = int(self.find_ends(tokens).max())
            tokens = tokens[:, : last_end + 1]
        return self._encode_rows(tokens)

    def find_ends(self, tokens: Tensor) -> Tensor:
        """Return the position of the end-of-text token of each row: (N, L) -> (N,) int64.

        That is 0 in a row that has none, unless the highest id counts.
        """
        if self.end_of_text is None:
            return tokens.argmax(dim=-1)
        return (tokens == self.end_of_text).int().argmax(dim=-1)  # the first of several

    def _encode_rows(self, tokens: Tensor) -> Tensor:
        """Compute every token: (N, L) -> (N, D)."""
        tokens = tokens.to(self.token_embedding.weight.device)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]  # (N, L, W)
        x = self.transformer(x, at=self.find_ends(tokens))  # (N, W)
        return self._project(x)

    def _encode_prefixes(self, tokens: Tensor) -> Tensor:
        """Compute the tree of the rows' prefixes: (N, L) -> (N, D)."""
        device = self.token_embedding.weight.device
        ids = tokens.cpu().numpy()
        # As `find_ends`, but many times as fast as torch on a CPU.
        ends = (ids if self.end_of_text is None else ids == self.end_of_text).argmax(axis=1)
        rows, places = sort_rows(ids, ends)  # (distinct rows, L), (N,)
        parts: list[Tensor] = []
        for start, stop in cut(rows, CPU_NODES if device.type == "cpu" else CUDA_NODES):
            tree = grow(rows[start:stop], device)
            x = self.token_embedding(tree.ids) + self.positional_embedding[tree.positions]  # (P, W)
            x = self.transformer(x, at=tree.leaves, tree=tree)  # (R, W)
            parts.append(self._project(x))
        return torch.cat(parts)[torch.from_numpy(places).to(device)]  # (distinct rows, D) -> (N, D)

    def _project(self, x: Tensor) -> Tensor:
        return self.ln_final(x) @ self.text_projection  # (..., W) -> (..., D)
