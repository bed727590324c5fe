"""Optimizer, learning rate and precision, from settings and hardware."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc_tumor.config import Recipe
from hpc_tumor.errors import UsageError
from hpc_tumor.system import devices
from hpc_tumor.training.watch.memory import keep_freed_memory


class DeviceNumber:
    """A float32 number in memory of a GPU that a CUDA graph reads, written only when it changes."""

    def __init__(self, value: float, device: torch.device) -> None:
        self.value = value
        self.tensor = torch.full((), value, device=device)

    def set(self, value: float) -> None:
        """Queue the new value after the work that reads the old one."""
        if value != self.value:
            self.value = value
            self.tensor.fill_(value)


def build_optimizer(
    parameters: Iterable[nn.Parameter], recipe: Recipe, rate: DeviceNumber | None = None
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer in its fused form: one kernel per step instead of one per tensor.

    Args:
        rate: learning rate that a CUDA graph reads.
    """
    options: dict[str, Any] = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "sgd":
        optimizer = _light(torch.optim.SGD)(parameters, momentum=0.9, nesterov=True, **options)
        for parameter in optimizer.param_groups[0]["params"]:
            # The first step would allocate it, and leave it uninitialised if that step is skipped.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    else:
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        optimizer = _light(kind)(parameters, capturable=rate is not None, **options)  # fused SGD always is
    if rate is not None:
        optimizer.param_groups[0]["lr"] = rate.tensor  # not before: the constructor would wait for its value
    return optimizer


def _light(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """Return a subclass of an optimizer without the decorators that prepare its methods for torch.compile.

    They import torch._dynamo: 800 files and a second of CPU time per rank, of three until its first step. This package
    compiles networks, not optimizers.
    """
    methods = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in methods}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(plain["step"])})


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """Return the learning rate of `step` of `epoch` (both from 0), with `steps` per epoch; it needs no state.

    step and exponential change the rate once per epoch. cosine (Loshchilov 2017, without restarts) and polynomial
    (Chen 2018; nnU-Net, Isensee 2021) change it in every step, from the full rate in the first step after the
    warm-up towards 0 at the end of the last epoch. A linear warm-up (Goyal 2017) multiplies all of them and reaches
    the schedule's rate in its last step.
    """
    done, total = epoch * steps + step, recipe.epochs * steps
    warmup = round(recipe.warmup_epochs * steps)
    rising = (done + 1) / warmup if done < warmup else 1.0
    progress = min(1.0, max(0, done - warmup) / max(1, total - warmup))
    return recipe.learning_rate * rising * _factor(recipe, epoch, progress)


def _factor(recipe: Recipe, epoch: int, progress: float) -> float:
    """Return the schedule's factor; `progress` runs from 0 at the end of the warm-up to 1 at the end of the run."""
    if recipe.schedule == "step":
        return recipe.gamma ** (epoch // recipe.step_epochs)
    if recipe.schedule == "exponential":
        return recipe.gamma**epoch
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if recipe.schedule == "polynomial":
        return (1 - progress) ** recipe.power
    return 1.0


@dataclass(frozen=True)
class Precision:
    """Number format of the forward and backward pass, and why it was chosen. Weights stay float32."""

    name: str
    reason: str
    device_type: str

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the network runs."""
        if self.name == "float32":
            return nullcontext()
        return torch.autocast(self.device_type, dtype=getattr(torch, self.name))

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler: enabled only for float16, whose range is too small for gradients."""
        return torch.amp.GradScaler(self.device_type, enabled=self.name == "float16")


def choose_precision(
    requested: str,
    device: torch.device,
    before: str | None = None,
    called: str = "hardware.precision",
    supported: set[str] | None = None,
) -> Precision:
    """Choose the precision: for auto bfloat16 if the hardware supports it, else float16 on GPUs, else float32.

    On CPUs `formats.choose_formats` decides auto by a measurement instead. A resumed run keeps the format that it had
    `before` if the device supports it. Errors name the setting as `called`.

    Args:
        supported: formats of the devices of all ranks; by default those of this one.

    Raises:
        UsageError: the requested format would be emulated, slower than float32, on this device.
    """
    name = devices.name(device) if devices.is_gpu(device) else "this CPU"
    supported = supported_formats(device) if supported is None else supported
    if requested == "auto" and before in supported:
        return Precision(before, "as before this run was interrupted", device.type)
    if requested == "auto":
        best = next(kind for kind in ("bfloat16", "float16", "float32") if kind in supported)
        return Precision(best, f"the best that {name} supports", device.type)
    if requested not in supported:
        raise UsageError(
            f"{called} = {requested!r}: {name} does not support it."
            f" Choose {' or '.join(sorted(supported))}, or leave it at auto."
        )
    return Precision(requested, "as requested", device.type)


def prepare_backend(device: torch.device, precision: str) -> None:
    """Let CPUs reuse freed memory, and GPUs compute in TensorFloat-32 unless the requested precision is float32."""
    if devices.is_gpu(device):
        devices.allow_tf32(device, precision != "float32")
    else:
        keep_freed_memory()


def supported_formats(device: torch.device) -> set[str]:
    """Return the number formats in which the device computes without emulation."""
    if devices.is_gpu(device):
        return devices.number_formats(device)
    native = _cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"}  # the last of Arm, for torch and for Linux
    return {"float32", "bfloat16"} if native else {"float32"}


def _cpu_features() -> set[str]:
    try:
        return {name for name, present in torch.cpu.get_capabilities().items() if present}
    except (AttributeError, RuntimeError):  # torch before 2.10 cannot tell; Linux can
        information = Path("/proc/cpuinfo")
        return set(information.read_text().split()) if information.exists() else set()
