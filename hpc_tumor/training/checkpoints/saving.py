"""Save checkpoints to resume from, and the weights that are scored."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from hpc_tumor.data.store.store import Store
from hpc_tumor.training.checkpoints.files import BestWeights, random_state
from hpc_tumor.training.state import TrainingState, epoch_totals, mark, training_seconds
from hpc_tumor.training.watch.guard import check_steps
from hpc_tumor.vocabulary import LABELS


def save_last(state: TrainingState, totals: dict[str, Any] | None = None) -> None:
    """Save the checkpoint to resume from, with the `totals` of a current epoch; all ranks call it, rank 0 writes.

    The best weights are written first if they are not on disk yet.
    """
    mark(state, "checkpoint")
    check_steps(state, totals if totals is not None else epoch_totals(state), everything=True)
    progress, distributed = state.progress, state.distributed
    if totals is not None:
        cpu = {key: value.cpu() if torch.is_tensor(value) else value for key, value in totals.items()}
        progress.totals = distributed.gather(cpu)
    random_states = distributed.gather(random_state(distributed.device))
    progress.seconds = training_seconds(state)
    if state.writer is not None:
        _write_best(state)
        state.writer.save_last(progress, checkpoint_contents(state, random_states), keep=is_kept(state))


def is_kept(state: TrainingState) -> bool:
    """Return True if the checkpoint of this step is to be kept permanently."""
    every, progress = state.experiment.keep_every, state.progress
    return every is not None and progress.step == 0 and progress.epoch % every == 0


def checkpoint_contents(state: TrainingState, random_states: list[Any]) -> dict[str, Any]:
    """Return the state dictionaries that a resume restores, with the random generators of every rank."""
    optimizer = state.optimizer.state_dict()
    if state.rate is not None:  # the same in a checkpoint of any device
        for group in optimizer["param_groups"]:
            group["lr"] = state.rate.value
    return {
        "model": state.network.state_dict(),
        "optimizer": optimizer,
        "scaler": state.scaler.state_dict(),
        "average": state.average.state_dict() if state.average else None,
        "compiled": state.objective.compiled is not None,
        "random": random_states,
    }


@torch.no_grad()
def keep_best(state: TrainingState) -> None:
    """Copy the weights that are scored on their device, in a millisecond. All ranks call this."""
    with state.average.applied() if state.average else nullcontext():
        weights = state.network.state_dict()
        if state.best is None:
            copies = {name: tensor.clone() for name, tensor in weights.items()}
        else:
            copies = state.best.weights
            torch._foreach_copy_(list(copies.values()), list(weights.values()))
    state.best = BestWeights(copies, dataclasses.replace(state.progress, totals=[]))


def _write_best(state: TrainingState) -> None:
    best = state.best
    if state.writer is not None and best is not None and not best.written:
        best.written = True
        state.writer.save_weights(state.run.best_weights, best.progress, best.weights, _about(state))


def save_weights(state: TrainingState, path: Path) -> None:
    """Write the weights that are scored: the running mean if there is one."""
    if state.writer is not None:
        with state.average.applied() if state.average else nullcontext():
            state.writer.save_weights(path, state.progress, state.network.state_dict(), _about(state))


def _about(state: TrainingState) -> dict[str, Any]:
    """Return the facts needed to use the weights."""
    model, (height, width) = state.experiment.model, state.parts.image_size
    return {
        "format": "hpc-tumor weights", "run": state.run.name, "model": model.name, "filters": model.filters,
        "task": state.experiment.task, "classes": state.spec.classes or list(LABELS),
        "exclusive": state.spec.exclusive, "image_size": [height, width],
        **({"edition": _most_common_edition(state.parts.store)} if state.spec.classes is None else {}),
    }  # fmt: skip


def _most_common_edition(store: Store) -> str:
    return Counter(edition.name for edition in store.editions).most_common(1)[0][0]


def wait_until_saved(state: TrainingState) -> None:
    """Wait until all ranks know that the checkpoints are written."""
    mark(state, "checkpoint")
    if state.writer is not None:
        state.writer.wait()
    state.distributed.barrier()
