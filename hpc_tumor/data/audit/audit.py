"""Audit of a dataset: its statistics, duplicates, and the leakage of each split.

The store is only read. `Audit` has every number; page.py renders the page, cli/views/audit.py the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from hpc_tumor.config import Experiment
from hpc_tumor.data.audit.duplicates import Duplicates, case_duplicates, image_duplicates
from hpc_tumor.data.audit.images import ImageFacts, image_facts, scan_images
from hpc_tumor.data.audit.leakage import SplitAudit, audit_splits
from hpc_tumor.data.audit.patients import ClassPatients, Conflict, conflicts, known_patients
from hpc_tumor.data.audit.shortcuts import Shortcut, find_shortcuts
from hpc_tumor.data.audit.volumes import VolumeFacts, volume_facts
from hpc_tumor.data.splits.splits import split_of
from hpc_tumor.data.splits.units import doubtful_joins, patient_numbers
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Audit:
    """Results of an audit.

    Attributes:
        facts: statistics of patients or images.
        splits: all splits, the one in use first.
        shortcuts: facts that predict the class of an image; empty for patients.
        doubtful: a line if near copies tie suspiciously many cases to one patient; empty for images.
        patients: known patients of each class of images, then of all; empty if none is known.
        conflicts: images whose class is contradicted by a copy or a known slice.
    """

    store: str
    dataset: str
    task: str
    schema: int
    fingerprint: str
    cases: int
    facts: VolumeFacts | ImageFacts
    duplicates: tuple[Duplicates, ...]
    splits: tuple[SplitAudit, ...]
    shortcuts: tuple[Shortcut, ...]
    doubtful: tuple[str, ...] = ()
    patients: tuple[ClassPatients, ...] = ()
    conflicts: tuple[Conflict, ...] = ()

    @property
    def in_use(self) -> SplitAudit:
        """Split that training with these settings would use."""
        return self.splits[0]


def audit_store(store: Store, experiment: Experiment, progress: Progress | None = None) -> Audit:
    """Audit `store` and all its splits; `experiment` determines the split in use.

    Raises:
        UsageError: settings that no split supports, such as a fold of the published images.
        DataError: the store is damaged.
    """
    with suppress(DataError):  # becomes a verdict; a UsageError is raised before anything is read
        split_of(experiment, store)
    facts: VolumeFacts | ImageFacts
    shortcuts: tuple[Shortcut, ...] = ()
    images = store.task == "classification"
    if not images:
        facts, duplicates = volume_facts(store), case_duplicates(store)
        splits = audit_splits(experiment, store, patient_numbers(store), None, progress)
    else:
        scan = scan_images(store, progress)
        facts, duplicates, shortcuts = image_facts(store, scan), image_duplicates(store), find_shortcuts(store, scan)
        splits = audit_splits(experiment, store, None, scan)
    return Audit(
        str(store.path), store.dataset, store.task, store.about["schema"], store.fingerprint, len(store), facts,
        duplicates, splits, shortcuts, () if images else tuple(doubtful_joins(store)),
        known_patients(store) if images else (), conflicts(store) if images else (),
    )  # fmt: skip
