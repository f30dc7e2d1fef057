"""clipkit.classify.metrics against plain NumPy."""

import numpy as np
import pytest
import torch

from clipkit.classify.metrics import recall_at_k
from clipkit.errors import ConfigError


def oracle(queries: np.ndarray, keys: np.ndarray, k: int) -> float:
    """One query after the other; all that is as similar as the own key comes before it."""
    hits = 0
    for i, query in enumerate(queries):
        similarity = [float(query @ key) for key in keys]
        rank = sum(value >= similarity[i] for j, value in enumerate(similarity) if j != i)
        hits += rank < k
    return hits / len(queries)


@pytest.mark.parametrize("k", [1, 2, 5, 40, 100])
def test_against_numpy_with_many_ties(k):
    """Small integers, so that products are exact and every other similarity is shared."""
    random = np.random.default_rng(0)
    queries, keys = random.integers(-2, 3, (40, 4)), random.integers(-2, 3, (40, 4))
    for a, b in ((queries, keys), (keys, queries), (queries, queries)):
        result = recall_at_k(torch.tensor(a).float(), torch.tensor(b).float(), k)
        assert result == pytest.approx(oracle(a, b, k), abs=1e-12)


def test_random_features_against_numpy():
    random = np.random.default_rng(1)
    queries = random.normal(size=(60, 8))
    keys = queries + 1.5 * random.normal(size=(60, 8))
    ranks = (1, 2, 3, 5, 10, 20)
    expected = [oracle(queries, keys, k) for k in ranks]
    assert [recall_at_k(torch.tensor(queries), torch.tensor(keys), k) for k in ranks] == pytest.approx(expected)
    assert expected != pytest.approx([oracle(keys, queries, k) for k in ranks])  # so a transpose would show


def test_known_answers():
    unit = torch.eye(4)
    assert recall_at_k(unit, unit) == 1 and isinstance(recall_at_k(unit, unit), float)
    assert recall_at_k(unit, unit.roll(1, 0)) == 0
    assert recall_at_k(unit[[0, 0, 2, 3]], unit[[0, 0, 2, 3]]) == 0.5  # two keys alike: neither query finds its own
    assert recall_at_k(torch.ones(4, 2), torch.ones(4, 2), 3) == 0  # a collapsed model finds nothing


def test_nothing_is_found_among_nan():
    assert recall_at_k(torch.full((4, 2), torch.nan), torch.full((4, 2), torch.nan), 3) == 0


@pytest.mark.parametrize(
    ("queries", "keys", "k", "message"),
    [
        ((3, 2), (4, 2), 1, r"not \(3, 2\), \(4, 2\) and k=1"),
        ((3,), (3,), 1, r"not \(3,\), \(3,\)"),
        ((0, 2), (0, 2), 1, r"not \(0, 2\)"),
        ((3, 2), (3, 2), 0, "k=0"),
    ],
)
def test_refuses_other_shapes(queries, keys, k, message):
    with pytest.raises(ConfigError, match=message):
        recall_at_k(torch.ones(queries), torch.ones(keys), k)
