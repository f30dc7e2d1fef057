"""The causal text transformer of CLIP, pooled at the end-of-text token (2103.00020)."""

from collections.abc import Callable

import numpy as np
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.config import Activation
from clipkit.models.inputs import check_embeddings, check_shared, check_tokens
from clipkit.models.kernels import is_watched, values_are_known
from clipkit.models.layers import Transformer, pick
from clipkit.models.prefixes import Integers, cut, grow, sort_rows

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
    must not depend on the data, and everything is computed. So it is where a program has put hooks
    on the tower's parts: they see every token of every row, (N, L, W).

    Args:
        context_length: length of the longest row of ids.
        vocab_size: how many tokens there are.
        width, layers, heads, mlp_width, activation: of the transformer; `mlp_width` is the hidden
            width of its MLPs.
        output_dim: D, the width of the feature.
        end_of_text: the id of the end-of-text token; None for the highest id of each row.

    Attributes:
        text_projection: (W, D). Set it to None for features before the projection, (N, W).
    """

    text_projection: nn.Parameter | None

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
        if self.text_projection is not None:
            nn.init.normal_(self.text_projection, std=self.text_projection.shape[0] ** -0.5)

    def forward(
        self, tokens: Tensor, embeddings: Tensor | None = None, shared: int | None = None
    ) -> Tensor:
        """Map token ids (N, L), L at most `context_length`, to features (N, output_dim).

        Args:
            tokens: ids, of which the end of text is read alone if there are `embeddings`.
            embeddings: of the tokens, (N, L, W), in the place of those that are looked up.
                Positions are added here.
            shared: how many embeddings at the beginning all rows have in common. They are computed
                once, and their gradients come together in the first row. None is 0; it is the
                default because torch's older ONNX exporter makes tensors of other ones.
        """
        if embeddings is not None:
            check_embeddings(embeddings, tokens, self.transformer.width, "the text tower")
        if shared is not None:
            check_shared(shared, embeddings)
        if any(is_watched(part, tokens) for part in self.children()):
            return self._encode_whole_rows(tokens, embeddings)
        if not values_are_known(tokens):
            return self._encode_rows(tokens, embeddings)
        if embeddings is None and tokens.shape[0] > 1 and not torch.is_grad_enabled():
            ids = tokens.cpu().numpy()
            return self._encode_prefixes(ids, self._ends(ids), self.token_embedding)
        if embeddings is not None and shared and tokens.shape[0] > 1:
            return self._encode_after(shared, tokens, embeddings)
        if tokens.shape[0] > 0:
            length = int(self.find_ends(tokens).max()) + 1
            tokens = tokens[:, :length]
            embeddings = None if embeddings is None else embeddings[:, :length]
        return self._encode_rows(tokens, embeddings)

    def tokens(
        self,
        ids: Tensor,
        *,
        embeddings: Tensor | None = None,
        block: int = -1,
        norm: bool = True,
    ) -> Tensor:
        """Return all tokens of each row after a block, those behind the end of text too.

        The feature is the one at the end of text, after the last block and normed, times
        `text_projection`; `find_ends(ids)` says where that is.

        Args:
            ids: from the model's tokenizer, (N, L) int64 or int32, any device.
            embeddings: (N, L, W), in the place of those of `ids`. Positions are added here.
            block: after which block, from 0; -1 is the last, -2 the one before it.
            norm: pass each token through `ln_final`, as the tower does.

        Returns:
            (N, L, W), on the model's device and in its dtype.

        Raises:
            TokenizerError: for any other shape or dtype, or ids outside the vocabulary.
            ConfigError: if there is no such block.

        Example:
            tokens = model.text.tokens(model.tokenizer(["a cat"]))  # (1, 77, 512) of ViT-B/32
        """
        check_tokens(ids, self, "text.tokens")
        if embeddings is not None:
            check_embeddings(embeddings, ids, self.transformer.width, "text.tokens")
        x = self.transformer.run_to(self._embed(ids, embeddings), block)
        return self.ln_final(x) if norm else x

    def find_ends(self, tokens: Tensor) -> Tensor:
        """Return the position of the end-of-text token of each row: (N, L) -> (N,) int64.

        That is 0 in a row that has none, unless the highest id counts.
        """
        if self.end_of_text is None:
            return tokens.argmax(dim=-1)
        return (tokens == self.end_of_text).int().argmax(dim=-1)  # the first of several

    def _embed(self, tokens: Tensor, embeddings: Tensor | None) -> Tensor:
        """Return the tokens as the first block takes them: (N, L) -> (N, L, W)."""
        looked_up = self.token_embedding(tokens.to(self.positional_embedding.device))
        return choose(looked_up, embeddings) + self.positional_embedding[: tokens.shape[1]]

    def _encode_rows(self, tokens: Tensor, embeddings: Tensor | None) -> Tensor:
        """Compute every token: (N, L) -> (N, D)."""
        x = self._embed(tokens, embeddings)  # (N, L, W)
        ends = self.find_ends(tokens.to(x.device))  # (N,)
        return self._project(self.ln_final(self.transformer(x, at=ends)))

    def _encode_whole_rows(self, tokens: Tensor, embeddings: Tensor | None) -> Tensor:
        """Compute every token in every part of the tower, for hooks to see: (N, L) -> (N, D)."""
        x = self.ln_final(self.transformer(self._embed(tokens, embeddings), at="all"))  # (N, L, W)
        ends = self.find_ends(tokens.to(x.device))  # (N,)
        return self._project(pick(x, ends).squeeze(1))

    def _encode_prefixes(
        self, ids: Integers, ends: Integers, embed: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Compute the tree of the rows' prefixes: (N, L) -> (N, D).

        Args:
            ids: (N, L); equal ids stand for equal embeddings.
            ends: (N,), the position at which each row ends.
            embed: from ids (P,) to embeddings (P, W).
        """
        device = self.positional_embedding.device
        rows, places = sort_rows(ids, ends)  # (distinct rows, L), (N,)
        parts: list[Tensor] = []
        for start, stop in cut(rows, CPU_NODES if device.type == "cpu" else CUDA_NODES):
            tree = grow(rows[start:stop], device)
            x = embed(tree.ids) + self.positional_embedding[tree.positions]  # (P, W)
            x = self.transformer(x, at=tree.leaves, tree=tree)  # (R, W)
            parts.append(self._project(self.ln_final(x)))
        return torch.cat(parts)[torch.from_numpy(places).to(device)]  # (distinct rows, D) -> (N, D)

    def _encode_after(self, shared: int, tokens: Tensor, embeddings: Tensor) -> Tensor:
        """Compute what all rows begin with once: (N, L, W) -> (N, D)."""
        table = choose(self.positional_embedding, embeddings).flatten(0, 1)  # (N x L, W)
        ends = self._ends(tokens.cpu().numpy())
        ids = np.arange(len(table)).reshape(tokens.shape)  # (N, L), each its own
        ids[:, :shared] = ids[:1, :shared]
        return self._encode_prefixes(ids, ends, lambda nodes: F.embedding(nodes, table))

    def _ends(self, ids: Integers) -> Integers:
        """Return what `find_ends` does, many times as fast as torch on a CPU."""
        return (ids if self.end_of_text is None else ids == self.end_of_text).argmax(axis=1)

    def _project(self, x: Tensor) -> Tensor:
        """Project normed tokens: (..., W) -> (..., D)."""
        return x if self.text_projection is None else x @ self.text_projection


@torch.fx.wrap  # so that a symbolic trace, which knows no values, leaves the choice to its caller
def choose(looked_up: Tensor, embeddings: Tensor | None) -> Tensor:
    """Return the embeddings that were given, on the device and in the dtype of those looked up.

    Those that were looked up are returned if none were given.
    """
    return looked_up if embeddings is None else embeddings.to(looked_up)
