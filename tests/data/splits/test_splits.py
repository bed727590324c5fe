"""Splits never put one patient or one group of duplicates on two sides, whatever the store looks like."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_samples import real_data

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.patients.reference import pid_of
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.splits.folds import Unit, deal_folds, draw_fraction
from hpc_tumor.data.splits.splits import Split, make_split, middle_slices
from hpc_tumor.data.splits.units import image_patients, label_conflicts, patient_units
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError
from hpc_tumor.vocabulary import CLASSES


def patients(n: int, depth: int = 155) -> Store:
    return cast(Store, FakePatients([f"case_{i:03}" for i in range(n)], depth))


class FakePatients(SimpleNamespace):
    def __init__(self, ids: list[str], depth: int):
        super().__init__(
            task="segmentation", path=Path("s.zarr"), case_ids=ids, fingerprint="f",
            shapes=np.tile([[depth, 4, 4]], (len(ids), 1)),
            clinical=[{} for _ in ids], scans=[f"scans of {name}" for name in ids], group=np.arange(len(ids)),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.case_ids)

    def text_column(self, name: str) -> list[Any]:
        assert name == "scans"
        return self.scans


class FakeImages(SimpleNamespace):
    def __init__(self, label: Any, part: Any, group: Any, patients: Any = None):
        super().__init__(
            task="classification", path=Path("s.zarr"), label=np.array(label), part=np.array(part),
            group=np.array(group), paths=[f"image {i:04}" for i in range(len(label))], fingerprint="f",
        )  # fmt: skip
        # Every third image of a group repeats the one before, pixel by pixel.
        self.identical = np.array([g * 100 + (np.sum(self.group[:i] == g) + 1) // 2 for i, g in enumerate(group)])
        self.case_ids = self.paths
        self.classes = list(CLASSES)
        self.names_patients = True
        self.known_slice = np.zeros(len(label), np.int64)
        self.patients = ["" if patients is None or not patients[i] else f"p{patients[i]}" for i in range(len(label))]

    def __len__(self) -> int:
        return len(self.paths)


def images(rows: list[tuple[int, bool, int]]) -> Store:
    """Rows of (class, test or not, group); images of one group share the class of its first."""
    label, part, group = zip(*rows, strict=True)
    first = {g: c for c, g in zip(reversed(label), reversed(group), strict=True)}
    return cast(Store, FakeImages([first[g] for g in group], ["test" if p else "train" for p in part], group))


def parts(split: Split) -> list[set[Any]]:
    arrays = (split.train, split.val, split.test)
    return [set(map(tuple, part.tolist())) if part.ndim == 2 else set(part.tolist()) for part in arrays]


def disjoint(sets: list[set[Any]]) -> bool:
    return sum(map(len, sets)) == len(set().union(*sets))


@given(
    n=st.integers(2, 60), seed=st.integers(0, 2**31 - 1), folds=st.integers(2, 8), data=st.data(),
    val=st.floats(0, 0.9), test=st.floats(0.01, 0.9),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_patient_is_on_two_sides(n: int, seed: int, folds: int, data: Any, val: float, test: float) -> None:
    fold = data.draw(st.none() | st.integers(0, folds - 1)) if n >= folds else None
    split = make_split(patients(n), "by-patient", seed, fold=fold, folds=folds, val_fraction=val, test_fraction=test)
    assert disjoint(parts(split))
    assert set().union(*parts(split)) == set(range(n))
    assert len(split.train)
    assert len(split.test)
    assert len(split.val) == 0 if val == 0 or n - len(split.test) < 2 else len(split.val) > 0
    assert not split.leaks


rows = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 12)), min_size=4, max_size=60)


@given(rows=rows, seed=st.integers(0, 1000), fold=st.none() | st.integers(0, 2))
@settings(max_examples=200, deadline=None)
def test_no_duplicate_group_is_on_two_sides(rows: list[tuple[int, bool, int]], seed: int, fold: int | None) -> None:
    store = images(rows)
    try:
        split = make_split(store, "deduplicated", seed, fold=fold, folds=3)
    except DataError:
        trained = {g for g, p in zip(store.group, store.part, strict=True) if p == "train"}
        tested = {g for g, p in zip(store.group, store.part, strict=True) if p == "test"}
        assert len(trained | tested) < 3 or not trained - tested
        return
    assert disjoint([set(store.group[p].tolist()) for p in (split.train, split.val, split.test)])
    published = set(np.flatnonzero(store.part == "test").tolist())
    if fold is None and 0 < len(published) < len(store):
        assert set(split.test.tolist()) == published
    else:
        assert len(set(store.identical[split.test].tolist())) == len(split.test)
    assert len(set(store.identical[split.train].tolist())) == len(split.train)


def test_folds_cover_everything_once() -> None:
    tests = [make_split(patients(11), None, 3, fold=k, folds=4).test.tolist() for k in range(4)]
    assert sorted(case for test in tests for case in test) == list(range(11))
    assert sorted(map(len, tests)) == [2, 3, 3, 3]
    store = images([(i % 4, i % 3 == 0, i // 2) for i in range(80)])
    tests = [make_split(store, None, 3, fold=k, folds=4).test for k in range(4)]
    assert sorted(store.identical[np.concatenate(tests)].tolist()) == sorted(set(store.identical.tolist()))


@given(
    strata=st.lists(st.tuples(st.integers(0, 3), st.sampled_from((1, 1, 1, 2, 3, 9))), min_size=3, max_size=80),
    folds=st.integers(2, 6), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_folds_are_balanced_whatever_the_groups(
    strata: list[tuple[int, int]], folds: int, seed: int, data: Any
) -> None:
    """In the members of a stratum no two folds differ by more than its largest group; every group is dealt once."""
    units = [Unit(f"u{i}", kind, tuple(range(i * 10, i * 10 + n))) for i, (kind, n) in enumerate(strata)]
    dealt = deal_folds(units, folds, f"{seed} test")
    assert sorted(i for fold in dealt for i in fold) == list(range(len(units)))
    assert all(dealt) or len(units) < folds
    for kind in range(4):
        sizes = [sum(len(units[i].members) for i in fold if units[i].stratum == kind) for fold in dealt]
        largest = max((len(unit.members) for unit in units if unit.stratum == kind), default=0)
        assert max(sizes) - min(sizes) <= largest
    turned = data.draw(st.permutations(range(len(units))))
    again = deal_folds([units[i] for i in turned], folds, f"{seed} test")
    assert [{turned[i] for i in fold} for fold in again] == [set(fold) for fold in dealt]


@given(
    strata=st.lists(st.tuples(st.integers(0, 2), st.sampled_from((1, 1, 2, 7))), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99), seed=st.integers(0, 99), fill=st.booleans(),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_share_is_near_its_fraction_in_every_stratum(
    strata: list[tuple[int, int]], fraction: float, seed: int, fill: bool
) -> None:
    units = [Unit(f"u{i}", kind, tuple(range(n))) for i, (kind, n) in enumerate(strata)]
    drawn = draw_fraction(units, fraction, str(seed), fill=fill)
    assert 0 < len(drawn) < len(units)
    for kind in {unit.stratum for unit in units}:
        some = [len(unit.members) for unit in units if unit.stratum == kind]
        held = sum(len(units[i].members) for i in drawn if units[i].stratum == kind)
        if len(some) > 1:
            assert 0 < held < sum(some)
            assert abs(held - fraction * sum(some)) <= max(some) + 0.5


def test_grades_are_in_every_fold_as_in_all() -> None:
    """BraTS 2020 has 293 HGG and 76 LGG: of five folds each has 58 or 59 and 15 or 16."""
    store = patients(369)
    store.clinical[:] = [{"grade": "LGG"} if i % 5 == 0 or i in (1, 2) else {"grade": "HGG"} for i in range(369)]
    low = {i for i, facts in enumerate(store.clinical) if facts["grade"] == "LGG"}
    assert len(low) == 76
    for k in range(5):
        split = make_split(store, None, 0, fold=k)
        assert len(low & set(split.test.tolist())) in (15, 16)
        assert len(split.test) in (73, 74)
        assert len(low & set(split.val.tolist())) == 6  # a tenth of the 60 or 61 that do not test


def test_cases_of_one_patient_stay_together() -> None:
    """The same scans under two ids, nearly the same, one id in another edition, and two times of one patient."""
    names = [f"BraTS-GLI-{i:05}-{t:03}" for i in range(10) for t in (0, 100)]
    store = cast(Any, FakePatients([*names, *(f"case_{i:02}" for i in range(20))], 155))
    store.scans[25] = store.scans[31]
    store.group[24] = store.group[38]
    store.clinical[22] = {"other_ids": {"BraTS 2019": "one"}}
    store.clinical[27] = {"other_ids": {"BraTS 2019": "one"}}
    same = [*((i, i + 1) for i in range(0, 20, 2)), (25, 31), (24, 38), (22, 27)]
    for k in range(5):
        sets = parts(make_split(store, None, 1, fold=k))
        assert disjoint(sets)
        for a, b in same:
            assert any({a, b} <= some for some in sets)


def test_a_new_patient_moves_few_of_the_others() -> None:
    before, after = make_split(patients(100), None, 0), make_split(patients(101), None, 0)
    assert len(set(before.test.tolist()) ^ set(after.test.tolist())) <= 2


def test_a_split_follows_from_seed_and_names_alone() -> None:
    a, b = make_split(patients(20), None, 5), make_split(patients(20), None, 5)
    assert all((x == y).all() for x, y in zip((a.train, a.val, a.test), (b.train, b.val, b.test), strict=True))
    assert parts(a) != parts(make_split(patients(20), None, 6))
    turned = FakePatients([f"case_{i:03}" for i in reversed(range(20))], 155)
    c = make_split(cast(Store, turned), None, 5)
    assert sorted(19 - c.test) == a.test.tolist()
    with_more_val = make_split(patients(20), None, 5, val_fraction=0.4)
    assert with_more_val.test.tolist() == a.test.tolist()


def test_two_patients_train_and_test() -> None:
    split = make_split(patients(2), "by-patient", 0)
    assert (len(split.train), len(split.val), len(split.test)) == (1, 0, 1)
    with pytest.raises(DataError, match="has 1 case:"):
        make_split(patients(1), "by-patient", 0)
    with pytest.raises(DataError, match="5 folds need at least 5"):
        make_split(patients(4), "by-patient", 0, fold=0)


def test_published_slices_leak() -> None:
    """369 patients give 28,413 slices, nine tenths of them to train (and validate), and share patients."""
    split = make_split(patients(369), "published", 0, val_fraction=0)
    assert len(split.train) + len(split.test) == 369 * 77 == 28_413
    assert len(split.test) == 2841
    assert disjoint(parts(split))
    assert set(split.test[:, 0]) & set(split.train[:, 0])
    assert split.leaks
    assert set(split.train[:, 1]) == set(range(39, 116))


def test_middle_slices() -> None:
    assert middle_slices(155, 0.5) == range(39, 116)
    assert middle_slices(155, 1.0) == range(155)
    assert list(middle_slices(3, 0.01)) == [1]


def test_refusals() -> None:
    with pytest.raises(UsageError, match=r"unknown split for segmentation 'by-patiant'. Did you mean 'by-patient'\?"):
        make_split(patients(3), "by-patiant", 0)
    with pytest.raises(UsageError, match="Known: by-patient, deduplicated, published"):
        make_split(images([(0, False, 0)] * 4), "per person", 0)
    with pytest.raises(
        DataError, match="has 1 patient or image without one: a training and a test part need at least 2"
    ):
        make_split(images([(0, False, 0)] * 4), "by-patient", 0)
    with pytest.raises(UsageError, match="fold 5 of 5"):
        make_split(patients(9), None, 0, fold=5)
    for fractions in ({"val_fraction": 1.0}, {"test_fraction": 0.0}, {"val_fraction": -0.1}):
        with pytest.raises(UsageError, match="fraction"):
            make_split(patients(9), None, 0, **fractions)
    with pytest.raises(UsageError, match="no folds"):
        make_split(images([(0, bool(i), i) for i in range(4)]), "published", 0, fold=1)
    with pytest.raises(DataError, match="no published training and test parts"):
        make_split(images([(0, False, i) for i in range(4)]), "published", 0)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 12), st.integers(0, 5)), min_size=4, max_size=60
    ),
    seed=st.integers(0, 1000), fold=st.none() | st.integers(0, 2), conflicts=st.sampled_from(["exclude", "keep"]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_known_patient_is_on_two_sides(
    rows: list[tuple[int, bool, int, int]], seed: int, fold: int | None, conflicts: str
) -> None:
    """Copies of different classes, patients of several classes, and copies that join patients are among them."""
    label, part, group, patients = zip(*rows, strict=True)
    store = cast(Store, FakeImages(label, ["test" if p else "train" for p in part], group, patients))
    units = image_patients(store)
    try:
        split = make_split(store, "by-patient", seed, fold=fold, folds=3, conflicts=conflicts)
    except DataError:
        assert len(set(units.tolist())) < 3 or conflicts == "exclude"
        return
    assert disjoint([set(units[p].tolist()) for p in (split.train, split.val, split.test)])
    names = [{store.patients[i] for i in p.tolist()} - {""} for p in (split.train, split.val, split.test)]
    assert disjoint(names)
    assert split.leakage is not None
    assert not split.leaks
    assert split.leakage.units == 0
    every = np.concatenate([split.train, split.val, split.test])
    assert len(every) == len(set(store.identical[every].tolist()))  # of identical images one remains
    contradicted = {conflict.image for conflict in label_conflicts(store)}
    assert bool(contradicted & set(every.tolist())) == bool(split.conflicting)
    assert (split.excluded, conflicts == "keep") in ((len(contradicted), False), (0, True))


def test_large_patients_leave_class_shares_as_they_are() -> None:
    """Patients of 1 to 30 images, and images without one: each class has its fraction in the test part."""
    draw = np.random.default_rng(0)
    rows = [(kind, patient) for kind in range(3) for patient in range(40) for _ in range(draw.integers(1, 31))]
    rows += [(3, -1)] * 600
    label = [kind for kind, _ in rows]
    names = [kind * 100 + patient + 1 if patient >= 0 else 0 for kind, patient in rows]
    store = cast(Store, FakeImages(label, ["train"] * len(rows), range(len(rows)), names))
    for seed in range(5):
        split = make_split(store, "by-patient", seed, test_fraction=0.19)
        shares = np.bincount(store.label[split.test]) / np.bincount(store.label)
        assert np.abs(shares - 0.19).max() < 0.005


def test_real_images_leak_as_published_and_not_by_patient(tmp_path: Path) -> None:
    """The figures of the published sample: copies, patients with and without suffix letters, and the very slices."""
    summary = prepare_dataset(BrainMRIReader(), real_data("brain-mri"), tmp_path / "s.zarr", workers=1)
    store = Store.open(tmp_path / "s.zarr")
    published = make_split(store, "published", 0)
    assert (len(published.train) + len(published.val), len(published.test)) == (587, 224)
    found = published.leakage
    assert found is not None
    assert (found.identical, found.copies) == (31, summary.leaking)
    assert found.copies >= 81
    assert (found.known, found.same_patient, found.same_slice) == (134, 119, 12)
    training = {pid_of(number) for number in store.known_slice[store.part == "train"].tolist() if number}
    tested = [pid_of(number) for number in store.known_slice[store.part == "test"].tolist() if number]
    assert sum(pid in training for pid in tested) == 116
    assert (published.leaks, published.excluded, published.conflicting) == (True, 0, 1)

    clean = make_split(store, "deduplicated", 0)
    assert clean.leaks
    assert clean.leakage is not None
    assert (clean.leakage.copies, clean.leakage.known) == (0, 134)
    assert clean.leakage.same_patient > 100
    assert clean.leakage.describe().startswith("no copies found in two parts, but 1")
    assert clean.test.tolist() == published.test.tolist()

    used = make_split(store, None, 0, test_fraction=0.19)
    assert (used.kind, used.leaks, used.excluded) == ("by-patient", False, 1)
    assert used.leakage is not None
    assert (used.leakage.copies, used.leakage.same_patient, used.leakage.units) == (0, 0, 0)
    assert used.leakage.known > 90
    shares = np.bincount(store.label[used.test]) / np.bincount(store.label)
    assert np.abs(shares - 0.19).max() < 0.02

    (conflict,) = label_conflicts(store)
    assert store.paths[conflict.image] == "Training/pituitary/Tr-pi_0520.jpg"
    assert (conflict.filed, conflict.slice, conflict.contrary) == ("pituitary", 230, "meningioma")


def test_old_deduplicated_splits_are_made_as_before() -> None:
    """A split of copies of two classes, as versions without `conflicts` made it, from a record."""
    store = images([(i % 4, i % 3 == 0, i // 2) for i in range(80)])
    store.label[[2, 7, 30]] = 1, 2, 0  # type: ignore[index]
    split = make_split(store, "deduplicated", 1, fold=2, conflicts="keep")
    assert split.test.tolist() == [10, 11, 18, 19, 20, 21, 22, 23, 32, 33, 50, 51, 64, 65, 72, 73]


def test_one_patient_of_two_editions_is_one_unit() -> None:
    """A row of name_mapping.csv that knows the 2019 and the 2020 id alone, and a store with both folders."""
    store = cast(Any, FakePatients(["BraTS19_CBICA_AAB_1", "BraTS20_Training_001", "BraTS20_Training_002"], 155))
    store.clinical[0] = {"other_ids": {"2020": "BraTS20_Training_001"}}
    store.clinical[1] = {"other_ids": {"2019": "BraTS19_CBICA_AAB_1"}}
    assert sorted(unit.members for unit in patient_units(store)) == [(0, 1), (2,)]
