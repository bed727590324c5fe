"""Surface scores of one case: HD95 and normalised surface Dice (NSD), as in the surface-distance package.

Both are weighted by the area of the surface elements (Nikolov 2021, arXiv 1809.04430), as in the BraTS challenges since
2023. Empty structures are scored as in BraTS: HD95 0 and NSD 1 if both are empty; if only one is, HD95 is the diagonal
of the volume (373.13 mm for 240 × 240 × 155 voxels of 1 mm) and NSD 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version

import numpy as np
import scipy

from hpc_tumor.vocabulary import MEMBERS, PREDICTIONS

TOLERANCE = 1.0  # mm, of the NSD
_SEARCH = 30  # voxels of a distance map computed in the time of one point's search


def method_description() -> str:
    """Describe the package and tolerance of these scores."""
    return f"surface-distance {version('surface-distance')}, NSD at {TOLERANCE:g} mm"


def case_surfaces(codes: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Compute HD95 in mm and NSD of every structure of a case.

    Args:
        codes: `(Z, Y, X)` uint8, true label × 8 + predicted bits of each voxel; see `metrics.label_codes`.
        spacing: mm between voxels along z, y, x.

    Returns:
        `(structures, 2)` float64.
    """
    truth, predicted = masks(codes)
    scores = np.array([surface_scores(truth[name], predicted[name], spacing) for name in MEMBERS])
    scores[np.isnan(scores)] = diagonal(codes.shape, spacing)
    return scores


def masks(codes: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return boolean masks of the true and predicted structures, all cropped to one box around them."""
    cropped = codes[box(codes != 0)]
    tables = {name: _tables(members) for name, members in MEMBERS.items()}
    truth = {name: table[cropped] for name, (table, _) in tables.items()}
    predicted = {name: table[cropped] for name, (_, table) in tables.items()}
    return truth, predicted


def surface_scores(truth: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """Compute HD95 in mm and NSD of two boolean `(Z, Y, X)` masks; HD95 is NaN if only one of them is empty."""
    from surface_distance import metrics as library

    if truth.any() != predicted.any():
        return float("nan"), 0.0
    if np.array_equal(truth, predicted):
        return 0.0, 1.0
    distances = surface_distances(truth, predicted, spacing)
    hd95 = library.compute_robust_hausdorff(distances, 95)
    return float(hd95), float(library.compute_surface_dice_at_tolerance(distances, TOLERANCE))


def surface_distances(truth: np.ndarray, predicted: np.ndarray, spacing: Sequence[float]) -> dict[str, np.ndarray]:
    """Compute `surface_distance.compute_surface_distances` of two masks that are not empty, bit for bit but faster.

    The package measures from every voxel of the box around both masks, which a few distant false voxels extend to the
    whole volume, and sorts Python objects.
    """
    within = box(truth | predicted)
    surfaces = [_surface(np.pad(mask[within], 1), tuple(spacing)) for mask in (truth, predicted)]
    results: dict[str, np.ndarray] = {}
    for index, (name, other) in enumerate((("gt", "pred"), ("pred", "gt"))):
        (points, areas), (others, _) = surfaces[index], surfaces[1 - index]
        distances = _nearest(points, others, spacing)
        order = np.lexsort((areas, distances))
        results |= {f"distances_{name}_to_{other}": distances[order], f"surfel_areas_{name}": areas[order]}
    return results


def _surface(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the voxel corners `(n, 3)` on the surface of a mask padded with background, and their areas `(n,)`."""
    codes = mask.view(np.uint8)
    for axis, shift in ((2, 1), (1, 2), (0, 4)):  # one bit for each of the eight voxels at a corner
        before, after = codes.swapaxes(0, axis)[:-1], codes.swapaxes(0, axis)[1:]
        codes = (before << np.uint8(shift) | after).swapaxes(0, axis)
    corners = np.flatnonzero((codes != 0) & (codes != 255))
    return np.stack(np.unravel_index(corners, codes.shape), 1), _areas(spacing)[codes.ravel()[corners]]


@cache
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Return the `(256,)` surface areas in mm² between eight voxels, by the code of those in the mask."""
    from surface_distance import lookup_tables

    table: np.ndarray = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    return table


def _nearest(points: np.ndarray, others: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return the `(n,)` distances in mm from points `(n, 3)` to the nearest of the others, by the faster method."""
    first = np.minimum(points.min(0), others.min(0))
    shape = np.maximum(points.max(0), others.max(0)) - first + 1
    if _SEARCH * (len(points) + len(others)) > np.prod(shape):
        free = np.ones(shape, dtype=bool)
        free[tuple((others - first).T)] = False
        distances: np.ndarray = scipy.ndimage.distance_transform_edt(free, sampling=spacing)[tuple((points - first).T)]
        return distances
    _, index = scipy.spatial.KDTree(others * np.asarray(spacing)).query(points * np.asarray(spacing))
    z, y, x = ((others[index] - points) * np.asarray(spacing)).T
    return np.sqrt(z * z + y * y + x * x)  # summed in the order of the distance transform


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return the diagonal of a volume in mm: the HD95 of a structure that was missed or falsely predicted."""
    return float(np.linalg.norm(np.asarray(shape, dtype=np.float64) * np.asarray(spacing, dtype=np.float64)))


def _tables(members: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return lookup tables: whether each code is a true, and a predicted, voxel of the structure."""
    codes = np.arange(256)
    bits = sum(1 << (label - 1) for label in members)
    return np.isin(codes // PREDICTIONS, members), (codes % PREDICTIONS & bits) > 0


def box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box around all true elements; a box of one element if there are none."""
    ranges = []
    for axis in range(mask.ndim):
        indices = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        ranges.append(slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 1))
    return tuple(ranges)
