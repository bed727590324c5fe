"""Memory: reuse between steps on CPUs, peak use, and out-of-memory errors."""

from __future__ import annotations

import ctypes
import errno
import functools
import resource
import sys
from pathlib import Path

import torch

from hpc_tumor.config import Experiment
from hpc_tumor.errors import GpuMemoryError, HostMemoryError
from hpc_tumor.system import devices
from hpc_tumor.system.resources import available_memory, own_share
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.watch.torch_errors import is_allocation_failure, requested_memory
from hpc_tumor.vocabulary import counted

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # mallopt's names for these
_HUGE_PAGE, _MADV_HUGEPAGE = 2**21, 14  # bytes; Linux's name for the advice
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")  # 2: address space counts as used memory


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next step. Return whether it does; other C libraries do not.

    By default each large tensor is fresh memory from the kernel, which zeroes its pages on first access and takes it
    back when freed: a quarter of a U-Net's step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # macOS, musl
        return False
    kept = bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
    if kept:
        _use_huge_pages()
    return kept


@functools.cache
def _use_huge_pages() -> None:
    """Ask for huge pages for the heap of this process, which many systems give only then. Saves 7 % of a U-Net's step.

    The heap grows over half of the free memory and is emptied again: its pages are marked, but not used, for tensors
    to come. Not where address space is limited or counted, as it would be missing elsewhere.
    """
    limits = {resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)}
    try:
        counted_as_used = _OVERCOMMIT.read_text().strip() == "2"
    except OSError:
        counted_as_used = True
    if counted_as_used or limits != {resource.RLIM_INFINITY}:
        return
    libc, size = ctypes.CDLL(None), available_memory() // 2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if start := libc.malloc(size):
        first, last = -(-start // _HUGE_PAGE) * _HUGE_PAGE, (start + size) // _HUGE_PAGE * _HUGE_PAGE
        if first < last:
            libc.madvise(first, last - first, _MADV_HUGEPAGE)
        libc.free(start)


def peak_memory_gb(device: torch.device) -> float:
    """Return the peak memory of this process in GB: on its GPU, else main memory."""
    return (devices.peak_memory(device).allocated if devices.is_gpu(device) else own_memory()[0]) / 1e9


def own_memory() -> tuple[int, int]:
    """Return the peak main memory of this process, and the memory it shares with others now, in bytes."""
    try:  # getrusage would include the peak of the parent process
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        peak, shared = (int(status.partition(f"{name}:")[2].split()[0]) * 1024 for name in ("VmHWM", "RssShmem"))
        return peak, shared
    except (OSError, IndexError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 0


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if `error` means that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return is_allocation_failure(error)


def out_of_memory_error(
    error: BaseException, experiment: Experiment, distributed: Distributed
) -> GpuMemoryError | HostMemoryError:
    """Return the error for a step that did not fit: memory available and requested, and settings to change."""
    hardware, recipe = experiment.hardware, experiment.recipe
    device, ranks = distributed.device, distributed.world_size
    share = -(-recipe.batch_size // ranks)
    micro_batch = -(-share // hardware.accumulate)
    held = peak_memory_gb(device)
    if devices.is_gpu(device):
        total = devices.total_memory(device) / 1e9
        part = "this run's share of " if own_share() < 1 else ""
        where = f"{part}the GPU ({devices.name(device)}): {total:.1f} GB, {held:.1f} GB held by this rank"
    else:
        where = f"the host: {held:.1f} GB held by this rank, {available_memory() / 1e9:.1f} GB free"
    remedies = []
    if micro_batch > 1:
        remedies.append(f"--accumulate {2 * hardware.accumulate} (the same batch in smaller micro-batches)")
    if experiment.task == "segmentation" and (experiment.model.filters or 32) > 8:
        remedies.append(f"--set filters={(experiment.model.filters or 32) // 2}")
    if own_share() < 1:
        remedies.append("no --share-gpu")
    if hardware.precision == "float32":
        remedies.append("--set precision=auto")
    smaller = f"--set batch_size={recipe.batch_size // 2}" if share > 1 else "a smaller --set image_size"
    kind = GpuMemoryError if devices.is_gpu(device) else HostMemoryError
    return kind(
        f"out of memory on {where}; could not allocate {requested_memory(error)} with"
        f" {counted(micro_batch, 'sample')} at a time (batch {recipe.batch_size} on {counted(ranks, 'rank')})."
        f" Submit again with {', '.join([*remedies, smaller])} or more --gpus."
    )
