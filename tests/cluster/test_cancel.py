"""Runs that SLURM or this machine does not let be cancelled do not keep the others from it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from launching import events, small_experiment

from hpc_tumor.cluster.cancel import cancel
from hpc_tumor.cluster.observe.job_record import JobRecord
from hpc_tumor.cluster.observe.states import RunState, State
from hpc_tumor.errors import ClusterError, UsageError
from hpc_tumor.run_dir import RunDir


@pytest.fixture(autouse=True)
def scancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scancel that takes none of its jobs where one of them is 43."""
    command = tmp_path / "bin" / "scancel"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\ncase "$*" in *43*) echo Access denied for 43 >&2; exit 1;; esac\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:/usr/bin:/bin")


def running(folder: Path, job_id: str, cluster: str = "orfeo") -> RunState:
    run = RunDir.create(folder, small_experiment())
    return RunState(run, cluster, job_id, State.RUNNING, cancellable=True)


def test_one_job_that_is_refused_leaves_the_others_cancelled(tmp_path: Path) -> None:
    states = [running(tmp_path / "runs", job_id) for job_id in ("42", "43", "44")]
    errors = cancel(*states)
    assert list(errors) == [states[1].name]
    assert "Access denied for 43" in str(errors[states[1].name])
    assert ["cancelled" in events(state.run) for state in states] == [True, False, True]
    with pytest.raises(ClusterError, match="Access denied for 43"):
        cancel(states[1])


def test_a_run_ends_without_those_that_share_its_job(tmp_path: Path, scancel: None) -> None:
    states = [running(tmp_path / "runs", "42") for _ in range(3)]
    names = tuple(state.name for state in states)
    for state in states:
        JobRecord(cluster="orfeo", job_id="42", job_name="hpc-tumor-1", together=names).write(state.run)
    log = tmp_path / "asked"
    tools = {"scancel": f'echo "$*" >> {log}', "squeue": 'echo "42|hpc-tumor-1|RUNNING|1:00|1|N/A|n1|None"'}
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    assert cancel(states[0]) == {}
    assert (events(states[0].run), log.exists()) == (["cancelled"], False)
    assert cancel(*states[1:]) == {}  # the last ones, and with them the job
    assert set(log.read_text().split()) == {"42"}
    assert [events(state.run) for state in states] == [["cancelled"]] * 3


def test_a_process_that_is_not_of_the_run_is_left_alone(tmp_path: Path) -> None:
    state = running(tmp_path / "runs", str(os.getpid()), "local")
    with pytest.raises(ClusterError, match="it no longer belongs to this run"):
        cancel(state)
    assert events(state.run) == []


def test_what_does_not_run_is_refused(tmp_path: Path) -> None:
    state = replace(running(tmp_path / "runs", "42"), cancellable=False)
    with pytest.raises(UsageError, match="nothing to cancel"):
        cancel(state)
