"""Measure whole cases: histograms and distances of one predicted volume, in a process of its own if there is one.

Nothing here imports torch, which would take such a process seconds and hundreds of megabytes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from hpc_tumor.training.scoring.cleaning import COMPONENTS, ENHANCING, Cleaning, histogram
from hpc_tumor.training.scoring.surfaces import box, case_surfaces
from hpc_tumor.vocabulary import PREDICTIONS, TUMOUR_LABELS


@dataclass(frozen=True)
class Case:
    """A whole case as predicted: true label × 8 + predicted bits of each voxel, compressed.

    Most voxels are background, so a case of 240 × 240 × 155 voxels takes about 50 kB.

    Attributes:
        row: of the case in its part.
        slices: compressed `(H, W)` codes of each slice, in order along z.
        shape: (H, W).
        spacing: mm between voxels along z, y, x.
    """

    row: int
    slices: tuple[bytes, ...]
    shape: tuple[int, int]
    spacing: tuple[float, float, float]

    def codes(self) -> np.ndarray:
        """Return the `(Z, Y, X)` codes."""
        flat = np.frombuffer(b"".join(map(zlib.decompress, self.slices)), np.uint8)
        return flat.reshape(len(self.slices), *self.shape)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.spacing))


def measure(case: Case, cleaning: Cleaning | None = None) -> tuple[int, np.ndarray, np.ndarray]:
    """Return row, `(4, 8)` histogram, and HD95 and NSD `(structures, 2)` of a case, after `cleaning`."""
    codes = case.codes()
    if cleaning is not None:
        codes = cleaning(codes, case.voxel_mm3)
    return case.row, histogram(codes), case_surfaces(codes, case.spacing)


def count_candidates(case: Case) -> tuple[int, np.ndarray]:
    """Return row and `(COMPONENTS, ENHANCING, 4, 8)` histograms of a case after each cleaning to choose from."""
    codes = case.codes()
    cropped = codes[box(codes != 0)]
    counts = np.zeros((len(COMPONENTS), len(ENHANCING), TUMOUR_LABELS, PREDICTIONS), dtype=np.int64)
    for index, component_mm3 in enumerate(COMPONENTS):
        pieces = Cleaning(component_mm3)(cropped, case.voxel_mm3)
        counts[index] = histogram(pieces)
        for number, enhancing_mm3 in enumerate(ENHANCING):
            cleaned = Cleaning(0.0, enhancing_mm3)(pieces, case.voxel_mm3)
            if cleaned is not pieces:  # few thresholds change anything
                counts[index, number] = histogram(cleaned)
    counts[..., 0, 0] += codes.size - cropped.size  # outside the box, both are background
    return case.row, counts
