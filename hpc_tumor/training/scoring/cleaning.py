"""Remove predicted pieces too small to be a tumour, by thresholds chosen on validation patients only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch

from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.volumes import Volumes, Watch, box

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


def choose_cleaning(volumes: Volumes, cases: int, distributed: Distributed, watch: Watch = Watch()) -> Cleaning:
    """Choose the thresholds of largest mean Dice over these cases, one after the other; in ties the smaller.

    All ranks call this together and share the cases. Without a whole volume both thresholds are 0.

    Args:
        volumes: of the validation part, shared among the ranks.
        cases: number of cases in the part.
    """
    pieces = [Cleaning(mm3) for mm3 in COMPONENTS]
    component = pieces[_best(_counts(pieces, volumes, cases, distributed, watch))].component_mm3
    both = [Cleaning(component, mm3) for mm3 in ENHANCING]
    return both[_best(_counts(both, volumes, cases, distributed, watch))]


def _counts(
    choices: Sequence[Cleaning], volumes: Volumes, cases: int, distributed: Distributed, watch: Watch
) -> np.ndarray:
    """Return `(choices, cases, 4, 8)` histograms of the whole cases under each cleaning; 0 for other cases."""
    shape = (len(choices), cases, metrics.TRUE_LABELS, metrics.PREDICTIONS)
    counts = torch.zeros(shape, dtype=torch.int64)
    for row, codes, spacing in volumes.cases(distributed, watch):
        cropped, voxel_mm3 = codes[box(codes != 0)], float(np.prod(spacing))
        for index, cleaning in enumerate(choices):
            counts[index, row] = torch.from_numpy(histogram(cleaning(cropped, voxel_mm3)))
        counts[:, row, 0, 0] += codes.size - cropped.size  # outside the box, both are background
    return distributed.sum(counts).numpy()


def _best(counts: np.ndarray) -> int:
    """Return the index of the choice with the largest mean Dice over the whole cases, the first in ties."""
    whole = counts[0].sum((1, 2)) > 0
    if not whole.any():
        return 0
    return int(np.argmax([metrics.segmentation_scores(of_choice[whole])["dice"] for of_choice in counts]))


def histogram(codes: np.ndarray) -> np.ndarray:
    """Return `(4, 8)` counts of (true label, predicted bits) in a volume of codes."""
    counts = np.bincount(codes.ravel(), minlength=metrics.TRUE_LABELS * metrics.PREDICTIONS)
    return counts.reshape(metrics.TRUE_LABELS, metrics.PREDICTIONS)


def _without_pieces(codes: np.ndarray, minimum: float) -> np.ndarray:
    """Remove connected pieces (26 neighbours) of predicted tumour with fewer than `minimum` voxels."""
    if minimum <= 1:
        return codes
    pieces, _ = scipy.ndimage.label(codes % metrics.PREDICTIONS > 0, structure=_NEIGHBOURS)
    small = np.bincount(pieces.ravel()) < minimum
    small[0] = False
    if not small.any():
        return codes
    return np.where(small[pieces], codes // metrics.PREDICTIONS * metrics.PREDICTIONS, codes).astype(np.uint8)


def _without_enhancing(codes: np.ndarray, minimum: float) -> np.ndarray:
    """Relabel enhancing tumour as NCR/NET if the volume has fewer than `minimum` voxels of it."""
    enhancing = (codes & _ET) > 0
    if not 0 < enhancing.sum() < minimum:
        return codes
    return np.where(enhancing, (codes & ~np.uint8(_ET)) | _NCR, codes).astype(np.uint8)
