"""Exchange of units between a conversion and its tasks, and refusals of prepare-data --cluster; without SLURM."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from local_slurm import LOCAL_TEST

from hpc_tumor.cluster.convert.command import conversion_on
from hpc_tumor.cluster.convert.task import main, work
from hpc_tumor.cluster.convert.work_queue import BEAT_LIMIT, WorkQueue
from hpc_tumor.data.case import Case, CaseData, walk
from hpc_tumor.data.convert.case import Unit
from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.brats import BraTSReader
from hpc_tumor.errors import ClusterError, UsageError


@pytest.fixture
def queue(tmp_path: Path) -> WorkQueue:
    """Two patients to be converted."""
    make_phantom(tmp_path / "raw", "brats", 2, 1, shape=(32, 32, 12))
    staging = tmp_path / "s.zarr" / ".staging-1"
    reader = BraTSReader()
    cases = reader.find(walk(tmp_path / "raw")).cases
    return WorkQueue.create(staging / "array", [Unit(reader, [case], staging / case.id, 1) for case in cases])


def test_each_unit_is_taken_once(queue: WorkQueue) -> None:
    one, other = queue.take("1_0.0"), queue.take("1_1.0")
    assert [next(one), next(other)] == [0, 1]
    assert list(one) == list(other) == []
    assert queue.owners() == {0: "1_0.0", 1: "1_1.0"}
    queue.put_back(1, "1_1.0")
    assert list(queue.take("1_2.0")) == [1]


def test_results_are_given_once_though_two_tasks_made_them(queue: WorkQueue) -> None:
    units = queue.read_units()[1]
    work(queue, "1_0.0", workers=1)
    (queue.path / "todo" / "0").touch()  # as where the first one was taken to be lost
    first = dict(queue.results(units))
    assert set(first) == {0, 1}
    assert all(result.unit.staged.is_dir() and not result.failed for result in first.values())
    assert [len(result.rows) for result in first.values()] == [1, 1]
    assert list(queue.results(units)) == []
    assert list(queue.take("1_1.0")) == []  # it was taken off


def test_a_task_without_its_conversion_takes_nothing(queue: WorkQueue) -> None:
    beat = (queue.path / "beat").stat().st_mtime - BEAT_LIMIT - 1
    os.utime(queue.path / "beat", (beat, beat))
    assert list(queue.take("1_0.0")) == []


def test_a_task_that_comes_late_ends_quietly_and_leaves_nothing(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    store.mkdir()
    assert main([str(store / ".staging-1" / "array")]) == 0
    assert list(store.iterdir()) == []


def test_a_task_that_does_not_see_the_source_gives_up(queue: WorkQueue, tmp_path: Path) -> None:
    (tmp_path / "raw").rename(tmp_path / "away")
    assert main([str(queue.path)]) == 1
    (failure,) = queue.failures().values()
    assert "the source cannot be read on" in failure["reason"]
    assert not failure["fatal"]  # another node may see it
    assert not list((queue.path / "done").iterdir())


def test_refused_cases_are_results_too(queue: WorkQueue) -> None:
    units = queue.read_units()[1]
    broken = next(iter(units[0].cases[0].files.values())).path
    broken.write_bytes(b"broken")
    work(queue, "1_0.0", workers=1)
    results = dict(queue.results(units))
    assert str(broken) in results[0].failed[0][1]
    assert not results[0].rows
    assert len(results[1].rows) == 1


class DeadlyReader(BraTSReader):
    """Its first patient needs more memory than is available."""

    def read_case(self, case: Case) -> CaseData:
        if case.id.endswith("001"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read_case(case)


@pytest.mark.slow
def test_a_case_that_kills_its_workers_is_a_result_too(queue: WorkQueue) -> None:
    units = [replace(unit, reader=DeadlyReader()) for unit in queue.read_units()[1]]
    queue = WorkQueue.create(queue.path.with_name("another"), units)
    work(queue, "1_0.0", workers=1)
    results = dict(queue.results(units))
    ((case, reason),) = results[0].failed
    assert case == units[0].cases[0].id
    assert reason.endswith("killed on it, most likely for lack of memory: request more per task with --memory.")
    assert len(results[1].rows) == 1


def test_memory_of_a_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$@" > "$0.options"; echo no more >&2; exit 1\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    make_phantom(tmp_path / "raw", "brats", 1, 1, shape=(32, 32, 12))
    for given, asked in ((None, "--mem=4096M"), (6.5, "--mem=6656M")):
        convert = conversion_on(str(LOCAL_TEST), 1, print, memory_gb=given)
        with pytest.raises(ClusterError, match="no more"):
            prepare_dataset(BraTSReader(), tmp_path / "raw", tmp_path / "s.zarr", convert=convert)
        assert asked in (tmp_path / "sbatch.options").read_text().split()
    with pytest.raises(UsageError, match=r"--memory 64 GB is more than the 7 GB"):
        conversion_on(str(LOCAL_TEST), 1, print, memory_gb=64)
    with pytest.raises(UsageError, match="--memory: only for SLURM clusters"):
        conversion_on("local", 1, print, memory_gb=1)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ask(cluster: str | None, tasks: int | None = None, **options: str) -> None:
        assert conversion_on(cluster, tasks, print, **options) is None

    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)
    ask(None)
    ask("local", 3)
    with pytest.raises(UsageError, match="--account: only for SLURM clusters"):
        ask("local", account="x")
    with pytest.raises(UsageError, match="Did you mean 'orfeo-gpu'"):
        ask("orfeo-gup")
    with pytest.raises(UsageError, match="requires a SLURM account"):
        ask("orfeo-gpu")
    with pytest.raises(UsageError, match="--workers 0"):
        ask(str(LOCAL_TEST), 0)
    with pytest.raises(UsageError, match="at most 20 queued"):
        ask("orfeo-gpu", 21, account="x")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="no sbatch on this machine"):
        ask(str(LOCAL_TEST))
