"""Measure how well queries find the keys that belong to them, as images find their captions.

Which keys are right for a query is said by labels: those with the query's label. Labels that are
not given are the numbers of the rows, so without any labels the key of the same row is right. COCO
and Flickr30k have five captions an image. There `image_of_caption`, the row of each caption's
image, says all, in either direction:

    recall_at_k(images, captions, 5, key_labels=image_of_caption)  # images find captions
    recall_at_k(captions, images, 5, query_labels=image_of_caption)  # captions find their image

Labels of both sides, such as classes, make all images of a class right for each other. Similarities
are computed in tiles of bounded memory. Values that are NaN come before all others, and find
nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.classify.metric_inputs import Numbers, as_tensor, check_indices, is_count
from clipkit.classify.precision import as_float64
from clipkit.errors import ConfigError

# Similarities that are computed at once; to rank them takes some hundred megabytes.
TILE = 2**20
_REMEDY = "; say by query_labels or key_labels which keys are right where the rows are no pairs"


def recall_at_k(
    queries: Numbers,
    keys: Numbers,
    k: int = 1,
    *,
    query_labels: Numbers | None = None,
    key_labels: Numbers | None = None,
) -> float:
    """Return the share of queries that find a right key among the k most similar ones, 0 to 1.

    One right key is enough, as papers on image and text retrieval count it. A query without any
    right key finds none, and counts as a miss.

    Example:
        >>> images = [[1.0, 0.0], [0.0, 1.0]]
        >>> captions = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
        >>> recall_at_k(images, captions, key_labels=[0, 0, 1])
        0.5
        >>> recall_at_k(captions, images, query_labels=[0, 1, 0])
        1.0

    Args:
        queries, keys: (N, D) and (M, D) features of unit length. A wrong key that is as similar as
            the best right one counts before it.
        k: at least 1; more than M is as good as M.
        query_labels: (N,) integers of at least 0, by default the row of each query. Without
            `key_labels` they are rows of `keys`.
        key_labels: (M,) integers of at least 0, by default the row of each key. Without
            `query_labels` they are rows of `queries`.

    Raises:
        ConfigError: if features, labels or k are not as above, if without labels N is not M, or if
            no query has a right key.
    """
    name = "recall_at_k"
    queries, keys = as_tensor(name, queries), as_tensor(name, keys)
    has_labels = query_labels is not None or key_labels is not None
    if not is_count(k) or not (has_labels or _are_pairs(queries, keys)):
        raise ConfigError(
            f"{name} needs queries and keys of one shape (N, D) and k of at least 1, not "
            f"{tuple(queries.shape)}, {tuple(keys.shape)} and k={k!r}{_REMEDY}"
        )
    pairing = _pair(name, queries, keys, query_labels, key_labels)
    # Numbers, no tensors, are kept of each tile: small tensors would keep its memory in use.
    hits = sum(int(_are_found(*tile, k).sum()) for tile in _tiles(pairing))
    return hits / len(queries)


def mean_average_precision(
    queries: Numbers,
    keys: Numbers,
    *,
    query_labels: Numbers | None = None,
    key_labels: Numbers | None = None,
) -> float:
    """Return how far ahead of the wrong keys the right ones stand, averaged over queries, 0 to 1.

    The average precision of a query is the mean over its right keys of this share: of the keys that
    are at least as similar as this one, how many are right? So keys of equal similarity are found
    together, as scikit-learn's `average_precision_score` has it, and features that are all the same
    score the share of right keys. A query without any right key scores 0.

    Example:
        >>> images = [[1.0, 0.0], [0.0, 1.0]]
        >>> captions = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]
        >>> mean_average_precision(images, captions, key_labels=[0, 0, 1])  # (5/6 + 1/2) / 2
        0.6666666666666666

    Args:
        queries, keys, query_labels, key_labels: as in `recall_at_k`.

    Raises:
        ConfigError: as `recall_at_k` does.
    """
    name = "mean_average_precision"
    queries, keys = as_tensor(name, queries), as_tensor(name, keys)
    has_labels = query_labels is not None or key_labels is not None
    if not (has_labels or _are_pairs(queries, keys)):
        raise ConfigError(
            f"{name} needs queries and keys of one shape (N, D), not {tuple(queries.shape)}, "
            f"{tuple(keys.shape)}{_REMEDY}"
        )
    pairing = _pair(name, queries, keys, query_labels, key_labels)
    sums = [_average_precisions(*tile).sum().item() for tile in _tiles(pairing)]
    return math.fsum(sums) / len(queries)


@dataclass(frozen=True)
class _Pairing:
    """Hold queries (N, D) and keys (M, D), and labels (N,) and (M,) that are equal where right."""

    queries: Tensor
    keys: Tensor
    query_labels: Tensor
    key_labels: Tensor


def _are_pairs(queries: Tensor, keys: Tensor) -> bool:
    """Return whether these are rows of features of one shape."""
    return queries.ndim == 2 and queries.shape == keys.shape and len(queries) > 0


def _pair(
    name: str,
    queries: Tensor,
    keys: Tensor,
    query_labels: Numbers | None,
    key_labels: Numbers | None,
) -> _Pairing:
    """Return features in one dtype, and labels, checked and on one device."""
    fits = queries.ndim == keys.ndim == 2 and queries.shape[1] == keys.shape[1]
    if not fits or len(queries) == 0 or len(keys) == 0:
        raise ConfigError(
            f"{name} needs queries (N, D) and keys (M, D), not empty, not {tuple(queries.shape)}, "
            f"{tuple(keys.shape)}"
        )
    for features in (queries, keys):
        if features.is_complex():
            raise ConfigError(f"{name} needs features of real numbers, not {features.dtype}")
    if not queries.is_floating_point():
        queries = as_float64(queries)
    # Labels of one side are rows of the other. Labels of both may be any classes.
    both = query_labels is not None and key_labels is not None
    most_queries, most_keys = (math.inf, math.inf) if both else (len(queries), len(keys))
    of_queries = _read_labels(name, "query_labels", query_labels, len(queries), most_keys)
    of_keys = _read_labels(name, "key_labels", key_labels, len(keys), most_queries)
    if not torch.isin(of_queries, of_keys).any():
        raise ConfigError(
            f"{name} needs a right key for one query at least, but no label of the queries "
            f"({_shown(of_queries)}) is one of the keys ({_shown(of_keys)})"
        )
    device = queries.device
    # Half precision would make neighbors equal.
    dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    return _Pairing(
        queries.to(dtype), keys.to(device, dtype), of_queries.to(device), of_keys.to(device)
    )


def _read_labels(name: str, what: str, given: Numbers | None, rows: int, count: float) -> Tensor:
    """Return labels (rows,) int64 on the CPU, each 0 to count - 1; by default the row numbers."""
    if given is None:
        return torch.arange(rows, device="cpu")
    labels = as_tensor(name, given).cpu()
    if labels.shape != (rows,):
        raise ConfigError(f"{name} needs {what} of shape ({rows},), not {tuple(labels.shape)}")
    check_indices(name, what, labels, count)
    return labels.long()


def _shown(labels: Tensor) -> str:
    """Return the range of labels in words."""
    return f"{labels.min().item()} to {labels.max().item()}"


def _tiles(pairing: _Pairing) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield similarities (T, M) of a run of queries, and which keys are right for them (T, M)."""
    rows = max(1, TILE // len(pairing.keys))
    for start in range(0, len(pairing.queries), rows):
        run = slice(start, start + rows)
        with torch.autocast(pairing.keys.device.type, enabled=False):
            scores = pairing.queries[run] @ pairing.keys.T  # (T, D) @ (D, M) -> (T, M)
        yield scores, pairing.query_labels[run, None] == pairing.key_labels


def _are_found(scores: Tensor, is_right: Tensor, k: int) -> Tensor:
    """Return for each row (T, M) whether one of the right keys is among the k highest, (T,)."""
    is_right = is_right & ~scores.isnan()  # so a right key that is NaN takes a place, as all NaN do
    best = scores.masked_fill(~is_right, -math.inf).amax(dim=1, keepdim=True)  # (T, 1)
    ahead = (~(scores < best) & ~is_right).sum(dim=1)  # (T,)
    return (ahead < k) & is_right.any(dim=1)


def _average_precisions(scores: Tensor, is_right: Tensor) -> Tensor:
    """Return the average precision of each row (T, M), (T,) float64."""
    is_nan = scores.isnan()
    ranked, order = scores.masked_fill(is_nan, math.inf).sort(dim=1, descending=True)
    is_hit = (is_right & ~is_nan).gather(1, order)  # (T, M)
    rows, places = is_hit.nonzero(as_tuple=True)  # (P,) each, of the right keys
    ends = _last_equals(ranked)[rows, places]  # (P,)
    hits = is_hit.cumsum(dim=1)[rows, ends]  # (P,)
    precisions = as_float64(hits) / as_float64(ends + 1)
    counts = as_float64(is_right.sum(dim=1))  # (T,)
    sums = torch.zeros_like(counts).index_add(0, rows.to(counts.device), precisions)
    return sums / counts.clamp(min=1)


def _last_equals(ranked: Tensor) -> Tensor:
    """Return the last place with the same value as each place of sorted rows, (T, M) int64."""
    places = torch.arange(ranked.shape[1], device=ranked.device)
    is_last = torch.ones_like(ranked, dtype=torch.bool)
    is_last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    return places.where(is_last, len(places)).flip(1).cummin(dim=1).values.flip(1)
