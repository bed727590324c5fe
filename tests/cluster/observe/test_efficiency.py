"""Asked against used: from the files of runs, from sacct, from neither; and what to ask for next time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launching import small_experiment
from test_queue import MadeUpSlurm

from hpc_tumor import cli
from hpc_tumor.cli.views.efficiency import kinds_table, run_table, runs_table
from hpc_tumor.cluster.node.job import record_failure
from hpc_tumor.cluster.observe.advice import advise, group_by_kind
from hpc_tumor.cluster.observe.efficiency import GB, Efficiency, parse_bytes, read_efficiency, read_job_use
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.errors import Cause
from hpc_tumor.run_dir import RunDir

PROFILE = {"node": {"gpus": 2, "cpus": 24, "memory_gb": 234}}


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUpSlurm:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return MadeUpSlurm(tmp_path / "bin")


def made_run(runs: Path, *, job_id: str = "42", cluster: str = "orfeo", finished: bool = True, **job: Any) -> RunDir:
    """A run of two nodes × two tasks, 12 CPUs each, 100 GB and two hours."""
    run = RunDir.create(runs, small_experiment(gpus=4))
    plan = Plan(cluster, 2, 2, 12, 100, 120, 2)
    run.job.write_text(
        json.dumps({"cluster": cluster, "job_id": job_id, "plan": plan.as_dict(), "profile": PROFILE, **job})
    )
    if finished:
        run.result.write_text("{}")
    return run


def used(run: RunDir, start: int = 0, ranks: int = 4, **more: Any) -> None:
    """Write the usage files of the ranks of one start: 10 minutes, 3 CPUs, 5 GB, and 8 GB shared by two of a node."""
    for rank in range(ranks):
        values = {
            "rank": rank, "local_rank": rank % 2, "ranks": 4, "nodes": 2, "node": f"n{rank // 2}", "seconds": 600.0,
            "cpus": 24, "cpu_seconds": 1800.0, "memory": 13 * GB, "shared": 8 * GB, "training_seconds": 500.0,
            "data_wait_seconds": 5.0, "gpu": None, "watched": [], "ended": "finished", **more,
        }  # fmt: skip
        run.usage(rank, start).write_text(json.dumps(values))


def gpu(busy: float = 80.0, full: float = 0.5) -> dict[str, Any]:
    own = {"name": "V100", "total": 32 * GB, "allocated": 31 * GB * full, "reserved": 32 * GB * full}
    watched = [{"uuid": "GPU-a", "busy": busy, "samples": 10, "memory": 32 * GB * full, "total": 32 * GB}]
    return {"gpu": own, "watched": watched}


def one(**values: Any) -> Efficiency:
    """A run that used well what it asked for."""
    fits = {
        "name": "20260101-000000-unet-abcdef", "model": "unet", "filters": None, "cluster": "orfeo",
        "shape": "1 node × 2 GPUs", "gpus": 2, "state": "finished", "starts": 1, "asked_time": 7200.0,
        "asked_whole": 7200.0, "time": 5400.0,
        "asked_memory": 20.0, "memory": 15.0, "asked_cpus": 4, "cpus": 2.5, "gpu": "V100", "asked_gpu_memory": 32.0,
        "gpu_memory": 20.0, "gpu_busy": 0.8, "data_wait": 0.01, "node_memory": 234, "node_cpus": 12,
    }  # fmt: skip
    fits |= values
    return Efficiency(**{**fits, "state": State(fits["state"])})


def test_files_alone_tell_what_a_run_used(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = made_run(tmp_path / "runs")
    used(run, 0, ended="stopped", seconds=1200.0, cpu_seconds=3600.0)
    used(run, 1, **gpu())
    (run.logs / "rank-0.2.out").touch()  # a start that left nothing else
    (run.logs / "usage-0.3.json").write_text('{"rank": 0, "seco')
    found = read_efficiency([run])[0]
    assert (found.state, found.starts, found.shape, found.model) == ("finished", 3, "2 nodes × 2 GPUs", "unet")
    assert (found.asked_time, found.time) == (7200, 1800)
    assert (found.asked_memory, found.memory, found.kept) == (100, 18, 8)  # 5 + 5 of their own, 8 together
    assert (found.asked_cpus, found.cpus) == (12, 3)
    assert (found.gpu, found.asked_gpu_memory, found.gpu_memory, found.gpu_busy) == ("V100", 32, 16, 0.8)
    assert found.data_wait == pytest.approx(0.01)


def test_ranks_that_left_nothing_are_counted_as_the_others(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = made_run(tmp_path / "runs")
    used(run, ranks=1)
    assert read_efficiency([run])[0].memory == 18


@pytest.mark.parametrize("cause", [*Cause, None])
def test_what_ran_out_is_known_by_the_cause_of_a_failure_not_by_its_words(
    tmp_path: Path, made_up: MadeUpSlurm, cause: Cause | None
) -> None:
    made_up.says("squeue", "")
    made_up.says("sacct", "")
    run = made_run(tmp_path / "runs", finished=False)
    record_failure(run, 0, 0, "out of memory on the host, out of memory on the GPU", cause=cause)
    (found,) = read_efficiency([run])
    assert found.state is State.FAILED
    assert (found.out_of_memory, found.gpu_out_of_memory) == (cause is Cause.HOST_MEMORY, cause is Cause.GPU_MEMORY)


def test_a_run_that_shared_a_gpu_counts_its_share(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    plan = Plan("orfeo", 1, 2, 12, 100, 120, 2, runs=3)
    runs = [made_run(tmp_path / "runs", plan=plan.as_dict(), share=share) for share in (0.625, 0.25, 0.125)]
    for run in runs:
        used(run, ranks=2, **gpu())
    made_up.says("sacct", sacct_lines(runs[0], "42"))  # of the whole job
    found = read_efficiency(runs)
    assert [(run.asked_memory, run.asked_cpus) for run in found] == [(62.5, 7), (25.0, 3), (12.5, 2)]
    assert sum(run.gpu_hours or 0.0 for run in found) == pytest.approx(2 * 600 / 3600)
    assert {run.time for run in found} == {600.0}
    assert found[0].shape == "1 node × 2 GPUs shared by 3 runs"
    assert "its share of 62%" in run_table(found[0]).notes[-1]
    assert "no advice" in advise(found).words[0]
    full = one(share=0.5, gpu_out_of_memory=True)
    assert "submit it without --share-gpu, or with --accumulate 2" in advise([full]).words[0]
    assert len(group_by_kind([one(cluster="local"), one(cluster="local", share=0.5)])) == 2


def test_a_run_without_any_record(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    made_up.says("sacct", "")
    runs = [made_run(tmp_path / "runs", finished=False), RunDir.create(tmp_path / "runs", small_experiment())]
    found = read_efficiency(runs)
    assert [(run.time, run.memory, run.cpus, run.starts) for run in found] == [(None, None, None, 0)] * 2
    assert advise(found).words == ("no run has trained long enough for advice",)
    assert advise(found).options == ""
    assert runs_table(found).rows[0][0] == runs[0].name
    assert run_table(found[1]).rows[0] == ("time", "", "", "")


def sacct_lines(run: RunDir, job_id: str, memory: str = "4194304K") -> str:
    given = "billing=48,cpu=48,gres/gpu=4,mem=204800M,node=2"
    return (
        f"{job_id}|{run.name}|PREEMPTED|3600|1-00:00:00||102400M|{given}\n"
        f"{job_id}.0|python|CANCELLED|3590|12:00:00|1024K||cpu=48\n"
        f"{job_id}|{run.name}|COMPLETED|1800|06:00:00||102400M|{given}\n"
        f"{job_id}.batch|batch|COMPLETED|1800|00:01.500|2048K||cpu=24\n"
        f"{job_id}.0|python|COMPLETED|1790|05:59:00|{memory}||cpu=48\n"
    )


def test_sacct_alone_tells_what_a_run_used(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    runs = [made_run(tmp_path / "runs", job_id=job_id, earlier=["7"]) for job_id in ("42", "43_1")]
    other = "7|somebody-elses|COMPLETED|99999|9-00:00:00||1M|cpu=1\n"
    made_up.says("sacct", sacct_lines(runs[0], "42") + sacct_lines(runs[1], "43_1") + other)
    found = read_efficiency(runs)
    assert {(run.time, run.starts, run.memory, run.cpus) for run in found} == {(5400, 2, 8, 5)}
    (call,) = made_up.calls("sacct")
    assert "--jobs=42,43,7 " in call
    assert "--duplicates" in call


def test_a_step_that_ran_out_of_memory_counts_as_its_job(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = made_run(tmp_path / "runs", finished=False)
    made_up.says("sacct", sacct_lines(run, "42").replace("COMPLETED|1790", "OUT_OF_MEMORY|1790"))
    assert read_job_use(["42"])["42"].states == ["PREEMPTED", "COMPLETED", "OUT_OF_MEMORY"]


def test_what_sacct_saw_beyond_the_files_counts(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = made_run(tmp_path / "runs")
    used(run)
    made_up.says("sacct", sacct_lines(run, "42"))
    found = read_efficiency([run])[0]
    assert (found.time, found.memory, found.cpus) == (5400, 18, 3)  # one task's 4 GB are less than the node's 18
    made_up.says("sacct", sacct_lines(run, "42", memory="40G"))
    assert read_efficiency([run])[0].memory == 40


def test_numbers_of_sacct() -> None:
    assert [parse_bytes(text) for text in ("12K", "1.50G", "0", "", "8Gc", "?", "1.2.3G")] == [
        12_288, 3 * 2**29, 0, None, None, None, None,
    ]  # fmt: skip
    assert read_job_use([]) == {}


def test_runs_on_this_machine_have_asked_for_nothing(tmp_path: Path, made_up: MadeUpSlurm) -> None:
    run = made_run(tmp_path / "runs", cluster="local")
    used(run)
    found = read_efficiency([run])[0]
    assert (found.asked_time, found.asked_memory, found.asked_cpus, found.shape) == (None, None, 12, "2 GPUs")
    assert made_up.calls("sacct") == []
    assert advise([found]).options == "--memory 30 --time 00:15:00 --cpus 4"  # 1.25 × 10 GB, and twice what is kept


def test_what_fits_is_left() -> None:
    advice = advise([one()])
    assert advice.options == ""
    assert advice.words == ("the request fits the usage: no change needed",)


@pytest.mark.parametrize(
    ("run", "options", "words"),
    [
        ({"memory": 4.0}, "--memory 5", ""),
        ({"memory": 0.3}, "--memory 2", ""),
        ({"memory": 19.0}, "--memory 24", "95% of the memory"),
        ({"asked_memory": 234.0, "memory": 230.0}, "", "fits"),  # a node has no more
        ({"asked_memory": 100.0, "memory": 30.0, "kept": 20.0}, "--memory 56", ""),  # so that they are kept again
        ({"time": 1000.0}, "--time 00:25:00", ""),
        ({"time": 30.0}, "--time 00:10:00", ""),
        ({"time": 7000.0}, "--time 02:30:00", "97% of the time"),
        ({"time": 20_000.0, "starts": 3}, "--time 07:00:00", "longer than one start of 2:00 h"),
        ({"time": 20_000.0, "starts": 3, "asked_whole": 25_200.0}, "", "longer than one start of 2:00 h"),
        (
            {"state": "timeout", "time": 7200.0, "left": 3600.0, "limited": True},
            "--time 03:45:00",
            "takes 3:00 h in total",
        ),
        ({"time": 5000.0, "limited": True}, "", "stopped by its time limit of 2:00 h"),
        ({"asked_cpus": 12, "cpus": 2.1}, "--cpus 3", ""),
        ({"asked_cpus": 12, "cpus": 0.4}, "--cpus 2", ""),
        ({"asked_cpus": 12, "cpus": 0.4, "gpu": None}, "--cpus 1", ""),
        ({"data_wait": 0.12, "cpus": 3.9}, "--cpus 8", "waited 12% of its time"),
        ({"data_wait": 0.12, "cpus": 11.5, "asked_cpus": 12}, "", "in memory"),
        ({"data_wait": 0.12, "cpus": 0.5}, "", "node_disk"),
        ({"state": "out-of-memory", "out_of_memory": True, "time": None}, "--memory 40", "twice as much"),
        ({"asked_memory": 200.0, "out_of_memory": True, "memory": None}, "--memory 234", "a node has only 234 GB"),
        ({"gpu_busy": 0.3}, "", "busy 30% of the time: --gpus 1 uses"),
        ({"gpu_busy": 0.3, "gpus": 1, "gpu_memory": 3.0}, "", "busy 30% of the time: a larger --set batch_size"),
        ({"gpu_memory": 31.0}, "", "97% full: --accumulate 2"),
        ({"state": "failed", "gpu_out_of_memory": True, "time": None, "accumulate": 2}, "", "--accumulate 4"),
    ],
)
def test_what_to_ask_for_next_time(run: dict[str, Any], options: str, words: str) -> None:
    advice = advise([one(**run)])
    assert advice.options == options
    assert words in "; ".join(advice.words)


def test_less_is_never_advised_than_was_used() -> None:
    for asked in (3.0, 17.0, 64.0, 200.0):
        for share in (0.01, 0.3, 0.77, 0.8, 0.95, 1.0):
            run = one(
                asked_memory=asked,
                memory=share * asked,
                time=share * 7200,
                asked_cpus=24,
                cpus=share * 24,
                node_memory=500,
            )
            advice = advise([run])
            assert (advice.memory or asked) >= (run.memory or 0)
            assert (advice.minutes or 120) * 60 >= (run.time or 0)
            assert (advice.cpus or 24) >= (run.cpus or 0)


def test_runs_of_one_kind_are_advised_by_the_one_that_used_most() -> None:
    runs = [one(time=600.0, memory=2.0), one(time=1500.0, memory=4.5), one(time=5.0, memory=0.1, state="failed")]
    runs += [one(model="vit", time=5400.0), one(model="unet", filters=8, time=5400.0)]
    kinds = group_by_kind(runs)
    assert [(kind.first.model, len(kind.runs)) for kind in kinds] == [("unet", 3), ("vit", 1), ("unet", 1)]
    assert kinds[0].advice.options == "--memory 6 --time 00:35:00"
    table = kinds_table(kinds)
    assert [row[0] for row in table.rows] == ["unet", "vit", "unet, 8 filters"]
    assert [row[-1] for row in table.rows] == ["--memory 6 --time 00:35:00", "no change", "no change"]
    assert "0:25 h of 2:00 h" in table.rows[0]


def test_the_command(tmp_path: Path, made_up: MadeUpSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [made_run(tmp_path / "runs") for _ in range(2)]
    for run in runs:
        used(run, **gpu())
    assert cli.main(["efficiency", runs[0].name, "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "18.0 GB" in said
    assert "Next time: --memory 30 --time 00:15:00 --cpus 4" in said
    assert cli.main(["efficiency", "--runs", str(tmp_path / "runs"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in values["runs"]] == sorted(run.name for run in runs)
    assert values["kinds"][0]["options"] == "--memory 30 --time 00:15:00 --cpus 4"
    assert cli.main(["efficiency", "--runs", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert all(run.name in said for run in runs)
    assert "2 runs: maximum used by one run" in said
