"""Predicted volumes without what is too small to be a tumour, by thresholds chosen on validation patients alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.volumes import Volumes, Watch, box

# Candidates in mm³. Enhancing tumour below a threshold is taken for necrosis, as Isensee 2020 (arXiv 2011.00848) does.
COMPONENTS = (0.0, 30.0, 100.0, 300.0, 1000.0)
ENHANCING = (0.0, 30.0, 100.0, 200.0, 350.0, 500.0, 1000.0)
_NCR, _ET = 1, 4  # bits of a prediction
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Cleaning:
    """Predicted pieces below `component_mm3` go, enhancing tumour below `enhancing_mm3` in all becomes NCR/NET."""

    component_mm3: float = 0.0
    enhancing_mm3: float = 0.0

    def __call__(self, codes: np.ndarray, voxel_mm3: float) -> np.ndarray:
        """`(Z, Y, X)` codes (true label × 8 + predicted bits) with the prediction cleaned; a copy where it changes."""
        return _without_enhancing(
            _without_pieces(codes, self.component_mm3 / voxel_mm3), self.enhancing_mm3 / voxel_mm3
        )


def choose_cleaning(volumes: Volumes, cases: int, distributed: Distributed, watch: Watch = Watch()) -> Cleaning:
    """The thresholds with the largest mean Dice over these cases, one after the other; of equal ones the smaller.

    All ranks call this together, each works on its share of the cases. Without a whole volume both are 0.

    Args:
        volumes: of the validation part, shared among the ranks.
        cases: how many the part has.
    """
    pieces = [Cleaning(mm3) for mm3 in COMPONENTS]
    component = pieces[_best(_counts(pieces, volumes, cases, distributed, watch))].component_mm3
    both = [Cleaning(component, mm3) for mm3 in ENHANCING]
    return both[_best(_counts(both, volumes, cases, distributed, watch))]


def _counts(
    choices: Sequence[Cleaning], volumes: Volumes, cases: int, distributed: Distributed, watch: Watch
) -> np.ndarray:
    """`(choices, cases, 4, 8)` histograms of the whole cases, cleaned in each way; 0 for the others."""
    shape = (len(choices), cases, metrics.TRUE_LABELS, metrics.PREDICTIONS)
    counts = torch.zeros(shape, dtype=torch.int64)
    for row, codes, spacing in volumes.cases(distributed, watch):
        some, voxel_mm3 = codes[box(codes != 0)], float(np.prod(spacing))
        for index, cleaning in enumerate(choices):
            counts[index, row] = torch.from_numpy(histogram(cleaning(some, voxel_mm3)))
        counts[:, row, 0, 0] += codes.size - some.size  # what lies outside is background in both
    return distributed.sum(counts.to(distributed.device)).cpu().numpy()


def _best(counts: np.ndarray) -> int:
    """Number of the choice with the largest mean Dice over the cases that are whole: the first of equal ones."""
    whole = counts[0].sum((1, 2)) > 0
    if not whole.any():
        return 0
    return int(np.argmax([metrics.segmentation_scores(of_choice[whole])["dice"] for of_choice in counts]))


def histogram(codes: np.ndarray) -> np.ndarray:
    """`(4, 8)` counts of (true label, predicted bits) in a volume of codes."""
    counts = np.bincount(codes.ravel(), minlength=metrics.TRUE_LABELS * metrics.PREDICTIONS)
    return counts.reshape(metrics.TRUE_LABELS, metrics.PREDICTIONS)


def _without_pieces(codes: np.ndarray, least: float) -> np.ndarray:
    """Without the connected pieces (26 neighbours) of predicted tumour that have fewer than `least` voxels."""
    if least <= 1:
        return codes
    pieces, _ = ndimage.label(codes % metrics.PREDICTIONS > 0, structure=_NEIGHBOURS)
    small = np.bincount(pieces.ravel()) < least
    small[0] = False
    if not small.any():
        return codes
    return np.where(small[pieces], codes // metrics.PREDICTIONS * metrics.PREDICTIONS, codes).astype(np.uint8)


def _without_enhancing(codes: np.ndarray, least: float) -> np.ndarray:
    """With enhancing tumour called NCR/NET where there are fewer than `least` voxels of it in the whole volume."""
    enhancing = (codes & _ET) > 0
    if not 0 < enhancing.sum() < least:
        return codes
    return np.where(enhancing, (codes & ~np.uint8(_ET)) | _NCR, codes).astype(np.uint8)
