"""State that a run carries from step to step: built in setup.py, changed in step.py and loop.py."""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.loader import Share, StaticShare
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import devices
from hpc_tumor.training.average import WeightAverage
from hpc_tumor.training.checkpoints.files import BestWeights, Progress
from hpc_tumor.training.checkpoints.writer import CheckpointWriter
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.host_copy import HostCopy
from hpc_tumor.training.objective import Objective
from hpc_tumor.training.parts import Parts
from hpc_tumor.training.recipe import DeviceNumber
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import ScoringSpec
from hpc_tumor.vocabulary import PREDICTIONS, TUMOUR_LABELS


@dataclass(frozen=True)
class UncheckedStep:
    """A step whose report may still be on its way from the GPU; see `step.compute_step`."""

    report: HostCopy
    share: Share
    epoch: int


@dataclass(frozen=True)
class CapturedStep:
    """A CUDA graph of the training step of full batches, and the memory that it reads and writes in every replay.

    Attributes:
        inputs: the batch, with the amounts of its augmentation.
        totals: sums of the epoch, to which each replay adds.
        report: see `step.compute_step`.
        kept: other tensors that it reads, and which nothing else may keep.
    """

    replay: Callable[[], None]
    inputs: StaticShare
    totals: dict[str, Tensor]
    report: Tensor
    kept: tuple[Tensor, ...] = ()


@dataclass
class StepGraph:
    """A run's graph of its step: not captured before the step ran some times without, in this process.

    Attributes:
        off: why the step runs without; None if it is or will be captured.
        shape: of this rank's images in a full batch, `(N, C, H, W)`.
        warm: full batches taken.
    """

    off: str | None = None
    shape: torch.Size | None = None
    warm: int = 0
    captured: CapturedStep | None = None


@dataclass
class TrainingState:
    """State of one rank of a run.

    Attributes:
        identity: facts that a checkpoint must match to be resumed from.
        network: the bare network.
        objective: the network with its loss and counts.
        wrapped: the objective as the training step calls it: in DDP if there are several ranks.
        parameters: trainable parameters.
        rate: the learning rate, where a CUDA graph reads it; None on other devices.
        steps: per epoch.
        began: when training began, less the time of earlier starts; by `time.perf_counter`.
        average: running mean of the weights, if the recipe has one.
        writer: rank 0 only.
        step_delay: file with the seconds that each step waits while the file exists.
        best: weights of the best epoch of this start, the same on all ranks.
        unchecked: steps not yet checked for finite values.
        last_losses: losses of this rank's share of the last step that was checked, on the host.
        graph: the CUDA graph of the step.
        watched: called with each phase of a step while phases are measured.
        traced: True once a trace was written.
    """

    experiment: Experiment
    run: RunDir
    distributed: Distributed
    parts: Parts
    identity: dict[str, Any]
    network: nn.Module
    objective: Objective
    wrapped: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rate: DeviceNumber | None
    steps: int
    average: WeightAverage | None
    writer: CheckpointWriter | None
    step_delay: Path | None
    progress: Progress = field(default_factory=Progress)
    began: float = field(default_factory=time.perf_counter)
    best: BestWeights | None = None
    unchecked: deque[UncheckedStep] = field(default_factory=deque)
    last_losses: Tensor | None = None
    graph: StepGraph = field(default_factory=StepGraph)
    watched: Callable[[str], None] | None = None
    traced: bool = False

    @property
    def spec(self) -> ScoringSpec:
        """Specification of how the network computes and is scored."""
        return self.objective.spec


def free_gpu(state: TrainingState) -> None:
    """Give the GPU's memory back, for other runs, and move the network to the CPU: nothing is computed any more."""
    state.network.to(devices.CPU)
    state.wrapped, state.average, state.best, state.last_losses = state.objective, None, None, None
    state.optimizer.state.clear()
    state.unchecked.clear()
    for parameter in state.parameters:
        parameter.grad = None
    for loader in (state.parts.train, state.parts.val, state.parts.test):
        if loader is not None:
            loader.part.rows.kept = None
    gc.collect()  # DDP and its buckets hold each other
    devices.free_unused_memory(state.distributed.device)


def mark(state: TrainingState, phase: str, *, collective: bool = False, waits: bool = False) -> None:
    """Report to the watchdog, and to `watched`, that a phase of a step or between steps begins; see `Watchdog.mark`."""
    state.distributed.mark(phase, state.progress.updates, collective=collective, waits=waits)
    if state.watched is not None:
        state.watched(phase)


def training_seconds(state: TrainingState) -> float:
    """Return the training time of this run so far, over all its starts."""
    return time.perf_counter() - state.began


def last_loss(state: TrainingState) -> float | None:
    """Return the mean loss of this rank's share of the last step that was checked."""
    return None if state.last_losses is None else float(state.last_losses.mean().item())


def best_score(state: TrainingState) -> float | None:
    """Return the best score so far; `progress` keeps a loss as its negative."""
    best = state.progress.best_score
    return -best if best is not None and state.experiment.main_score == "loss" else best


def epoch_totals(state: TrainingState) -> dict[str, Any]:
    """Return this rank's sums over the current epoch: zeros, or those of the checkpoint."""
    device, saved = state.distributed.device, state.progress.totals
    zero = {"loss": torch.zeros((), dtype=torch.float64, device=device), "samples": 0}
    if state.spec.classes is None:
        shape = (TUMOUR_LABELS, PREDICTIONS)
        zero["histogram"] = torch.zeros(shape, dtype=torch.int64, device=device)
    else:
        zero["right"] = torch.zeros((), dtype=torch.int64, device=device)
        zero["confidence"] = torch.zeros((), dtype=torch.float64, device=device)
    if len(saved) == state.distributed.world_size:
        own = saved[state.distributed.rank]
    elif saved and state.distributed.is_main:  # another number of ranks: only the sum matters
        own = {key: sum(rank[key] for rank in saved) for key in saved[0]}
    else:
        return zero
    return {key: own[key].to(device) if torch.is_tensor(own[key]) else own[key] for key in zero}


def training_scores(totals: dict[str, Any]) -> dict[str, float]:
    """Compute the scores of the training steps of an epoch: a diagnostic, as the weights changed meanwhile.

    NaN if all steps were skipped. Segmentation scores are pooled over all slices.
    """
    n = int(totals["samples"]) or math.nan
    scores = {"loss": totals["loss"].item() / n}
    if "histogram" in totals:
        pooled = metrics.segmentation_scores(totals["histogram"].cpu().numpy()[None])
        return {**scores, **(pooled if n == n else dict.fromkeys(pooled, math.nan))}
    return {**scores, "accuracy": totals["right"].item() / n, "confidence": totals["confidence"].item() / n}
