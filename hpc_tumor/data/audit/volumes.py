"""Statistics of a store of patients: shapes, intensities, labels, clinical facts and outliers.

Computed from the index and the metadata of the cases; no voxel is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.audit.images import most_common
from hpc_tumor.data.splits.units import repeated_cases
from hpc_tumor.data.store.nodes import read_attributes
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.vocabulary import MODALITIES, TUMOUR_LABELS

OUTLIER = 3.5  # modified z-score, Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers
LEAST_FOR_OUTLIERS = 8  # cases
_TO_DEVIATION = 0.6745  # a median absolute deviation in standard deviations of a normal distribution


@dataclass(frozen=True)
class Spread:
    """Spread of `n` values."""

    n: int
    low: float
    median: float
    high: float
    mean: float


@dataclass(frozen=True)
class Modality:
    """One modality: its extreme intensities, and the spread of the brain's mean and standard deviation over cases."""

    name: str
    low: float
    high: float
    mean: Spread
    deviation: Spread


@dataclass(frozen=True)
class Label:
    """One label: cases and slices that show it, its share of all labelled voxels, and its volume per case in ml."""

    name: str
    cases: int
    slices: int
    share: float
    volume: Spread
    without: tuple[str, ...]


@dataclass(frozen=True)
class Outlier:
    """A case with an extreme value of one quantity: `score` is the modified z-score of `value`."""

    case: str
    what: str
    value: float
    score: float


@dataclass(frozen=True)
class VolumeFacts:
    """Statistics of a store of patients.

    Attributes:
        repeated: number of additional cases of patients, by reason.
        shapes, spacings: "z × y × x" (voxels, mm) and the number of cases.
        volumes: ml of each label per case, in the order of `labels`.
        tumour_slices: number of slices with tumour per case.
        other_affine: files whose affine differs from the first modality's, by case.
        clinical: clinical facts as counts and spreads; empty if unknown.
    """

    repeated: dict[str, int]
    slices: int
    shapes: dict[str, int]
    spacings: dict[str, int]
    dtypes: dict[str, int]
    editions: dict[str, int]
    modalities: tuple[Modality, ...]
    labels: tuple[Label, ...]
    volumes: dict[str, tuple[float, ...]]
    tumour_slices: Spread
    empty_masks: tuple[str, ...]
    full_masks: tuple[str, ...]
    other_affine: dict[str, tuple[str, ...]]
    outliers: tuple[Outlier, ...]
    clinical: dict[str, Any]


def volume_facts(store: Store) -> VolumeFacts:
    """Compute the statistics. Raises DataError if the metadata of a case is missing or damaged."""
    counts = store.label_counts.astype(np.int64)
    spacings = np.array([store.spacing(case) for case in range(len(store))])
    volumes = counts.sum(axis=1)[:, 1:] * spacings.prod(axis=1)[:, None] / 1000
    about, extents = _read_cases(store)
    tumour = (counts[:, :, 1:TUMOUR_LABELS].sum(axis=2) > 0).sum(axis=1)
    names = store.case_ids
    metas = [item.get("meta", {}) for item in about]
    return VolumeFacts(
        repeated=repeated_cases(store),
        slices=int(store.shapes[:, 0].sum()),
        shapes=most_common(" × ".join(map(str, shape)) for shape in store.shapes.tolist()),
        spacings=most_common(" × ".join(f"{mm:.4g}" for mm in spacing) for spacing in spacings.tolist()),
        dtypes=most_common(store.text_column("dtypes")),
        editions=most_common(meta.get("edition", "unknown edition") for meta in metas),
        modalities=_modalities(store, extents),
        labels=_labels(store, counts, volumes),
        volumes={name: tuple(row) for name, row in zip(names, volumes.tolist(), strict=True)},
        tumour_slices=spread(tumour),
        empty_masks=tuple(name for name, meta in zip(names, metas, strict=True) if meta.get("mask") == "empty"),
        full_masks=tuple(name for name, meta in zip(names, metas, strict=True) if meta.get("mask") == "full"),
        other_affine={
            name: tuple(meta["other_affine"])
            for name, meta in zip(names, metas, strict=True)
            if meta.get("other_affine")
        },
        outliers=find_outliers(names, _quantities(store, volumes[:, : TUMOUR_LABELS - 1], tumour)),
        clinical=clinical_facts(store.clinical),
    )


def spread(values: Any) -> Spread:
    """Summarise `values`; NaN for an empty array."""
    array = np.asarray(values, dtype=np.float64).ravel()
    if not len(array):
        return Spread(0, *[float("nan")] * 4)
    numbers = (array.min(), np.median(array), array.max(), array.mean())
    return Spread(len(array), *(float(number) for number in numbers))


def find_outliers(names: Sequence[str], quantities: dict[str, NDArray[Any]]) -> tuple[Outlier, ...]:
    """Find cases with a modified z-score beyond `OUTLIER` in one of `quantities` (name → value per case).

    Sorted from the most extreme. Empty for fewer than `LEAST_FOR_OUTLIERS` cases, or if half of them are equal.
    """
    outliers: list[Outlier] = []
    for what, values in quantities.items():
        middle = np.median(values)
        deviation = np.median(np.abs(values - middle))
        if len(values) < LEAST_FOR_OUTLIERS or deviation == 0:
            continue
        scores = _TO_DEVIATION * (values - middle) / deviation
        outliers += [
            Outlier(names[i], what, float(values[i]), float(scores[i]))
            for i in np.flatnonzero(np.abs(scores) > OUTLIER).tolist()
        ]
    return tuple(sorted(outliers, key=lambda item: -abs(item.score)))


def clinical_facts(clinical: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count grades and resections, and summarise ages and survival; facts known for no case are omitted."""
    facts: dict[str, Any] = {}
    for key in ("grade", "resection"):
        if counted := most_common(item[key] for item in clinical if key in item):
            facts[key] = counted
    for key in ("age", "survival_days"):
        if values := [item[key] for item in clinical if key in item]:
            facts[key] = spread(values)
    if any("alive" in item for item in clinical):
        facts["alive"] = sum(bool(item.get("alive")) for item in clinical)
    return facts


def _read_cases(store: Store) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """Read the metadata of each case, and the extreme intensities `(n, modalities, 2)`."""
    about, extents = [], []
    for name in store.case_ids:
        attributes = read_attributes(store.path / "cases" / name) or {}
        try:
            about.append(dict(attributes["hpc_tumor"]))
            windows = [channel["window"] for channel in attributes["ome"]["omero"]["channels"]]
            extents.append([(window["min"], window["max"]) for window in windows])
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{store.path}: the metadata of case {name} is missing or damaged. Remove the case's folder and run"
                " prepare-data again."
            ) from None
    return about, np.array(extents, dtype=np.float64)


def _modalities(store: Store, extents: NDArray[np.float64]) -> tuple[Modality, ...]:
    moments = store.statistics
    return tuple(
        Modality(
            name, float(extents[:, i, 0].min()), float(extents[:, i, 1].max()), spread(moments[:, i, 0]),
            spread(moments[:, i, 1]),
        )
        for i, name in enumerate(MODALITIES)
    )  # fmt: skip


def _labels(store: Store, counts: NDArray[np.int64], volumes: NDArray[np.float64]) -> tuple[Label, ...]:
    totals = counts.sum(axis=(0, 1))[1:]
    labels = []
    for i, name in enumerate(store.labels[1:]):
        present = volumes[:, i] > 0
        labels.append(Label(
            name, int(present.sum()), int((counts[:, :, i + 1] > 0).sum()),
            float(totals[i] / totals.sum()) if totals.sum() else 0.0, spread(volumes[:, i]),
            tuple(case for case, has in zip(store.case_ids, present.tolist(), strict=True) if not has),
        ))  # fmt: skip
    return tuple(labels)


def _quantities(store: Store, volumes: NDArray[Any], tumour: NDArray[Any]) -> dict[str, NDArray[Any]]:
    quantities = {"tumour volume, ml": volumes.sum(axis=1), "slices with tumour": tumour.astype(np.float64)}
    for i, name in enumerate(MODALITIES):
        quantities[f"mean {name} of the brain"] = store.statistics[:, i, 0]
        quantities[f"deviation of {name} in the brain"] = store.statistics[:, i, 1]
    return quantities
