"""What happens to runs, each on the real SLURM with real training: afterwards they have the weights of a quiet run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import faults
import pytest
import torch
from launching import events, small_experiment, wait_for
from local_slurm import shared

from hpc_tumor.cluster.logs import log_text
from hpc_tumor.cluster.plan import make_plan
from hpc_tumor.cluster.profiles import find_profile
from hpc_tumor.cluster.queue import RunState, read_states
from hpc_tumor.cluster.submit import resume_run, submit_experiment
from hpc_tumor.config import ClusterProfile
from hpc_tumor.data.phantom import make_phantom
from hpc_tumor.data.prepare import prepare_dataset
from hpc_tumor.data.sources import detect_reader
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.settings import shipped

pytestmark = pytest.mark.slow
PROFILE = find_profile(shipped("slurm_templates") / "local-test.toml")
SLOW = Path(__file__).parent / "slow_training"
EPOCHS, RANKS = 4, 2
Submit = Callable[..., RunDir]


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def state_of(run: RunDir) -> RunState:
    return read_states([run])[0]


def job_of(run: RunDir) -> str:
    return str((read_json(run.job) or {})["job_id"])


def weights(run: RunDir) -> dict[str, torch.Tensor]:
    """The last weights, with the optimizer's moments."""
    kept = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)
    moments = {
        f"{index}.{name}": value
        for index, values in kept["optimizer"]["state"].items()
        for name, value in values.items()
    }
    return {**kept["model"], **moments}


def learned(run: RunDir) -> list[dict[str, Any]]:
    """The metrics, without what depends on the clock."""
    clock = ("seconds", "rate", "samples_per_s", "data_wait", "memory_gb", "time")
    return [{key: value for key, value in line.items() if key not in clock} for line in run.read_metrics()]


class Launcher:
    """Starts the same small training again and again, slow until it is let go."""

    def __init__(self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.store, self.monkeypatch = folder, store, monkeypatch
        self.go = folder / "go"
        self.runs: list[RunDir] = []

    def __call__(
        self, *, ranks: int = RANKS, profile: ClusterProfile = PROFILE, runs: Path | None = None,
        minutes: int | None = None, options: dict[str, Any] | None = None, **settings: Any,
    ) -> RunDir:  # fmt: skip
        self.monkeypatch.setenv("PYTHONPATH", str(SLOW))
        self.monkeypatch.setenv("SLOW_UNTIL", str(self.go))
        plan = make_plan(profile, ranks, memory_gb=1.5 * ranks, cpus=1, walltime=minutes, options=options)
        recipe = {"epochs": EPOCHS, "batch_size": 8, "augment": True}
        experiment = small_experiment(
            self.store, ranks, **{
                "model": {"name": "cnn"}, "task": "classification", "recipe": recipe, "checkpoint_minutes": 0.02,
                "data": {"store": self.store, "image_size": 72}, **settings,
            }
        )  # fmt: skip
        self.runs.append(submit_experiment(experiment, profile, plan, runs or self.folder / "runs").run)
        return self.runs[-1]

    def let_go(self) -> None:
        """From here on the steps take no longer than they need."""
        self.go.touch()

    def end(self) -> None:
        for run in self.runs:
            for state in read_states([run]):
                if state.alive and state.job_id:
                    command("scancel", "--full", state.job_id)
                for link in (read_json(run.job) or {}).get("chain", []):
                    subprocess.run(["scancel", link], check=False, capture_output=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    make_phantom(folder / "raw", "brain-mri", 80, seed=3)
    prepare_dataset(detect_reader(folder / "raw"), folder / "raw", folder / "images.zarr", workers=1)
    return folder / "images.zarr"


@pytest.fixture
def launch(
    slurm: dict[str, str], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Launcher]:
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)
    launcher = Launcher(tmp_path, store, monkeypatch)
    yield launcher
    if request.node.get_closest_marker("alone"):
        faults.repair()
    launcher.end()


@pytest.fixture(scope="module")
def quiet(slurm: dict[str, str], store: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run to which nothing happens."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        launcher = Launcher(tmp_path_factory.mktemp("quiet"), store, monkeypatch)
        launcher.let_go()
        with shared():
            run = launcher()
            wait_for(run.is_finished, seconds=120, every=0.5)
        return run


def at_work(run: RunDir, steps: int = 3) -> str:
    """Wait until the run trains and has a checkpoint within its first or second epoch; gives its job."""
    wait_for(lambda: len(run.read_events("checkpoint")) >= steps, seconds=120)
    return job_of(run)


def start_now(job_id: str, seconds: float = 60) -> None:
    """End the two minutes that a requeued job waits. In the second of its requeue the nodes still refuse it."""
    wait_for(lambda: "PENDING" in command("squeue", "--noheader", "--jobs", job_id, "--format=%T"), seconds)
    time.sleep(2)
    command("scontrol", "update", f"JobId={job_id}", "StartTime=now")


def finishes_like(run: RunDir, quiet: RunDir, seconds: float = 120) -> None:
    """The run ends with a result, the same weights, and each epoch's scores once and the same."""
    wait_for(lambda: not (state := state_of(run)).alive and state.state != "requeued", seconds, every=0.5)
    assert run.is_finished(), f"{state_of(run)}\n{log_text(run, errors=True) or log_text(run)}"
    assert learned(run) == learned(quiet)
    expected, found = weights(quiet), weights(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert (read_json(run.result) or {})["best"]["test"] == (read_json(quiet.result) or {})["best"]["test"]


def went_on_from(run: RunDir) -> tuple[int, int]:
    """Epoch and step at which the run was resumed last."""
    event = run.read_events("resumed")[-1]
    return event["epoch"], event["step"]


def last_checkpoint_before_requeue(run: RunDir) -> tuple[int, int]:
    lines = run.read_events()
    end = max(number for number, line in enumerate(lines) if line["event"] in ("requeued", "cancelled"))
    event = [line for line in lines[: end + 1] if line["event"] == "checkpoint"][-1]
    return event["epoch"], event["step"]


def saved_after_the_warning(run: RunDir) -> bool:
    """Whether a checkpoint was written between the first signal and the requeue: not merely at the epoch before."""
    names = events(run)
    signal, end = names.index("signal"), names.index("requeued")
    return "checkpoint" in names[signal:end]


def steps_seen(run: RunDir) -> tuple[int, int]:
    status = read_json(run.status) or {}
    return status["epoch"], status["step"]


def test_warned_before_the_time_limit(launch: Launcher, quiet: RunDir) -> None:
    """SLURM itself warns, before the limit of three minutes, and nothing that was learned is lost."""
    launch.monkeypatch.setenv("STEP_SECONDS", "3")
    run = launch(minutes=3, checkpoint_minutes=60)
    wait_for(lambda: "requeued" in events(run), seconds=170)
    assert run.read_events("signal")[-1]["signal"] == "USR2"
    launch.let_go()
    start_now(job_of(run))
    finishes_like(run, quiet)
    assert run.read_events("requeued")[0]["because"] == "warned"
    assert saved_after_the_warning(run)
    assert went_on_from(run) == last_checkpoint_before_requeue(run)


@pytest.mark.alone
def test_preempted(launch: Launcher, quiet: RunDir) -> None:
    run = launch(options={"nodelist": "gpu001"}, checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    request = ("--account=hpc", "--partition=HIGH", "--nodelist=gpu001", "--gres=gpu:2", "--output=/dev/null")
    other = command("sbatch", "--parsable", *request, "--wrap=sleep 60").strip()
    wait_for(lambda: "requeued" in events(run), seconds=60)
    command("scancel", other)
    launch.let_go()
    start_now(job_of(run))
    finishes_like(run, quiet)
    assert events(run).count("requeued") == 1
    assert saved_after_the_warning(run)
    assert went_on_from(run) == last_checkpoint_before_requeue(run)


def test_requeued_by_hand(launch: Launcher, quiet: RunDir) -> None:
    run = launch()
    job_id = at_work(run)
    command("scontrol", "requeue", job_id)
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)
    assert events(run).count("resumed") == 1


def test_cancelled_by_hand_and_resumed(launch: Launcher, quiet: RunDir) -> None:
    """With SLURM's own command: what was learned is saved, and nothing starts it again but its user."""
    run = launch(checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    command("scancel", job_of(run))
    state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=60)
    assert state.state == "cancelled"
    assert "requeued" not in events(run)
    before = run.read_events("checkpoint")[-1]
    launch.let_go()
    resume_run(run)
    finishes_like(run, quiet)
    assert went_on_from(run) == (before["epoch"], before["step"])


def test_ended_by_slurm_without_a_warning(launch: Launcher, quiet: RunDir) -> None:
    """As in the grace time of a preemption where SLURM is not told to warn: the ranks get TERM, and that is all."""
    run = launch(checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    for pid in faults.ranks(job_of(run)).values():
        faults.send(pid, signal.SIGTERM)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    launch.let_go()
    start_now(job_of(run))
    finishes_like(run, quiet)
    assert went_on_from(run) == last_checkpoint_before_requeue(run)


def test_one_rank_killed(launch: Launcher) -> None:
    """One of four on two nodes: with more than two, the order of adding up their gradients shows in the last bits."""
    run = launch(ranks=4)
    job_id = at_work(run)
    faults.send(faults.ranks(job_id)[3])
    seen: set[str] = set()
    wait_for(lambda: seen.add(state_of(run).state) or "requeued" in events(run), seconds=60)
    assert "failed" not in seen  # in the seconds between the record of the failure and the decision on it
    event = run.read_events("requeued")[-1]
    assert (event["because"], event["attempt"]) == ("failed", 2)
    assert "rank 3" in event["reason"]
    launch.let_go()
    start_now(job_id)
    wait_for(run.is_finished, seconds=120, every=0.5)  # it and the quiet one need both nodes
    quiet = launch(ranks=4)
    wait_for(quiet.is_finished, seconds=120, every=0.5)
    finishes_like(run, quiet)
    assert (read_json(run.result) or {})["nodes"] == 2


def test_all_ranks_killed(launch: Launcher, quiet: RunDir) -> None:
    run = launch()
    job_id = at_work(run)
    for pid in faults.ranks(job_id).values():
        faults.send(pid)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)


def test_a_rank_that_hangs(launch: Launcher, quiet: RunDir) -> None:
    run = launch(hardware={"gpus": RANKS, "timeout_minutes": 0.25})
    job_id = at_work(run)
    faults.send(faults.ranks(job_id)[1], signal.SIGSTOP)
    wait_for(lambda: "requeued" in events(run), seconds=120)
    assert "rank 1" in run.read_events("requeued")[-1]["reason"]
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)


@pytest.mark.alone
def test_the_node_dies(launch: Launcher, quiet: RunDir) -> None:
    run = launch(options={"nodelist": "gpu002"})
    job_id = at_work(run)
    faults.kill_node("gpu002")
    wait_for(lambda: state_of(run).state in ("requeued", "node-fail"), seconds=90)
    faults.repair()
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)


def test_the_batch_script_is_killed(launch: Launcher, quiet: RunDir) -> None:
    """Nothing of the job is left that could start it again: it can be resumed."""
    run = launch()
    faults.kill_batch_script(at_work(run))
    state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=60)
    assert state.state == "failed", state
    launch.let_go()
    wait_for(lambda: resumed(run), seconds=60, every=2)
    finishes_like(run, quiet)


def resumed(run: RunDir) -> bool:
    with suppress(UsageError):  # SLURM still cleans up after it
        resume_run(run)
        return True
    return False


@pytest.mark.alone
def test_the_controller_is_restarted(launch: Launcher, quiet: RunDir) -> None:
    """It dies while the run trains, and is away when the run is warned: the run waits for it to be requeued."""
    launch.monkeypatch.setenv("STEP_SECONDS", "1.5")
    run = launch()
    job_id = at_work(run)
    faults.kill_daemon("slurmctld")
    for pid in faults.ranks(job_id).values():
        faults.send(pid, signal.SIGUSR2)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    state = state_of(run)
    assert state.state == "requeued", state
    faults.repair()
    launch.let_go()
    start_now(job_id, seconds=200)  # SLURM takes its time to clean up after a job that it found again
    finishes_like(run, quiet)


@pytest.mark.alone
def test_the_accounting_is_down(launch: Launcher, quiet: RunDir) -> None:
    faults.kill_daemon("slurmdbd")
    launch.let_go()
    run = launch()
    finishes_like(run, quiet)
    assert state_of(run).state == "finished"


def test_squeue_fails_for_a_while(launch: Launcher, quiet: RunDir, tmp_path: Path) -> None:
    run = launch()
    at_work(run)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "squeue").write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n"
    )
    (tools / "squeue").chmod(0o755)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        state = state_of(run)
    assert state.state == "running"
    launch.let_go()
    finishes_like(run, quiet)


def test_the_disk_is_full_at_a_checkpoint(launch: Launcher, quiet: RunDir, tmp_path: Path) -> None:
    with faults.small_disk(tmp_path / "disk", 150) as disk:
        run = launch(runs=disk / "runs")
        at_work(run)
        filler = faults.fill(disk)
        state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=90)
        assert "requeued" not in events(run)
        filler.unlink()
        assert "no room was left" in state.reason or "a disk is full" in state.reason, state
        launch.let_go()
        resume_run(run)
        finishes_like(run, quiet)


def test_the_last_checkpoint_is_damaged(launch: Launcher, quiet: RunDir) -> None:
    run = launch()
    job_id = at_work(run)
    command("scontrol", "requeue", job_id)
    wait_for(lambda: "PENDING" in command("squeue", "--noheader", "--jobs", job_id, "--format=%T"), seconds=60)
    whole = run.last_checkpoint.read_bytes()
    run.last_checkpoint.write_bytes(whole[:-1000] + bytes(1000))
    launch.let_go()
    start_now(job_id)
    finishes_like(run, quiet)
    assert "checkpoint damaged" in events(run)


def test_where_requeue_is_forbidden_a_chain_goes_on(launch: Launcher, quiet: RunDir) -> None:
    slurm = PROFILE.slurm.model_copy(update={"requeue": False, "chain": 3})
    run = launch(profile=PROFILE.model_copy(update={"slurm": slurm}), checkpoint_minutes=60)
    wait_for(lambda: (read_json(run.status) or {}).get("step", 0) >= 2, seconds=90)
    first = job_of(run)
    links = (read_json(run.job) or {})["chain"]
    assert len(links) == 2
    command("scancel", "--signal=USR2", first)
    wait_for(lambda: "requeued" in events(run), seconds=60)
    launch.let_go()
    finishes_like(run, quiet)
    assert job_of(run) == links[0]
    assert went_on_from(run) == last_checkpoint_before_requeue(run)
    wait_for(
        lambda: not command("squeue", "--noheader", "--jobs", ",".join(links), "--states=PD,R").strip(), seconds=60
    )


def test_what_fails_at_once_on_each_start_is_given_up(launch: Launcher) -> None:
    run = launch(options={"comment": "fails"})
    job_id = job_of(run)
    for attempt in (2, 3):
        wait_for(lambda: faults.ranks(job_id), seconds=60)
        faults.send(faults.ranks(job_id)[0])
        wait_for(lambda attempt=attempt: len(run.read_events("requeued")) == attempt - 1, seconds=60)
        assert run.read_events("requeued")[-1]["attempt"] == attempt
        start_now(job_id)
    wait_for(lambda: faults.ranks(job_id), seconds=60)
    faults.send(faults.ranks(job_id)[0])
    state = wait_for(lambda: not (state := state_of(run)).alive and state, seconds=60)
    assert state.state == "failed"
    assert "killed" in state.reason
    assert "given up after 3 starts without progress" in state.reason


def test_the_same_run_submitted_twice(launch: Launcher, quiet: RunDir) -> None:
    """The second is refused here; a job that was started around this, too, leaves the run alone."""
    run = launch()
    job_id = at_work(run)
    with pytest.raises(UsageError, match="is running"):
        resume_run(run)
    script = next(run.submission.glob("*_submission.sh"))
    second = command("sbatch", "--parsable", str(script)).strip()
    wait_for(lambda: "not the job of" in (run.submission / f"{second}_0_log.out").read_text()
             if (run.submission / f"{second}_0_log.out").exists() else False, seconds=60)  # fmt: skip
    launch.let_go()
    finishes_like(run, quiet)
    assert job_of(run) == job_id
