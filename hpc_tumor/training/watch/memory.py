"""Memory: kept between steps on CPUs, and an explanation where there is not enough of it."""

from __future__ import annotations

import ctypes
import errno
import resource
import sys
from pathlib import Path

import torch

from hpc_tumor.config import Experiment
from hpc_tumor.errors import GpuMemoryError, HostMemoryError
from hpc_tumor.system.resources import available_memory
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.watch.torch_words import says_no_memory
from hpc_tumor.vocabulary import counted

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # mallopt's names for these


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for the next step, where it is glibc. Whether it does.

    By default every large tensor is fresh memory from the kernel, which fills each page with zeros when it is first
    touched, and goes back when it is freed: a quarter of a U-Net's step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def peak_memory_gb(device: torch.device) -> float:
    """Most memory this process has held, in GB: on its GPU, else in the host."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else own_memory()[0] / 1e9


def own_memory() -> tuple[int, int]:
    """Most main memory that this process has held, and how much it shares with others now, in bytes."""
    try:  # Linux counts a process's own here; getrusage begins with what its parent had
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        most, shared = (int(status.partition(f"{name}:")[2].split()[0]) * 1024 for name in ("VmHWM", "RssShmem"))
        return most, shared
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` says that memory ran out, on a GPU or in the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return says_no_memory(error)


def out_of_memory(
    error: BaseException, experiment: Experiment, distributed: Distributed
) -> GpuMemoryError | HostMemoryError:
    """The error for a step that did not fit: what was asked, what there was, and what to change."""
    hardware, recipe = experiment.hardware, experiment.recipe
    device, ranks = distributed.device, distributed.world_size
    share = -(-recipe.batch_size // ranks)
    parts = -(-share // hardware.accumulate)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 1e9
        held = torch.cuda.max_memory_allocated(device) / 1e9
        where = f"the GPU ({torch.cuda.get_device_name(device)}): it has {total:.1f} GB, this run held {held:.1f} GB"
    else:
        held = peak_memory_gb(device)
        where = f"the host: this rank held {held:.1f} GB, and {available_memory() / 1e9:.1f} GB are free"
    ways = [f"--accumulate {2 * hardware.accumulate} (the same batch in smaller parts)"] if parts > 1 else []
    if experiment.task == "segmentation" and (experiment.model.filters or 32) > 8:
        ways.append(f"--set filters={(experiment.model.filters or 32) // 2}")
    if hardware.precision == "float32":
        ways.append("--set precision=auto")
    ways += [f"--set batch_size={recipe.batch_size // 2}" if share > 1 else "a smaller --set image_size", "more --gpus"]
    kind = GpuMemoryError if device.type == "cuda" else HostMemoryError
    return kind(
        f"out of memory on {where}, and asked for {_asked(error)} more, with {parts} samples at a time"
        f" (batch {recipe.batch_size} on {counted(ranks, 'rank')})."
        f" Submit again with {', '.join(ways[:-1])} or {ways[-1]}."
    )


def _asked(error: BaseException) -> str:
    """How much the step that failed wanted, from the words of its error: torch names bytes, or GiB."""
    words = str(error).replace(",", " ").split()
    for before, number, unit in zip(words, words[1:], words[2:], strict=False):
        if before in ("allocate", "allocated"):
            unit = unit.rstrip(".")
            try:
                value = float(number)
            except ValueError:
                continue
            return f"{value / 1e9:.1f} GB" if unit.startswith("byte") else f"{value:g} {unit}"
    return "some"
