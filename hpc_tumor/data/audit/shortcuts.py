"""Shortcuts: facts that predict an image's class without the brain (modes, sizes, crops, borders, file sizes).

A small decision tree uses one kind of fact. It is cross-validated on one image per group of duplicates, to exclude
memorised images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.audit.images import ImageScan
from hpc_tumor.data.store.store import Store

FOLDS = 5
DEPTH = 6
LEAST = 5  # images per leaf
NOTABLE = 0.10  # difference to the majority's accuracy

_Floats = NDArray[np.float64]
_Tree = int | tuple[int, float, Any, Any]  # a class, or (feature, threshold, below, above)


@dataclass(frozen=True)
class Shortcut:
    """Accuracy of predicting the class from one kind of fact.

    Attributes:
        sees: the facts that the tree may use.
        accuracy: cross-validated.
        majority: accuracy of always choosing the largest class.
        images: number of images.
    """

    name: str
    sees: str
    accuracy: float
    majority: float
    images: int

    @property
    def notable(self) -> bool:
        """True if the fact is clearly better than the majority."""
        return self.accuracy > self.majority + NOTABLE


def find_shortcuts(store: Store, scan: ImageScan) -> tuple[Shortcut, ...]:
    """Evaluate every kind of fact, and all together; empty if there are too few images to cross-validate."""
    rows = np.unique(store.group, return_index=True)[1]
    label = store.label[rows]
    if len(rows) < FOLDS * LEAST or len(np.unique(label)) < 2:
        return ()
    kinds = file_facts(store, scan)
    everything = np.concatenate([values for _, _, values in kinds], axis=1)
    kinds.append(("all of these", "all of the above", everything))
    fold = np.random.default_rng(0).permutation(len(rows)) % FOLDS
    majority = float(np.bincount(label).max() / len(label))
    return tuple(
        Shortcut(name, sees, cross_validate(values[rows], label, fold), majority, len(rows))
        for name, sees, values in kinds
    )


def cross_validate(values: _Floats, label: NDArray[np.int64], fold: NDArray[np.int64]) -> float:
    """Return the accuracy of trees of depth `DEPTH`, each on its held-out fold."""
    right = 0
    classes = int(label.max()) + 1
    for number in np.unique(fold):
        seen, rest = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        tree = _grow(values, label, seen, classes, DEPTH)
        right += int((_predict(tree, values, rest) == label[rest]).sum())
    return right / len(label)


def file_facts(store: Store, scan: ImageScan) -> list[tuple[str, str, _Floats]]:
    """Return each kind of fact: its name, what it sees, and `(n, facts)` values of all images.

    Sizes are logarithms, since they differ by factors.
    """
    mode = np.array(store.text_column("mode"))
    height, width = store.sizes.astype(np.float64).T
    left, top, right, bottom = store.boxes.astype(np.float64).T
    area = height * width
    size = np.array(store.text_column("bytes"), dtype=np.float64)
    crop = [left / width, top / height, 1 - right / width, 1 - bottom / height, (right - left) * (bottom - top) / area,
            (right - left) / np.maximum(bottom - top, 1)]  # fmt: skip
    return [
        ("mode", "the mode of the file (L, RGB …)", np.stack([mode == name for name in np.unique(mode)], 1) * 1.0),
        ("size", "height, width and aspect of the file", np.stack([np.log(height), np.log(width), width / height], 1)),
        ("crop", "position of the head in the image", np.stack(crop, 1)),
        ("border", "brightness of the outermost pixels and corners", scan.frame.astype(np.float64)),
        ("file size", "bytes of the file, and per pixel", np.log(np.stack([size, size / area], 1))),
    ]


def _grow(values: _Floats, label: NDArray[np.int64], rows: NDArray[np.int64], classes: int, depth: int) -> _Tree:
    counts = np.bincount(label[rows], minlength=classes)
    cut = _best_cut(values[rows], label[rows], classes) if depth and counts.max() < len(rows) else None
    if cut is None:
        return int(counts.argmax())
    feature, threshold = cut
    below = values[rows, feature] <= threshold
    low, high = (_grow(values, label, rows[side], classes, depth - 1) for side in (below, ~below))
    return feature, threshold, low, high


def _best_cut(values: _Floats, label: NDArray[np.int64], classes: int) -> tuple[int, float] | None:
    """Return the feature and threshold with the purest sides (Gini), each with at least `LEAST` images."""
    n = len(label)
    best: tuple[float, int, float] | None = None
    for feature in range(values.shape[1]):
        order = np.argsort(values[:, feature], kind="stable")
        ordered = values[order, feature]
        places = np.flatnonzero(ordered[1:] > ordered[:-1]) + 1
        places = places[(places >= LEAST) & (places <= n - LEAST)]
        if not len(places):
            continue
        below = np.cumsum(np.eye(classes)[label[order]], axis=0)[places - 1]
        above = np.bincount(label, minlength=classes) - below
        purity = (below**2).sum(1) / places + (above**2).sum(1) / (n - places)
        at = int(purity.argmax())
        if best is None or purity[at] > best[0]:
            best = (float(purity[at]), feature, float(ordered[places[at] - 1] + ordered[places[at]]) / 2)
    return best[1:] if best else None


def _predict(tree: _Tree, values: _Floats, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if isinstance(tree, int):
        return np.full(len(rows), tree)
    feature, threshold, below, above = tree
    left = values[rows, feature] <= threshold
    return np.where(left, _predict(below, values, rows), _predict(above, values, rows))
