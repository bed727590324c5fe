"""Count what a step does: bytes by a dispatch mode; launches, copies, waits and kernels by the profiler."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmark_networks import now
from torch import Tensor
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpc_tumor.system import devices

_NO_KERNEL = frozenset((
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "select", "slice", "unsqueeze", "squeeze", "alias",
    "detach", "as_strided", "unbind", "split", "unflatten", "_reshape_alias", "lift_fresh", "split_with_sizes",
    "narrow", "unfold", "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided",
))  # fmt: skip
# Calls of the driver by the names that the profiler gives them, for NVIDIA, AMD and Intel.
_LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch\w*|urEnqueueKernelLaunch\w*")
_COPY = re.compile(r"(cuda|hip)Memcpy\w*|urEnqueueUSMMemcpy")
_SET = re.compile(r"(cuda|hip)Memset\w*|urEnqueueUSMFill")
_WAIT = re.compile(r"(cuda|hip)(Stream|Device)Synchronize|(cuda|hip)Memcpy(2D|3D)?|urQueueFinish")
_NOT_KERNELS = ("Memcpy", "Memset")


class BytesMode(TorchDispatchMode):
    """Adds up the tensors that each operation on the device reads and writes: the least that it can move.

    An operation that runs as several kernels moves more, one that finds its input in a cache less. A convolution with a
    bias adds it in a pass of its own, and sums its gradient in another.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.operations = 0
        self._kind = device.type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in _NO_KERNEL:
            return out
        tensors = [*self._here((args, kwargs)), *self._here(out)]
        if not tensors:
            return out
        # A tensor that is changed in place is among both, and is read and written; others are counted once.
        own = tensors if name.endswith("_") else {id(tensor): tensor for tensor in tensors}.values()
        self.bytes[name] += sum(_size(tensor) for tensor in own)
        self.operations += 1
        if name == "convolution" and isinstance(args[2], Tensor):
            self.bytes["bias of a convolution"] += 2 * _size(out)
        if name == "convolution_backward" and args[-1][2]:
            self.bytes["bias of a convolution"] += _size(args[0])
        return out

    def _here(self, values: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.device.type == self._kind]


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory: an expanded one is as large as what it repeats."""
    if 0 in tensor.stride():
        return min(tensor.untyped_storage().nbytes(), tensor.nbytes)
    return tensor.nbytes


@dataclass
class Profile:
    """Counts of a step, and device microseconds a step and calls by kernel."""

    launches: float = 0.0
    copies: float = 0.0
    fills: float = 0.0
    waits: float = 0.0
    pageable: float = 0.0
    kernels: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def saw_device(self) -> bool:
        """Return True if the profiler saw the device; else nothing here was measured."""
        return bool(self.kernels)

    @property
    def busy_us(self) -> float:
        """Return the microseconds a step in kernels."""
        return sum(spent for spent, _ in self.kernels.values())


def profile_steps(step: Callable[[], object], device: torch.device, steps: int = 3) -> Profile:
    """Profile some steps."""
    # The profiler waits, too, and its first profile loses events.
    own = summarise(_profile(lambda: None, device, 1), 1).waits
    counts = summarise(_profile(step, device, steps), steps)
    counts.waits -= own / steps
    return counts


def _profile(step: Callable[[], object], device: torch.device, steps: int) -> Iterable[Any]:
    now(device)
    with profile(activities=devices.profiler_activities(device)) as trace:
        for _ in range(steps):
            step()
        now(device)
    averages: Iterable[Any] = trace.key_averages()
    return averages


def summarise(events: Iterable[Any], steps: int) -> Profile:
    """Sum up the profiler's averages by name."""
    counts = Profile()
    for event in events:
        number = event.count / steps
        if getattr(event.device_type, "name", "") in ("CUDA", "HIP", "XPU"):
            counts.pageable += number * (event.key.startswith("Memcpy") and "Pageable" in event.key)
            if not event.is_user_annotation and not event.key.startswith(_NOT_KERNELS):
                spent = event.self_device_time_total / steps
                before = counts.kernels.get(event.key, (0.0, 0.0))
                counts.kernels[event.key] = (before[0] + spent, before[1] + number)
        elif _WAIT.fullmatch(event.key):
            counts.waits += number
        elif _LAUNCH.fullmatch(event.key):
            counts.launches += number
        elif _COPY.fullmatch(event.key):
            counts.copies += number
        elif _SET.fullmatch(event.key):
            counts.fills += number
    return counts
