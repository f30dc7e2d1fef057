"""How good predictions are."""

from torch import Tensor

from clipkit.errors import ConfigError


def recall_at_k(queries: Tensor, keys: Tensor, k: int = 1) -> float:
    """Share of queries whose own key, the one of the same row, is among the k most similar ones.

    Args:
        queries, keys: (N, D) features, normalised. A key that is as similar as the own one counts before it.
        k: at least 1.

    Raises:
        ConfigError: for other shapes or k.
    """
    if queries.ndim != 2 or queries.shape != keys.shape or len(queries) == 0 or k < 1:
        raise ConfigError(
            f"recall_at_k needs queries and keys of one shape (N, D) and k of at least 1, not {tuple(queries.shape)}, "
            f"{tuple(keys.shape)} and k={k}"
        )
    similarity = queries @ keys.T  # (N, N)
    better = (~(similarity < similarity.diagonal()[:, None])).sum(dim=1) - 1  # without itself; a NaN is no hit
    return (better < k).double().mean().item()
