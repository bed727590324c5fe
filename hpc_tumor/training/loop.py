"""The training loop: the same alone, under torchrun and under SLURM."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from hpc_tumor.config import Experiment
from hpc_tumor.data.augment import augment_images, draw_parameters
from hpc_tumor.data.loader import Batch, epoch_order
from hpc_tumor.errors import TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training import metrics
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.evaluate import network_input
from hpc_tumor.training.record import Heartbeat, write_result
from hpc_tumor.training.setup import Setup, set_up

Outcome = Literal["finished", "stopped"]
HEARTBEAT_SECONDS = 2.0
# How many steps apart the ranks agree on whether to stop. On a GPU each agreement reads the loss, which waits for
# the step, so it is done rarely; on a CPU it costs nothing that can be measured.
AGREE_EVERY = {"cpu": 1, "cuda": 10}


def never() -> str | None:
    """A run that nobody asks to stop."""
    return None


def train(
    experiment: Experiment, run: RunDir, distributed: Distributed, stop: Callable[[], str | None] = never
) -> Outcome:
    """Train and test one network; go on from the run's last checkpoint where there is one.

    All ranks call this together. Once `stop()` gives a reason on any rank, all of them finish the step under way,
    save a checkpoint together and return "stopped".

    Raises:
        DataError: the store or the checkpoint cannot be used.
        TrainingError: the loss is no longer finite, or a checkpoint cannot be written.
    """
    return train_to_end(set_up(experiment, run, distributed), stop)


def train_to_end(setup: Setup, stop: Callable[[], str | None] = never) -> Outcome:
    """Train from where `setup` stands to the last epoch, then test."""
    state, epochs = setup.state, setup.experiment.recipe.epochs
    heartbeat = Heartbeat(setup.run, setup.experiment, state, setup.distributed, HEARTBEAT_SECONDS)
    while state.epoch < epochs:
        if not train_epoch(setup, heartbeat, stop):
            heartbeat.write("stopped")
            return "stopped"
        state.epoch, state.step, state.totals = state.epoch + 1, 0, []
        setup.schedule.step()
        _validate(setup, heartbeat)
        setup.save_last()
        heartbeat.checkpoint_written()
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
    experiment, state, distributed = setup.experiment, setup.state, setup.distributed
    order = epoch_order(len(setup.train.part), experiment.seed, state.epoch)
    limit = experiment.limit_batches
    steps, agree_every = setup.train.steps(limit), AGREE_EVERY[distributed.device.type]
    totals = setup.own_totals()
    heartbeat.start_epoch(steps, waited=setup.train.waited)
    setup.model.train()
    for batch in setup.train.batches(order, start=state.step, limit=limit, fill=True):
        loss = train_step(setup, batch, totals)
        state.step, state.samples = batch.step + 1, state.samples + batch.total
        if state.step % agree_every == 0 or state.step == steps:
            stopping, lost, due = distributed.any(
                stop() is not None, not math.isfinite(loss.item()), heartbeat.checkpoint_due()
            )
            if lost:
                raise TrainingError(
                    f"the loss is no longer finite at epoch {state.epoch + 1}, step {state.step}:"
                    " lower recipe.learning_rate, or set hardware.precision to float32."
                )
            if (stopping or due) and state.step < steps:
                setup.save_last(totals)
                heartbeat.checkpoint_written()
            if stopping and state.step < steps:
                return False
        heartbeat.beat(loss, batch)
    _record_training(setup, heartbeat, totals)
    return True


def train_step(setup: Setup, batch: Batch, totals: dict[str, Any]) -> torch.Tensor:
    """One step on this rank's share of a global batch; adds to `totals`, and gives this rank's mean loss."""
    experiment, distributed = setup.experiment, setup.distributed
    images = batch.images
    if experiment.recipe.augment:
        parameters = draw_parameters(batch.total, experiment.seed, setup.state.epoch, batch.step)
        mine = parameters[distributed.rank :: distributed.world_size] if batch.counted else parameters[:1]
        images = augment_images(images, mine)
    setup.optimizer.zero_grad(set_to_none=True)
    with setup.precision.autocast():
        logits = setup.model(network_input(images, experiment.hardware.channels_last, setup.channels))
    losses = setup.loss(logits, batch.targets)
    if not batch.counted:
        losses = losses * 0
    # DDP averages gradients over ranks: scaled like this, the sum is the mean over the global batch, even where the
    # ranks' shares are unequal.
    setup.scaler.scale(losses.sum() * (distributed.world_size / batch.total)).backward()
    setup.scaler.step(setup.optimizer)
    setup.scaler.update()
    _add_up(setup, totals, batch, logits.detach(), losses.detach())
    return losses.detach().mean()


@torch.no_grad()
def _add_up(setup: Setup, totals: dict[str, Any], batch: Batch, logits: torch.Tensor, losses: torch.Tensor) -> None:
    if not batch.counted:
        return
    totals["loss"] += losses.double().sum()
    totals["samples"] += batch.counted
    if setup.classes is None:
        totals["histogram"] += metrics.count_labels(logits, batch.targets).sum(0)
    else:
        probabilities = logits.float().softmax(1)
        totals["right"] += (probabilities.argmax(1) == batch.targets).sum()
        totals["confidence"] += probabilities.max(1).values.double().sum()


def _record_training(setup: Setup, heartbeat: Heartbeat, totals: dict[str, Any]) -> None:
    device = setup.distributed.device
    summed = {
        key: setup.distributed.sum(value.clone() if torch.is_tensor(value) else torch.tensor(value, device=device))
        for key, value in totals.items()
    }
    n = max(1, int(summed["samples"].item()))
    scores = {"loss": summed["loss"].item() / n}
    if setup.classes is None:
        # Pooled over all slices of the epoch, while the network was changing: a diagnostic, not a result.
        scores.update(metrics.segmentation_scores(summed["histogram"].cpu().numpy()[None]))
    else:
        scores.update(accuracy=summed["right"].item() / n, confidence=summed["confidence"].item() / n)
    heartbeat.end_epoch(scores, rate_of_learning=setup.optimizer.param_groups[0]["lr"], waited=setup.train.waited)


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
    if state.best_score is None or state.best_loss is None or (score, -loss) > (state.best_score, -state.best_loss):
        state.best_score, state.best_loss, state.best_epoch = score, loss, state.epoch
        setup.save_best()
