"""Small trainings on the local SLURM that are disturbed, and checks of their end."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from launching import events, small_experiment, submit_experiment, wait_for
from local_slurm import LOCAL_TEST

from hpc_tumor.cluster.describe.profiles import find_profile
from hpc_tumor.cluster.launch.planned import PlannedRun
from hpc_tumor.cluster.observe.logs import log_text
from hpc_tumor.cluster.observe.queue import read_states
from hpc_tumor.cluster.observe.states import RunState
from hpc_tumor.cluster.plan.plan import make_plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.run_dir import RunDir, read_json

PROFILE = find_profile(LOCAL_TEST)
EPOCHS, RANKS = 4, 2


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def state_of(run: RunDir) -> RunState:
    return read_states([run])[0]


def job_of(run: RunDir) -> str:
    return str((read_json(run.job) or {})["job_id"])


def weights(run: RunDir) -> dict[str, Any]:
    """Return the last weights, with the optimizer's moments."""
    import torch  # not needed by all tests of this folder

    kept = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)
    moments = {
        f"{index}.{name}": value
        for index, values in kept["optimizer"]["state"].items()
        for name, value in values.items()
    }
    return {**kept["model"], **moments}


def learned(run: RunDir) -> list[dict[str, Any]]:
    """Return the metrics that do not depend on the clock."""
    clock = ("seconds", "rate", "samples_per_s", "data_wait", "memory_gb", "time")
    return [{key: value for key, value in line.items() if key not in clock} for line in run.read_metrics()]


class Launcher:
    """Start the same small training repeatedly, slowed down until it is released."""

    def __init__(self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.store, self.monkeypatch = folder, store, monkeypatch
        self.delay = folder / "delay"
        self.runs: list[RunDir] = []
        self.slow_down(0.4)

    def __call__(
        self, *, ranks: int = RANKS, profile: ClusterProfile = PROFILE, runs: Path | None = None,
        minutes: int | None = None, options: dict[str, Any] | None = None, **settings: Any,
    ) -> RunDir:  # fmt: skip
        item = self.planned(ranks=ranks, profile=profile, minutes=minutes, options=options, **settings)
        self.runs.append(submit_experiment(item.experiment, profile, item.plan, runs or self.folder / "runs").run)
        return self.runs[-1]

    def planned(
        self, *, ranks: int = RANKS, profile: ClusterProfile = PROFILE, minutes: int | None = None,
        options: dict[str, Any] | None = None, **settings: Any,
    ) -> PlannedRun:  # fmt: skip
        """Return the training, to be submitted by the test."""
        self.monkeypatch.setenv("HPC_TUMOR_STEP_DELAY", str(self.delay))
        plan = make_plan(profile, ranks, memory_gb=1.5 * ranks, cpus=1, walltime=minutes, options=options)
        recipe = {"epochs": EPOCHS, "batch_size": 8, "augment": True}
        experiment = small_experiment(
            self.store, ranks, **{
                "model": {"name": "cnn"}, "task": "classification", "recipe": recipe, "checkpoint_minutes": 0.02,
                "data": {"store": self.store, "image_size": 72}, **settings,
            }
        )  # fmt: skip
        return PlannedRun(experiment, plan)

    def slow_down(self, seconds: float) -> None:
        """Set the delay of each step."""
        self.delay.write_text(str(seconds))

    def let_go(self) -> None:
        """Remove the delay of the steps."""
        self.delay.unlink()

    def end(self) -> None:
        for run in self.runs:
            for state in read_states([run]):
                if state.alive and state.job_id:
                    command("scancel", "--full", state.job_id)
                for link in (read_json(run.job) or {}).get("chain", []):
                    subprocess.run(["scancel", link], check=False, capture_output=True)


def at_work(run: RunDir, steps: int = 3) -> str:
    """Wait until the run trains and has a checkpoint within its first or second epoch; return its job."""
    wait_for(lambda: len(run.read_events("checkpoint")) >= steps, seconds=120)
    return job_of(run)


def start_now(job_id: str, seconds: float = 60) -> None:
    """End the two-minute wait of a requeued job. In the second of its requeue the nodes still refuse it."""
    wait_for(lambda: "PENDING" in command("squeue", "--noheader", "--jobs", job_id, "--format=%T"), seconds)
    time.sleep(2)
    command("scontrol", "update", f"JobId={job_id}", "StartTime=now")


def finishes_like(run: RunDir, quiet: RunDir, seconds: float = 120) -> None:
    """Check that the run ends with a result, the same weights, and the same scores, one line per epoch."""
    wait_for(lambda: not (state := state_of(run)).alive and state.state != "requeued", seconds, every=0.5)
    assert run.is_finished(), f"{state_of(run)}\n{log_text(run, errors=True) or log_text(run)}"
    assert learned(run) == learned(quiet)
    expected, found = weights(quiet), weights(run)
    assert expected.keys() == found.keys()
    assert all(value.equal(found[name]) for name, value in expected.items())
    assert (read_json(run.result) or {})["best"]["test"] == (read_json(quiet.result) or {})["best"]["test"]


def went_on_from(run: RunDir) -> tuple[int, int]:
    """Return the epoch and step at which the run was resumed last."""
    event = run.read_events("resumed")[-1]
    return event["epoch"], event["step"]


def last_checkpoint_before_requeue(run: RunDir) -> tuple[int, int]:
    lines = run.read_events()
    end = max(number for number, line in enumerate(lines) if line["event"] in ("requeued", "cancelled"))
    event = [line for line in lines[: end + 1] if line["event"] == "checkpoint"][-1]
    return event["epoch"], event["step"]


def saved_after_the_warning(run: RunDir) -> bool:
    """Return True if a checkpoint was written between the first signal and the requeue."""
    names = events(run)
    signal, end = names.index("signal"), names.index("requeued")
    return "checkpoint" in names[signal:end]
