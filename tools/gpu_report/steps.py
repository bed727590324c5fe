"""Measure training steps of the published recipe: time, launches, operations, bytes, memory, the worst kernels."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmark_networks import flops_of_sample, now, seconds_of
from torch import Tensor, nn

from gpu_report.counting import BytesMode, profile_steps
from gpu_report.job import Job, Tell
from gpu_report.numbers import LARGEST, LEAST
from gpu_report.plan import VARIANTS
from gpu_report.work import Running, experiment_of
from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.system import devices
from hpc_tumor.training.graph import WARM as BEFORE_GRAPH
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.watch.memory import peak_memory_gb

WARM = 8
ROUNDS, SECONDS = 5, 0.3
HOST_STEPS = 8
WORST = 10  # kernels
Result = tuple[float, Tensor]  # the mean loss, and all gradients as one vector


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Measure one network in one number format and variant."""
    hardware = {"hardware": {"precision": item["format"]}}
    experiment = experiment_of(item["network"], job, hardware, VARIANTS[item["variant"]])
    device = torch.device(job.device)
    running = Running(experiment, job)
    devices.reset_peak_memory(device)
    began = time.perf_counter()
    running.step()
    tell(built_seconds=running.built, first_step_seconds=now(device) - began, batch=running.batch)
    for _ in range(BEFORE_GRAPH + 1 if job.quick else WARM):
        running.step()
    number, seconds = (1, 0.0) if job.quick else (ROUNDS, SECONDS)
    rounds = [seconds_of(running.step, device, seconds) for _ in range(number)]
    tell(step_ms=1e3 * statistics.median(rounds), step_ms_range=[1e3 * min(rounds), 1e3 * max(rounds)])
    tell(memory_gb=peak_memory_gb(device), gflop=running.batch * flops_of_sample(experiment) / 1e9)
    losses = running.losses()
    sound = bool(losses.isfinite().all() and (losses > 0).all())
    tell.check("losses are finite and above 0", sound, value=float(losses.mean()))
    if running.state.objective.compiled is not None:
        _compare_with_eager(running, item["format"], tell)
    tell(host_ms=_host_ms(running, device))
    _profile(running, device, tell)
    if item["variant"] == "eager":  # the operations of others are not seen one by one
        mode = BytesMode(device)
        with mode:
            running.step()
        worst = {name: count / 1e9 for name, count in mode.bytes.most_common(WORST)}
        tell(gbytes=sum(mode.bytes.values()) / 1e9, operations=mode.operations, gbytes_by_operation=worst)


def _compare_with_eager(running: Running, kind: str, tell: Tell) -> None:
    """Check the loss and the gradients of the compiled network against those of the eager one, on the same batch."""
    state, name = running.state, "loss and gradients of the eager network"
    if any(isinstance(module, nn.Dropout) and module.p for module in state.network.modules()):
        tell.check(name, None, why="its dropout draws other numbers when compiled")
        return
    batch = state.parts.first_batch(0)
    ways = (state.objective.compute, state.objective.compiled)
    eager, compiled = (result_of(state, backward(state, way, batch)) for way in ways)
    state.optimizer.zero_grad(set_to_none=True)
    errors = relative_errors(compiled, eager)
    # Gradients of untrained networks are ill-conditioned: see `numbers`.
    limits = (LEAST[kind], LARGEST)
    tell.check(name, errors[0] <= limits[0] and errors[1] <= limits[1], value=errors, limit=list(limits))


def backward(state: TrainingState, objective: Callable[..., Any], batch: Batch) -> Tensor:
    """Compute new gradients of the mean loss, in eager mode or as the network was compiled; return the loss."""
    state.optimizer.zero_grad(set_to_none=True)
    loss: Tensor = objective(batch.images, batch.targets)[0].mean()
    loss.backward()
    return loss.detach()


def result_of(state: TrainingState, loss: Tensor) -> Result:
    """Return a loss with the gradients that the parameters have now."""
    gradients = [weights.grad.double().flatten() for weights in state.parameters if weights.grad is not None]
    return float(loss), torch.cat(gradients)


def relative_errors(found: Result, right: Result) -> list[float]:
    """Return the relative errors of loss and gradients; not a number if the right ones are zero."""
    of_loss = abs(found[0] - right[0]) / right[0] if right[0] else math.nan
    return [of_loss, float((found[1] - right[1]).norm() / right[1].norm())]


def _host_ms(running: Running, device: torch.device) -> float:
    """Return the milliseconds that the host needs to issue a step to an idle device."""
    times = []
    for _ in range(HOST_STEPS):
        began = now(device)
        running.step()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def _profile(running: Running, device: torch.device, tell: Tell) -> None:
    if device.type == "cpu":
        return
    counts = profile_steps(running.step, device)
    if not counts.saw_device:
        tell(not_profiled="the profiler saw no kernels on this device")
        return
    worst = sorted(counts.kernels.items(), key=lambda kernel: -kernel[1][0])[:WORST]
    tell(
        launches=counts.launches, copies=counts.copies, fills=counts.fills, busy_ms=counts.busy_us / 1e3,
        kernels=[{"name": name, "ms": spent / 1e3, "calls": calls} for name, (spent, calls) in worst],
    )  # fmt: skip
