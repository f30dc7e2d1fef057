"""Turn rows of token ids into a tree of prefixes.

With it, causal attention computes once what several rows begin with.

Sorted rows stand one after another like words in a dictionary: each begins with some of the row
before it and goes on with tokens of its own. The own tokens become the nodes of a tree, numbered
from the first row to the last. A node may attend to itself and to the tokens before it in its row;
these are its ancestors in the tree. Norms, projections and MLPs work token by token, so they run
once per node and without padding. For attention, neighboring nodes are gathered into small groups,
and each group also holds the ancestors of its nodes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# Nodes that attend together. With more, most of a group is masked; with fewer, ancestors are
# repeated more often.
GROUP = 48


@dataclass(frozen=True)
class Prefixes:
    """Hold a tree of P nodes with R leaves.

    Attributes:
        ids: (P,) the token of each node.
        positions: (P,) the place of each node in its row.
        leaves: (R,) the node at which each row ends.
        groups: (G, S) nodes that attend together, filled up with node 0.
        mask: (G, 1, S, S) bool, whether the query (third axis) sees the key (last axis).
        places: (P,) where each node is found in the flattened groups.
    """

    ids: Tensor
    positions: Tensor
    leaves: Tensor
    groups: Tensor
    mask: Tensor
    places: Tensor


def sort_rows(tokens: Integers, ends: Integers) -> tuple[Integers, Integers]:
    """Return the distinct rows in sorted order, and the place of each given row among them.

    Args:
        tokens: ids (N, L).
        ends: (N,) the position at which each row ends; what follows counts for nothing.

    Returns:
        The rows (R, L), -1 after their ends, and the places (N,).
    """
    length: int = tokens.shape[1]
    columns = np.arange(length)
    tokens = np.array(tokens, np.int64)
    tokens[columns > ends[:, None]] = -1
    # Many times faster than np.unique over an axis. lexsort compares by its last key first.
    order = np.lexsort(np.flip(np.transpose(tokens), axis=0))
    tokens = tokens[order]
    is_new = np.concatenate([[True], (tokens[1:] != tokens[:-1]).any(axis=1)])
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(is_new) - 1
    return tokens[is_new], places


def cut(rows: Integers, size: int) -> list[tuple[int, int]]:
    """Cut sorted rows (R, L) into runs.

    Args:
        rows: sorted and distinct, -1 after their ends.
        size: the most nodes that the tree of a run may have. A single row may be longer.

    Returns:
        The first row of each run, and the row after its last.
    """
    lengths, own = _count_tokens(rows)
    starts = [0]
    nodes = 0
    for row, (length, new) in enumerate(zip(lengths.tolist(), own.tolist(), strict=True)):
        nodes += new
        if nodes > size and row > starts[-1]:
            starts.append(row)
            nodes = length  # the first row of a run shares nothing
    return list(zip(starts, [*starts[1:], len(rows)], strict=True))


def grow(rows: Integers, device: torch.device) -> Prefixes:
    """Return the tree of rows.

    Args:
        rows: (R, L), sorted and distinct, -1 after their ends.
        device: where to put its tensors.
    """
    lengths, own = _count_tokens(rows)
    owners, positions = _find_nodes(rows, lengths, own)
    paths = _trace_paths(rows, owners, positions)
    groups, filled = _pad(_gather_groups(rows, own, positions, paths))
    mask = _see(groups, filled, owners, positions, paths)
    arrays = {
        "ids": rows[owners, positions],
        "positions": positions,
        "leaves": paths[np.arange(len(rows)), lengths - 1],
        "groups": groups,
        "mask": mask[:, None],  # (G, S, S) -> (G, 1, S, S)
        "places": _find_places(groups, filled, len(owners)),
    }
    return Prefixes(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})


def _count_tokens(rows: Integers) -> tuple[Integers, Integers]:
    """Return how many tokens each row has, and how many the row before it lacks, (R,) each."""
    lengths = (rows >= 0).sum(axis=1)
    shared = np.zeros(len(rows), np.int64)
    shared[1:] = np.cumprod(rows[1:] == rows[:-1], axis=1).sum(axis=1)
    return lengths, lengths - shared


def _find_nodes(rows: Integers, lengths: Integers, own: Integers) -> tuple[Integers, Integers]:
    """Return the row and the position of each node, (P,) each.

    The nodes are every row's own tokens, which are its last ones.
    """
    length: int = rows.shape[1]
    columns = np.arange(length)
    is_own = (columns >= (lengths - own)[:, None]) & (columns < lengths[:, None])  # (R, L)
    owners, positions = np.nonzero(is_own)
    return owners, positions


def _trace_paths(rows: Integers, owners: Integers, positions: Integers) -> Integers:
    """Return the node of each row at each position, (R, L)."""
    paths = np.zeros(rows.shape, np.int64)
    paths[owners, positions] = np.arange(len(owners))
    # What is not a row's own it shares with the row before, so its node is the latest one there.
    return np.maximum.accumulate(paths, axis=0)


def _gather_groups(
    rows: Integers, own: Integers, positions: Integers, paths: Integers
) -> list[Integers]:
    """Return the nodes of each group.

    They are the nodes of a run of rows, and before them the ancestors of its first node.
    """
    stop_nodes = np.cumsum(own)  # (R,) the node after each row's own
    first_nodes = stop_nodes - own  # (R,)
    members: list[Integers] = []
    for start, stop in cut(rows, GROUP):
        first, after = int(first_nodes[start]), int(stop_nodes[stop - 1])
        ancestors = paths[start, : positions[first]]
        members.append(np.concatenate([ancestors, np.arange(first, after)]))
    return members


def _pad(members: list[Integers]) -> tuple[Integers, Booleans]:
    """Return the groups filled up with node 0, and which places are taken, (G, S) each."""
    size = max(map(len, members))
    groups = np.zeros((len(members), size), np.int64)
    filled = np.zeros((len(members), size), np.bool_)
    for group, nodes in enumerate(members):
        groups[group, : len(nodes)] = nodes
        filled[group, : len(nodes)] = True
    return groups, filled


def _see(
    groups: Integers, filled: Booleans, owners: Integers, positions: Integers, paths: Integers
) -> Booleans:
    """Return whether each query of a group sees each key, (G, S, S).

    A node sees those on its row's path, up to itself.
    """
    query = groups[:, :, None]  # (G, S, 1)
    key = groups[:, None, :]  # (G, 1, S)
    on_path = paths[owners[query], positions[key]] == key  # (G, S, S)
    not_later = positions[key] <= positions[query]  # (G, S, S)
    mask = on_path & not_later & filled[:, None, :]
    # A place that only fills up sees itself: the softmax over nothing at all would be NaN.
    return mask | np.eye(groups.shape[1], dtype=np.bool_)


def _find_places(groups: Integers, filled: Booleans, nodes: int) -> Integers:
    """Return where each node is in the flattened groups, (P,).

    A shared ancestor has several places. All hold the same, and the last is returned.
    """
    places = np.empty(nodes, np.int64)
    taken = np.flatnonzero(filled)
    places[groups.ravel()[taken]] = taken
    return places
