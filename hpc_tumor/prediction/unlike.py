"""Scans unlike those that a run trained on: its scores say little of them, so a prediction names them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.contrast import Contrasts, describe_exchange, identical_scans
from hpc_tumor.data.splits.known_cases import KnownCases
from hpc_tumor.vocabulary import listed

_VOLUME = 1.7  # times the largest brain trained on: a head is more than twice its brain; brains differ by less
_FILLED = 0.9  # of the volume: nothing around the brain
_CROPPED = 0.7  # of the volume: training cases cropped so closely that a volume full of brain is nothing new
_SPACING = 0.05  # of a voxel's side, by which spacings may differ


@dataclass(frozen=True, eq=False)
class ScanFacts:
    """One patient's scans in numbers: voxel size along z, y, x in mm, voxels, and the brain; `contrast` as in data."""

    case: str
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    brain_voxels: int
    contrast: NDArray[np.float64]

    @property
    def brain_ml(self) -> float:
        """Volume of the brain."""
        return self.brain_voxels * float(np.prod(self.spacing)) / 1000

    @property
    def brain_share(self) -> float:
        """Share of the volume that is brain."""
        return self.brain_voxels / int(np.prod(self.shape))


def unlike_notes(known: KnownCases | None, scans: Sequence[ScanFacts]) -> list[str]:
    """A line for each way in which scans differ from those trained on, with the first of these; none where none do."""
    if known is None or known.spacing is None or known.shape is None or known.brain_ml is None:
        return []
    if known.contrast is None or not known.trained.any():
        return []
    spacing, shape = known.spacing[known.trained], known.shape[known.trained]
    ml, contrast = known.brain_ml[known.trained], known.contrast[known.trained]
    notes = []
    share = ml * 1000 / (spacing.prod(axis=1) * shape.prod(axis=1))
    filled = {one.case for one in scans if one.brain_share > _FILLED and share.max() < _CROPPED}
    heads = [one for one in scans if one.case in filled or one.brain_ml > _VOLUME * ml.max()]
    parts = [one for one in scans if one.brain_ml < ml.min() / _VOLUME]
    trained_ml = _range(ml)
    if heads:
        notes.append(f"not skull-stripped? {_largest(heads)} ml of brain, trained on {trained_ml} ml: {_names(heads)}")
    if parts:
        least = min(one.brain_ml for one in parts)
        notes.append(f"little brain: {least:,.0f} ml, trained on {trained_ml} ml: {_names(parts)}")
    other = [one for one in scans if not (np.abs(spacing / np.array(one.spacing) - 1) <= _SPACING).all(axis=1).any()]
    if other:
        notes.append(
            f"other voxels, {_sizes(one.spacing for one in other)} mm (z × y × x), than trained on,"
            f" {_sizes(spacing.tolist())} mm: {_names(other)}"
        )
    strange = [one for one in scans if not (shape == np.array(one.shape)).all(axis=1).any()]
    if strange:
        notes.append(
            f"other shapes, {_sizes(one.shape for one in strange)} voxels (z × y × x), than trained on,"
            f" {_sizes(shape.tolist())}: {_names(strange)}"
        )
    with_heads = {one.case for one in heads}
    return notes + _modalities(Contrasts.of(contrast), [one for one in scans if one.case not in with_heads])


def _modalities(trained: Contrasts | None, scans: Sequence[ScanFacts]) -> list[str]:
    """Lines on files that hold another modality than their names say."""
    found: dict[str, list[ScanFacts]] = {}
    for one in scans:
        same = identical_scans(one.contrast)
        for pair in same:
            found.setdefault(f"{' and '.join(pair)} are one and the same scan", []).append(one)
        if trained is not None and not same and (order := trained.order(one.contrast)) != tuple(range(len(order))):
            found.setdefault(f"{describe_exchange(order)}, compared with the cases trained on", []).append(one)
    return [f"{what}: {_names(cases)}" for what, cases in found.items()]


def _names(scans: Sequence[ScanFacts]) -> str:
    return listed([one.case for one in scans])


def _largest(scans: Sequence[ScanFacts]) -> str:
    return f"{max(one.brain_ml for one in scans):,.0f}"


def _range(values: NDArray[np.float64]) -> str:
    low, high = f"{values.min():,.0f}", f"{values.max():,.0f}"
    return low if low == high else f"{low} to {high}"


def _sizes(sizes: Iterable[Sequence[float]]) -> str:
    """`1 × 1 × 1`, of several the first few."""
    texts = list(dict.fromkeys(" × ".join(f"{side:.4g}" for side in size) for size in sizes))
    return " or ".join(texts[:3]) + (f" or {len(texts) - 3} more" if len(texts) > 3 else "")
