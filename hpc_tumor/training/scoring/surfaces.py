"""Distances between surfaces: HD95 and normalised surface Dice (NSD) of one case, by the surface-distance package.

Both are weighted by the area of the surface elements (Nikolov 2021, arXiv 1809.04430), as the BraTS challenges have
scored since 2023. Empty structures are decided here, before any library sees them, as BraTS scores them: both empty is
right (HD95 0, NSD 1); one of them empty is as wrong as can be (HD95 the diagonal of the volume, 373.13 mm for
240 × 240 × 155 voxels of 1 mm; NSD 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from hpc_tumor.training.scoring.metrics import MEMBERS, PREDICTIONS
from hpc_tumor.training.scoring.volumes import box

TOLERANCE = 1.0  # mm, of the NSD
_SEARCH = 30  # voxels of a map of distances in the time that a search takes for one point


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
    found = np.array([surface_scores(truth[name], predicted[name], spacing) for name in MEMBERS])
    found[np.isnan(found)] = diagonal(codes.shape, spacing)
    return found


def masks(codes: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """True and predicted voxels of every structure, cropped to where any of them are: boolean arrays of one shape."""
    some = codes[box(codes != 0)]
    tables = {name: _tables(members) for name, members in MEMBERS.items()}
    truth = {name: table[some] for name, (table, _) in tables.items()}
    predicted = {name: table[some] for name, (_, table) in tables.items()}
    return truth, predicted


def surface_scores(truth: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """HD95 in mm and NSD of two boolean `(Z, Y, X)` masks; not-a-number where one of them alone is empty."""
    from surface_distance import metrics as library

    there, given = bool(truth.any()), bool(predicted.any())
    if not there and not given:
        return 0.0, 1.0
    if there != given:
        return float("nan"), 0.0
    if np.array_equal(truth, predicted):
        return 0.0, 1.0
    distances = surface_distances(truth, predicted, spacing)
    hd95 = library.compute_robust_hausdorff(distances, 95)
    return float(hd95), float(library.compute_surface_dice_at_tolerance(distances, TOLERANCE))


def surface_distances(truth: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:
    """What `surface_distance.compute_surface_distances` gives of two masks that are not empty, to the bit.

    With its elements of surface and their areas, but without its two slow parts. It measures from every voxel of the
    box around both masks, which a few false voxels far away make the whole volume; and it sorts objects of Python.
    """
    within = box(truth | predicted)
    surfaces = [_surface(np.pad(mask[within], 1), tuple(spacing)) for mask in (truth, predicted)]
    found: dict[str, np.ndarray] = {}
    for index, (name, other) in enumerate((("gt", "pred"), ("pred", "gt"))):
        (points, areas), (others, _) = surfaces[index], surfaces[1 - index]
        distances = _nearest(points, others, spacing)
        order = np.lexsort((areas, distances))
        found |= {f"distances_{name}_to_{other}": distances[order], f"surfel_areas_{name}": areas[order]}
    return found


def _surface(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Corners of voxels `(n, 3)` that lie on the surface of a mask with background around it, and areas `(n,)`."""
    codes = mask.view(np.uint8)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):  # a bit for each of the eight voxels at a corner
        before, after = codes.swapaxes(0, axis)[:-1], codes.swapaxes(0, axis)[1:]
        codes = (before << np.uint8(shift) | after).swapaxes(0, axis)
    at = np.flatnonzero((codes != 0) & (codes != 255))
    return np.stack(np.unravel_index(at, codes.shape), 1), _areas(spacing)[codes.ravel()[at]]


@cache
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """`(256,)` area in mm² of the surface between eight voxels, by which of them are in the mask."""
    from surface_distance import lookup_tables

    table: np.ndarray = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    return table


def _nearest(points: np.ndarray, others: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """`(n,)` mm from each of the points `(n, 3)` to the nearest of the others, by a search or a map: what is faster."""
    first = np.minimum(points.min(0), others.min(0))
    shape = np.maximum(points.max(0), others.max(0)) - first + 1
    if _SEARCH * (len(points) + len(others)) > np.prod(shape):
        free = np.ones(shape, dtype=bool)
        free[tuple((others - first).T)] = False
        found: np.ndarray = ndimage.distance_transform_edt(free, sampling=spacing)[tuple((points - first).T)]
        return found
    _, index = KDTree(others * np.asarray(spacing)).query(points * np.asarray(spacing))
    z, y, x = ((others[index] - points) * np.asarray(spacing)).T
    return np.sqrt(z * z + y * y + x * x)  # added up as the map does it


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length in mm of the diagonal of a volume: the HD95 of a structure that was missed or made up."""
    return float(np.linalg.norm(np.asarray(shape, dtype=np.float64) * np.asarray(spacing, dtype=np.float64)))


def _tables(members: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each code whether it is true, and whether it is predicted."""
    codes = np.arange(256)
    wanted = sum(1 << (label - 1) for label in members)
    return np.isin(codes // PREDICTIONS, members), (codes % PREDICTIONS & wanted) > 0
