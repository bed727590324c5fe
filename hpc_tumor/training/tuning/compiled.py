"""Compile the training step where that pays: what it gains, and what compiling takes, are measured and kept.

Compiled code adds in another order and keeps more digits between fused operations: its results differ from those of
torch's kernels by rounding. So the choice belongs to the run, which keeps it when it is resumed. Evaluation and
prediction are never compiled: scores depend on the weights alone.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

import hpc_tumor
from hpc_tumor.errors import UsageError
from hpc_tumor.system import compilers, devices, measurements
from hpc_tumor.training.checkpoints.files import random_state, set_random_state
from hpc_tumor.training.graph import forget_half_a_step
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
_EMPTIED, _FILLED = "compiling", "compiling-again"  # kinds of measurements, before and after the caches are filled
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
        with _tried_step(state) as step:
            _compile(state, step, required=True)
        return f"on, as requested; {_ROUNDING}"
    if missing or compiled_before is None:
        answer = f"off, it needs {missing}" if missing else _choose_by_measurement(state)
    else:
        with _tried_step(state) as step:
            fault = _compile(state, step)
        answer = fault or f"on, as before this run was interrupted; {_ROUNDING}"
    if compiled_before and state.objective.compiled is None:
        return f"{answer}, unlike before this run was interrupted: {_ROUNDING}"
    return answer


def compile_objective(objective: Objective, samples: int) -> None:
    """Compile forward pass, loss, counts and backward pass as one graph, for micro-batches of so many samples."""
    objective.compiled = torch.compile(objective.compute, fullgraph=True, dynamic=False)
    objective.compiled_samples = samples


def step_seconds(state: TrainingState, step: Callable[[], object]) -> float:
    """Return the seconds of a step on the slowest rank: of replays if the run replays its steps as a CUDA graph."""
    device, times = state.distributed.device, []
    for _ in range(_WARM):
        step()
        mark(state, "compile", waits=True)
    if state.graph.off is None:
        step = _captured(state, step)
    for _ in range(_STEPS):
        times.append(_seconds(step, device))
        mark(state, "compile", waits=True)
    return max(state.distributed.gather(sorted(times)[_STEPS // 2]))


def _captured(state: TrainingState, step: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a captured step; on all ranks the step itself if one of them cannot capture it.

    What cannot be captured will not be in training either.
    """
    replay: Callable[[], object] | None = None
    with suppress(RuntimeError):
        replay, _ = devices.capture(step, state.distributed.device)
    if all(state.distributed.gather(replay is not None)):
        return replay or step
    forget_half_a_step(state)
    return step


def _missing(device: torch.device) -> str | None:
    missing = compilers.missing_for_gpu() if devices.is_gpu(device) else compilers.missing_for_cpu()
    return f"{missing} on {socket.gethostname()}" if missing else None


def _choose_by_measurement(state: TrainingState) -> str:
    """Choose by what was measured before, or measure now if the run is long enough to gain from it."""
    facts, distributed = _facts(state), state.distributed
    steps = (state.experiment.recipe.epochs - state.progress.epoch) * state.steps - state.progress.step
    known: Measured | None = distributed.gather(_known(facts) if distributed.is_main else None)[0]
    if known is not None:
        answer = f"{known.gain:.2f} × as fast, measured before"
        if not known.pays(steps):
            takes = f", but compiling takes {duration(known.seconds)} to save {duration(known.saved(steps))}"
            return f"off, {answer}{takes if known.gain >= GAIN else ''}"
        with _tried_step(state) as step:
            return _compile(state, step) or f"on, {answer}; {_ROUNDING}"
    with _tried_step(state) as step:
        plain = step_seconds(state, step)
        if not Measured(plain, _EXPECTED_GAIN, _EXPECTED_SECONDS).pays(steps):
            return f"off, {duration(steps * plain)} of training are too short to try it"
        if fault := _compile(state, step):
            return fault
        gain = plain / step_seconds(state, step)
    if distributed.is_main:
        measurements.write("compile", facts, {"plain": plain, "gain": gain})
    if gain < GAIN:
        state.objective.compiled = None
        return f"off, {gain:.2f} × as fast, measured now"
    return f"on, {gain:.2f} × as fast, measured now; {_ROUNDING}"


def _compile(state: TrainingState, step: Callable[[], object], required: bool = False) -> str | None:
    """Compile the objective, which its first step does, and keep the seconds that it takes.

    Returns the answer if that fails on some rank, and none is compiled. Raises the error if compiling is `required`.
    """
    failed, seconds = None, 0.0
    mark(state, "compile", waits=True)
    compile_objective(state.objective, micro_batch_size(state))
    try:
        seconds = _seconds(step, state.distributed.device)
    except Exception as error:
        if required:
            raise
        failed = type(error).__name__
    results = state.distributed.gather((seconds, failed))
    if failed := next((name for _, name in results if name), None):
        state.objective.compiled = None
        forget_half_a_step(state)
        return f"off, compiling failed ({failed})"
    if state.distributed.is_main:
        _keep_seconds(_facts(state), max(seconds for seconds, _ in results))
    return None


def _known(facts: dict[str, Any]) -> Measured | None:
    """Return what was measured before, with the seconds that compiling takes with the caches as they are."""
    kept, emptied, filled = measurements.read("compile", facts), measurements.read(_EMPTIED, facts), _filled(facts)
    if kept is None or emptied is None or not {"plain", "gain"} <= kept.keys():
        return None
    return Measured(kept["plain"], kept["gain"], (filled or emptied)["seconds"])


def _keep_seconds(facts: dict[str, Any], seconds: float) -> None:
    """Keep the seconds of compiling; those with filled caches beside the compiled code, to be removed with it."""
    folder, before = compilers.inductor_cache(), _filled(facts)
    if before is None:
        measurements.write(_EMPTIED, facts, {"seconds": seconds})
    if folder is not None:
        known = seconds if before is not None else _SHARE * seconds
        measurements.write(_FILLED, facts, {"seconds": known}, folder)


def _filled(facts: dict[str, Any]) -> dict[str, float] | None:
    """Return the seconds of compiling with the caches filled by this step; None if they are not."""
    folder = compilers.inductor_cache()
    return None if folder is None else measurements.read(_FILLED, facts, folder)


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
        "batch": experiment.recipe.batch_size, "accumulate": experiment.hardware.accumulate, "loss": experiment.loss,
        "ranks": distributed.world_size, "nodes": distributed.nodes, "graph": state.graph.off is None,
        "precision": forward.precision.name, "layout": str(forward.memory_format),
        "version": hpc_tumor.__version__, "torch": torch.__version__, "device": devices.name(distributed.device),
    }  # fmt: skip
