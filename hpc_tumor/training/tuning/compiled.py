"""Compile the training step where that pays: what it gains, and what compiling takes, are measured and kept.

Compiled code adds in another order and keeps more digits between fused operations: its results differ from those of
torch's kernels by rounding. So the choice belongs to the run, which keeps it when it is resumed. Evaluation and
prediction are never compiled: scores depend on the weights alone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import hpc_tumor
from hpc_tumor.errors import UsageError
from hpc_tumor.system import compilers, devices, measurements
from hpc_tumor.training.checkpoints.files import random_state, set_random_state
from hpc_tumor.training.objective import Objective
from hpc_tumor.training.state import TrainingState, mark
from hpc_tumor.training.step import forward_backward, micro_batch_size
from hpc_tumor.training.tuning.cpu_speed import GAIN
from hpc_tumor.vocabulary import duration

_STEPS = 5  # timed for each variant
_WARM = 3  # before them
# What is expected before anything was measured: compiled U-Nets move half the bytes; compiling took a minute.
_EXPECTED_GAIN, _EXPECTED_SECONDS = 1.5, 60.0
_SHARE = 0.25  # of the seconds of the first time, that compiling takes with filled caches, until it is measured
_ROUNDING = "its results differ by rounding"


@dataclass(frozen=True)
class Measured:
    """Measurement of a step.

    Attributes:
        plain: seconds of a step that is not compiled.
        gain: how many times as fast a compiled one is.
        seconds: that compiling takes with the caches as they are.
    """

    plain: float
    gain: float
    seconds: float

    def pays(self, steps: int) -> bool:
        """Return True if `steps` steps gain more than compiling costs."""
        return self.gain >= GAIN and self.saved(steps) > self.seconds

    def saved(self, steps: int) -> float:
        """Return the seconds that compiled steps save."""
        return steps * self.plain * (1 - 1 / self.gain)


def choose(state: TrainingState, compiled_before: bool | None = None) -> str:
    """Compile this run's step if that pays; return the choice and its reason for the log. All ranks call this together.

    A resumed run stays as it was, `compiled_before`.

    On CPUs steps are compiled only on request: on two cores of an AMD EPYC with bfloat16, torch 2.14's generated
    code ran at 0.5 to 0.85 times the speed of its kernels (cnn, alexnet, vit, unet, improved-unet;
    tools/benchmark_step.py --compile measures it). On GPUs both variants are timed as they will run, on all ranks.

    Raises UsageError if compiling was requested but no compiler is installed.
    """
    hardware, device = state.experiment.hardware, state.distributed.device
    if hardware.compile == "off":
        return "off, as requested"
    if hardware.compile == "auto" and compiled_before is False:
        return "off, as before this run was interrupted"
    if hardware.compile == "auto" and compiled_before is None:
        if not devices.is_gpu(device):
            return "off, slower on CPUs"
        if hardware.deterministic:
            return "off, a choice by timing would not be deterministic"
    missing = next(filter(None, state.distributed.gather(_missing(device))), None)
    if hardware.compile == "on":
        if missing:
            raise UsageError(f"hardware.compile = 'on' needs {missing}: install it, or leave it at auto.")
        return _compile_now(state, "as requested")
    if missing:
        before = f", unlike before this run was interrupted: {_ROUNDING}" if compiled_before else ""
        return f"off, it needs {missing}{before}"
    if compiled_before:
        return _compile_now(state, "as before this run was interrupted")
    return _choose_by_measurement(state)


def compile_objective(objective: Objective, samples: int) -> None:
    """Compile forward pass, loss, counts and backward pass as one graph, for micro-batches of so many samples."""
    objective.compiled = torch.compile(objective.compute, fullgraph=True, dynamic=False)
    objective.compiled_samples = samples


def step_seconds(state: TrainingState, step: Callable[[], object]) -> float:
    """Return the seconds of a step on the slowest rank."""
    device, times = state.distributed.device, []
    for _ in range(_WARM + _STEPS):
        times.append(_seconds(step, device))
        mark(state, "compile", waits=True)
    return max(state.distributed.gather(sorted(times[_WARM:])[_STEPS // 2]))


def _missing(device: torch.device) -> str | None:
    missing = compilers.missing_for_gpu() if devices.is_gpu(device) else compilers.missing_for_cpu()
    return f"{missing} on {socket.gethostname()}" if missing else None


def _compile_now(state: TrainingState, why: str) -> str:
    with _tried_step(state) as step:
        _keep_seconds(state, _facts(state), _compile(state, step))
    return f"on, {why}; {_ROUNDING}"


def _choose_by_measurement(state: TrainingState) -> str:
    """Choose by what was measured before, or measure now if the run is long enough to gain from it."""
    facts = _facts(state)
    steps_left = (state.experiment.recipe.epochs - state.progress.epoch) * state.steps - state.progress.step
    known: Measured | None = state.distributed.gather(_known(facts) if state.distributed.is_main else None)[0]
    with _tried_step(state) as step:
        how = "measured before"
        if known is None:
            plain, how = step_seconds(state, step), "measured now"
            if not Measured(plain, _EXPECTED_GAIN, _EXPECTED_SECONDS).pays(steps_left):
                return f"off, {duration(steps_left * plain)} of training are too short to try it"
        elif not known.pays(steps_left):
            if known.gain < GAIN:
                return f"off, {known.gain:.2f} × as fast, {how}"
            saved, costs = duration(known.saved(steps_left)), duration(known.seconds)
            return f"off, {known.gain:.2f} × as fast, {how}, but compiling takes {costs} to save {saved}"
        fault: str | None = None
        try:
            seconds = _compile(state, step)
            if known is None:
                known = Measured(plain, plain / step_seconds(state, step), seconds)
        except Exception as error:  # train uncompiled if compiling fails
            fault = type(error).__name__
        if fault := next(filter(None, state.distributed.gather(fault)), None):
            state.objective.compiled = None
            return f"off, compiling failed ({fault})"
    assert known is not None
    if state.distributed.is_main and how == "measured now":
        measurements.write("compile", facts, vars(known))
    _keep_seconds(state, facts, seconds)
    if known.gain < GAIN:
        state.objective.compiled = None
        return f"off, {known.gain:.2f} × as fast, {how}"
    return f"on, {known.gain:.2f} × as fast, {how}; {_ROUNDING}"


def _known(facts: dict[str, Any]) -> Measured | None:
    """Return what was measured before, with the seconds of compiling from the folder of compiled code if it is kept."""
    kept = measurements.read("compile", facts)
    if kept is None or not {"plain", "gain", "seconds"} <= kept.keys():
        return None
    filled = _filled(facts)
    return Measured(kept["plain"], kept["gain"], kept["seconds"] if filled is None else filled)


def _filled(facts: dict[str, Any]) -> float | None:
    """Return the seconds that compiling takes as the caches hold this step; None if they do not."""
    folder = compilers.inductor_cache()
    kept = None if folder is None else measurements.read("hpc-tumor", facts, folder)
    return None if kept is None else kept.get("seconds")


def _keep_seconds(state: TrainingState, facts: dict[str, Any], seconds: float) -> None:
    """Keep beside the compiled code the seconds that compiling takes with it: they go when the code is removed."""
    folder = compilers.inductor_cache()
    if folder is not None and state.distributed.is_main:
        known = seconds if _filled(facts) is not None else _SHARE * seconds
        measurements.write("hpc-tumor", facts, {"seconds": known}, folder)


def _compile(state: TrainingState, step: Callable[[], object]) -> float:
    """Compile the objective, which its first step does; return the seconds on the slowest rank."""
    mark(state, "compile", waits=True)
    compile_objective(state.objective, micro_batch_size(state))
    return max(state.distributed.gather(_seconds(step, state.distributed.device)))


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    devices.synchronize(device)
    began = time.perf_counter()
    step()
    devices.synchronize(device)
    return time.perf_counter() - began


@contextmanager
def _tried_step(state: TrainingState) -> Iterator[Callable[[], object]]:
    """Yield a function that computes the gradients of the run's first batch, without a trace after the block."""
    device, statistics = state.distributed.device, [buffer.clone() for buffer in state.network.buffers()]
    before = random_state(device)
    batch = state.parts.first_batch(state.experiment.seed)

    def step() -> None:
        state.optimizer.zero_grad(set_to_none=True)
        forward_backward(state, batch, batch.images, batch.targets)

    try:
        yield step
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in zip(state.network.buffers(), statistics, strict=True):
                buffer.copy_(value)
        set_random_state(before, device)
        devices.reset_peak_memory(device)


def _facts(state: TrainingState) -> dict[str, Any]:
    experiment, distributed, forward = state.experiment, state.distributed, state.spec.forward
    return {
        "network": experiment.model.name, "filters": experiment.model.filters, "size": state.parts.image_size,
        "batch": experiment.recipe.batch_size, "ranks": distributed.world_size, "nodes": distributed.nodes,
        "accumulate": experiment.hardware.accumulate, "loss": experiment.loss, "precision": forward.precision.name,
        "layout": str(forward.memory_format), "version": hpc_tumor.__version__, "torch": torch.__version__,
        "device": devices.name(distributed.device),
    }  # fmt: skip
