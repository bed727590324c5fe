"""Faults during a conversion: a source that disappears, full disks, killed workers."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from raw_samples import picture, tree, write_case, write_patients, write_pictures

from hpc_tumor.data.case import Case, CaseData
from hpc_tumor.data.convert import writers
from hpc_tumor.data.convert.prepare import PrepareSummary, prepare_dataset
from hpc_tumor.data.convert.target import LOCK, list_staging
from hpc_tumor.data.convert.workers import MOST_KILLS
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brain_mri import BrainMRIReader
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.system import worker_processes

KINDS = pytest.mark.parametrize("images", [False, True])


def prepare(source: Path, store: Path, **options: Any) -> PrepareSummary:
    return prepare_dataset(inspect_source(source).reader, source, store, **{"workers": 1, **options})


def make_source(root: Path, images: bool) -> Path:
    return write_pictures(root, 12, twins=False) if images else write_patients(root, 4)


def failing(monkeypatch: pytest.MonkeyPatch, code: int, fails: Callable[[str], bool]) -> None:
    """Let every attempt to open a file of which `fails(path)` is true end with this error."""
    for module, name in ((os, "open"), (io, "open")):
        real = getattr(module, name)

        def opened(file: Any, *args: Any, real: Any = real, **kwargs: Any) -> Any:
            if fails(str(file)):
                raise OSError(code, os.strerror(code), str(file))
            return real(file, *args, **kwargs)

        monkeypatch.setattr(module, name, opened)


@KINDS
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ENOENT, errno.EACCES, errno.ENOTCONN])
def test_a_source_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool, code: int) -> None:
    """Half-way, as a network mount does: one error that names the case; what is committed stays, also what changed."""
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    prepare(source, store)
    if images:
        picture(5).save(source / "Training" / "glioma" / "Tr-gl (3).png")
    else:
        write_case(source / "BraTS20_Training_002", seed=9)
    before = Store.open(store).case_ids
    with monkeypatch.context() as lost:
        failing(lost, code, lambda path: path.startswith(str(source)))
        with pytest.raises(DataError) as caught:
            prepare(source, store)
    name = "Training/glioma/Tr-gl (3).png" if images else "BraTS20_Training_002"
    assert str(caught.value).startswith(f"{source} can no longer be read ({os.strerror(code)}), first at case ")
    assert f"at case {name}: is its disk or network share still mounted? Committed cases are kept" in str(caught.value)
    assert Store.open(store).case_ids == before
    assert prepare(source, store).converted == 1
    prepare(source, tmp_path / "fresh.zarr")
    assert tree(store) == tree(tmp_path / "fresh.zarr")


@KINDS
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_one_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool, code: int) -> None:
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    bad = str(sorted(source.rglob("*.png" if images else "*_t1.nii.gz"))[2])
    failing(monkeypatch, code, lambda path: path == bad)
    ((case, reason),) = prepare(source, store).failed
    assert case in bad
    assert f"{bad} cannot be read" in reason
    assert os.strerror(code) in reason
    shutil.rmtree(store)
    with pytest.raises(DataError, match="Stopped because of --strict") as caught:
        prepare(source, store, strict=True)
    assert str(caught.value).startswith(reason)
    assert tree(store) if images else {entry.name for entry in (store / "cases").iterdir()} > {"BraTS20_Training_001"}
    monkeypatch.undo()
    assert prepare(source, store, strict=True).kept > 0
    prepare(source, tmp_path / "fresh.zarr")
    assert tree(store) == tree(tmp_path / "fresh.zarr")


@KINDS
def test_an_emptied_source_empties_no_store(tmp_path: Path, images: bool) -> None:
    """An unmounted disk leaves a small folder, or an empty one."""
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    prepare(source, store)
    before = tree(store)
    for folder in sorted(source.rglob("*/"))[3 if images else 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(DataError, match=r"lacks \d+ of the \d+ cases in .*is its disk mounted\? .*add --prune"):
        prepare(source, store)
    assert tree(store) == before
    summary = prepare(source, store, prune=True)
    assert summary.removed > summary.cases > 0
    before = tree(store)
    shutil.rmtree(source)
    source.mkdir()
    for options in ({}, {"prune": True}, {"overwrite": True}):
        with pytest.raises(DataError, match="no such dataset"):
            prepare(source, store, **options)
    assert tree(store) == before


@KINDS
def test_a_folder_that_cannot_be_listed_hides_no_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool
) -> None:
    source, store = make_source(tmp_path / "raw", images), tmp_path / "s.zarr"
    prepare(source, store)
    before, closed = tree(store), source / ("Training/glioma" if images else "BraTS20_Training_002")
    real = os.scandir

    def scandir(folder: Any) -> Any:
        if str(folder) == str(closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return real(folder)

    with monkeypatch.context() as denied:
        denied.setattr(os, "scandir", scandir)
        with pytest.raises(DataError, match=r"(?s)cannot be (listed|looked at|read).*Permission denied"):
            prepare(source, store)
    assert tree(store) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB, where this machine lets one be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", ["brats", "brain-mri"])
def test_a_disk_that_is_really_full(tmp_path: Path, small_disk: Path, kind: str, count: int) -> None:
    make_phantom(
        tmp_path / "raw", kind, 12 if kind == "brats" else 40, 1, shape=(48, 48, 16) if kind == "brats" else None
    )
    store = small_disk / "s.zarr"
    with pytest.raises(DataError, match=r"could not be stored in .*s\.zarr: no space is left on its disk\. ") as caught:
        prepare(tmp_path / "raw", store, workers=count)
    assert caught.value.exit_code == 3
    if kind == "brats":
        assert "BraTS20_Training_" in str(caught.value)
        kept = len(list((store / "cases").glob("*/zarr.json")))
        assert 2 < kept < 12
        subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
        assert prepare(tmp_path / "raw", store).kept == kept
        prepare(tmp_path / "raw", tmp_path / "fresh.zarr")
        assert tree(store) == tree(tmp_path / "fresh.zarr")
    else:
        assert not store.exists() or not list(store.glob(".staging*"))


def children() -> set[int]:
    """Processes that this one has started and that live."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid() and fields[0] != "Z":
                found.add(int(stat.parent.name))
    return found


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(tmp_path: Path) -> None:
    make_phantom(tmp_path / "raw", "brats", 8, 1, shape=(48, 48, 16))
    others = children()  # of tests before

    def kill(done: int, total: int) -> None:
        if done == 2:
            os.kill(min(children() - others), signal.SIGKILL)

    summary = prepare(tmp_path / "raw", tmp_path / "s.zarr", workers=2, progress=kill)
    assert (summary.converted, summary.failed) == (8, [])
    prepare(tmp_path / "raw", tmp_path / "fresh.zarr")
    assert tree(tmp_path / "s.zarr") == tree(tmp_path / "fresh.zarr")
    assert children() <= others


class DeadlyPatients(BraTSReader):
    """Two patients that need more memory than there is, one of which crashes the library that reads it."""

    def read_case(self, case: Case) -> CaseData:
        die(case, {"001": signal.SIGKILL, "003": signal.SIGSEGV})
        return super().read_case(case)


class DeadlyImages(BrainMRIReader):
    """The same of images, of which one process reads many."""

    def read_case(self, case: Case) -> CaseData:
        die(case, {"gl (1).png": signal.SIGKILL, "gl (3).png": signal.SIGSEGV})
        return super().read_case(case)


def die(case: Case, deadly: dict[str, signal.Signals]) -> None:
    for name, number in deadly.items():
        if case.id.endswith(name):
            with Path(os.environ["DEATHS"]).open("a") as file:
                file.write(f"{case.id}\n")
            os.kill(os.getpid(), number)


@pytest.mark.slow
@KINDS
def test_cases_that_kill_their_workers_are_refused_and_the_rest_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: bool
) -> None:
    source, deaths = make_source(tmp_path / "raw", images), tmp_path / "deaths"
    monkeypatch.setenv("DEATHS", str(deaths))
    monkeypatch.setattr(writers, "IMAGES_PER_UNIT", 20)  # several of them together
    reader = DeadlyImages() if images else DeadlyPatients()
    summary = prepare_dataset(reader, source, tmp_path / "s.zarr", workers=2)
    (memory, crash), refused = summary.failed[:2], {case for case, _ in summary.failed}
    assert "processes were killed on it, most likely for lack of memory: convert it on a machine" in memory[1]
    assert "processes ended on it by SIGSEGV: one of its files may be damaged" in crash[1]
    assert str(source) in memory[1]
    assert Counter(deaths.read_text().splitlines()) == dict.fromkeys(refused, MOST_KILLS)
    assert summary.converted == len(list(source.rglob("*.png" if images else "*_seg.nii.gz"))) - len(refused) > 1
    # The rest is what it would be without them.
    for path in source.rglob("*"):
        if any(case in path.as_posix() for case in refused) and path.is_file():
            path.unlink()
    fresh = prepare(source, tmp_path / "fresh.zarr")
    assert summary.fingerprint == fresh.fingerprint


def test_a_worker_that_cannot_begin_is_no_fault_of_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "raw", images=False)
    monkeypatch.setattr(worker_processes, "module_command", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    with pytest.raises(DataError, match=r"worker process ended with exit code 7 at startup.*No store was created"):
        prepare(source, tmp_path / "s.zarr", workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("options", ["ro", "size=4k"])
def test_shared_memory_of_the_machine_is_not_needed(tmp_path: Path, options: str) -> None:
    if os.getuid() or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("needs a mount namespace")
    make_phantom(tmp_path / "raw", "brain-mri", 40, seed=1)
    script = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    command = [sys.executable, "-m", "hpc_tumor", "prepare-data", "raw", "images.zarr", "--workers", "2"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command], cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(Store.open(tmp_path / "images.zarr")) == 40


@pytest.mark.parametrize(("code", "way"), [(errno.ENOLCK, " Convert on another disk, then .*"), (errno.EIO, "")])
def test_a_store_that_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, way: str) -> None:
    source = make_source(tmp_path / "raw", images=False)

    def flock(handle: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DataError, match=rf"s\.zarr cannot be locked: {os.strerror(code)}\.{way}$"):
        prepare(source, tmp_path / "s.zarr")
    assert (tmp_path / "s.zarr").exists() is (way == "")  # where there are locks, another process may have the file


def test_staging_folders_of_no_store_and_of_a_conversion_are_left_alone(tmp_path: Path) -> None:
    store, staging = tmp_path / "s.zarr", tmp_path / "s.zarr" / ".staging-0123abcd"
    staging.mkdir(parents=True)
    (store / "letter.txt").touch()
    assert list_staging(store) == []
    (store / "letter.txt").unlink()
    assert list_staging(store) == [staging]
    with (store / LOCK).open("w") as lock:
        assert list_staging(store) == [staging]
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert list_staging(store) == []


def test_a_target_that_cannot_be_read_is_left_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "raw", images=False)
    prepare(source, tmp_path / "s.zarr")
    before = tree(tmp_path / "s.zarr")
    failing(monkeypatch, errno.EIO, lambda path: path.endswith("s.zarr/zarr.json"))
    with pytest.raises(DataError, match=r"s\.zarr cannot be read: Input/output error\. It is unchanged"):
        prepare(source, tmp_path / "s.zarr")
    monkeypatch.undo()
    assert tree(tmp_path / "s.zarr") == before
