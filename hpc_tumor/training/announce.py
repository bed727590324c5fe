"""Announce a start: what a run says in its log, and keeps of the start."""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.working_set import Setup
from hpc_tumor.vocabulary import counted


def announce(setup: Setup, resumed: bool) -> None:
    """Say once, in the log, what was chosen; and record the start."""
    experiment, distributed, parts = setup.experiment, setup.distributed, setup.parts
    place = name_of(distributed)
    threads = counted(torch.get_num_threads(), "thread")
    ranks = f"{counted(distributed.world_size, 'rank')} on {counted(distributed.nodes, 'node')}"
    layout = "channels-last" if experiment.hardware.channels_last else "contiguous"
    lines = [
        f"{experiment.model.name}: {ranks}, {place}, {threads} each",
        f"precision {setup.precision.name}, {setup.precision.reason}; memory layout {layout}",
        f"split {parts.split.kind}: {parts.describe()}",
        *(f"{name} samples: {where}" for name, where in parts.kept.items()),
        setup.compiling,
    ]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if distributed.device.type == "cpu" and given and given != "-1":
        lines.append(f"GPUs were given (CUDA_VISIBLE_DEVICES={given}), but torch cannot use them: this is the CPU")
    if distributed.world_size > 1:
        lines.append(f"global batch of {experiment.recipe.batch_size} divided among the ranks")
    if (
        parts_of_batch := min(
            experiment.hardware.accumulate, -(-experiment.recipe.batch_size // distributed.world_size)
        )
    ) > 1:
        alone = ", and batch norm normalises each by itself" if _has_batch_norm(setup.bare) else ""
        lines.append(f"each rank's share of a batch in {parts_of_batch} parts{alone}")
    if setup.step_delay is not None:
        lines.append(f"each step waits the seconds in {setup.step_delay} while that exists (HPC_TUMOR_STEP_DELAY)")
    if setup.val is None:
        lines.append("no validation part: the last epoch counts as the best")
    if distributed.world_size > 1 and distributed.device.type == "cpu" and _has_batch_norm(setup.bare):
        lines.append("batch norm: each rank normalises by its own samples; the running means are rank 0's")
    state = setup.state
    if resumed:
        lines.append(f"going on at epoch {state.epoch + 1}, step {state.step}")
    print("\n".join(lines), file=sys.stderr, flush=True)
    setup.run.keep_metrics(state.epoch)
    setup.run.add_event(
        "resumed" if resumed else "started", epoch=state.epoch, step=state.step, ranks=distributed.world_size,
        nodes=distributed.nodes, device=place, precision=setup.precision.name,
    )  # fmt: skip


def name_of(distributed: Distributed) -> str:
    """Name of the device that this rank computes on."""
    return "CPU" if distributed.device.type == "cpu" else torch.cuda.get_device_name(distributed.device)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
