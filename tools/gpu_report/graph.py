"""Compare forward pass, loss and backward pass in one CUDA graph with the same in eager mode."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch
from benchmark_networks import seconds_of
from torch import Tensor

from gpu_report.counting import profile_steps
from gpu_report.job import Job, Tell
from gpu_report.numbers import limit_of, without_dropout
from gpu_report.steps import ROUNDS, SECONDS, Result, backward, relative_errors, result_of
from gpu_report.work import Running, experiment_of
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.training.state import TrainingState

WARM = 3
CAPTURED, EQUAL = "a CUDA graph can be captured", "loss and gradients of eager mode, for new contents of the batch"
_NO_GRAPHS = "no CUDA graphs on this kind of device"


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Measure one network in the fastest format, without dropout, which draws other numbers in a graph."""
    device, kind = torch.device(job.device), job.formats[0]
    if device.type != "cuda":
        tell.check(CAPTURED, None, why=_NO_GRAPHS)
        return
    state = Running(experiment_of(item["network"], job, {"hardware": {"precision": kind}}), job).state
    without_dropout(state.network)
    first, second = _copy(state.parts.first_batch(0)), _copy(state.parts.first_batch(1))
    static = _copy(first)
    tell(format=kind, batch=len(static.images))
    try:
        graph, loss = capture(state, static)
    except RuntimeError as error:
        cause = error.__context__ or error  # of the operation, not of the capture's end
        why = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        tell.check(CAPTURED, False, why=why)
        raise RuntimeError(why) from error  # torch may still allocate for the capture: the next needs a new process
    tell.check(CAPTURED, True)
    static.images.copy_(second.images)
    static.targets.copy_(second.targets)
    graph.replay()
    found = result_of(state, loss)
    old, new, again = (result_of(state, backward(state, state.wrapped, batch)) for batch in (first, second, second))
    passed, errors, limits = judge(found, new, again, old, kind)
    why = None if new[0] else "nothing was computed, so equality means nothing"
    tell.check(EQUAL, passed, value=errors, limit=limits, why=why)
    _time(state, static, graph, job.quick, tell)


def capture(state: TrainingState, batch: Batch) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Return the graph and its loss; the gradients of its replays are those of the parameters now."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):  # libraries choose their kernels
            backward(state, state.wrapped, batch)
    torch.cuda.current_stream().wait_stream(side)
    state.optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = backward(state, state.wrapped, batch)
    return graph, loss


def judge(found: Result, new: Result, again: Result, old: Result, kind: str) -> tuple[bool, list[float], list[float]]:
    """Return whether a replay is as near to eager mode as that to itself, with the relative errors and their limits.

    The results `old` of the batch that was captured must be beyond the limits: else a replay that ignores new contents
    would pass. Nor do zeros pass.
    """
    errors = relative_errors(found, new)
    limits = [limit_of(kind, control) for control in relative_errors(again, new)]
    stale = any(error > limit for error, limit in zip(relative_errors(old, new), limits, strict=True))
    return stale and all(error <= limit for error, limit in zip(errors, limits, strict=True)), errors, limits


def _time(state: TrainingState, batch: Batch, graph: torch.cuda.CUDAGraph, quick: bool, tell: Tell) -> None:
    """Measure replays and eager mode in turn, and count what the host launches for each."""
    device, calls = batch.images.device, {"eager": lambda: backward(state, state.wrapped, batch), "graph": graph.replay}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 if quick else ROUNDS):
        for name, call in calls.items():
            rounds[name].append(seconds_of(call, device, 0.0 if quick else SECONDS))
    tell(ms={name: 1e3 * statistics.median(seconds) for name, seconds in rounds.items()})
    for name, call in calls.items():
        counts = profile_steps(call, device)
        if counts.saw_device:
            tell(launches={name: counts.launches + counts.copies + counts.fills})
        else:
            tell(not_profiled="the profiler saw no kernels on this device")


def _copy(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.clone(), targets=batch.targets.clone())
