"""Scores of one predicted patient against the labels that came with the scans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.surfaces import case_surfaces


def score_case(
    truth: NDArray[np.uint8], predicted_bits: NDArray[np.uint8], spacing: tuple[float, float, float]
) -> dict[str, object]:
    """Status and scores of every label and region of one patient, as in a run's cases.csv.

    Args:
        truth: `(Z, Y, X)` labels 0 background, 1 NCR/NET, 2 ED, 3 ET; a resection cavity, 4, counts as background.
        predicted_bits: `(Z, Y, X)` the labels predicted of each voxel: 1 NCR, 2 ED, 4 ET, added up.
        spacing: voxel size along z, y, x in mm.
    """
    bins = metrics.TRUE_LABELS * metrics.PREDICTIONS
    codes = np.where(truth < metrics.TRUE_LABELS, truth, 0) * np.uint8(metrics.PREDICTIONS) + predicted_bits
    histogram = np.bincount(codes.ravel(), minlength=bins).reshape(1, metrics.TRUE_LABELS, metrics.PREDICTIONS)
    (row,) = metrics.segmentation_rows(histogram, [""], [len(truth)], case_surfaces(codes, spacing)[None])
    return {name: value for name, value in row.items() if name != "case"}
