"""Resume a run: find the last intact checkpoint and restore it; load the best weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hpc_tumor.errors import DataError, HpcTumorError, TrainingError
from hpc_tumor.records import Status
from hpc_tumor.run_dir import Damage, RunDir
from hpc_tumor.training.checkpoints.files import (
    DamagedWeights,
    Progress,
    UnreadableWeights,
    is_whole,
    load_checkpoint,
    load_weights,
    set_random_state,
)
from hpc_tumor.training.checkpoints.saving import wait_until_saved
from hpc_tumor.training.checkpoints.writer import link
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.state import TrainingState


def find_last(run: RunDir) -> tuple[bool, str | None]:
    """Return whether there is a checkpoint to resume from, and a warning if it is not the last one written.

    If the last one is damaged, the newest intact one replaces it. Raises DataError if none is intact.
    """
    last = run.last_checkpoint
    others = [run.previous_checkpoint, *sorted(run.kept_checkpoints(), reverse=True)]
    if last.exists() and is_whole(last):
        return True, None
    existing = [path for path in (last, *others) if path.exists()]
    if not existing:
        return False, None
    fault = f"{last} is {'damaged' if last.exists() else 'missing'}"
    intact = next((path for path in others if path.exists() and is_whole(path)), None)
    if intact is None:
        names = ", ".join(path.name for path in existing)
        raise DataError(f"{fault}, and no earlier checkpoint is intact: remove {names} to start from the first epoch.")
    link(intact, last)
    return True, f"{fault}: resuming from an earlier checkpoint, {intact.name}"


def resume(state: TrainingState) -> bool | None:
    """Restore the last intact checkpoint, as chosen by rank 0, on every rank.

    Returns whether the step was compiled before; None if there is no checkpoint.

    Raises DataError if the checkpoint belongs to another experiment or is beyond this one's last epoch.
    """
    run, distributed = state.run, state.distributed
    exists, warning = _on_rank_0(distributed, lambda: find_last(run))
    if not exists:
        return None
    if warning and distributed.is_main:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
        run.add_event("checkpoint damaged", reason=warning)
    contents = load_checkpoint(run.last_checkpoint, torch.device("cpu"), state.identity)
    progress: Progress = contents["state"]
    epochs = state.experiment.recipe.epochs
    if (progress.epoch, progress.step) > (epochs, 0):
        raise DataError(
            f"{run.last_checkpoint} has completed {progress.epoch} epochs and {progress.step} steps, more than"
            f" recipe.epochs = {epochs}: set it to {progress.epoch + (progress.step > 0)} or more in config.json, or"
            " submit a new run."
        )
    if distributed.is_main:
        for note in contents["notes"]:
            print(note, file=sys.stderr, flush=True)
    state.network.load_state_dict(contents["model"])
    _load_optimizer(state.optimizer, contents["optimizer"])
    state.scaler.load_state_dict(contents["scaler"])
    if state.average is not None:
        state.average.load_state_dict(contents["average"])
    progress.restarts += 1
    state.progress, state.began = progress, time.perf_counter() - progress.seconds
    if len(contents["random"]) == distributed.world_size:
        set_random_state(contents["random"][distributed.rank], distributed.device)
    else:  # new dropout masks, but not those of the first steps again
        torch.manual_seed(distributed.seed_of_rank(state.experiment.seed + progress.updates))
    return bool(contents["compiled"])


def steps_to_repeat(run: RunDir, progress: Progress, steps: int) -> int:
    """Return the steps after the checkpoint that a killed start had reported, of `steps` an epoch: at least so many."""
    status = Status.read(run.status) or Status()
    lines = [line.get("epoch") for line in run.read_metrics() if line.get("part") == "train"]
    epochs = max((epoch for epoch in lines if isinstance(epoch, int)), default=0)
    reached = max(epochs * steps, ((status.epoch or 0) - 1) * steps + (status.step or 0))
    return max(0, reached - progress.epoch * steps - progress.step)


def _on_rank_0(distributed: Distributed, function: Callable[[], Any]) -> Any:
    """Call `function` on rank 0 and return its result, or raise its error, on every rank."""
    result: Any = None
    error: HpcTumorError | None = None
    if distributed.is_main:
        try:
            result = function()
        except HpcTumorError as refused:
            error = refused
    result, error = distributed.gather((result, error))[0]
    if error is not None:
        raise error
    return result


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore the moments. What belongs to the device stays: where the learning rate is, and if it can be captured.

    Moments get the strides of their weights: fused optimizers assume it, a checkpoint's may differ.
    """
    own = [(group["lr"], group.get("capturable")) for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, (rate, capturable) in zip(optimizer.param_groups, own, strict=True):
        group["lr"] = rate
        if capturable is not None:
            group["capturable"] = capturable
    for weights, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == weights.shape and value.stride() != weights.stride():
                values[name] = torch.empty_like(weights, dtype=value.dtype).copy_(value)


def load_best(state: TrainingState) -> tuple[Damage, str] | None:
    """Load the weights of the best epoch into the network; the running mean is not changed.

    Those of an earlier start are read from the disk, so that a GPU waits for it only then.

    Returns the damage and a sentence on it if any rank finds them lost: then network and file stay as they are.

    Raises, on every rank if on any:
        TrainingError: the disk cannot read them at the moment, so that they may or may not be lost.
        DataError: they belong to a run with other data or another network.
    """
    if state.best is not None:
        _use_best(state, state.best.weights, state.best.progress)
        return None
    wait_until_saved(state)
    lost: tuple[Damage, str] | None = None
    refused: HpcTumorError | None = None
    try:
        weights, about = load_weights(state.run.best_weights, state.identity)
    except DamagedWeights as error:
        lost = error.damage, str(error)
    except UnreadableWeights as error:
        refused = TrainingError(
            f"{error} Training is complete, only scores are missing: `hpc-tumor resume` the run once its disk is back."
        )
    except DataError as error:
        refused = error
    outcomes = state.distributed.gather((lost, refused))
    if refused := next((error for _, error in outcomes if error is not None), None):
        raise refused
    lost = next((lost for lost, _ in outcomes if lost is not None), None)
    if lost is not None:
        return lost
    # Take their epoch and score from their own file: the last checkpoint may be older, or a redone epoch differ.
    _use_best(state, weights, about["state"])
    return None


def _use_best(state: TrainingState, weights: dict[str, Tensor], best: Progress) -> None:
    state.network.load_state_dict(weights)
    progress = state.progress
    progress.best_epoch, progress.best_score, progress.best_loss = best.epoch, best.best_score, best.best_loss
