"""The causal text transformer of CLIP, pooled at the end-of-text token (2103.00020)."""

import torch
from torch import Tensor, nn

from clipkit.config import Activation
from clipkit.models.kernels import recording
from clipkit.models.layers import Transformer
from clipkit.models.prefixes import cut, grow, sort_rows

TREE = 1024  # nodes computed at once: larger ones fall out of the CPU's cache
CUDA_TREE = 16384  # and of a card that needs more to be busy


class TextTransformer(nn.Module):
    """Token ids to text features.

    The feature is read at the end-of-text token, the highest id of a row (its first occurrence). Attention is causal,
    so nothing after that token can matter. Nothing after the last one of the batch is computed; and without gradients,
    nothing but the tree of the rows' prefixes is (see `clipkit.models.prefixes`), in parts of bounded memory. While a
    graph is recorded, whose shapes must not depend on the data, everything is.

    Args:
        context_length: the longest row of ids.
        vocab_size: number of tokens.
        width, layers, heads, mlp_width, activation: of the transformer; `mlp_width` is the hidden width of its MLPs.
        output_dim: width D of the feature.
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
    ) -> None:
        super().__init__()
        self.context_length, self.vocab_size, self.output_dim = (
            context_length,
            vocab_size,
            output_dim,
        )
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.transformer = Transformer(width, layers, heads, mlp_width, activation, causal=True)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, output_dim))
        self.initialize()

    def initialize(self) -> None:
        """Embeddings and projection as in CLIP; the transformer initializes itself."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.text_projection.shape[0] ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L), L at most `context_length` -> (N, output_dim)."""
        if not (torch.is_grad_enabled() or recording()) and tokens.shape[0] > 1:
            return self._by_prefixes(tokens)
        end = tokens.argmax(dim=-1)  # (N,)
        if not recording() and tokens.shape[0]:
            tokens = tokens[:, : int(end.max()) + 1]
        device, length = self.token_embedding.weight.device, tokens.shape[1]
        tokens, end = tokens.to(device), end.to(device)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]  # (N, L, W)
        return self.ln_final(self.transformer(x, at=end)) @ self.text_projection

    def _by_prefixes(self, tokens: Tensor) -> Tensor:
        ids, device = tokens.cpu().numpy(), self.token_embedding.weight.device
        rows, places = sort_rows(ids, ids.argmax(axis=1))
        parts = []
        for start, stop in cut(rows, TREE if device.type == "cpu" else CUDA_TREE):
            tree = grow(rows[start:stop], device)
            x = self.token_embedding(tree.ids) + self.positional_embedding[tree.positions]  # (P, W)
            parts.append(
                self.ln_final(self.transformer(x, at=tree.leaves, tree=tree)) @ self.text_projection
            )
        return torch.cat(parts)[torch.from_numpy(places).to(device)]  # (distinct rows, D) -> (N, D)
