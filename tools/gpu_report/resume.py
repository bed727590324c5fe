"""Check that an interrupted run equals an uninterrupted one, bit by bit, in deterministic mode; and rows on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpu_report.data import UNSIGNED
from gpu_report.job import Job, Tell
from gpu_report.work import experiment_of, graph_settings, kept
from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.loader import epoch_order
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import devices
from hpc_tumor.training.checkpoints.saving import checkpoint_contents, wait_until_saved
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train_epoch
from hpc_tumor.training.parts import make_parts
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.watch.heartbeat import Heartbeat

STEPS, EPOCHS = 12, 2  # a stop takes effect in the tenth step
SETTINGS: dict[str, Any] = {
    "recipe": {"batch_size": 2, "augment": True, "ema": 0.9, "epochs": EPOCHS},
    "hardware": {"deterministic": True}, "data": {"keep": "none", "val_fraction": 0.0}, "limit_batches": STEPS,
}  # fmt: skip


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Interrupt one network's training, or read a store of uint16 twice."""
    if "store" in item:
        _read_unsigned(job, tell)
        return
    device = torch.device(job.device)
    experiment = experiment_of(item["network"], job, SETTINGS, graph_settings(device))
    job.runs.mkdir(parents=True, exist_ok=True)
    whole = _state(experiment, RunDir.create(job.runs, experiment), device)
    start = [weights.detach().clone() for weights in whole.network.parameters()]
    _train(whole, [])
    if devices.has_graphs(device):
        tell.check("steps were replayed as a CUDA graph", whole.graph.captured is not None, why=whole.graph.off)
    interrupted = RunDir.create(job.runs, experiment)
    first = _state(experiment, interrupted, device)
    _train(first, ["asked to stop"])
    stopped = first.progress.step
    second = _state(experiment, interrupted, device)
    tell.check("stopped within an epoch, and resumed there", 0 < stopped < STEPS and second.progress.step == stopped,
               value=stopped)  # fmt: skip
    _train(second, [])
    pairs = list(zip(_tensors(_contents(whole)), _tensors(_contents(second)), strict=True))
    apart = sum(not torch.equal(one, other) for one, other in pairs)
    moved = any(bool((now != before).any()) for now, before in zip(whole.network.parameters(), start, strict=True))
    sound = moved and all(bool(weights.isfinite().all()) for weights in whole.network.parameters())
    tell.check("training changed the weights, which are finite", sound)
    # Weights that nothing computes are equal, too: that would prove nothing.
    why = None if sound else "nothing was computed, so equality means nothing"
    tell.check("the same bits as without the interruption", sound and not apart, value=apart, of=len(pairs), why=why)


def _state(experiment: Experiment, run: RunDir, device: torch.device) -> TrainingState:
    return build_state(experiment, run, Distributed(device=device))


def _train(state: TrainingState, stop: list[str]) -> None:
    """Train to the last epoch, or until the first agreement on `stop`."""
    heartbeat = Heartbeat(state)
    while state.progress.epoch < EPOCHS:
        if not train_epoch(state, heartbeat, lambda: stop[0] if stop else None):
            break
        state.progress.epoch, state.progress.step, state.progress.totals = state.progress.epoch + 1, 0, []
    wait_until_saved(state)


def _contents(state: TrainingState) -> dict[str, Any]:
    return checkpoint_contents(state, [])


def _tensors(values: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested state dictionaries in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        for key in sorted(values, key=str):
            yield from _tensors(values[key])
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _read_unsigned(job: Job, tell: Tell) -> None:
    """Check that rows of uint16 kept in memory equal those read from the store."""
    passes = {}
    for keep in (kept(job), "none"):
        settings = {"data": {"keep": keep, "store": str(job.store(UNSIGNED))}}
        parts = make_parts(experiment_of("unet", job, settings), Distributed(device=torch.device(job.device)))
        order = epoch_order(len(parts.train.part), 0, 0)
        for _ in range(2):  # the second pass is from memory
            passes[keep] = [batch.images.clone() for batch in parts.train.batches(order, limit=None)]
    kind = parts.store.dtype.name
    pairs = list(zip(passes[kept(job)], passes["none"], strict=True))
    same = all(torch.equal(one, other) for one, other in pairs)
    # Brains are standardised: without numbers there is no spread.
    spread = float(pairs[0][0].std())
    sound = same and spread > 0.1 and kind == "uint16"
    tell.check(f"{kind} voxels kept in memory ({kept(job)}) are those of the store", sound, value=spread)
