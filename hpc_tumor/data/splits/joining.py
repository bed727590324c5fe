"""Joining what belongs together, directly or through others: connected components of pairs, or of shared keys."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MOST_EDGES = 2_000_000  # kept before they are brought down to a number per group

Pairs = NDArray[np.int64]


def join_groups(groups: ArrayLike, batches: Iterable[Pairs]) -> NDArray[np.int32]:
    """`(n,)`: the `groups` `(n,)` joined further by pairs of things, counted from 0 in order of appearance.

    The `batches` of pairs `(m, 2)` are taken one after the other: the memory does not grow with their number.
    """
    numbers = _by_appearance(np.asarray(groups))
    edges: list[Pairs] = []
    for pairs in batches:
        edges.append(pairs)
        if sum(map(len, edges)) > MOST_EDGES:
            numbers, edges = _components(numbers, edges), []
    return _by_appearance(_components(numbers, edges))


def group_connected(keys: Sequence[set[Hashable]]) -> list[list[int]]:
    """Things numbered as in `keys` that share a key, directly or through others: each thing is in one list."""
    first: dict[Hashable, int] = {}
    pairs = [(first.setdefault(key, thing), thing) for thing, own in enumerate(keys) for key in own]
    numbers = join_groups(np.arange(len(keys)), [np.array(pairs, np.int64).reshape(-1, 2)])
    sets: list[list[int]] = [[] for _ in range(int(numbers.max(initial=-1)) + 1)]
    for thing, number in enumerate(numbers.tolist()):
        sets[number].append(thing)
    return sets


def _components(groups: NDArray[np.int32], edges: list[Pairs]) -> NDArray[np.int32]:
    """`groups` of things joined further by `edges` between things."""
    if not edges:
        return groups
    i, j = groups[np.concatenate(edges).T]
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(len(groups), len(groups)))
    return connected_components(graph, directed=False)[1][groups].astype(np.int32)


def _by_appearance(groups: NDArray[np.generic]) -> NDArray[np.int32]:
    """The same groups, numbered from 0 in the order in which they appear."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
