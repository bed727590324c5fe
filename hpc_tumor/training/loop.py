"""The training loop: the same alone, under torchrun and under SLURM."""

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
from hpc_tumor.data.feed.loader import epoch_order
from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.training.checkpoints.saving import no_room
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.inspect.tracing import Tracer
from hpc_tumor.training.outputs.mirror import Mirror
from hpc_tumor.training.outputs.record import write_result
from hpc_tumor.training.schedule import learning_rate
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.setup import set_up
from hpc_tumor.training.step import train_step
from hpc_tumor.training.watch.heartbeat import Heartbeat, say
from hpc_tumor.training.watch.memory import is_out_of_memory, out_of_memory
from hpc_tumor.training.watch.usage import Usage
from hpc_tumor.training.working_set import Setup

Outcome = Literal["finished", "stopped"]
_LONGEST_DELAY = 3600.0  # seconds of HPC_TUMOR_STEP_DELAY: a wait is not cut short where the file is removed meanwhile


def never() -> str | None:
    """A run that nobody asks to stop."""
    return None


def train(
    experiment: Experiment,
    run: RunDir,
    distributed: Distributed,
    stop: Callable[[], str | None] = never,
    *,
    start: int | None = None,
    read_from: Path | None = None,
) -> Outcome:
    """Train and test one network; go on from the run's last checkpoint where there is one.

    All ranks call this together. Once `stop()` gives a reason on any rank, all of them finish the step under way,
    save a checkpoint together and return "stopped".

    Args:
        start: which start of the run this is, where what it uses is to be recorded.
        read_from: a copy of the store, to be read in its place.

    Raises:
        DataError: the store or the checkpoint cannot be used.
        TrainingError: the loss is no longer finite, memory ran out, or a checkpoint cannot be written.
    """
    with Usage(None if start is None else run.usage(distributed.rank, start), distributed) as usage:
        with explained(experiment, run, distributed):
            setup = set_up(experiment, run, distributed, read_from)
        usage.follow(setup)
        outcome = usage.outcome = train_to_end(setup, stop)
    return outcome


def train_to_end(setup: Setup, stop: Callable[[], str | None] = never) -> Outcome:
    """Train from where `setup` stands to the last epoch, then test."""
    try:
        with explained(setup.experiment, setup.run, setup.distributed):
            outcome = _train_to_end(setup, stop)
            setup.settle()
            return outcome
    finally:
        if setup.saver is not None:
            setup.saver.close()


@contextmanager
def explained(experiment: Experiment, run: RunDir, distributed: Distributed) -> Iterator[None]:
    """Raises TrainingError, with the way out, where memory or the disk is full in the block."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, experiment, distributed) from error
        if isinstance(error, OSError) and atomic.is_disk_full(error):
            raise no_room(run) from error
        raise


def _train_to_end(setup: Setup, stop: Callable[[], str | None]) -> Outcome:
    state, heartbeat, mirror = setup.state, Heartbeat(setup), Mirror(setup)
    while state.epoch < setup.experiment.recipe.epochs and not _gave_up(setup):
        if not train_epoch(setup, heartbeat, stop):
            heartbeat.write("stopped")
            return "stopped"
        state.epoch, state.step, state.totals = state.epoch + 1, 0, []
        _validate(setup, heartbeat)
        setup.save_last()
        heartbeat.checkpoint_written()
        mirror.update()
        if setup.distributed.any(stop() is not None)[0]:
            heartbeat.write("stopped")
            return "stopped"
    heartbeat.write("evaluating")
    if not write_result(setup, heartbeat, stop):
        heartbeat.write("stopped")
        return "stopped"
    return "finished"


def train_epoch(setup: Setup, heartbeat: Heartbeat, stop: Callable[[], str | None] = never) -> bool:
    """Train from the state's step to the end of its epoch. False: a stop was asked for, and a checkpoint written."""
    experiment, state = setup.experiment, setup.state
    order = epoch_order(len(setup.train.part), experiment.seed, state.epoch)
    totals = setup.own_totals()
    heartbeat.start_epoch()
    setup.bare.train()
    with Tracer(setup) as tracer:
        setup.mark("data")
        for batch in setup.train.batches(order, start=state.step, limit=experiment.limit_batches, fill=True):
            if setup.step_delay is not None:
                setup.mark("delay")
                time.sleep(_seconds_in(setup.step_delay))
            wishes = (stop() is not None, heartbeat.checkpoint_due())
            stopping, due = train_step(setup, batch, totals, wishes)
            state.step, state.samples = batch.step + 1, state.samples + batch.total
            setup.guard.look(totals)
            if (stopping or due) and state.step < setup.steps:
                setup.save_last(totals)
                heartbeat.checkpoint_written()
            if stopping and state.step < setup.steps:
                return False
            heartbeat.beat()
            tracer.step()
            setup.mark("data")
    setup.guard.look(totals, everything=True)
    _record_training(setup, heartbeat, totals)
    return True


def _seconds_in(file: Path) -> float:
    """Return the seconds that a step waits: the text of `file`; 0 while it does not exist or is being written."""
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
            f"HPC_TUMOR_STEP_DELAY: {file} does not hold a number of seconds from 0 to {_LONGEST_DELAY:g}:"
            " correct or remove it, then `hpc-tumor resume` the run."
        )
    return seconds


def _record_training(setup: Setup, heartbeat: Heartbeat, totals: dict[str, Any]) -> None:
    device = setup.distributed.device
    summed = {
        key: setup.distributed.sum(value.clone() if torch.is_tensor(value) else torch.tensor(value, device=device))
        for key, value in totals.items()
    }
    n = int(summed["samples"].item()) or math.nan  # all steps of the epoch may have been skipped
    scores = {"loss": summed["loss"].item() / n}
    if setup.classes is None:
        # Pooled over all slices of the epoch, while the network was changing: a diagnostic, not a result.
        pooled = metrics.segmentation_scores(summed["histogram"].cpu().numpy()[None])
        scores.update(pooled if n == n else dict.fromkeys(pooled, math.nan))
    else:
        scores.update(accuracy=summed["right"].item() / n, confidence=summed["confidence"].item() / n)
    last = learning_rate(setup.experiment.recipe, setup.state.epoch, setup.steps - 1, setup.steps)
    heartbeat.end_epoch(scores, learning_rate=last)


def _validate(setup: Setup, heartbeat: Heartbeat) -> None:
    """Score the validation part, and keep the weights where they are the best so far."""
    state = setup.state
    if setup.val is None:
        state.best_epoch = state.epoch
        return
    heartbeat.write("evaluating")
    before = time.perf_counter()
    scores = setup.evaluate(setup.val, heartbeat.alive).scores
    heartbeat.validated(scores, seconds=time.perf_counter() - before)
    score, loss = scores[setup.main_score], scores["loss"]
    score = -score if setup.main_score == "loss" else score
    score = score if math.isfinite(score) else -math.inf  # nothing would ever be better than what is no number
    loss = loss if math.isfinite(loss) else math.inf
    if state.best_score is None or state.best_loss is None or (score, -loss) > (state.best_score, -state.best_loss):
        state.best_score, state.best_loss, state.best_epoch = score, loss, state.epoch
        setup.save_best()


def _gave_up(setup: Setup) -> bool:
    """Return True if so many epochs brought nothing better that the recipe ends training here."""
    state, patience = setup.state, setup.experiment.recipe.early_stopping
    if patience is None or state.epoch - state.best_epoch < patience:
        return False
    if setup.distributed.is_main:
        say(f"no better validation {setup.main_score} since epoch {state.best_epoch}: training ends early")
        setup.run.add_event("early stop", epoch=state.epoch, best_epoch=state.best_epoch)
    return True
