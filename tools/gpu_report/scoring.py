"""Measure what a run does besides training steps: validation, the final test, checkpoints."""

from __future__ import annotations

import time

import torch
from benchmark_networks import now

from gpu_report.job import Job, Tell
from gpu_report.work import Running, experiment_of
from hpc_tumor.training.checkpoints.saving import save_last, wait_until_saved
from hpc_tumor.training.scoring.evaluate import evaluate
from hpc_tumor.training.scoring.testing import score_test_part

SAVED = 3


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Measure one network in the number format that `auto` chooses."""
    running = Running(experiment_of(item["network"], job), job)
    state, device = running.state, torch.device(job.device)
    running.step()  # so that the optimizer has its moments, which checkpoints hold
    _measure_saving(running, tell)
    if (val := state.parts.val) is not None:
        for _ in range(2):  # the first pass reads the store, and cuDNN searches
            began = now(device)
            scores = evaluate(state.network, val, state.spec, state.distributed).scores
            seconds = now(device) - began
        tell(val_samples=len(val.part), val_seconds=seconds)
        tell.check("the validation loss is finite and above 0", 0 < scores["loss"] < float("inf"), value=scores["loss"])
    test = state.parts.test
    began = now(device)
    score_test_part(state)
    tell(test_samples=len(test.part), test_cases=state.parts.counts()["test"], test_seconds=now(device) - began)


def _measure_saving(running: Running, tell: Tell) -> None:
    """Measure how long training waits for a checkpoint, and how long writing it takes."""
    state, device = running.state, running.device
    stalls, written = [], []
    for _ in range(SAVED):
        began = now(device)
        save_last(state, running.totals)
        stalls.append(time.perf_counter() - began)
        wait_until_saved(state)
        written.append(time.perf_counter() - began)
    size = state.run.last_checkpoint.stat().st_size
    tell(save_stall_seconds=min(stalls), save_seconds=min(written), checkpoint_mb=size / 1e6)
