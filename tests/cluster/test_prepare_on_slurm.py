"""prepare-data --cluster on the real SLURM that tools/slurm_cluster.py starts: the same store, whatever is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import wait_for
from local_slurm import LOCAL_TEST

from hpc_tumor.cluster.convert.command import conversion_on
from hpc_tumor.data.convert.prepare import PrepareSummary, inspect_sources, prepare_dataset, prepare_sources
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import ClusterError, DataError

pytestmark = pytest.mark.slow
KINDS = {"brats": (24, (48, 48, 16)), "brain-mri": (300, None)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small raw dataset of either kind, and the store that this machine makes of it."""
    folder = tmp_path_factory.mktemp("sources")
    for kind, (cases, shape) in KINDS.items():
        make_phantom(folder / kind, kind, cases, 1, shape=shape)
        prepare(folder / kind, folder / f"{kind}.zarr")
    return folder


@pytest.fixture
def on_slurm(slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("hpc_tumor.cluster.slurm.WATCH_SECONDS", 1.0)


def prepare(source: Path, store: Path, **options: object) -> PrepareSummary:
    return prepare_dataset(inspect_source(source).reader, source, store, **options)  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tasks_of(store: Path) -> list[int]:
    """Processes of array tasks that work for this store."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if "hpc_tumor.cluster.convert.task" in words and any(str(store) in word for word in words):
            found.append(int(entry.name))
    return found


def queued() -> str:
    command = ["squeue", "--noheader", "--format=%i %j"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(line for line in lines if "hpc-tumor-prepare-" in line)


def at(count: int, action: Callable[[], None]) -> Callable[[int, int], None]:
    """Progress that does something once so many cases are done."""
    waiting = [action]

    def progress(done: int, total: int) -> None:
        if done >= count and waiting:
            waiting.pop()()

    return progress


@pytest.mark.parametrize("kind", KINDS)
def test_killed_tasks_change_nothing(on_slurm: None, sources: Path, tmp_path: Path, kind: str) -> None:
    """All processes at work when the first unit has been taken are killed: another array does the rest."""
    store, said = tmp_path / "store.zarr", []

    def kill_tasks() -> None:
        wait_for(lambda: list(store.glob(".staging-*/array/doing/*")), every=0.02)
        for task in tasks_of(store):
            os.kill(task, signal.SIGKILL)

    killer = threading.Thread(target=kill_tasks)

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            killer.start()

    summary = prepare(sources / kind, store, convert=conversion_on(str(LOCAL_TEST), 2, say))
    killer.join()
    assert not summary.failed
    assert tree(store) == tree(sources / f"{kind}.zarr")
    assert any("was lost" in line for line in said), said
    wait_for(lambda: not tasks_of(store) and not queued())


def test_several_sources_and_an_update_of_one_of_them(on_slurm: None, sources: Path, tmp_path: Path) -> None:
    """The array converts images of both sources, and then of one, with the same stores as on this machine."""
    other = tmp_path / "other"
    make_phantom(other, "brain-mri", 40, 2)
    stores = tmp_path / "array.zarr", tmp_path / "here.zarr"
    convert = conversion_on(str(LOCAL_TEST), 2, lambda line: None)
    for given in ([str(sources / "brain-mri"), str(other)], [str(other)]):
        for store, how in zip(stores, (convert, None), strict=True):
            summary = prepare_sources(inspect_sources(given, store), store, workers=1, convert=how)
            assert (summary.cases, summary.failed) == (340 - (len(given) == 1), [])
        assert tree(stores[0]) == tree(stores[1])
        next(other.rglob("*.jpg")).unlink()
    wait_for(lambda: not tasks_of(stores[0]) and not queued())


def test_a_killed_task_leaves_its_work_to_the_other(on_slurm: None, sources: Path, tmp_path: Path) -> None:
    store, killed = tmp_path / "store.zarr", []

    def kill_one() -> None:
        wait_for(lambda: list(store.glob(".staging-*/array/doing/*")), every=0.02)
        for task in tasks_of(store)[:1]:
            os.kill(task, signal.SIGKILL)
            killed.append(task)

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = prepare(sources / "brats", store, convert=conversion_on(str(LOCAL_TEST), 2, lambda line: None))
    killer.join()
    assert killed
    assert not summary.failed
    assert tree(store) == tree(sources / "brats.zarr")


def test_a_killed_worker_costs_its_task_nothing(on_slurm: None, sources: Path, tmp_path: Path) -> None:
    """One process of a task is killed, as for lack of memory: the task goes on, and its case is tried again."""
    store, said, killed = tmp_path / "store.zarr", [], []

    def kill_one() -> None:
        wait_for(lambda: list(store.glob(".staging-*/array/done/*")), every=0.02)
        for task in tasks_of(store):
            children = Path(f"/proc/{task}/task/{task}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGKILL)
            killed.append(task)

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = prepare(sources / "brats", store, convert=conversion_on(str(LOCAL_TEST), 1, said.append))
    killer.join()
    assert len(killed) == 1
    assert not any("was lost" in line for line in said), said
    assert not summary.failed
    assert tree(store) == tree(sources / "brats.zarr")


def test_tasks_import_nothing_from_the_current_folder(
    on_slurm: None, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted from a folder that has modules of Python's and ours, with a path that ends in a colon."""
    traps, said = tmp_path / "traps", []
    traps.mkdir()
    for name in ("types", "enum", "signal", "numpy", "torch", "hpc_tumor"):
        (traps / f"{name}.py").write_text("raise SystemExit(f'{__file__} was imported')\n")
    monkeypatch.chdir(traps)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}:")
    summary = prepare(
        sources / "brats", tmp_path / "store.zarr", convert=conversion_on(str(LOCAL_TEST), 1, said.append)
    )
    assert not summary.failed
    assert not any("was lost" in line for line in said), said


def test_killed_command_leaves_tasks_that_end(on_slurm: None, sources: Path, tmp_path: Path) -> None:
    """kill -9 of the waiting command: its tasks see that nobody waits any more once the store is completed here."""
    store, source = tmp_path / "store.zarr", sources / "brats"
    options = ["--cluster", LOCAL_TEST, "--workers", "2"]
    command = [sys.executable, "-m", "hpc_tumor", "prepare-data", source, store, *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: list(store.glob(".staging-*/array/doing/*")), every=0.02)
        process.kill()
    with pytest.raises(DataError, match=r"unfinished|not a store"):
        Store.open(store)
    summary = prepare(source, store, workers=1)
    wait_for(lambda: not tasks_of(store) and not queued(), seconds=60)
    assert summary.cases == KINDS["brats"][0]
    assert tree(store) == tree(sources / "brats.zarr")


def test_interrupt_cancels_the_array(on_slurm: None, sources: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"

    def interrupt() -> None:
        raise KeyboardInterrupt

    convert = conversion_on(str(LOCAL_TEST), 2, lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        prepare(sources / "brats", store, convert=convert, progress=at(2, interrupt))
    wait_for(lambda: not tasks_of(store) and not queued())
    assert {entry.name for entry in store.iterdir()} == {"cases", "zarr.json"}
    summary = prepare(sources / "brats", store, convert=convert)
    assert summary.kept >= 2
    assert tree(store) == tree(sources / "brats.zarr")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("setup = ['echo no module of that name; exit 3']", "ended without converting .*no module of that name"),
        ("setup = ['sleep 300']", "was cancelled"),
    ],
)
def test_tasks_that_cannot_work(on_slurm: None, sources: Path, tmp_path: Path, change: str, words: str) -> None:
    profile, store = tmp_path / "broken.toml", tmp_path / "store.zarr"
    profile.write_text(LOCAL_TEST.read_text().replace("setup = []", change))
    convert = conversion_on(str(profile), 1, cancel if "sleep" in change else lambda line: None)
    with pytest.raises(ClusterError if "exit" in change else DataError, match=words):
        prepare(sources / "brats", store, convert=convert)
    assert not store.exists()
    wait_for(lambda: not queued())


def cancel(line: str) -> None:
    if line.startswith("array job"):
        subprocess.run(["scancel", line.split()[2]], check=True)


def test_one_bad_case_among_many(on_slurm: None, tmp_path: Path) -> None:
    source, store = tmp_path / "raw", tmp_path / "store.zarr"
    make_phantom(source, "brats", 3, 1, shape=(48, 48, 16))
    bad = sorted(source.rglob("*_t1.nii*"))[1]
    bad.write_bytes(bad.read_bytes()[:60])
    summary = prepare(source, store, convert=conversion_on(str(LOCAL_TEST), 1, lambda line: None))
    assert [name in str(bad) for name, _ in summary.failed] == [True]
    assert str(bad) in summary.failed[0][1]
    assert summary.cases == 2


def test_what_slurm_refuses(on_slurm: None, sources: Path, tmp_path: Path) -> None:
    convert = conversion_on(str(LOCAL_TEST), 1, lambda line: None, partition="NONE")
    with pytest.raises(ClusterError, match=r"(?i)SLURM refused .*invalid partition"):
        prepare(sources / "brats", tmp_path / "store.zarr", convert=convert)
    assert not (tmp_path / "store.zarr").exists()
