"""Find scans that differ from a run's training data, for which its scores are not representative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.contrast import Contrasts, describe_exchange, identical_scans
from hpc_tumor.data.splits.known_cases import KnownCases
from hpc_tumor.vocabulary import listed

_VOLUME = 1.7  # times the largest training brain: a head is more than twice its brain, brains vary less
_FILLED = 0.9  # share of the volume: no background around the brain
_CROPPED = 0.7  # share of the volume: training cases cropped so closely that filled volumes are usual
_SPACING = 0.05  # tolerated relative difference of spacings


@dataclass(frozen=True, eq=False)
class ScanFacts:
    """Facts on a patient's scans: spacing along z, y, x in mm, shape, brain size, and `contrast` as in data."""

    case: str
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    brain_voxels: int
    contrast: NDArray[np.float64]

    @property
    def brain_ml(self) -> float:
        """Volume of the brain in ml."""
        return self.brain_voxels * float(np.prod(self.spacing)) / 1000

    @property
    def brain_share(self) -> float:
        """Share of the volume that is brain."""
        return self.brain_voxels / int(np.prod(self.shape))


def difference_notes(known: KnownCases | None, scans: Sequence[ScanFacts]) -> list[str]:
    """Return a note for each kind of difference from the training data, with the scans affected."""
    if known is None or known.spacing is None or known.shape is None or known.brain_ml is None:
        return []
    if known.contrast is None or not known.trained.any():
        return []
    spacing, shape = known.spacing[known.trained], known.shape[known.trained]
    ml, contrast = known.brain_ml[known.trained], known.contrast[known.trained]
    notes = []
    share = ml * 1000 / (spacing.prod(axis=1) * shape.prod(axis=1))
    filled = {scan.case for scan in scans if scan.brain_share > _FILLED and share.max() < _CROPPED}
    heads = [scan for scan in scans if scan.case in filled or scan.brain_ml > _VOLUME * ml.max()]
    small = [scan for scan in scans if scan.brain_ml < ml.min() / _VOLUME]
    trained_ml = _range(ml)
    if heads:
        largest = max(scan.brain_ml for scan in heads)
        notes.append(f"not skull-stripped? {largest:,.0f} ml of brain, trained on {trained_ml} ml: {_names(heads)}")
    if small:
        least = min(scan.brain_ml for scan in small)
        notes.append(f"small brain: {least:,.0f} ml, trained on {trained_ml} ml: {_names(small)}")
    tolerances = ((scan, np.abs(spacing / np.array(scan.spacing) - 1) <= _SPACING) for scan in scans)
    other_spacing = [scan for scan, within in tolerances if not within.all(axis=1).any()]
    if other_spacing:
        notes.append(
            f"voxel size {_sizes(scan.spacing for scan in other_spacing)} mm (z × y × x), trained on"
            f" {_sizes(spacing.tolist())} mm: {_names(other_spacing)}"
        )
    other_shape = [scan for scan in scans if not (shape == np.array(scan.shape)).all(axis=1).any()]
    if other_shape:
        notes.append(
            f"shape {_sizes(scan.shape for scan in other_shape)} voxels (z × y × x), trained on"
            f" {_sizes(shape.tolist())}: {_names(other_shape)}"
        )
    with_heads = {scan.case for scan in heads}
    return notes + _modalities(Contrasts.of(contrast), [scan for scan in scans if scan.case not in with_heads])


def _modalities(trained: Contrasts | None, scans: Sequence[ScanFacts]) -> list[str]:
    """Return notes on files whose modality differs from their name."""
    affected: dict[str, list[ScanFacts]] = {}
    for scan in scans:
        identical = identical_scans(scan.contrast)
        for pair in identical:
            affected.setdefault(f"{' and '.join(pair)} are the same scan", []).append(scan)
        if (
            trained is not None
            and not identical
            and (order := trained.order(scan.contrast)) != tuple(range(len(order)))
        ):
            affected.setdefault(f"{describe_exchange(order)}, compared with the training cases", []).append(scan)
    return [f"{fault}: {_names(cases)}" for fault, cases in affected.items()]


def _names(scans: Sequence[ScanFacts]) -> str:
    return listed([scan.case for scan in scans])


def _range(values: NDArray[np.float64]) -> str:
    low, high = f"{values.min():,.0f}", f"{values.max():,.0f}"
    return low if low == high else f"{low} to {high}"


def _sizes(sizes: Iterable[Sequence[float]]) -> str:
    """Format sizes as `1 × 1 × 1`, at most three of them."""
    texts = list(dict.fromkeys(" × ".join(f"{side:.4g}" for side in size) for size in sizes))
    return " or ".join(texts[:3]) + (f" or {len(texts) - 3} more" if len(texts) > 3 else "")
