"""Loop measurements of benchmark_training.py: the loop itself, augmentation, checkpoints."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from benchmark_networks import CPU_BATCH, OwnTraining, experiment_of, own_training, seconds_of
from benchmark_workers import Answer, Job

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.models import MODELS
from hpc_tumor.training.checkpoints.files import random_state, write_checkpoint
from hpc_tumor.training.checkpoints.saving import checkpoint_contents, save_last, wait_until_saved
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train_epoch
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.step import augment_batch
from hpc_tumor.training.watch.heartbeat import Heartbeat

CPU = torch.device("cpu")
MOST_STEPS = 8  # of an epoch
WARM = 3  # steps before the first that counts


def experiment_for(job: Job, **settings: Any) -> Experiment:
    """Return the experiment of a job."""
    task = MODELS[job["network"]].task
    return experiment_of(
        job["network"], Path(job["store"]),
        model={"filters": job["filters"]} if task == "segmentation" else {},
        recipe={"batch_size": job["batch"] or CPU_BATCH[task], **settings.pop("recipe", {})}, **settings,
    )  # fmt: skip


class PartClock:
    """Record the seconds of each part of the steps of an epoch, as `mark` names them."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, float]] = []

    def __call__(self, part: str) -> None:
        self._marks.append((part, time.perf_counter()))

    def read(self) -> dict[str, Any]:
        """Return seconds: of all steps but the first, whole and by part; of the first step; and of the epoch's end.

        The last mark is set after the epoch; the part between backward and agree is called norm.
        """
        marks = self._marks
        starts = [index for index, (part, _) in enumerate(marks) if part == "data"]
        steps, began = len(starts) - 2, marks[starts[1]][1]
        parts: dict[str, float] = {}
        for (part, at), (following, then) in zip(
            marks[starts[1] : starts[-1]], marks[starts[1] + 1 : starts[-1] + 1], strict=True
        ):
            name = "norm" if following == "agree" else part
            parts[name] = parts.get(name, 0.0) + (then - at) / steps
        of_steps = marks[starts[-1]][1] - began
        step = of_steps / steps
        first = began - marks[starts[0]][1] - step  # what it takes longer than the others
        return {"parts": parts, "loop": step, "first": first, "end": marks[-1][1] - marks[starts[-1]][1]}


def bare_step(state: TrainingState, batch: Batch) -> None:
    """Take a step with the same network, precision, loss and optimizer, and nothing else."""
    state.optimizer.zero_grad(set_to_none=True)
    outputs = state.spec.forward(state.network, batch.images)
    state.spec.loss(outputs, batch.targets).mean().backward()
    state.optimizer.found_inf = None  # type: ignore[attr-defined]  # a step of the loop leaves its own there
    state.optimizer.step()


def loop_worker(job: Job) -> Answer:
    """Measure bare steps and steps of the loop alternately, and the parts of the latter."""
    training = _warm(experiment_for(job, limit_batches=MOST_STEPS), job)
    state = training.state
    whole = len(state.parts.train.part) // state.experiment.recipe.batch_size
    if whole < MOST_STEPS:  # no batch may be smaller than the others
        if whole < 2:
            raise SystemExit(
                f"the store has only {len(state.parts.train.part)} samples to train on: choose a smaller --batch"
            )
        state.experiment = state.experiment.model_copy(update={"limit_batches": whole})
        state.steps = state.parts.train.steps(whole)
    heartbeat = Heartbeat(state)

    def answer(_: str) -> dict[str, float]:
        bare = seconds_of(lambda: bare_step(state, training.batch), CPU, job["seconds"])
        read: list[dict[str, Any]] = []
        began = time.perf_counter()
        while not read or time.perf_counter() - began < job["seconds"]:
            read.append(_epoch(state, heartbeat))
        mean = {key: sum(one[key] for one in read) / len(read) for key in ("loop", "first", "end")}
        parts = {part: sum(one["parts"][part] for one in read) / len(read) for part in read[0]["parts"]}
        checks = parts["norm"] + parts["agree"]
        return {"bare": bare, **mean, "data": parts["data"], "checks": checks, "metrics": parts["metrics"]}

    return answer


def _epoch(state: TrainingState, heartbeat: Heartbeat) -> dict[str, Any]:
    """Run one epoch of the loop, always the same one."""
    clock = PartClock()
    state.watched = clock
    train_epoch(state, heartbeat)
    clock("end")
    state.watched, state.progress.step = None, 0
    return clock.read()


def augmentation_worker(job: Job) -> Answer:
    """Measure the augmentation of a batch, and a step without it."""
    experiment = experiment_for(job, recipe={"augment": True})
    training = _warm(experiment, job)

    def augment() -> None:
        augment_batch(training.batch, experiment, training.state.distributed, epoch=0)

    def answer(_: str) -> dict[str, float]:
        batch = seconds_of(augment, CPU, job["seconds"] / 2)
        step = seconds_of(lambda: bare_step(training.state, training.batch), CPU, job["seconds"])
        return {"augmentation": batch, "step": step}

    return answer


def checkpoint_worker(job: Job) -> Answer:
    """Measure a checkpoint: its copy, the wait of training, a synchronous write, and the steps meanwhile."""
    training = _warm(experiment_for(job), job)
    state, run = training.state, training.state.run

    def answer(_: str) -> dict[str, float]:
        alone = seconds_of(training.step, CPU, job["seconds"])
        before, began, steps = len(run.read_events("checkpoint")), time.perf_counter(), 0
        save_last(state)
        stall = time.perf_counter() - began
        while len(run.read_events("checkpoint")) == before:
            training.step()
            steps += 1
        beside = time.perf_counter() - began - stall
        wait_until_saved(state)
        event = run.read_events("checkpoint")[-1]
        began = time.perf_counter()
        contents = checkpoint_contents(state, [random_state(CPU)])
        write_checkpoint(run.checkpoints / "at-once.pt", state.progress, state.identity, contents)
        written = time.perf_counter() - began
        return {
            "copy": event["stall_s"], "stall": stall, "written": written, "seconds": event["seconds"],
            "taken": beside - steps * alone,
        }  # fmt: skip

    return answer


def _warm(experiment: Experiment, job: Job) -> OwnTraining:
    training = own_training(experiment, Path(job["runs"]), Distributed())
    for _ in range(WARM):
        training.step()
    return training
