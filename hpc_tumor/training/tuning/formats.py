"""Choose number format, memory layout and threads: by rule on GPUs, by a measurement of a second on CPUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from hpc_tumor.config import HardwareSettings
from hpc_tumor.models import Kernels
from hpc_tumor.records import Event
from hpc_tumor.system import cpu, devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.recipe import Precision, choose_precision, supported_formats
from hpc_tumor.training.tuning.cpu_speed import GAIN, Variant, faster_threads, seconds_by_variant

_BEFORE = "as before this run was interrupted"
_NOT_BY_TIME = "as a choice by timing would not be deterministic"


@dataclass(frozen=True)
class Formats:
    """Number format and memory layout in which a network computes, and the reasons."""

    precision: Precision
    channels_last: bool
    reason: str = ""

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of images and filters, for torch."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def describe(self) -> str:
        """Describe both choices in one line."""
        layout = "channels-last" if self.channels_last else "contiguous"
        reason = f", {self.reason}" if self.reason else ""
        return f"precision {self.precision.name}, {self.precision.reason}; memory layout {layout}{reason}"


def choose_formats(
    hardware: HardwareSettings,
    kernels: Kernels,
    distributed: Distributed,
    before: Event | None = None,
    called: str = "hardware.precision",
) -> Formats:
    """Choose both for all ranks, which call this together: rank 0 decides among what the hardware of all supports.

    A resumed run stays as it was at its start, `before`. On CPUs, `auto` is the fastest in a measurement, which is
    kept in the user's cache; deterministic runs use float32 and channels-last instead.

    Raises:
        UsageError: the requested format, a setting `called` so, would be emulated on some rank.
    """
    device = distributed.device
    supported = set.intersection(*distributed.gather(supported_formats(device)))
    precision_before = before.precision if before is not None else None
    precision = choose_precision(hardware.precision, device, precision_before, called, supported)
    formats = Formats(precision, hardware.channels_last is not False)
    open_precision = hardware.precision == "auto" and precision_before not in supported
    open_layout = hardware.channels_last == "auto"
    if open_layout and before is not None and before.channels_last is not None:
        formats, open_layout = Formats(precision, before.channels_last, _BEFORE), False
    if devices.is_gpu(device) or not (open_precision or open_layout):
        return formats
    if hardware.deterministic:
        precision = Precision("float32", _NOT_BY_TIME, device.type) if open_precision else precision
        return Formats(precision, formats.channels_last, formats.reason)
    measured = seconds_by_variant(kernels, supported) if distributed.is_main else None
    seconds, how = distributed.gather(measured)[0] or ({}, "")
    if open_precision:
        precision = Precision(*_faster_format(seconds, formats if not open_layout else None, how), device.type)
    if open_layout:
        return Formats(precision, *_faster_layout(seconds, precision.name, how))
    return Formats(precision, formats.channels_last, formats.reason)


def choose_threads(hardware: HardwareSettings, kernels: Kernels, distributed: Distributed, formats: Formats,
                   before: Event | None = None) -> str:  # fmt: skip
    """Use one thread per physical core on every rank if that is faster on rank 0; return the reason, "" if it is not.

    Without a setting, a rank has a thread for each of its CPUs. All ranks call this together.
    """
    if devices.is_gpu(distributed.device) or hardware.threads is not None or hardware.deterministic:
        return ""
    threads = torch.get_num_threads()
    cores, cpus = cpu.cores_of_process()
    if threads not in (cpus, cpus // -(-distributed.world_size // distributed.nodes)):
        return ""  # not one for each CPU: OMP_NUM_THREADS was chosen
    fewer = max(1, threads * cores // cpus)
    answer: tuple[bool, str] = (False, "")
    if distributed.is_main and before is not None and before.threads is not None:
        answer = before.threads == fewer < threads, _BEFORE
    elif distributed.is_main and fewer < threads:
        answer = faster_threads(kernels, (formats.precision.name, formats.channels_last), threads, fewer)
    per_core, reason = distributed.gather(answer)[0]
    if not per_core:
        return ""
    torch.set_num_threads(fewer)
    return reason


def _faster_format(seconds: Mapping[Variant, float], fixed: Formats | None, how: str) -> tuple[str, str]:
    """Return the faster number format in the better of the layouts, or in a fixed one, and why."""
    layouts = {variant[1] for variant in seconds if fixed is None or variant[1] == fixed.channels_last}
    layouts = layouts or {variant[1] for variant in seconds}  # attention knows only one
    best = {name: min(seconds[name, layout] for layout in layouts) for name in {variant[0] for variant in seconds}}
    if "bfloat16" not in best:
        return "float32", "the only one that this CPU computes in"
    gain = best["float32"] / best["bfloat16"]
    if gain >= GAIN:
        return "bfloat16", f"{gain:.2f} × as fast as float32 on this CPU, {how}"
    return "float32", f"bfloat16 is {gain:.2f} × as fast on this CPU, {how}"


def _faster_layout(seconds: Mapping[Variant, float], precision: str, how: str) -> tuple[bool, str]:
    """Return whether channels-last is the faster layout in this number format, and why."""
    if (precision, False) not in seconds:
        return True, ""
    gain = seconds[precision, True] / seconds[precision, False]
    if gain >= GAIN:
        return False, f"{gain:.2f} × as fast as channels-last, {how}"
    return True, f"{1 / gain:.2f} × as fast as contiguous, {how}"
