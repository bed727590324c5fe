"""State that a run carries from step to step, as data: built in setup.py, changed in step.py and loop.py."""

from __future__ import annotations

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
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.average import WeightAverage
from hpc_tumor.training.checkpoints.files import Progress
from hpc_tumor.training.checkpoints.writer import CheckpointWriter
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.parts import Parts
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import ScoringSpec


@dataclass(frozen=True)
class UncheckedStep:
    """A step that was taken. `broken` is above 0 where it was not finite; the number may still be on its way."""

    broken: Tensor
    arrived: torch.cuda.Event | None
    batch: Batch
    losses: Tensor
    epoch: int


@dataclass
class TrainingState:
    """State of one rank of a run.

    Attributes:
        spec: how the network computes and is scored; training has the same loss and number format.
        identity: what a checkpoint must agree with to be gone on from.
        network: the network itself.
        wrapped: what the training step calls: the network, in DDP where there are ranks.
        compiled: `wrapped` compiled, for micro-batches of the full size.
        parameters: those that are trained.
        steps: of an epoch.
        began: when training began, less the time of earlier starts; by `time.perf_counter`.
        average: running mean of the weights, where the recipe asks for it.
        writer: of rank 0; the others have none.
        step_delay: file with the seconds that each step waits while it exists.
        unchecked: steps of which nobody has looked yet whether they were finite.
        last_losses: of this rank's share of the last step.
        watched: told of each phase of a step, where somebody measures them.
        traced: true once a trace was written.
    """

    experiment: Experiment
    run: RunDir
    distributed: Distributed
    parts: Parts
    spec: ScoringSpec
    identity: dict[str, Any]
    network: nn.Module
    wrapped: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps: int
    average: WeightAverage | None
    writer: CheckpointWriter | None
    step_delay: Path | None
    compiled: Callable[..., Any] | None = None
    progress: Progress = field(default_factory=Progress)
    began: float = field(default_factory=time.perf_counter)
    unchecked: deque[UncheckedStep] = field(default_factory=deque)
    last_losses: Tensor | None = None
    watched: Callable[[str], None] | None = None
    traced: bool = False


def mark(state: TrainingState, phase: str) -> None:
    """Note that a phase of a step begins, or of what stands between steps: progress, for those who watch for hangs."""
    state.distributed.mark(phase, state.progress.updates)
    if state.watched is not None:
        state.watched(phase)


def training_seconds(state: TrainingState) -> float:
    """Training time of this run so far, over all its starts."""
    return time.perf_counter() - state.began


def last_loss(state: TrainingState) -> float | None:
    """Mean loss of this rank's share of the last step. Waits for the device."""
    return None if state.last_losses is None else float(state.last_losses.mean().item())


def best_shown(state: TrainingState) -> float | None:
    """The best score so far as people read it: a loss is compared as its negative."""
    best = state.progress.best_score
    return -best if best is not None and state.experiment.main_score == "loss" else best


def epoch_totals(state: TrainingState) -> dict[str, Any]:
    """Sums of this rank over the epoch under way: zeros, or what the checkpoint kept."""
    device, kept = state.distributed.device, state.progress.totals
    zero = {"loss": torch.zeros((), dtype=torch.float64, device=device), "samples": 0}
    if state.spec.classes is None:
        shape = (metrics.TRUE_LABELS, metrics.PREDICTIONS)
        zero["histogram"] = torch.zeros(shape, dtype=torch.int64, device=device)
    else:
        zero["right"] = torch.zeros((), dtype=torch.int64, device=device)
        zero["confidence"] = torch.zeros((), dtype=torch.float64, device=device)
    if len(kept) == state.distributed.world_size:
        mine = kept[state.distributed.rank]
    elif kept and state.distributed.is_main:  # another number of ranks: the sum is what matters
        mine = {key: sum(rank[key] for rank in kept) for key in kept[0]}
    else:
        return zero
    return {key: mine[key].to(device) if torch.is_tensor(mine[key]) else mine[key] for key in zero}


def training_scores(totals: dict[str, Any]) -> dict[str, float]:
    """Scores from the sums of an epoch, while the network was changing: a diagnostic, not a result.

    Not a number where all steps were skipped. Those of segmentation are pooled over all slices.
    """
    n = int(totals["samples"]) or math.nan
    scores = {"loss": totals["loss"].item() / n}
    if "histogram" in totals:
        pooled = metrics.segmentation_scores(totals["histogram"].cpu().numpy()[None])
        return {**scores, **(pooled if n == n else dict.fromkeys(pooled, math.nan))}
    return {**scores, "accuracy": totals["right"].item() / n, "confidence": totals["confidence"].item() / n}
