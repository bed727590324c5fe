"""One training step: forward, backward and update of one global batch, of which this rank has its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.augment import augment_images, draw_image_parameters
from hpc_tumor.data.feed.augment_slices import augment_slices, draw_slice_parameters
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.recipe import learning_rate
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.state import TrainingState, mark
from hpc_tumor.training.watch.guard import note_step, total_norm

# How many steps apart the ranks agree on whether to stop. The question goes through the host and so costs a GPU time
# in every step; on a CPU it travels with the flag of the step.
AGREE_EVERY = {"cpu": 1, "cuda": 10}
Wishes = tuple[bool, bool]  # whether a rank is asked to stop, and whether it wants a checkpoint
_SMALLEST_SCALE = 1.0  # of float16's gradients, which begins at 65536 and is halved in each step that overflows


def train_step(state: TrainingState, batch: Batch, totals: dict[str, Any], wishes: Wishes) -> Wishes:
    """Take one step; add to `totals`. Nothing in it waits for a GPU.

    Returns the wishes of all ranks together.
    """
    mark(state, "augment")
    images, targets = augmented(batch, state.experiment, state.distributed, state.progress.epoch)
    rate = learning_rate(state.experiment.recipe, state.progress.epoch, batch.step, state.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    statistics = _keep_statistics(state)
    losses, logits = _forward_backward(state, batch, images, targets)
    mark(state, "update")
    broken = _prepare_gradients(state, losses)
    mark(state, "agree")
    broken, answers = _agree(state, batch, broken, wishes)
    mark(state, "update")
    _update(state, broken)
    if statistics is not None:
        _restore_statistics(state, statistics, broken)
    state.progress.updates += 1
    if state.average is not None:
        state.average.update(state.progress.updates)
    mark(state, "metrics")
    _add_up(state, totals, batch, logits, targets, losses, broken)
    state.last_losses = losses
    note_step(state, broken, batch, losses)
    return answers


def augmented(batch: Batch, experiment: Experiment, distributed: Distributed, epoch: int) -> tuple[Tensor, Tensor]:
    """Images and targets of the batch, augmented where the recipe says so."""
    if not experiment.recipe.augment:
        return batch.images, batch.targets
    place = (batch.total, experiment.seed, epoch, batch.step)
    rank, ranks = distributed.rank, distributed.world_size
    mine = slice(rank, None, ranks) if batch.counted else slice(0, 1)
    if experiment.task == "segmentation":
        return augment_slices(batch.images, batch.targets, draw_slice_parameters(*place)[mine])
    return augment_images(batch.images, draw_image_parameters(*place)[mine]), batch.targets


def _keep_statistics(state: TrainingState) -> list[Tensor] | None:
    """Copies of batch norm's running statistics, where a step may be skipped that spoils them."""
    if not state.experiment.recipe.skip_nonfinite:
        return None
    return [buffer.clone() for buffer in state.network.buffers()]


def _forward_backward(
    state: TrainingState, batch: Batch, images: Tensor, targets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the mean loss over the global batch. Each sample's loss, and the logits of each micro-batch."""
    losses, logits = [], []
    micro_batches = list(_micro_batches(state, batch, images, targets))
    # DDP averages gradients over ranks: scaled like this, the sum is the mean over the global batch, even where the
    # ranks' shares are unequal.
    scale = state.distributed.world_size / batch.total
    for number, (samples, truth, weight) in enumerate(micro_batches, 1):
        network = _network_for(state, len(samples))
        with _without_sync(network, last=number == len(micro_batches)):
            mark(state, "forward")
            outputs = state.spec.forward(network, samples)
            mark(state, "loss")
            loss = state.spec.loss(outputs, truth)
            mark(state, "backward")
            state.scaler.scale(loss.sum() * (scale * weight)).backward()
        if weight or not batch.counted:
            losses.append(loss.detach())
            logits.append(outputs.detach())
    return torch.cat(losses), logits


def _micro_batches(
    state: TrainingState, batch: Batch, images: Tensor, targets: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The rank's share in micro-batches, the same number on every rank, and what each counts."""
    ranks = state.distributed.world_size
    number = min(state.experiment.hardware.accumulate, -(-batch.total // ranks))
    weight = int(batch.counted > 0)
    for samples, truth in zip(images.tensor_split(number), targets.tensor_split(number), strict=True):
        if len(samples):
            yield samples, truth, weight
        else:  # batch norm that is synchronised needs every rank, also one that has a sample less
            yield images[:1], targets[:1], 0


def micro_batch_size(state: TrainingState) -> int:
    """Samples that this rank works through at once, where a batch is full: the first micro-batch of its share."""
    share = len(range(state.distributed.rank, state.experiment.recipe.batch_size, state.distributed.world_size))
    return -(-share // state.experiment.hardware.accumulate)


def _network_for(state: TrainingState, samples: int) -> Callable[..., Any]:
    """Network that gives the logits of so many samples: compiled code is made for the full size alone."""
    if state.compiled is None or samples != micro_batch_size(state):
        return state.wrapped
    return state.compiled


def _without_sync(network: Any, last: bool) -> Any:
    """Gradients are added up over the ranks with the last micro-batch only, while its backward pass still runs."""
    inner = getattr(network, "_orig_mod", network)
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) and not last else nullcontext()


@torch.no_grad()
def _prepare_gradients(state: TrainingState, losses: Tensor) -> Tensor:
    """Clip the gradients where the recipe says so. A number above 0 where loss or gradients are not finite."""
    broken = ~losses.sum().isfinite()
    largest, scaled = state.experiment.recipe.clip_gradients, state.scaler.is_enabled()
    if scaled and largest is not None:
        state.scaler.unscale_(state.optimizer)
    norm = total_norm(state.parameters)
    # Gradients that overflow are the scaler's daily work, but a scale below 1 says that they always do.
    broken = broken | (state.scaler._scale < _SMALLEST_SCALE if scaled else ~norm.isfinite())  # type: ignore[operator]
    if largest is not None:
        torch._foreach_mul_([p.grad for p in state.parameters if p.grad is not None], (largest / norm).clamp(max=1.0))
    return broken.float()


def _agree(state: TrainingState, batch: Batch, broken: Tensor, wishes: Wishes) -> tuple[Tensor, Wishes]:
    """Share what any rank has seen: a step that is not finite, and the wishes where it is time to ask for them."""
    distributed = state.distributed
    if distributed.device.type == "cpu":
        flags = distributed.largest(torch.stack([broken, *(torch.tensor(float(wish)) for wish in wishes)]))
        return flags[0], (bool(flags[1]), bool(flags[2]))
    broken = distributed.largest(broken)
    if (batch.step + 1) % AGREE_EVERY[distributed.device.type] and batch.step + 1 < state.steps:
        return broken, (False, False)
    stop, save = distributed.any(*wishes)
    return broken, (stop, save)


def _update(state: TrainingState, broken: Tensor) -> None:
    """Change the weights, unless the step is broken: the optimizer's own kernels look at the flag."""
    if state.scaler.is_enabled():
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return
    state.optimizer.found_inf = broken  # type: ignore[attr-defined]
    state.optimizer.grad_scale = None  # type: ignore[attr-defined]
    state.optimizer.step()


@torch.no_grad()
def _restore_statistics(state: TrainingState, kept: list[Tensor], broken: Tensor) -> None:
    """Put them back where the step was broken, without asking a GPU whether it was."""
    for buffer, before in zip(state.network.buffers(), kept, strict=True):
        buffer.copy_(torch.where(broken > 0, before, buffer))


@torch.no_grad()
def _add_up(
    state: TrainingState, totals: dict[str, Any], batch: Batch, logits: list[Tensor], targets: Tensor, losses: Tensor,
    broken: Tensor,
) -> None:  # fmt: skip
    """Add the step to the sums of the epoch, unless it is broken."""
    if not batch.counted:
        return
    good = broken == 0
    totals["loss"] += torch.where(good, losses.double().sum(), 0)
    totals["samples"] += batch.counted
    for answers, truth in zip(logits, targets.split([len(values) for values in logits]), strict=True):
        if state.spec.classes is None:
            totals["histogram"] += metrics.count_labels(answers, truth, exclusive=state.spec.exclusive).sum(0) * good
        else:
            probabilities = answers.float().softmax(1)
            totals["right"] += (probabilities.argmax(1) == truth).sum() * good
            totals["confidence"] += torch.where(good, probabilities.max(1).values.double().sum(), 0)
