"""Rows of token ids as a tree of prefixes, in which causal attention computes once what rows begin with alike.

In sorted order each row begins with some of the row before it and goes on with tokens of its own. These become nodes,
numbered as they come; a node's ancestors are the tokens before it in its row, which are all that it may attend to. What
works token by token (norms, projections, MLPs) runs once per node, without padding. For attention, nodes are gathered
into small groups of neighbours, each with its ancestors beside it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GROUP = 48  # nodes that attend together: more, and most of a group is masked; fewer, and ancestors are repeated more often


@dataclass(frozen=True)
class Prefixes:
    """A tree of P nodes with R leaves.

    Attributes:
        ids, positions: (P,) each node's token, and its place in its row.
        leaves: (R,) the node at which each row ends.
        groups: (G, S) nodes that attend together, filled up with node 0.
        mask: (G, 1, S, S) bool, whether the query, third axis, sees the key, last axis.
        places: (P,) where each node is found in the flattened groups.
    """

    ids: Tensor
    positions: Tensor
    leaves: Tensor
    groups: Tensor
    mask: Tensor
    places: Tensor


def sort_rows(tokens: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in order, -1 after their ends, and for each given row its place among them.

    `tokens` are ids (N, L); what follows each row's end, a position of (N,), counts for nothing.
    """
    tokens = np.where(np.arange(tokens.shape[1]) <= ends[:, None], tokens, -1)
    order = np.lexsort(tokens.T[::-1])  # many times faster than np.unique over an axis
    tokens = tokens[order]
    new = np.concatenate([[True], (tokens[1:] != tokens[:-1]).any(axis=1)])
    places = np.empty(len(order), np.int64)
    places[order] = np.cumsum(new) - 1
    return tokens[new], places


def cut(rows: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Bounds of runs of sorted rows whose trees have at most `size` nodes each, but for single rows that are longer."""
    lengths, own = _count(rows)
    bounds, nodes = [0], 0
    for row, (alone, more) in enumerate(zip(lengths.tolist(), own.tolist(), strict=True)):
        nodes += more
        if nodes > size and row > bounds[-1]:
            bounds.append(row)
            nodes = alone
    return list(zip(bounds, [*bounds[1:], len(rows)], strict=True))


def grow(rows: np.ndarray, device: torch.device) -> Prefixes:
    """The tree of sorted, distinct rows (R, L), -1 after their ends."""
    lengths, own = _count(rows)
    columns = np.arange(rows.shape[1])
    owners, positions = np.nonzero(
        (columns >= (lengths - own)[:, None]) & (columns < lengths[:, None])
    )  # (P,) each
    nodes = np.arange(len(owners))
    path = np.zeros(rows.shape, np.int64)  # the node of each row at each position
    path[owners, positions] = nodes
    path = np.maximum.accumulate(
        path, axis=0
    )  # a row goes through the latest node of each position that it shares
    first = np.cumsum(own) - own  # (R,) of the nodes that are each row's own

    bounds = cut(rows, GROUP)
    members = [
        np.concatenate(
            [
                path[start, : positions[first[start]]],
                nodes[first[start] : first[stop - 1] + own[stop - 1]],
            ]
        )
        for start, stop in bounds
    ]
    width = max(map(len, members))
    groups, filled = (
        np.zeros((len(members), width), np.int64),
        np.zeros((len(members), width), bool),
    )
    places = np.empty(len(nodes), np.int64)
    for group, inside in enumerate(
        members
    ):  # a shared ancestor ends at its last place; all of them hold the same
        groups[group, : len(inside)], filled[group, : len(inside)] = inside, True
        places[inside] = group * width + np.arange(len(inside))
    query, key = groups[:, :, None], groups[:, None, :]
    mask = (
        (path[owners[query], positions[key]] == key)
        & (positions[key] <= positions[query])
        & filled[:, None, :]
    )
    mask |= np.eye(
        width, dtype=bool
    )  # what only fills up sees itself: of nothing at all, the softmax is NaN
    arrays = (
        rows[owners, positions],
        positions,
        path[np.arange(len(rows)), lengths - 1],
        groups,
        mask[:, None],
        places,
    )
    return Prefixes(*(torch.from_numpy(array).to(device) for array in arrays))


def _count(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each row (R,), and how many of them are its own and not of the row before it too."""
    lengths = (rows >= 0).sum(axis=1)
    shared = np.cumprod(rows[1:] == rows[:-1], axis=1).sum(axis=1)
    return lengths, lengths - np.concatenate([[0], shared])
