"""Decide whether torch.compile pays, by a measurement cached per network and device."""

from __future__ import annotations

import copy
import importlib.util
import shutil
import time
from typing import Any

import torch
from torch import nn

from hpc_tumor.errors import UsageError
from hpc_tumor.system import devices, measurements
from hpc_tumor.training.batch_norm import SyncBatchNorm
from hpc_tumor.training.checkpoints.files import random_state, set_random_state
from hpc_tumor.training.objective import Objective
from hpc_tumor.training.state import TrainingState, mark
from hpc_tumor.training.step import micro_batch_size
from hpc_tumor.training.tuning.cpu_speed import GAIN

_STEPS = 5  # timed for each variant
_WORTH = 600.0  # seconds of training below which compiling, a minute or so, costs more than it saves


def choose(state: TrainingState, compiled_before: bool | None = None) -> tuple[bool, str]:
    """Decide whether this run's training step is compiled, and why. All ranks call this together and agree.

    A resumed run stays as it was, `compiled_before`.

    On CPUs networks are compiled only on request: on two cores of an AMD EPYC with bfloat16, torch 2.14's generated
    code ran at 0.5 to 0.85 times the speed of its kernels (cnn, alexnet, vit, unet, improved-unet;
    tools/benchmark_step.py --compile measures it). On GPUs both variants are timed, and the result is kept in the
    user's cache.

    Raises UsageError if compiling was requested but no compiler is installed.
    """
    setting, device = state.experiment.hardware.compile, state.distributed.device
    missing = _missing(device)
    if setting == "on":
        if missing:
            raise UsageError(f"hardware.compile = 'on' needs {missing}: install it, or leave it at auto.")
        return True, "as requested"
    if setting == "off":
        return False, "as requested"
    if compiled_before is not None:
        return compiled_before, "as before this run was interrupted"
    if not devices.is_gpu(device):
        return False, "slower on CPUs"
    if state.experiment.hardware.deterministic:
        return False, "a choice by timing would not be deterministic"
    if missing:
        return False, f"{missing} missing"
    answer = _measured(state) if state.distributed.is_main else None
    faster, why = state.distributed.gather(answer)[0]
    return faster, why


def compile_objective(objective: Objective, samples: int) -> None:
    """Compile forward pass, loss, counts and backward pass as one graph, for micro-batches of so many samples."""
    objective.compiled = torch.compile(objective.compute, fullgraph=True, dynamic=False)
    objective.compiled_samples = samples


def _missing(device: torch.device) -> str | None:
    if devices.is_gpu(device):
        return None if importlib.util.find_spec("triton") else "the package triton"
    return None if any(shutil.which(name) for name in ("g++", "c++", "clang++")) else "a C++ compiler (g++)"


def _measured(state: TrainingState) -> tuple[bool, str]:
    """Decide on rank 0, from the cache or by timing."""
    facts = _facts(state)
    cached = measurements.read("compile", facts)
    if cached is not None and "gain" in cached:
        return _answer(cached["gain"], "measured before")
    try:
        alone = Objective(_alone(state.network), state.spec)
        alone.searched_samples = state.objective.searched_samples
        plain = step_seconds(state, alone)
        steps_left = (state.experiment.recipe.epochs - state.progress.epoch) * state.steps - state.progress.step
        if plain * steps_left < _WORTH:
            return False, "the run is too short to gain from it"
        compile_objective(alone, micro_batch_size(state))
        compiled = step_seconds(state, alone)
    except Exception as error:  # train uncompiled if compiling fails
        return False, f"compiling failed ({type(error).__name__})"
    gain = plain / compiled
    measurements.write("compile", facts, {"gain": gain})
    return _answer(gain, "measured now")


def _answer(gain: float, how: str) -> tuple[bool, str]:
    return gain >= GAIN, f"{gain:.2f} × as fast, {how}"


def _alone(network: nn.Module) -> nn.Module:
    """Copy the network without synchronised batch norm, which would wait for other ranks: only rank 0 measures."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, SyncBatchNorm):
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return network


def step_seconds(state: TrainingState, objective: Objective) -> float:
    """Time one training step, all micro-batches included, without changing the run."""
    device = state.distributed.device
    before = random_state(device)
    batch, size = state.parts.first_batch(state.experiment.seed), micro_batch_size(state)
    micro_batches = -(-len(batch.images) // size)
    images, targets = batch.images[:size], batch.targets[:size]
    times = []
    try:
        for _ in range(_STEPS + 3):
            devices.synchronize(device)
            began = time.perf_counter()
            losses, _ = objective(images, targets)
            losses.mean().backward()
            devices.synchronize(device)
            times.append(micro_batches * (time.perf_counter() - began))
            mark(state, "compile")
    finally:
        set_random_state(before, device)
        devices.reset_peak_memory(device)
    return sorted(times[3:])[_STEPS // 2]


def _facts(state: TrainingState) -> dict[str, Any]:
    experiment = state.experiment
    return {
        "network": experiment.model.name, "filters": experiment.model.filters, "size": state.parts.image_size,
        "batch": experiment.recipe.batch_size, "ranks": state.distributed.world_size,
        "accumulate": experiment.hardware.accumulate, "precision": state.spec.forward.precision.name,
        "torch": torch.__version__, "device": devices.name(state.distributed.device),
    }  # fmt: skip
