"""What functions in a process with a null GPU use: counters, waits, and memory that runs out."""

from __future__ import annotations

import contextlib
import ctypes
import json
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import hpc_tumor

torch.backends.cuda.enable_cudnn_sdp(False)  # the stub of cuDNN has no attention
_PACKAGE = hpc_tumor.__path__[0]


@dataclass
class Watch:
    """Record of a block of code on the null GPU.

    Attributes:
        waits: places in the package that made torch wait for the GPU, with their number; see `_callers`.
        launches: kernels, including the calls of libraries; `by_kernel` gives their names.
        copies_in, copies_out, copies_within: to the GPU, from it, and on it; `fills` likewise.
        copies_in_pageable: copies to the GPU from memory that is not pinned, which wait for the stream's work.
        stream_waits, device_waits, copy_waits: waits for all work, with and without torch's knowledge.
        event_waits: waits for an event, as for a copy of an earlier step.
        closest_event_wait: launches and copies between the youngest awaited event and the wait; -1: no wait.
        allocations, host_allocations: of device and pinned memory, which torch keeps for later ones.
        captures, graph_launches, graph_kernels: of CUDA graphs, and the kernels in them.
        outside_capture: kernels that ran on another stream during a capture, so that the graph lacks them.
        races: buffers that changed before their copy was due.
        refused: functions of CUDA that the null GPU lacks and the code called.
    """

    waits: Counter[str] = field(default_factory=Counter)
    by_kernel: dict[str, int] = field(default_factory=dict)
    races: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    launches: int = 0
    fills: int = 0
    copies_in: int = 0
    copies_in_pageable: int = 0
    copies_out: int = 0
    copies_within: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    stream_waits: int = 0
    event_waits: int = 0
    device_waits: int = 0
    copy_waits: int = 0
    closest_event_wait: int = -1
    allocations: int = 0
    host_allocations: int = 0
    captures: int = 0
    graph_launches: int = 0
    graph_kernels: int = 0
    outside_capture: int = 0

    @property
    def operations(self) -> int:
        """Number of kernels, copies and graphs that the host put on streams."""
        copies = self.copies_in + self.copies_out + self.copies_within
        return self.launches + self.fills + copies + self.graph_launches

    def faults(self) -> dict[str, Any]:
        """Return what a training step must not do, by attribute: wait for all work, copy late, race."""
        names = (
            "waits", "stream_waits", "device_waits", "copy_waits", "copies_in_pageable", "races", "refused",
            "outside_capture",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@contextlib.contextmanager
def watched() -> Iterator[Watch]:
    """Count what the block does. Copies that are still due at its end are carried out then, so that races show."""
    watch = Watch()
    torch.cuda.init()
    library = _library()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("warn")
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: _note(watch, str(message))
        library.null_gpu_reset()
        try:
            yield watch
        finally:
            torch.cuda.set_sync_debug_mode("default")
            before = _report(library)
            torch.cuda.synchronize()
            watch.by_kernel, watch.races = before.pop("kernels"), _report(library)["races"]
            vars(watch).update({**before, "races": watch.races})


@contextlib.contextmanager
def memory_full(after: int) -> Iterator[None]:
    """Refuse all allocations of device memory but the first `after` ones in the block."""
    torch.empty(1, device="cuda")  # torch takes some for itself with its first tensor
    torch.cuda.empty_cache()
    _library().null_gpu_refuse_allocations_after(ctypes.c_long(after))
    try:
        yield
    finally:
        _library().null_gpu_refuse_allocations_after(ctypes.c_long(-1))


def memory_at_launch() -> dict[int, bytes]:
    """Return what the launch of the last graph found in small blocks of device memory, by address.

    It knows blocks that copies and torch's fills wrote since the last kernel of another kind.
    """
    lines = _library().null_gpu_at_launch().decode().splitlines()
    return {int(start, 16): bytes.fromhex(contents) for start, contents in map(str.split, lines)}


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libcudart.so.13")
    library.null_gpu_at_launch.restype = ctypes.c_char_p
    library.null_gpu_report.restype = ctypes.c_char_p
    return library


def _report(library: ctypes.CDLL) -> dict[str, Any]:
    return json.loads(library.null_gpu_report())


def _note(watch: Watch, message: str) -> None:
    if "synchronizing CUDA operation" in message:
        watch.waits[_callers()] += 1


def _callers() -> str:
    """Return the innermost three lines of the package on the stack, as `step.py:120 < loop.py:133`, or of the test."""
    stack = traceback.extract_stack()[:-4]  # without those of this module
    frames = [frame for frame in stack if frame.filename.startswith(_PACKAGE)] or stack
    return " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames[-3:]))
