"""The published folds of the Cheng set as splits: as they are, or with each patient in one fold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpc_tumor import cli
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.patients.reference import SLICES, pid_of
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.cheng import ChengReader
from hpc_tumor.data.splits.published_folds import split_by_folds
from hpc_tumor.data.splits.split_file import read_split
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("cheng")
    make_phantom(root / "raw", "cheng", 20, seed=0)
    prepare_dataset(ChengReader(size=64), root / "raw", root / "s.zarr", workers=1)
    return Store.open(root / "s.zarr")


# Ids with a suffix are in another fold than the rest of their family, and so is a patient without family.
FOLDS = np.array([2 if pid_of(n).endswith("B") or pid_of(n) == "100360" else 1 for n in range(1, SLICES + 1)])


def test_folds_as_published_part_a_family_and_say_so(store: Store) -> None:
    split, notes = split_by_folds(store, FOLDS, 1, seed=0, val_fraction=0, as_published=True)
    pids = [pid_of(number) for number in store.known_slice.tolist()]
    wanted = [i for i, pid in enumerate(pids) if pid.endswith("B") or pid == "100360"]
    assert split.test.tolist() == wanted
    assert (len(split.train), len(split.val), split.leaks, notes) == (20 - len(wanted), 0, True, [])


def test_folds_by_patient_keep_families_together(store: Store) -> None:
    """The smaller half of each family moves to the fold of the larger one, or to the first of two alike."""
    pids = [pid_of(number) for number in store.known_slice.tolist()]
    families = [pid.removesuffix("B") for pid in pids]
    halves = [[pid.endswith("B") for pid in pids if pid.removesuffix("B") == name] for name in sorted(set(families))]
    moved = [min(sum(half), len(half) - sum(half)) for half in halves]
    split, notes = split_by_folds(store, FOLDS, 1, seed=0, val_fraction=0.3, as_published=False)
    owner = {i: part for part, numbers in split.parts.items() for i in numbers.tolist()}
    assert len(owner) == 20
    for name in set(families):
        assert len({owner[i] for i, family in enumerate(families) if family == name}) == 1
    assert (split.leaks, len(split.val) > 0) == (False, True)
    assert {owner[i] for i, pid in enumerate(pids) if pid == "100360"} == {"test"}
    patients = sum(count > 0 for count in moved)
    assert notes == [f"{sum(moved)} images of {patients} patients moved to the fold of the patient's others"]


def test_the_command_writes_a_file_that_trains(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["split", str(store.path), "--folds-from", str(store.path.parent / "raw" / "cvind.mat")]
    fold = ["--set", "fold=0", "--output", str(tmp_path / "f.json")]
    assert cli.main([*command, *fold, "--as-published"]) == 0
    published = json.loads((tmp_path / "f.json").read_text())
    assert read_split(tmp_path / "f.json", store).leaks == published["leaks"]
    assert cli.main([*command, *fold]) == 0
    together = json.loads((tmp_path / "f.json").read_text())
    assert (together["fold"], together["leaks"]) == (0, False)
    assert sorted(name for part in together["parts"].values() for name in part) == store.case_ids
    for extra, words in (
        ([], "choose the fold to test on"), (["--set", "fold=7"], "7 of 5 folds"),
        (["--set", "fold=0", "--set", "split=published"], "is itself a split"),
        (["--set", "fold=0", "--set", "folds=10"], "has 5 folds"),
    ):  # fmt: skip
        assert cli.main([*command, *extra]) == 2
        assert words in capsys.readouterr().err
    assert cli.main([*command[:2], "--as-published"]) == 2
    assert "name it with --folds-from" in capsys.readouterr().err


def test_folds_need_known_slices(store: Store) -> None:
    with pytest.raises(DataError, match="no known slice of the Cheng set in fold 1"):
        split_by_folds(store, np.where(np.isin(np.arange(SLICES) + 1, store.known_slice), 1, 2), 1, seed=0,
                       val_fraction=0.1, as_published=True)  # fmt: skip
    with pytest.raises(UsageError, match="fold 5 of 2 folds"):
        split_by_folds(store, np.arange(SLICES) % 2 + 1, 5, seed=0, val_fraction=0.1, as_published=True)
