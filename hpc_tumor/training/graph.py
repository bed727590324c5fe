"""Replay training steps as one CUDA graph: the host starts some ten operations instead of hundreds.

The graph holds all of a step of a full batch on a GPU, from the stored samples to the sums of the epoch, with the
all-reduces of all ranks. Before each replay the host copies what changes to memory that the graph reads, in one
transfer; afterwards it copies the step's report back. Other batches run beside it, without a graph.

The first full batches of each start run without a graph, so that libraries choose their algorithms and allocate; they
are ordinary steps. Steps with and without a graph have the same kernels in the same order on the same stream, and so
the same bits: which steps are replayed changes no result.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_tumor import console
from hpc_tumor.console import log
from hpc_tumor.data.feed.augment import image_amounts, move_and_jitter
from hpc_tumor.data.feed.augment_slices import SliceParameters, slice_amounts
from hpc_tumor.data.feed.loader import ReadShare, StaticShare
from hpc_tumor.data.feed.masked import move_and_change, noise_windows
from hpc_tumor.errors import TrainingError, UsageError
from hpc_tumor.system import devices
from hpc_tumor.training.data_parallel import wrap_in_ddp
from hpc_tumor.training.state import CapturedStep, StepGraph, TrainingState, mark
from hpc_tumor.training.step import (
    Requests,
    compute_step,
    draw_parameters,
    finish_step,
    micro_batch_size,
    set_rates,
    train_step,
)
from hpc_tumor.training.watch.memory import is_out_of_memory

WARM = 3  # full batches before the capture
_EVALUATION = 0.5  # of the memory that a step of as many samples takes, at most
# Variables for debugging, with which the host waits for kernels or collectives, or memory is not torch's.
_FORBIDDING = {
    "CUDA_LAUNCH_BLOCKING": ("1",), "TORCH_NCCL_BLOCKING_WAIT": ("1",), "NCCL_BLOCKING_WAIT": ("1",),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL",), "PYTORCH_NO_CUDA_MEMORY_CACHING": ("1",),
}  # fmt: skip


def choose(state: TrainingState) -> str | None:
    """Decide whether this run's steps are captured. Return the log line on it; None on devices without graphs.

    Raises UsageError if it was requested and cannot be.
    """
    setting, device = state.experiment.hardware.graph, state.distributed.device
    if not devices.has_graphs(device):
        state.graph.off = "only steps on NVIDIA GPUs are captured"
        if setting == "on":
            raise UsageError(f"hardware.graph = 'on': {state.graph.off}, not on {devices.name(device)}: use auto.")
        return None
    set_variables = [name for name, values in _FORBIDDING.items() if os.environ.get(name, "").upper() in values]
    found = state.distributed.gather(set_variables)
    forbidding = next((names[0] for names in found if names), None)
    if setting == "off":
        state.graph.off = "as requested"
    elif forbidding is not None:
        state.graph.off = f"{forbidding}={os.environ.get(forbidding, '')} is set"
        if setting == "on":
            raise UsageError(f"hardware.graph = 'on', but {state.graph.off}: unset it, or leave the setting at auto.")
    return f"CUDA graph of a step: {f'off, {state.graph.off}' if state.graph.off else 'on'}"


def take_step(state: TrainingState, share: ReadShare, totals: dict[str, Any], requests: Requests) -> Requests:
    """Take one step, as `train_step` does, by replaying its graph if it has one.

    All ranks decide the same: a collective is captured on all of them or on none.
    """
    graph = state.graph
    full = share.total == state.experiment.recipe.batch_size
    # Phases that are watched are timed or traced one by one, and layers that are inspected wait for the GPU.
    if not full or graph.off is not None or state.watched is not None or torch.is_anomaly_enabled():
        return train_step(state, share.deliver(), totals, requests)
    if graph.captured is None and (graph.warm < WARM or not _capture(state, share, totals)):
        batch = share.deliver()
        graph.warm, graph.shape = graph.warm + 1, batch.images.shape
        return train_step(state, batch, totals, requests)
    return _replay(state, share, totals, requests)


def release_graph(state: TrainingState) -> None:
    """Give the graph's memory back; later steps run without."""
    state.graph = StepGraph(off="training has ended")


def _replay(state: TrainingState, share: ReadShare, totals: dict[str, Any], requests: Requests) -> Requests:
    captured = state.graph.captured
    assert captured is not None
    mark(state, "augment")
    captured.inputs.fill(share, _amounts(state, share))
    set_rates(state, share)
    for name, total in captured.totals.items():
        if totals[name] is not total:  # of a new epoch, or of steps without a graph
            totals[name] = total.copy_(totals[name])
    mark(state, "replay", collective=True)
    captured.replay()
    return finish_step(state, share, captured.report, totals, requests)


def _capture(state: TrainingState, share: ReadShare, totals: dict[str, Any]) -> bool:
    """Capture the step. Return False, on all ranks, if that fails on one: then no step is captured."""
    distributed, graph = state.distributed, state.graph
    mark(state, "capture")
    if state.writer is not None:
        state.writer.wait()  # its thread frees pinned memory, for which torch records events on this stream
    failed = _missing_memory(state) if state.experiment.hardware.graph == "auto" else None
    captured = None
    if not any(distributed.gather(failed)):
        try:
            captured = _captured(state, share, totals)
        except RuntimeError as error:
            failed = "out of memory" if is_out_of_memory(error) else _first_line(error)
    reasons = [reason for reason in distributed.gather(failed) if reason is not None]
    if not reasons:
        graph.captured = captured
        return True
    graph.off = f"the step cannot be captured: {reasons[0]}"
    if state.experiment.hardware.graph == "on":
        raise TrainingError(f"{graph.off}. Set hardware.graph=off to train without a CUDA graph.")
    if distributed.is_main:
        log(f"CUDA graph of a step: off, {graph.off}")
    del captured
    forget_half_a_step(state)
    return False


def _missing_memory(state: TrainingState) -> str | None:
    """Return a reason if incomplete batches or evaluations would not fit beside the graph, whose memory is its own."""
    device, loader = state.distributed.device, state.parts.train
    peak, total = devices.peak_memory(device).allocated, devices.total_memory(device)
    evaluated = _EVALUATION * state.parts.test.batch_size / micro_batch_size(state)
    beside = max(evaluated, len(loader.part) % loader.batch_size / loader.batch_size) * peak
    if peak + beside <= total:
        return None
    return f"its memory of {console.size(peak)} leaves too little of {console.size(total)} for other batches"


def forget_half_a_step(state: TrainingState) -> None:
    """Prepare for a step without a graph after one that may have ended anywhere."""
    if state.scaler.is_enabled():
        state.scaler._per_optimizer_states.clear()
    for name in ("grad_scale", "found_inf"):  # of the scaler, in an unfinished update
        vars(state.optimizer).pop(name, None)
    state.optimizer.zero_grad(set_to_none=True)
    if state.distributed.world_size > 1:
        state.wrapped = state.objective
        gc.collect()  # with the old wrapper go its hooks in the backward pass
        state.wrapped = wrap_in_ddp(state.objective, state.distributed)


def _captured(state: TrainingState, share: ReadShare, totals: dict[str, Any]) -> CapturedStep:
    device = state.distributed.device
    inputs = StaticShare(share, _amounts(state, share))
    static = {name: torch.empty_like(total) for name, total in totals.items() if torch.is_tensor(total)}
    kept: tuple[Tensor, ...] = ()
    if state.experiment.recipe.augment and state.spec.classes is None:
        assert state.graph.shape is not None
        kept = (noise_windows(*state.graph.shape[1:], device),)

    def work() -> Tensor:
        images, targets, amounts = inputs.read()
        if kept:
            images, targets = move_and_change(images, targets, *kept, *amounts)
        elif amounts:
            images = move_and_jitter(images, *amounts)
        return compute_step(state, share, images, targets, static, (False, False))[0]

    replay, report = devices.capture(work, device)
    return CapturedStep(replay, inputs, static, report, kept)


def _amounts(state: TrainingState, share: ReadShare) -> list[np.ndarray]:
    """Return the amounts of this rank's augmentation; empty without."""
    parameters = draw_parameters(share, state.experiment, state.distributed, state.progress.epoch)
    if parameters is None:
        return []
    assert state.graph.shape is not None
    if isinstance(parameters, SliceParameters):
        return slice_amounts(parameters, state.graph.shape)
    return image_amounts(parameters, state.graph.shape)


def _first_line(error: RuntimeError) -> str:
    """Return what failed: the operation's error rather than that of the end of the capture."""
    cause = error.__context__ or error
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}".rstrip(".")
