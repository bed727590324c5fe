"""Conversion: it goes on where it stopped, ends as if it had never stopped, and leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from raw_samples import picture, real_data, save, tree, tumour, write_case, write_patients, write_pictures

from hpc_tumor.data.convert import case as convert
from hpc_tumor.data.convert.prepare import PrepareSummary, prepare_dataset
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.store import nodes
from hpc_tumor.data.store.nodes import group_json
from hpc_tumor.data.store.store import Store, read_about
from hpc_tumor.errors import DataError, UsageError

BRATS, BRAIN_MRI = BraTSReader(), BrainMRIReader(size=64)


def prepare(
    source: Path, store: Path, *, images: bool = False, workers: int = 1, overwrite: bool = False
) -> PrepareSummary:
    reader = BRAIN_MRI if images else BRATS
    return prepare_dataset(reader, source, store, workers=workers, overwrite=overwrite)


def make_source(root: Path, images: bool) -> Path:
    return write_pictures(root, 5) if images else write_patients(root, 4)


def outcome(store: Path) -> dict[str, bytes]:
    """All files of a finished store; none may be left over from the making."""
    files = tree(store)
    assert not [name for name in files if name.startswith(".")]
    assert read_about(store)["complete"] is True
    return files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_patients(tmp_path / "raw", 4)


def test_summary_counts(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = prepare_dataset(BRATS, source, tmp_path / "s.zarr", workers=1, progress=lambda *at: seen.append(at))
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert (summary.cases, summary.converted, summary.kept, summary.failed, summary.slices) == (4, 4, 0, [], 24)
    assert summary.classes == {"NCR/NET": 8, "ED": 8, "ET": 4}
    assert summary.bytes_before == sum(file.stat().st_size for file in source.rglob("*.nii.gz"))
    assert summary.bytes_after == sum(len(data) for data in tree(tmp_path / "s.zarr").values())
    assert summary.fingerprint == Store.open(tmp_path / "s.zarr").fingerprint


def test_image_summary_counts_twins_across_parts(tmp_path: Path) -> None:
    summary = prepare(write_pictures(tmp_path / "raw", 5), tmp_path / "s.zarr", images=True)
    assert (summary.parts, summary.duplicates, summary.leaking) == ({"train": 20, "test": 20}, 4, 4)
    assert summary.classes == dict.fromkeys(("glioma", "meningioma", "notumor", "pituitary"), 10)


@pytest.mark.parametrize("images", [False, True])
def test_nothing_is_done_twice(tmp_path: Path, images: bool) -> None:
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    first = prepare(source, store, images=images)
    times = {file: file.stat().st_mtime_ns for file in store.rglob("*")}
    second = prepare(source, store, images=images)
    assert (second.converted, second.kept) == (0, first.cases)
    assert {file: file.stat().st_mtime_ns for file in store.rglob("*") if file != store} == {
        file: at for file, at in times.items() if file != store
    }


def change_patients(source: Path) -> None:
    save(source / "BraTS20_Training_002" / "BraTS20_Training_002_seg.nii.gz", tumour(enhancing=2))
    shutil.rmtree(source / "BraTS20_Training_001")
    write_case(source / "BraTS20_Training_000", seed=9)


def change_pictures(source: Path) -> None:
    picture(77).save(source / "Training" / "glioma" / "Tr-gl (1).png")
    (source / "Training" / "glioma" / "Tr-gl (0).png").unlink()
    picture(78).save(source / "Testing" / "notumor" / "A first.png")


@pytest.mark.parametrize(("images", "change"), [(False, change_patients), (True, change_pictures)])
def test_only_changes_are_converted(tmp_path: Path, images: bool, change: Callable[[Path], None]) -> None:
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    first = prepare(source, store, images=images)
    change(source)
    second = prepare(source, store, images=images)
    assert (second.converted, second.kept, second.removed) == (2, first.cases - 2, 1)
    assert second.fingerprint != first.fingerprint
    prepare(source, tmp_path / "fresh.zarr", images=images)
    assert outcome(store) == outcome(tmp_path / "fresh.zarr")


@pytest.mark.parametrize("images", [False, True])
def test_one_bad_case_among_many(tmp_path: Path, images: bool) -> None:
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    bad = next(iter(sorted(source.rglob("*.png" if images else "*_t1.nii.gz"))))
    whole = bad.read_bytes()
    bad.write_bytes(whole[:60])
    summary = prepare(source, store, images=images)
    ((name, reason),) = summary.failed
    assert name in str(bad)
    assert str(bad) in reason
    assert name not in Store.open(store).case_ids
    assert Store.open(store).about["refused"] == [name]
    bad.write_bytes(whole)
    assert (prepare(source, store, images=images).converted, len(Store.open(store))) == (1, summary.cases + 1)


def test_a_case_that_went_bad_leaves_the_store(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "s.zarr")
    (source / "BraTS20_Training_003" / "BraTS20_Training_003_t2.nii.gz").write_bytes(b"")
    summary = prepare(source, tmp_path / "s.zarr")
    assert (summary.kept, summary.cases, len(summary.failed)) == (3, 3, 1)
    assert not (tmp_path / "s.zarr" / "cases" / "BraTS20_Training_003").exists()


@pytest.mark.parametrize("images", [False, True])
def test_no_good_case_leaves_nothing(tmp_path: Path, images: bool) -> None:
    source = make_source(tmp_path / "raw", images)
    for file in (*source.rglob("*.png"), *source.rglob("*_t1.nii.gz")):
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"has no usable case: .*more\)"):
        prepare(source, tmp_path / "new" / "s.zarr", images=images)
    assert not (tmp_path / "new").exists()


def test_no_good_case_leaves_the_old_store(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "s.zarr")
    before = outcome(tmp_path / "s.zarr")
    for file in source.rglob("*_t1.nii.gz"):
        file.write_bytes(b"broken")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="has no usable case"):
            prepare(source, tmp_path / "s.zarr", overwrite=overwrite)
        assert outcome(tmp_path / "s.zarr") == before


def test_what_is_no_store_is_left_untouched(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.txt").write_text("words")
    for path in (mine, mine / "chapter.txt", source):
        before = tree(tmp_path)
        for overwrite in (False, True):
            with pytest.raises(DataError, match=r"choose another name\. It is unchanged"):
                prepare(source, path, overwrite=overwrite)
        assert tree(tmp_path) == before


def test_stores_of_another_kind_options_or_schema(source: Path, tmp_path: Path) -> None:
    pictures, store = write_pictures(tmp_path / "pictures", 1), tmp_path / "s.zarr"
    prepare(source, store)
    before = outcome(store)
    with pytest.raises(DataError, match=r"is a store of brats, the source is brain-mri\. .*--overwrite"):
        prepare(pictures, store, images=True)
    assert outcome(store) == before
    prepare(pictures, store, images=True, overwrite=True)
    prepare(pictures, tmp_path / "fresh.zarr", images=True)
    assert outcome(store) == outcome(tmp_path / "fresh.zarr")
    with pytest.raises(DataError, match=r"options .*'size': 64.*'size': 32.*--overwrite"):
        prepare_dataset(BrainMRIReader(size=32), pictures, store, workers=1)
    (store / "zarr.json").write_bytes(group_json({"hpc_tumor": {**read_about(store), "schema": 3}}))
    with pytest.raises(DataError, match="has the newer schema 3; this version writes 2"):
        prepare(pictures, store, images=True)
    prepare(source, store, overwrite=True)
    prepare(source, tmp_path / "fresh2.zarr")
    assert outcome(store) == outcome(tmp_path / "fresh2.zarr")


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("writes", [0, 3, 9, 12])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool, writes: int) -> None:
    """The disk takes so many files and no more: one clear error, committed cases stay, and it can go on.

    A patient takes seven files, all 40 images together one until the store is finished.
    """
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    real, left = nodes.write_file, [writes]

    def write_file(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    with monkeypatch.context() as full:
        for module in (nodes, convert):
            full.setattr(module, "write_file", write_file)
        with pytest.raises(DataError, match=r"could not be stored in .*s\.zarr: no space is left") as caught:
            prepare(source, store, images=images)
    assert ("No store was created" in str(caught.value)) == (not store.exists())
    assert ("Committed cases are kept" in str(caught.value)) == store.exists()
    if store.exists():
        assert not list(store.glob(".staging*"))
        with pytest.raises(DataError, match="unfinished"):
            Store.open(store)
    summary = prepare(source, store, images=images)
    assert summary.kept == (40 * (writes > 0) if images else writes // 7)
    prepare(source, tmp_path / "fresh.zarr", images=images)
    assert outcome(store) == outcome(tmp_path / "fresh.zarr")


def test_interrupt_stops_cleanly(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    store = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(BRATS, source, store, workers=1, progress=stop)
    assert {entry.name for entry in store.iterdir()} == {"zarr.json", "cases"}
    summary = prepare(source, store)
    assert (summary.kept, summary.converted) == (2, 2)


def test_two_conversions_on_one_store(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"

    def again(done: int, total: int) -> None:
        with pytest.raises(DataError, match=f"being converted by process {os.getpid()} on "):
            prepare(source, store)

    prepare_dataset(BRATS, source, store, workers=1, progress=again)
    outcome(store)


def test_workers_below_one(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--workers 0"):
        prepare(source, tmp_path / "s.zarr", workers=0)
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.slow
def test_workers_give_the_same_store(tmp_path: Path) -> None:
    for name, images in (("brats", False), ("brain-mri-native", True)):
        source = real_data(name)
        for workers in (1, 2):
            prepare(source, tmp_path / f"{name}{workers}.zarr", images=images, workers=workers)
        assert outcome(tmp_path / f"{name}1.zarr") == outcome(tmp_path / f"{name}2.zarr")


@pytest.mark.slow
def test_errors_of_workers_arrive(source: Path, tmp_path: Path) -> None:
    (source / "BraTS20_Training_003" / "BraTS20_Training_003_t2.nii.gz").write_bytes(b"")
    summary = prepare(source, tmp_path / "s.zarr", workers=2)
    assert [case for case, _ in summary.failed] == ["BraTS20_Training_003"]
    assert len(Store.open(tmp_path / "s.zarr")) == 3


@pytest.mark.parametrize("images", [False, True])
def test_cases_that_were_damaged_since_are_not_taken_out_in_silence(tmp_path: Path, images: bool) -> None:
    source = write_pictures(tmp_path / "raw", 4, twins=False) if images else write_patients(tmp_path / "raw", 6)
    store = tmp_path / "s.zarr"
    before = prepare(source, store, images=images)
    files = sorted(file for file in source.rglob("*") if file.is_file() and (images or "_t1." in file.name))
    damaged = files[: len(files) * 2 // 3]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot be converted again, such as .* None was removed.*--prune"):
        prepare(source, store, images=images)
    opened = Store.open(store)
    assert (len(opened), opened.fingerprint) == (before.cases, before.fingerprint)
    summary = prepare_dataset(BRAIN_MRI if images else BRATS, source, store, workers=1, prune=True)
    assert (summary.removed, len(summary.failed)) == (len(damaged), len(damaged))
    assert len(Store.open(store)) == before.cases - len(damaged)
