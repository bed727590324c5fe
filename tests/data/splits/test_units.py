"""Units that stay together, the same for splits, split files, training and the audit."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from raw_samples import save, tumour, write_case

from hpc_tumor import cli
from hpc_tumor.data.audit.audit import audit_store
from hpc_tumor.data.audit.duplicates import case_duplicates
from hpc_tumor.data.audit.volumes import VolumeFacts
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.splits.joining import group_connected
from hpc_tumor.data.splits.sketch import group_same_scans
from hpc_tumor.data.splits.split_file import leak_of
from hpc_tumor.data.splits.splits import make_split
from hpc_tumor.data.splits.units import (
    MOST_NEAR,
    describe_patients,
    doubtful_joins,
    image_patients,
    patient_numbers,
    patient_units,
    repeated_cases,
)
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.experiments.request import experiment_for

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


def test_too_few_patients_are_refused_with_the_reason_they_are_fewer_than_cases(years: Store) -> None:
    with pytest.raises(
        DataError, match=r"too few patients \(8 patients, 12 cases: 1 with the same scans as another, 3 "
    ):
        make_split(years, None, 0, fold=0, folds=9)


class MadeUp(SimpleNamespace):
    """A store of some cases, tied at random: by digest, near copies, name and ids in other editions."""

    def __init__(self, seed: int, n: int = 14):
        rng = np.random.default_rng(seed)
        scans = [f"digest {rng.integers(0, 40)}" for _ in range(n)]
        near: list[set[Hashable]] = [{digest, int(rng.integers(0, 40))} for digest in scans]
        group = np.empty(n, np.int64)
        for number, members in enumerate(group_connected(near)):
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
    for tied in group_connected(audited):
        assert len(set(numbers[tied].tolist())) == 1
    assert len(group_connected(audited)) == len(set(numbers.tolist())) == len(patient_units(store))
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
         "1 patient, 12 cases: 10 with nearly the same scans as another, 1 with the name of another's patient"),
    ],
)  # fmt: skip
def test_patients_are_counted_in_words(repeated: dict[str, int], text: str) -> None:
    assert describe_patients(12, repeated) == text


def test_prepare_data_and_the_audit_name_many_cases_tied_by_near_copies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "raw"
    write_case(root / "BraTS2021_00001", seed=1)
    for i in range(2, MOST_NEAR + 2):
        gain = np.float32(1 + i / 1000)
        changed(root / "BraTS2021_00001", root / f"BraTS2021_{i:05}", lambda volume, gain=gain: volume * gain)  # type: ignore[misc]
    arguments = [str(root), str(tmp_path / "s.zarr"), "--workers", "1"]
    assert cli.main(["prepare-data", *arguments]) == 0
    line = (
        "9 cases count as one patient for nearly the same scans"
        " (BraTS2021_00001, BraTS2021_00002, BraTS2021_00003 and 6 more): check this."
    )
    assert line in " ".join(capsys.readouterr().err.split())
    store = Store.open(tmp_path / "s.zarr")
    assert audit_store(store, experiment_for(store, [])).doubtful == (line,)


def test_joins_are_doubtful_where_they_are_many_or_chains_and_not_where_scans_are_identical(years: Store) -> None:
    assert doubtful_joins(years) == []
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 16, (2, 4, 16, 16, 16))
    chain = np.stack([one, one + 0.45 * other, one + other]).clip(-127, 127).astype(np.int8)
    assert group_same_scans(chain, ["a", "b", "c"]).tolist() == [0, 0, 0]
    told = [of_group(chain[[0, 0, 0]]), of_group(chain), of_group(chain[[0] * 12], ["same"] * 12)]
    assert [len(lines) for lines in told] == [0, 1, 0]
    assert told[1][0].startswith("3 cases count as one patient for nearly the same scans, some of them only through")


def of_group(sketches: np.ndarray, scans: list[str] | None = None) -> list[str]:
    """Return the doubts about cases that form one group."""
    names = [f"case {i}" for i in range(len(sketches))]
    store = MadeUp(0, len(sketches))
    store.case_ids, store.scans, store.group = names, scans or names, np.zeros(len(names), np.int64)
    store.sketches = sketches
    return doubtful_joins(cast(Store, store))


def test_images_of_a_patient_and_their_copies_are_one_unit() -> None:
    """A copy joins two patients; images of unknown patients stay apart unless they are copies."""
    store = cast(Store, SimpleNamespace(group=np.array([0, 1, 1, 2, 3, 4, 4, 5]), patients=[*"aabb", *[""] * 4]))
    assert image_patients(store).tolist() == [0, 0, 0, 0, 1, 2, 2, 3]
