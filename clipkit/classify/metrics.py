"""How good predictions are."""

from torch import Tensor

from clipkit.errors import ConfigError


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of predictions (N,) that equal their labels (N,), 0 to 1. Raises `ConfigError` for other shapes."""
    if predicted.ndim != 1 or predicted.shape != labels.shape or len(labels) == 0:
        raise ConfigError(
            f"accuracy needs two vectors of one length, not {tuple(predicted.shape)}, {tuple(labels.shape)}"
        )
    return (predicted == labels).double().mean().item()


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
