"""One training step: forward, backward and update of one global batch, of which this rank has its share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hpc_tumor.data.feed.augment import augment_images, draw_image_parameters
from hpc_tumor.data.feed.augment_slices import augment_slices, draw_slice_parameters
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.training.schedule import learning_rate
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import network_input
from hpc_tumor.training.watch.guard import total_norm

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup

# How many steps apart the ranks agree on whether to stop. The question goes through the host and so costs a GPU time
# in every step; on a CPU it travels with the flag of the step.
AGREE_EVERY = {"cpu": 1, "cuda": 10}
_SMALLEST_SCALE = 1.0  # of float16's gradients, which begins at 65536 and is halved in each step that overflows


def train_step(setup: Setup, batch: Batch, totals: dict[str, Any], wishes: tuple[bool, bool]) -> tuple[bool, bool]:
    """Take one step; add to `totals`. Nothing in it waits for a GPU.

    Args:
        wishes: whether this rank is asked to stop, and whether it wants a checkpoint.

    Returns:
        The same of all ranks: whether any of them is asked to stop, or wants a checkpoint.
    """
    setup.mark("augment")
    images, targets = augmented(setup, batch)
    rate = learning_rate(setup.experiment.recipe, setup.state.epoch, batch.step, setup.steps)
    for group in setup.optimizer.param_groups:
        group["lr"] = rate
    setup.optimizer.zero_grad(set_to_none=True)
    kept = setup.keep_statistics()
    losses, logits = _forward_backward(setup, batch, images, targets)
    setup.mark("update")
    broken = _prepare_gradients(setup, losses)
    setup.mark("agree")
    broken, answers = _agree(setup, batch, broken, wishes)
    setup.mark("update")
    _update(setup, broken)
    if kept is not None:
        setup.restore_statistics(kept, broken)
    setup.state.updates += 1
    if setup.average is not None:
        setup.average.update(setup.state.updates)
    setup.mark("metrics")
    _add_up(setup, totals, batch, logits, targets, losses, broken)
    setup.last_losses = losses
    setup.guard.note(broken, batch, losses, setup.state.epoch)
    return answers


def augmented(setup: Setup, batch: Batch) -> tuple[Tensor, Tensor]:
    """Images and targets of the batch, augmented where the recipe says so."""
    if not setup.experiment.recipe.augment:
        return batch.images, batch.targets
    place = (batch.total, setup.experiment.seed, setup.state.epoch, batch.step)
    rank, ranks = setup.distributed.rank, setup.distributed.world_size
    mine = slice(rank, None, ranks) if batch.counted else slice(0, 1)
    if setup.classes is None:
        return augment_slices(batch.images, batch.targets, draw_slice_parameters(*place)[mine])
    return augment_images(batch.images, draw_image_parameters(*place)[mine]), batch.targets


def _forward_backward(setup: Setup, batch: Batch, images: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the mean loss over the global batch. Each sample's loss, and the logits of each part."""
    losses, logits = [], []
    parts = list(_parts(setup, batch, images, targets))
    # DDP averages gradients over ranks: scaled like this, the sum is the mean over the global batch, even where the
    # ranks' shares are unequal.
    scale = setup.distributed.world_size / batch.total
    for number, (some, wanted, weight) in enumerate(parts):
        network = setup.network_for(len(some))
        with _without_sync(network, last=number == len(parts) - 1):
            setup.mark("forward")
            with setup.precision.autocast():
                outputs = network(network_input(some, setup.experiment.hardware.channels_last, setup.channels))
            setup.mark("loss")
            loss = setup.loss(outputs, wanted)
            setup.mark("backward")
            setup.scaler.scale(loss.sum() * (scale * weight)).backward()
        if weight or not batch.counted:
            losses.append(loss.detach())
            logits.append(outputs.detach())
    return torch.cat(losses), logits


def _parts(setup: Setup, batch: Batch, images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
    """The rank's share in as many parts as it works through, the same number on every rank, and what each counts."""
    ranks = setup.distributed.world_size
    parts = min(setup.experiment.hardware.accumulate, -(-batch.total // ranks))
    weight = int(batch.counted > 0)
    for some, wanted in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
        if len(some):
            yield some, wanted, weight
        else:  # batch norm that is synchronised needs every rank, also one that has a sample less
            yield images[:1], targets[:1], 0


def _without_sync(network: Any, last: bool) -> Any:
    """Gradients are added up over the ranks with the last part only, while its backward pass still runs."""
    inner = getattr(network, "_orig_mod", network)
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) and not last else nullcontext()


@torch.no_grad()
def _prepare_gradients(setup: Setup, losses: Tensor) -> Tensor:
    """Clip the gradients where the recipe says so. A number above 0 where loss or gradients are not finite."""
    broken = ~losses.sum().isfinite()
    largest, scaled = setup.experiment.recipe.clip_gradients, setup.scaler.is_enabled()
    if scaled and largest is not None:
        setup.scaler.unscale_(setup.optimizer)
    norm = total_norm(setup.parameters)
    # Gradients that overflow are the scaler's daily work, but a scale below 1 says that they always do.
    broken = broken | (setup.scaler._scale < _SMALLEST_SCALE if scaled else ~norm.isfinite())  # type: ignore[operator]
    if largest is not None:
        torch._foreach_mul_([p.grad for p in setup.parameters if p.grad is not None], (largest / norm).clamp(max=1.0))
    return broken.float()


def _agree(setup: Setup, batch: Batch, broken: Tensor, wishes: tuple[bool, bool]) -> tuple[Tensor, tuple[bool, bool]]:
    """What any rank has seen: a step that is not finite, and the wishes where it is time to ask for them."""
    distributed = setup.distributed
    if distributed.device.type == "cpu":
        flags = distributed.largest(torch.stack([broken, *(torch.tensor(float(wish)) for wish in wishes)]))
        return flags[0], (bool(flags[1]), bool(flags[2]))
    broken = distributed.largest(broken)
    if (batch.step + 1) % AGREE_EVERY[distributed.device.type] and batch.step + 1 < setup.steps:
        return broken, (False, False)
    stop, save = distributed.any(*wishes)
    return broken, (stop, save)


def _update(setup: Setup, broken: Tensor) -> None:
    """Change the weights, unless the step is broken: the optimizer's own kernels look at the flag."""
    if setup.scaler.is_enabled():
        setup.scaler.step(setup.optimizer)
        setup.scaler.update()
        return
    setup.optimizer.found_inf = broken  # type: ignore[attr-defined]
    setup.optimizer.grad_scale = None  # type: ignore[attr-defined]
    setup.optimizer.step()


@torch.no_grad()
def _add_up(
    setup: Setup, totals: dict[str, Any], batch: Batch, logits: list[Tensor], targets: Tensor, losses: Tensor,
    broken: Tensor,
) -> None:  # fmt: skip
    if not batch.counted:
        return
    good = broken == 0
    totals["loss"] += torch.where(good, losses.double().sum(), 0)
    totals["samples"] += batch.counted
    for some, wanted in zip(logits, targets.split([len(part) for part in logits]), strict=True):
        if setup.classes is None:
            totals["histogram"] += metrics.count_labels(some, wanted, exclusive=setup.exclusive).sum(0) * good
        else:
            probabilities = some.float().softmax(1)
            totals["right"] += (probabilities.argmax(1) == wanted).sum() * good
            totals["confidence"] += torch.where(good, probabilities.max(1).values.double().sum(), 0)
