from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import events, small_experiment

from hpc_tumor.cluster.node.job import RankFailure, StopFlag, record_failure, rendezvous
from hpc_tumor.cluster.observe.logs import log_text
from hpc_tumor.errors import Cause, ClusterError, DataError, GpuMemoryError, HostMemoryError
from hpc_tumor.records import Failure
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.training.watch import watchdog

MODULES = ("describe.profiles", "plan.plan", "node.job", "launch.submit", "observe.queue", "node.local", "observe.logs")


@pytest.fixture
def handlers() -> object:
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_no_module_imports_torch() -> None:
    names = ", ".join(f"hpc_tumor.cluster.{name}" for name in MODULES)
    code = f"import sys, {names}, hpc_tumor.provenance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ranks_meet_at_the_first_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$3" = "n[07-08]" ] || { echo "no such list" >&2; exit 1; }\necho n07; echo n08\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[07-08]"}
    address, port = rendezvous(job, suffix="i")
    assert address == "n07i"
    ports = {rendezvous({**job, "SLURM_RESTART_COUNT": str(count)})[1] for count in range(100)}
    assert port in ports
    assert len(ports) == 100  # a restart does not meet what is left of the start before it
    assert all(1024 < number < 32_768 for number in ports)
    with pytest.raises(ClusterError, match="no such list"):
        rendezvous({**job, "SLURM_JOB_NODELIST": "?"})


def test_signals_only_set_a_flag(handlers: object, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, small_experiment())
    stop = StopFlag(run)
    stop.install()
    assert stop() is None
    os.kill(os.getpid(), signal.SIGUSR2)
    assert stop() == "USR2"
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop() == "TERM"  # cancelled while it saved: not to be requeued
    assert events(run) == ["signal"]


def test_the_first_rank_to_fail_is_believed(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, small_experiment())
    run.write_status(state="training", epoch=3)
    record_failure(run, 0, 2, "no memory left")
    record_failure(run, 0, 0, "RuntimeError: Connection closed by peer")
    assert [line["reason"] for line in run.read_events("failed")] == ["no memory left"]
    status = read_json(run.status) or {}
    assert (status["state"], status["epoch"]) == ("failed", 3)
    record_failure(run, 1, 0, "another start")
    assert len(run.read_events("failed")) == 2


def test_a_lost_rank_is_recorded_rather_than_who_lost_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir.create(tmp_path, small_experiment())
    lost = watchdog.Verdict(1, "rank 1 on gpu002 is gone: killed, or its node failed")
    monkeypatch.setattr(watchdog, "explain_loss", lambda error: lost if "closed by peer" in str(error) else None)
    for start, error in enumerate((RuntimeError("Connection closed by peer"), RuntimeError("no kernel image"))):
        RankFailure(run, start, rank=0).error(error)
    said = [(line["rank"], line["reason"]) for line in run.read_events("failed")]
    assert said == [(1, lost.reason), (0, "RuntimeError: no kernel image")]


def test_a_failure_keeps_the_cause_of_its_error_beside_its_words(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, small_experiment())
    errors = (GpuMemoryError("a"), HostMemoryError("b"), DataError("out of memory on the GPU"), RuntimeError("c"))
    for start, error in enumerate(errors):
        RankFailure(run, start, rank=0).error(error)
    failures = [Failure.read(run.failure(start)) or Failure() for start in range(len(errors))]
    assert [failure.cause for failure in failures] == [Cause.GPU_MEMORY, Cause.HOST_MEMORY, None, None]


def test_each_rank_leaves_where_it_was_when_one_hung(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, small_experiment())
    for rank in (2, 1):
        RankFailure(run, 0, rank).hang("rank 1 has made no progress", 1, f"the stack of {rank}")
    assert [(line["rank"], line["reason"]) for line in run.read_events("failed")] == [
        (1, "rank 1 has made no progress")
    ]
    text = log_text(run, errors=True)
    assert "the stack of 1" in text
    assert "the stack of 2" not in text  # its consequence is named only
    assert "rank-2.0.error.txt" in text
