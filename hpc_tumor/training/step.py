"""One training step: forward pass, backward pass and update, on this rank's share of a global batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.augment import augment_images, draw_image_parameters
from hpc_tumor.data.feed.augment_slices import augment_slices, draw_slice_parameters
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.recipe import learning_rate
from hpc_tumor.training.state import TrainingState, mark
from hpc_tumor.training.watch.guard import note_step, total_norm

# Steps between two agreements of GPU ranks on stopping, which go through the host and stall the GPU. On a CPU the ranks
# agree in every step, with its flag.
AGREE_EVERY = 10
Requests = tuple[bool, bool]  # of a rank: to stop, to write a checkpoint
_SMALLEST_SCALE = 1.0  # of float16 gradients; the scale starts at 65536 and is halved in each step that overflows


def train_step(state: TrainingState, batch: Batch, totals: dict[str, Any], requests: Requests) -> Requests:
    """Take one step and add it to `totals`, without waiting for a GPU. Return the requests of all ranks combined."""
    mark(state, "augment")
    images, targets = augment_batch(batch, state.experiment, state.distributed, state.progress.epoch)
    rate = learning_rate(state.experiment.recipe, state.progress.epoch, batch.step, state.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    statistics = _keep_statistics(state)
    losses, counts = forward_backward(state, batch, images, targets)
    mark(state, "update")
    broken = _prepare_gradients(state, losses)
    mark(state, "agree")
    broken, requests = _agree(state, batch, broken, requests)
    mark(state, "update")
    _update(state, broken)
    if statistics is not None:
        _restore_statistics(state, statistics, broken)
    state.progress.updates += 1
    if state.average is not None:
        state.average.update(state.progress.updates)
    mark(state, "metrics")
    _add_up(totals, batch, losses, counts, broken)
    state.last_losses = losses
    note_step(state, broken, batch, losses)
    return requests


def augment_batch(batch: Batch, experiment: Experiment, distributed: Distributed, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the images and targets of the batch, augmented if the recipe says so."""
    if not experiment.recipe.augment:
        return batch.images, batch.targets
    draw = (batch.total, experiment.seed, epoch, batch.step)
    rank, ranks = distributed.rank, distributed.world_size
    own = slice(rank, None, ranks) if batch.counted else slice(0, 1)
    if experiment.task == "segmentation":
        return augment_slices(batch.images, batch.targets, draw_slice_parameters(*draw)[own])
    return augment_images(batch.images, draw_image_parameters(*draw)[own]), batch.targets


def _keep_statistics(state: TrainingState) -> list[Tensor] | None:
    """Copy batch norm's running statistics if steps may be skipped, since a broken step corrupts them."""
    if not state.experiment.recipe.skip_nonfinite:
        return None
    return [buffer.clone() for buffer in state.network.buffers()]


def forward_backward(
    state: TrainingState, batch: Batch, images: Tensor, targets: Tensor
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Compute the gradients of the mean loss over the global batch; return sample losses and micro-batch counts."""
    losses, counts = [], []
    micro_batches = list(_micro_batches(state, batch, images, targets))
    # DDP averages gradients over ranks: this scale makes the average the mean over the global batch, even if the ranks'
    # shares are unequal.
    scale = state.distributed.world_size / batch.total
    for number, (samples, truth, weight) in enumerate(micro_batches, 1):
        last = number == len(micro_batches)
        with _without_sync(state.wrapped, last):
            mark(state, "forward", collective=True)  # of synchronised batch norm, or of the gradients
            loss, counted = state.wrapped(samples, truth)
            mark(state, "backward", waits=last)
            state.scaler.scale(loss.sum() * (scale * weight)).backward()
        if weight or not batch.counted:
            losses.append(loss.detach())
            counts.append(counted)
    return torch.cat(losses), counts


def _micro_batches(
    state: TrainingState, batch: Batch, images: Tensor, targets: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield images, targets and weight of the rank's micro-batches, the same number on every rank."""
    ranks = state.distributed.world_size
    number = min(state.experiment.hardware.accumulate, -(-batch.total // ranks))
    weight = int(batch.counted > 0)
    for samples, truth in zip(images.tensor_split(number), targets.tensor_split(number), strict=True):
        if len(samples):
            yield samples, truth, weight
        else:  # synchronised batch norm needs every rank, even one without a sample left
            yield images[:1], targets[:1], 0


def micro_batch_size(state: TrainingState) -> int:
    """Return the samples in the first micro-batch of this rank's share of a full batch."""
    share = len(range(state.distributed.rank, state.experiment.recipe.batch_size, state.distributed.world_size))
    return -(-share // state.experiment.hardware.accumulate)


def _without_sync(wrapped: nn.Module, last: bool) -> Any:
    """Skip DDP's gradient reduction except in the last micro-batch, where it overlaps with the backward pass."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()


@torch.no_grad()
def _prepare_gradients(state: TrainingState, losses: Tensor) -> Tensor:
    """Clip the gradients if the recipe says so; return a flag above 0 if loss or gradients are not finite."""
    broken = ~losses.sum().isfinite()
    largest, scaled = state.experiment.recipe.clip_gradients, state.scaler.is_enabled()
    if scaled and largest is not None:
        state.scaler.unscale_(state.optimizer)
    norm = total_norm(state.parameters)
    # The scaler expects occasional overflows, but a scale below 1 means that every step overflows.
    broken = broken | (state.scaler._scale < _SMALLEST_SCALE if scaled else ~norm.isfinite())  # type: ignore[operator]
    if largest is not None:
        torch._foreach_mul_([p.grad for p in state.parameters if p.grad is not None], (largest / norm).clamp(max=1.0))
    return broken.float()


def _agree(state: TrainingState, batch: Batch, broken: Tensor, requests: Requests) -> tuple[Tensor, Requests]:
    """Combine the ranks' broken flags and, in steps that are due, their requests."""
    distributed = state.distributed
    if not devices.is_gpu(distributed.device):
        flags = distributed.largest(torch.stack([broken, *(torch.tensor(float(request)) for request in requests)]))
        return flags[0], (bool(flags[1]), bool(flags[2]))
    broken = distributed.largest(broken)
    if (batch.step + 1) % AGREE_EVERY and batch.step + 1 < state.steps:
        return broken, (False, False)
    stop, save = distributed.any(*requests)
    return broken, (stop, save)


def _update(state: TrainingState, broken: Tensor) -> None:
    """Update the weights unless the step is broken: the optimizer's kernels check the flag."""
    if state.scaler.is_enabled():
        state.scaler.step(state.optimizer)
        state.scaler.update()
        return
    state.optimizer.found_inf = broken  # type: ignore[attr-defined]
    state.optimizer.grad_scale = None  # type: ignore[attr-defined]
    state.optimizer.step()


@torch.no_grad()
def _restore_statistics(state: TrainingState, saved: list[Tensor], broken: Tensor) -> None:
    """Restore the statistics if the step was broken, without waiting for a GPU."""
    for buffer, before in zip(state.network.buffers(), saved, strict=True):
        buffer.copy_(torch.where(broken > 0, before, buffer))


@torch.no_grad()
def _add_up(
    totals: dict[str, Any], batch: Batch, losses: Tensor, counts: list[dict[str, Tensor]], broken: Tensor
) -> None:
    """Add the step to the sums of the epoch, unless it is broken."""
    if not batch.counted:
        return
    good = broken == 0
    totals["samples"] += batch.counted
    for counted in [{"loss": losses.double().sum()}, *counts]:
        for name, count in counted.items():
            torch.where(good, totals[name] + count, totals[name], out=totals[name])
