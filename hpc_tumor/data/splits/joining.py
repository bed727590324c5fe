"""Connected components of pairs, or of shared keys."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

MOST_EDGES = 2_000_000  # in memory before they are reduced to group numbers

Pairs = NDArray[np.int64]


def join_groups(groups: ArrayLike, batches: Iterable[Pairs]) -> NDArray[np.int32]:
    """Merge the `groups` `(n,)` by pairs of items; return `(n,)` group numbers from 0 in order of appearance.

    The `batches` of pairs `(m, 2)` are processed one by one: memory does not grow with their number.
    """
    numbers = _by_appearance(np.asarray(groups))
    edges: list[Pairs] = []
    for pairs in batches:
        edges.append(pairs)
        if sum(map(len, edges)) > MOST_EDGES:
            numbers, edges = _components(numbers, edges), []
    return _by_appearance(_components(numbers, edges))


def group_connected(keys: Sequence[set[Hashable]]) -> list[list[int]]:
    """Group the items of `keys` that share a key, directly or through others; return the item numbers per group."""
    first: dict[Hashable, int] = {}
    pairs = [(first.setdefault(key, item), item) for item, own in enumerate(keys) for key in own]
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    numbers = join_groups(np.arange(len(keys)), [np.array(pairs, np.int64).reshape(-1, 2)])
    groups: list[list[int]] = [[] for _ in range(int(numbers.max(initial=-1)) + 1)]
    for item, number in enumerate(numbers.tolist()):
        groups[number].append(item)
    return groups


def _components(groups: NDArray[np.int32], edges: list[Pairs]) -> NDArray[np.int32]:
    if not any(map(len, edges)):
        return groups
    i, j = groups[np.concatenate(edges).T]
    graph = scipy.sparse.coo_array((np.ones(len(i), np.int8), (i, j)), shape=(len(groups), len(groups)))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1][groups].astype(np.int32)


def _by_appearance(groups: NDArray[np.generic]) -> NDArray[np.int32]:
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
