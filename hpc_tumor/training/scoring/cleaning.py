"""Remove predicted pieces too small to be a tumour, by thresholds chosen on validation patients only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from hpc_tumor.vocabulary import PREDICTIONS, TUMOUR_LABELS

# Candidates in mm³. Enhancing tumour below a threshold becomes necrosis, as in Isensee 2020 (arXiv 2011.00848).
COMPONENTS = (0.0, 30.0, 100.0, 300.0, 1000.0)
ENHANCING = (0.0, 30.0, 100.0, 200.0, 350.0, 500.0, 1000.0)
_NCR, _ET = 1, 4  # bits of a prediction
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Cleaning:
    """Removes pieces below `component_mm3`; enhancing tumour below `enhancing_mm3` in total becomes NCR/NET."""

    component_mm3: float = 0.0
    enhancing_mm3: float = 0.0

    def __call__(self, codes: np.ndarray, voxel_mm3: float) -> np.ndarray:
        """Clean the prediction in `(Z, Y, X)` codes (true label × 8 + predicted bits); a copy if it changes."""
        return _without_enhancing(
            _without_pieces(codes, self.component_mm3 / voxel_mm3), self.enhancing_mm3 / voxel_mm3
        )


def histogram(codes: np.ndarray) -> np.ndarray:
    """Return `(4, 8)` counts of (true label, predicted bits) in a volume of codes."""
    counts = np.bincount(codes.ravel(), minlength=TUMOUR_LABELS * PREDICTIONS)
    return counts.reshape(TUMOUR_LABELS, PREDICTIONS)


def _without_pieces(codes: np.ndarray, minimum: float) -> np.ndarray:
    """Remove connected pieces (26 neighbours) of predicted tumour with fewer than `minimum` voxels."""
    if minimum <= 1:
        return codes
    pieces, _ = scipy.ndimage.label(codes % PREDICTIONS > 0, structure=_NEIGHBOURS)
    small = np.bincount(pieces.ravel()) < minimum
    small[0] = False
    if not small.any():
        return codes
    return np.where(small[pieces], codes // PREDICTIONS * PREDICTIONS, codes).astype(np.uint8)


def _without_enhancing(codes: np.ndarray, minimum: float) -> np.ndarray:
    """Relabel enhancing tumour as NCR/NET if the volume has fewer than `minimum` voxels of it."""
    enhancing = (codes & _ET) > 0
    if not 0 < enhancing.sum() < minimum:
        return codes
    return np.where(enhancing, (codes & ~np.uint8(_ET)) | _NCR, codes).astype(np.uint8)
