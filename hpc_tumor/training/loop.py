"""The training loop, the same in one process, under torchrun and under SLURM."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from hpc_tumor.config import Experiment
from hpc_tumor.console import log
from hpc_tumor.data.feed.loader import epoch_order
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.training.average import scoring_weights
from hpc_tumor.training.checkpoints.saving import is_kept, keep_best, save_last, wait_until_saved
from hpc_tumor.training.checkpoints.writer import disk_full_error
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.graph import release_graph, take_step
from hpc_tumor.training.host_copy import copy_to_host
from hpc_tumor.training.inspect.step_times import Tracer
from hpc_tumor.training.outputs.mirror import Mirror
from hpc_tumor.training.outputs.record import write_result
from hpc_tumor.training.recipe import learning_rate
from hpc_tumor.training.scoring.evaluate import evaluate
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState, epoch_totals, mark, training_scores
from hpc_tumor.training.watch.guard import check_steps
from hpc_tumor.training.watch.heartbeat import Heartbeat
from hpc_tumor.training.watch.memory import is_out_of_memory, out_of_memory_error
from hpc_tumor.training.watch.usage import Usage
from hpc_tumor.vocabulary import RunStatus

Outcome = Literal[RunStatus.FINISHED, RunStatus.STOPPED]
_LONGEST_DELAY = 3600.0  # seconds of HPC_TUMOR_STEP_DELAY: removing the file does not cut a wait short


def never() -> str | None:
    """Never ask the run to stop."""
    return None


def _nothing() -> None:
    """Tell nobody that the GPU is free."""


def train(
    experiment: Experiment,
    run: RunDir,
    distributed: Distributed,
    stop: Callable[[], str | None] = never,
    *,
    start: int | None = None,
    read_from: Path | None = None,
    released: Callable[[], None] = _nothing,
) -> Outcome:
    """Train and test one network, resuming from the run's last checkpoint if there is one.

    All ranks call this together. Once `stop()` returns a reason on any rank, all of them finish the current step,
    save a checkpoint together and return "stopped".

    Args:
        start: number of this start of the run, under which its resource use is recorded; None records nothing.
        read_from: copy of the store to read instead.
        released: called on rank 0 once no rank needs its GPU any more: what remains of the final test needs only CPUs.

    Raises:
        DataError: the store or the checkpoint cannot be used.
        TrainingError: the loss is not finite, memory ran out, or a checkpoint cannot be written.
    """
    with Usage(None if start is None else run.usage(distributed.rank, start), distributed) as usage:
        with explain_resource_errors(experiment, run, distributed):
            state = build_state(experiment, run, distributed, read_from)
        usage.follow(state.parts.train)
        outcome = usage.outcome = train_to_end(state, stop, released)
    return outcome


def train_to_end(
    state: TrainingState, stop: Callable[[], str | None] = never, released: Callable[[], None] = _nothing
) -> Outcome:
    """Train from the progress of `state` to the last epoch, then test."""
    try:
        with explain_resource_errors(state.experiment, state.run, state.distributed):
            heartbeat = Heartbeat(state)
            finished = _train_epochs(state, heartbeat, stop)
            release_graph(state)
            finished = finished and write_result(state, heartbeat, stop, released)
            if not finished:
                heartbeat.write(RunStatus.STOPPED)
            wait_until_saved(state)
            return RunStatus.FINISHED if finished else RunStatus.STOPPED
    finally:
        release_graph(state)  # NCCL may wait for graphs with its collectives before it ends
        if state.writer is not None:
            state.writer.close()


def _train_epochs(state: TrainingState, heartbeat: Heartbeat, stop: Callable[[], str | None]) -> bool:
    """Train and validate to the last epoch. Return False if stopped before, with a checkpoint written."""
    progress, mirror = state.progress, Mirror(state.run, state.experiment.tensorboard and state.distributed.is_main)
    over = _is_over(state)
    while not over:
        if not train_epoch(state, heartbeat, stop):
            return False
        progress.epoch, progress.step, progress.totals = progress.epoch + 1, 0, []
        _validate(state, heartbeat)
        stopping, due = state.distributed.any(stop() is not None, heartbeat.checkpoint_due())
        over = _is_over(state)
        if over or stopping or due or is_kept(state):
            save_last(state)
            heartbeat.checkpoint_written()
        if state.writer is not None:
            state.writer.later(mirror.update)
        if stopping:
            return False
    return True


def train_epoch(state: TrainingState, heartbeat: Heartbeat, stop: Callable[[], str | None] = never) -> bool:
    """Train from the state's step to the end of its epoch. Return False if stopped, with a checkpoint written."""
    experiment, progress, loader = state.experiment, state.progress, state.parts.train
    order = epoch_order(len(loader.part), experiment.seed, progress.epoch)
    totals = epoch_totals(state)
    heartbeat.start_epoch()
    state.network.train()
    with Tracer(state) as tracer:
        mark(state, "data")
        for share in loader.shares(order, start=progress.step, limit=experiment.limit_batches, fill=True):
            if state.step_delay is not None:
                mark(state, "delay")
                time.sleep(_seconds_in(state.step_delay))
            requests = (stop() is not None, heartbeat.checkpoint_due())
            stopping, due = take_step(state, share, totals, requests)
            progress.step, progress.samples = share.step + 1, progress.samples + share.total
            check_steps(state, totals)
            if (stopping or due) and progress.step < state.steps:
                save_last(state, totals)
                heartbeat.checkpoint_written()
            if stopping and progress.step < state.steps:
                return False
            heartbeat.beat()
            tracer.step()
            mark(state, "data")
    summed = {
        key: copy_to_host(state.distributed.sum(value.clone()))
        for key, value in totals.items()
        if torch.is_tensor(value)
    }
    check_steps(state, totals, everything=True)  # waits for the last step, just before these copies
    samples = state.distributed.sum(torch.tensor(totals["samples"]))
    _record_training(state, heartbeat, {"samples": samples, **{key: copy.wait() for key, copy in summed.items()}})
    return True


def _record_training(state: TrainingState, heartbeat: Heartbeat, summed: dict[str, Any]) -> None:
    """Record the training scores of the epoch, from its sums over all ranks."""
    last = learning_rate(state.experiment.recipe, state.progress.epoch, state.steps - 1, state.steps)
    heartbeat.end_epoch(training_scores(summed), learning_rate=last)


def _validate(state: TrainingState, heartbeat: Heartbeat) -> None:
    """Score the validation part, and keep the weights if they are the best so far."""
    progress, main_score = state.progress, state.experiment.main_score
    if state.parts.val is None:
        progress.best_epoch = progress.epoch
        return
    heartbeat.alive()
    before = time.perf_counter()
    with scoring_weights(state.network, state.average, state.distributed):
        scores = evaluate(state.network, state.parts.val, state.spec, state.distributed, alive=heartbeat.alive).scores
    heartbeat.validated(scores, seconds=time.perf_counter() - before)
    score, loss = scores[main_score], scores["loss"]
    score = -score if main_score == "loss" else score
    score = score if math.isfinite(score) else -math.inf  # no score would compare as better than NaN
    loss = loss if math.isfinite(loss) else math.inf
    best_score, best_loss = progress.best_score, progress.best_loss
    if best_score is None or best_loss is None or (score, -loss) > (best_score, -best_loss):
        progress.best_score, progress.best_loss, progress.best_epoch = score, loss, progress.epoch
        keep_best(state)


def _is_over(state: TrainingState) -> bool:
    return state.progress.epoch >= state.experiment.recipe.epochs or _gave_up(state)


def _gave_up(state: TrainingState) -> bool:
    """Return True if early stopping ends training here: no better score for the recipe's number of epochs."""
    progress, patience, score = state.progress, state.experiment.recipe.early_stopping, state.experiment.main_score
    if patience is None or progress.epoch - progress.best_epoch < patience:
        return False
    if state.distributed.is_main:
        log(f"early stopping: validation {score} has not improved since epoch {progress.best_epoch}")
        state.run.add_event("early stop", epoch=progress.epoch, best_epoch=progress.best_epoch)
    return True


@contextmanager
def explain_resource_errors(experiment: Experiment, run: RunDir, distributed: Distributed) -> Iterator[None]:
    """Turn out-of-memory and disk-full errors of the block into a TrainingError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory_error(error, experiment, distributed) from error
        if isinstance(error, OSError) and atomic.is_disk_full(error):
            raise disk_full_error(run) from error
        raise


def _seconds_in(file: Path) -> float:
    """Read the seconds that each step waits from `file`; 0 if it is absent or empty."""
    try:
        text = file.read_text(encoding="utf-8").strip()
        seconds = float(text or 0)
    except FileNotFoundError:
        return 0.0
    except OSError as error:
        if error.errno == errno.ESTALE:  # another node has just removed it
            return 0.0
        raise UsageError(f"HPC_TUMOR_STEP_DELAY: {file} cannot be read: {error.strerror}.") from None
    except ValueError:  # also of bytes that are not UTF-8
        seconds = math.nan
    if not 0 <= seconds <= _LONGEST_DELAY:
        raise UsageError(
            f"HPC_TUMOR_STEP_DELAY: {file} must hold a number of seconds from 0 to {_LONGEST_DELAY:g}:"
            " correct or remove it, then `hpc-tumor resume` the run."
        )
    return seconds
