"""One training step: forward pass, backward pass and update, on this rank's share of a global batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.augment import ImageParameters, augment_images, draw_image_parameters
from hpc_tumor.data.feed.augment_slices import SliceParameters, augment_slices, draw_slice_parameters
from hpc_tumor.data.feed.loader import Batch, Share
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
    """Take one step and add it to `totals`, without waiting for a GPU. Return the requests of all ranks combined.

    `graph.take_step` takes the same step, with the same bits, by replaying a CUDA graph where it has one.
    """
    mark(state, "augment")
    images, targets = augment_batch(batch, state.experiment, state.distributed, state.progress.epoch)
    set_rates(state, batch)
    report, requests = compute_step(state, batch, images, targets, totals, requests)
    return finish_step(state, batch, report, totals, requests)


def set_rates(state: TrainingState, share: Share) -> None:
    """Set what changes from step to step by a schedule: the learning rate, and the rate of the running mean."""
    rate = learning_rate(state.experiment.recipe, state.progress.epoch, share.step, state.steps)
    if state.rate is not None:
        state.rate.set(rate)
    else:
        for group in state.optimizer.param_groups:
            group["lr"] = rate
    if state.average is not None:
        state.average.set_rate(state.progress.updates + 1)


def compute_step(
    state: TrainingState, share: Share, images: Tensor, targets: Tensor, totals: dict[str, Any], requests: Requests
) -> tuple[Tensor, Requests]:
    """Compute gradients, update the weights and add the step to the sums in `totals`; on a GPU all of it is queued.

    A CUDA graph captures this: on a GPU nothing depends on the host but the size of the share.

    Returns:
        `(1 + n,)`: above 0 if the step was not finite on some rank, then the losses of this rank's samples.
        The requests, combined on a CPU.
    """
    state.optimizer.zero_grad(set_to_none=True)
    statistics = _keep_statistics(state)
    losses, counts = forward_backward(state, share, images, targets)
    mark(state, "update")
    broken = _prepare_gradients(state, losses)
    mark(state, "agree")
    broken, requests = _agree(state, broken, requests)
    mark(state, "update")
    _update(state, broken)
    if statistics is not None:
        _restore_statistics(state, statistics, broken)
    if state.average is not None:
        state.average.update()
    mark(state, "metrics")
    if share.counted:
        _add_up(totals, losses, counts, broken)
    return torch.cat([broken.view(1), losses]), requests


def finish_step(
    state: TrainingState, share: Share, report: Tensor, totals: dict[str, Any], requests: Requests
) -> Requests:
    """Count a step whose `report` may still be computed; return the requests of all ranks combined."""
    totals["samples"] += share.counted
    state.progress.updates += 1
    note_step(state, report, share)
    if not devices.is_gpu(state.distributed.device):
        return requests  # combined with the flag
    if (share.step + 1) % AGREE_EVERY and share.step + 1 < state.steps:
        return False, False
    stop, save = state.distributed.any(*requests)
    return stop, save


def augment_batch(batch: Batch, experiment: Experiment, distributed: Distributed, epoch: int) -> tuple[Tensor, Tensor]:
    """Return the images and targets of the batch, augmented if the recipe says so."""
    parameters = draw_parameters(batch, experiment, distributed, epoch)
    if parameters is None:
        return batch.images, batch.targets
    if isinstance(parameters, SliceParameters):
        return augment_slices(batch.images, batch.targets, parameters)
    return augment_images(batch.images, parameters), batch.targets


def draw_parameters(
    share: Share, experiment: Experiment, distributed: Distributed, epoch: int
) -> SliceParameters | ImageParameters | None:
    """Return the augmentation of this rank's samples; None if the recipe has none."""
    if not experiment.recipe.augment:
        return None
    draw = (share.total, experiment.seed, epoch, share.step)
    own = slice(distributed.rank, None, distributed.world_size) if share.counted else slice(0, 1)
    return (draw_slice_parameters if experiment.task == "segmentation" else draw_image_parameters)(*draw)[own]


def _keep_statistics(state: TrainingState) -> list[Tensor] | None:
    """Copy batch norm's running statistics if steps may be skipped, since a broken step corrupts them."""
    if not state.experiment.recipe.skip_nonfinite:
        return None
    return [buffer.clone() for buffer in state.network.buffers()]


def forward_backward(
    state: TrainingState, share: Share, images: Tensor, targets: Tensor
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Compute the gradients of the mean loss over the global batch; return sample losses and micro-batch counts."""
    losses, counts = [], []
    micro_batches = list(_micro_batches(state, share, images, targets))
    # DDP averages gradients over ranks: this scale makes the average the mean over the global batch, even if the ranks'
    # shares are unequal.
    scale = state.distributed.world_size / share.total
    for number, (samples, truth, weight) in enumerate(micro_batches, 1):
        last = number == len(micro_batches)
        with _without_sync(state.wrapped, last):
            mark(state, "forward", collective=True)  # of synchronised batch norm, or of the gradients
            loss, counted = state.wrapped(samples, truth)
            mark(state, "backward", waits=last)
            state.scaler.scale(loss.sum() * (scale * weight)).backward()
        if weight or not share.counted:
            losses.append(loss.detach())
            counts.append(counted)
    return torch.cat(losses) if len(losses) > 1 else losses[0], counts


def _micro_batches(
    state: TrainingState, share: Share, images: Tensor, targets: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield images, targets and weight of the rank's micro-batches, the same number on every rank."""
    ranks = state.distributed.world_size
    number = min(state.experiment.hardware.accumulate, -(-share.total // ranks))
    weight = int(share.counted > 0)
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


def _agree(state: TrainingState, broken: Tensor, requests: Requests) -> tuple[Tensor, Requests]:
    """Combine the ranks' broken flags and, on a CPU, their requests."""
    if devices.is_gpu(state.distributed.device):
        return state.distributed.largest(broken), requests
    flags = torch.stack([broken, *(torch.tensor(float(request)) for request in requests)])
    broken, stop, save = state.distributed.largest(flags)
    return broken, (bool(stop), bool(save))


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
def _add_up(totals: dict[str, Any], losses: Tensor, counts: list[dict[str, Tensor]], broken: Tensor) -> None:
    """Add the step to the sums of the epoch, unless it is broken."""
    good = broken == 0
    for counted in [{"loss": losses.double().sum()}, *counts]:
        for name, count in counted.items():
            torch.where(good, totals[name] + count, totals[name], out=totals[name])
