"""Go on from what was saved: find the last checkpoint that can be read, put it back; load the best weights."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from hpc_tumor.errors import DataError, HpcTumorError, TrainingError
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
    """Find the checkpoint to go on from, and what to say where it is not the last that was written.

    Where that one is damaged, the newest that can be read takes its place.

    Raises DataError where there are checkpoints, but none that can be read.
    """
    last = run.last_checkpoint
    others = [run.previous_checkpoint, *sorted(run.kept_checkpoints(), reverse=True)]
    if last.exists() and is_whole(last):
        return True, None
    there = [path for path in (last, *others) if path.exists()]
    if not there:
        return False, None
    what = f"{last} is {'damaged' if last.exists() else 'missing'}"
    whole = next((path for path in others if path.exists() and is_whole(path)), None)
    if whole is None:
        names = ", ".join(path.name for path in there)
        raise DataError(f"{what}, and none before it can be read: remove {names} there to start from the first epoch.")
    link(whole, last)
    return True, f"{what}: going on from the checkpoint before, {whole.name}"


def resume(state: TrainingState) -> bool | None:
    """Go on from the last checkpoint that can be read. Every rank reads what rank 0 chose.

    Returns whether the step was compiled until then; None where there is no checkpoint.

    Raises DataError: the checkpoint is of another experiment, or further than this one goes.
    """
    run, distributed = state.run, state.distributed
    exists, warning = _of_rank_0(distributed, lambda: find_last(run))
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
            f"{run.last_checkpoint} has trained {progress.epoch} epochs and {progress.step} steps, more than"
            f" recipe.epochs = {epochs}: set it to {progress.epoch + (progress.step > 0)} or more in config.json, or"
            " submit a new run."
        )
    if distributed.is_main:
        for note in contents["notes"]:
            print(note, file=sys.stderr, flush=True)
    state.network.load_state_dict(contents["model"])
    state.optimizer.load_state_dict(contents["optimizer"])
    _lay_moments_as_weights(state.optimizer)
    state.scaler.load_state_dict(contents["scaler"])
    if state.average is not None:
        state.average.load_state_dict(contents["average"])
    progress.restarts += 1
    state.progress, state.began = progress, time.perf_counter() - progress.seconds
    if len(contents["random"]) == distributed.world_size:
        set_random_state(contents["random"][distributed.rank], distributed.device)
    else:  # new draws of dropout, but not those of the first steps again
        torch.manual_seed(distributed.seed_of_rank(state.experiment.seed + progress.updates))
    return bool(contents["compiled"])


def _of_rank_0(distributed: Distributed, ask: Callable[[], Any]) -> Any:
    """Rank 0's answer, or its error, on every rank."""
    answer: Any = None
    error: HpcTumorError | None = None
    if distributed.is_main:
        try:
            answer = ask()
        except HpcTumorError as refused:
            error = refused
    answer, error = distributed.gather((answer, error))[0]
    if error is not None:
        raise error
    return answer


def _lay_moments_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Fused optimizers take weights and moments to lie in the same order; a checkpoint's may lie in another."""
    for weights, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == weights.shape and value.stride() != weights.stride():
                values[name] = torch.empty_like(weights, dtype=value.dtype).copy_(value)


def load_best(state: TrainingState) -> tuple[Damage, str] | None:
    """Put the weights of the best epoch into the network, and leave the running mean out of it.

    Returns the damage, and what is wrong in a sentence, where they are lost to any rank: then the network stays as
    it is, and so does the file.

    Raises, on every rank where it is so on any:
        TrainingError: the disk does not give them at this moment, so that nobody knows whether they are lost.
        DataError: they are of a run with other data or another network.
    """
    wait_until_saved(state)
    lost: tuple[Damage, str] | None = None
    refused: HpcTumorError | None = None
    try:
        weights, about = load_weights(state.run.best_weights, state.identity)
    except DamagedWeights as error:
        lost = error.damage, str(error)
    except UnreadableWeights as error:
        refused = TrainingError(
            f"{error} The training is done, only its scores are missing: `hpc-tumor resume` the run once its disk is"
            " back."
        )
    except DataError as error:
        refused = error
    answers = state.distributed.gather((lost, refused))
    if refused := next((error for _, error in answers if error is not None), None):
        raise refused
    lost = next((lost for lost, _ in answers if lost is not None), None)
    if lost is not None:
        return lost
    state.network.load_state_dict(weights)
    # What these weights are is said by their own file: the last checkpoint may be older, or a redone epoch differ.
    best, progress = about["state"], state.progress
    progress.best_epoch, progress.best_score, progress.best_loss = best.epoch, best.best_score, best.best_loss
    return None
