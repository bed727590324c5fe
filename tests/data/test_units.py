"""What stays together: one notion for splits, split files, training and the audit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from raw_samples import save, tumour, write_case

from hpc_tumor.data.audit.audit import audit_store
from hpc_tumor.data.audit.duplicates import case_duplicates
from hpc_tumor.data.audit.volumes import VolumeFacts
from hpc_tumor.data.brats import BraTSReader
from hpc_tumor.data.prepare import prepare_dataset
from hpc_tumor.data.split_file import leak_of
from hpc_tumor.data.splits import make_split
from hpc_tumor.data.store import Store
from hpc_tumor.data.units import connected, describe_patients, patient_numbers, patient_units, repeated_cases
from hpc_tumor.request import experiment_for

Change = Callable[[np.ndarray], np.ndarray]


def biased(volume: np.ndarray) -> np.ndarray:
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in volume.shape)
    return volume * (1 + 0.02 * np.sin(2 * y[:, None] + x[:, None, None] + z))


def changed(source: Path, target: Path, change: Change, *, labels: np.ndarray | None = None) -> None:
    """The case in `source` again in `target`, its scans changed and its labels others where they are given."""
    for file in source.iterdir():
        volume = np.asarray(nib.nifti1.load(file).dataobj)
        seg = file.name.endswith("seg.nii.gz")
        new = (volume if labels is None else labels) if seg else change(volume)
        save(target / file.name.replace(source.name, target.name), new)


def units_of(store: Store) -> set[frozenset[str]]:
    return {frozenset(store.case_ids[case] for case in unit.members) for unit in patient_units(store)}


@pytest.fixture(scope="module")
def years(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Eight patients, four of them again in another edition with revised masks, three of those with changed scans."""
    root = tmp_path_factory.mktemp("years")
    changes: list[Change] = [
        lambda volume: volume, lambda volume: volume.astype(np.float32), biased,
        lambda volume: np.roll(volume, (1, -1, 1), (0, 1, 2)),
    ]  # fmt: skip
    for i in range(1, 9):
        write_case(root / "raw" / f"BraTS20_Training_00{i}", seed=i)
    revised = tumour()
    revised[2:4, 3:7, 2:4] = 2
    for i, change in enumerate(changes, 1):
        source = root / "raw" / f"BraTS20_Training_00{i}"
        changed(source, root / "raw" / f"BraTS2021_0010{i}", change, labels=revised)
    prepare_dataset(BraTSReader(), root / "raw", root / "store", workers=1)
    return Store.open(root / "store")


def test_scans_decide_whatever_the_mask_in_split_audit_and_split_file(years: Store) -> None:
    pairs = {frozenset({f"BraTS20_Training_00{i}", f"BraTS2021_0010{i}"}) for i in range(1, 5)}
    assert units_of(years) == pairs | {frozenset({f"BraTS20_Training_00{i}"}) for i in range(5, 9)}
    audit = audit_store(years, experiment_for(years, []))
    assert isinstance(audit.facts, VolumeFacts)
    assert audit.facts.repeated == {"the same scans": 1, "nearly the same scans": 3}
    assert [(kind.kind, len(kind.members)) for kind in audit.duplicates] == [
        ("the same scans", 1),
        ("nearly the same scans", 3),
    ]
    assert [split.leaks for split in audit.splits if split.kind == "by-patient"] == [False] * 6
    places = {name: i for i, name in enumerate(years.case_ids)}
    twins = {"train": np.array([places["BraTS20_Training_003"]]), "test": np.array([places["BraTS2021_00103"]])}
    assert leak_of(twins, years) == (
        "BraTS20_Training_003 in train and BraTS2021_00103 in test are the same patient (nearly the same scans)"
    )


def test_folds_have_no_patient_on_two_sides(years: Store) -> None:
    patients = patient_numbers(years)
    for fold in range(4):
        split = make_split(years, None, 0, fold=fold, folds=4)
        sides = [set(patients[part].tolist()) for part in (split.train, split.val, split.test)]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 8


class MadeUp(SimpleNamespace):
    """A store of some cases, tied at random: by digest, near copies, name and ids in other editions."""

    def __init__(self, seed: int, n: int = 14):
        rng = np.random.default_rng(seed)
        scans = [f"digest {rng.integers(0, 40)}" for _ in range(n)]
        near: list[set[Hashable]] = [{digest, int(rng.integers(0, 40))} for digest in scans]
        group = np.empty(n, np.int64)
        for number, members in enumerate(connected(near)):
            group[members] = number
        super().__init__(
            task="segmentation", scans=scans, group=group,
            case_ids=[f"P{rng.integers(0, 12):02}_visit{i}" if rng.random() < 0.4 else f"case_{i}" for i in range(n)],
            clinical=[
                {"other_ids": {"2019": f"P{rng.integers(0, 12):02}"}} if rng.random() < 0.2 else {} for _ in range(n)
            ],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.scans)

    def text_column(self, name: str) -> list[Any]:
        return list(getattr(self, name))


@pytest.mark.parametrize("seed", range(25))
def test_the_audit_and_a_split_file_see_a_leak_exactly_where_a_split_keeps_cases_together(seed: int) -> None:
    store = cast(Store, MadeUp(seed))
    numbers = patient_numbers(store)
    audited: list[set[Hashable]] = [{name} for name in store.case_ids]
    for kind in case_duplicates(store):
        for number, members in enumerate(kind.members):
            for name in members:
                audited[store.case_ids.index(name)].add((kind.kind, number))
    for tied in connected(audited):
        assert len(set(numbers[tied].tolist())) == 1
    assert len(connected(audited)) == len(set(numbers.tolist())) == len(patient_units(store))
    assert len(store) - sum(repeated_cases(store).values()) == len(patient_units(store))
    for one in range(len(store)):
        for other in range(one):
            leak = leak_of({"train": np.array([one]), "test": np.array([other])}, store)
            assert (leak is not None) == (numbers[one] == numbers[other])


@pytest.mark.parametrize(
    ("repeated", "text"),
    [
        ({}, "12 patients, 12 cases"),
        ({"the same scans": 4}, "8 patients, 12 cases: 4 with the same scans as another"),
        ({"nearly the same scans": 10, "one patient by name": 1},
         "1 patient, 12 cases: 10 with nearly the same scans as another, 1 of the patient of another by name"),
    ],
)  # fmt: skip
def test_patients_are_counted_in_words(repeated: dict[str, int], text: str) -> None:
    assert describe_patients(12, repeated) == text
