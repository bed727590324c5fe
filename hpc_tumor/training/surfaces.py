"""Distances between surfaces: HD95 and normalised surface Dice (NSD) of one case, by the surface-distance package.

Both are weighted by the area of the surface elements (Nikolov 2021, arXiv 1809.04430), as the BraTS challenges have
scored since 2023. Empty structures are decided here, before any library sees them, as BraTS scores them: both empty is
right (HD95 0, NSD 1); one of them empty is as wrong as can be (HD95 the diagonal of the volume, 373.13 mm for
240 × 240 × 155 voxels of 1 mm; NSD 0).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from types import ModuleType
from typing import cast

import numpy as np

from hpc_tumor.training.metrics import PREDICTIONS, STRUCTURES
from hpc_tumor.training.volumes import box

TOLERANCE = 1.0  # mm, of the NSD


def method() -> str:
    """What measured these scores, in words."""
    return f"surface-distance {version('surface-distance')}, NSD at {TOLERANCE:g} mm"


def case_surfaces(codes: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """HD95 in mm and NSD of every structure of a case.

    Args:
        codes: `(Z, Y, X)` uint8, true label × 8 + predicted bits of each voxel, as `metrics.label_codes` gives them.
        spacing: mm between voxels along z, y, x.

    Returns:
        `(structures, 2)` float64.
    """
    truth, predicted = masks(codes)
    found = np.array([surface_scores(truth[name], predicted[name], spacing) for name in STRUCTURES])
    found[np.isnan(found)] = diagonal(codes.shape, spacing)
    return found


def masks(codes: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """True and predicted voxels of every structure, cropped to where any of them are: boolean arrays of one shape."""
    # One background voxel all around keeps a surface at the border a surface.
    some = np.pad(codes[box(codes != 0)], 1)
    tables = {name: _tables(members) for name, members in STRUCTURES.items()}
    truth = {name: table[some] for name, (table, _) in tables.items()}
    predicted = {name: table[some] for name, (_, table) in tables.items()}
    return truth, predicted


def surface_scores(truth: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """HD95 in mm and NSD of two boolean `(Z, Y, X)` masks; not-a-number where one of them alone is empty."""
    library = _library()
    there, given = bool(truth.any()), bool(predicted.any())
    if not there and not given:
        return 0.0, 1.0
    if there != given:
        return float("nan"), 0.0
    if np.array_equal(truth, predicted):
        return 0.0, 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the library's own use of SciPy
        distances = library.compute_surface_distances(truth, predicted, tuple(spacing))
    hd95 = library.compute_robust_hausdorff(distances, 95)
    return float(hd95), float(library.compute_surface_dice_at_tolerance(distances, TOLERANCE))


@cache
def _library() -> ModuleType:
    """The surface-distance package, with a faster sort in the place of its own.

    That one makes three Python objects of each surface element: a third of the time for a tumour, and minutes and
    gigabytes for a network that predicts noise.
    """
    from surface_distance import metrics

    if hasattr(metrics, "_sort_distances_surfels"):
        metrics._sort_distances_surfels = _by_distance
    return cast(ModuleType, metrics)


def _by_distance(distances: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in the order of distance; where that is equal, of area."""
    order = np.lexsort((areas, distances))
    return distances[order], areas[order]


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length in mm of the diagonal of a volume: the HD95 of a structure that was missed or made up."""
    return float(np.linalg.norm(np.asarray(shape, dtype=np.float64) * np.asarray(spacing, dtype=np.float64)))


def _tables(members: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each code whether it is true, and whether it is predicted."""
    codes = np.arange(256)
    wanted = sum(1 << (label - 1) for label in members)
    return np.isin(codes // PREDICTIONS, members), (codes % PREDICTIONS & wanted) > 0
