"""Count what a step does: bytes by a dispatch mode; launches, copies, waits and kernels by the profiler."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmark_networks import flop_of_convolution_backward, now
from torch import Tensor
from torch._ops import OpOverload
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hpc_tumor.system import devices

_OF_TORCH = ("aten", "prim", "prims", "inductor")
# Beside views, which their schemas name.
_NO_KERNEL = frozenset(("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view"))
# What they change is not read.
_OVERWRITES = re.compile(r"aten::(copy|fill|zero|_foreach_copy|_foreach_zero|uniform|normal|random|bernoulli)_")
_GROUPS = {"convolution": 8, "convolution_backward": 9}  # their number, among the arguments
_BIAS = "bias of a convolution"
# Calls of the driver by the names that the profiler gives them, for NVIDIA, AMD and Intel.
_LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch\w*|urEnqueueKernelLaunch\w*")
_GRAPH = re.compile(r"(cuda|hip)GraphLaunch")
_COPY = re.compile(r"(cuda|hip)Memcpy\w*|urEnqueueUSMMemcpy")
_SET = re.compile(r"(cuda|hip)Memset\w*|urEnqueueUSMFill")
_WAIT = re.compile(r"(cuda|hip)(Stream|Device)Synchronize|(cuda|hip)Memcpy(2D|3D)?|urQueueFinish")
_NOT_KERNELS = ("Memcpy", "Memset")


@dataclass(frozen=True)
class Kernel:
    """An operation of torch and its libraries, or a kernel of Triton: the bytes that it reads and writes, and its FLOP.

    `flop` is 0 where no formula is known; `generated`: a kernel of Triton, for which there is none; `grouped`: a
    convolution in groups, which matrix units do not compute.
    """

    name: str
    bytes: int
    flop: int = 0
    generated: bool = False
    grouped: bool = False


class BytesMode(TorchDispatchMode):
    """Lists the kernels on the device with what they read and write: the least that they can move.

    - An operation counts with the tensors that it reads, once each, and those that it writes. One that runs as several
      kernels moves more, one that finds its input in a cache less. A convolution with a bias adds it in a pass of its
      own, and sums its gradient in another.
    - A kernel that Inductor generated counts as Inductor counts it, if it was compiled under `counted_by_inductor`.
    - Another kernel of Triton counts with its tensors, once for each parameter.
    - An operation from outside torch counts as the kernels in it, or like torch's own if none are seen there.

    Kernels of a CUDA graph that is replayed are not seen.
    """

    supports_higher_order_operators = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []
        self._kind = device.type
        self._hooks, self._depth = ExitStack(), 0  # entered again for what is in an operation

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let code be compiled under this mode, which then sees the operations of the compiled code."""
        return True

    @property
    def bytes(self) -> Counter[str]:
        """Bytes by name of operation or kernel."""
        sums: Counter[str] = Counter()
        for kernel in self.kernels:
            sums[kernel.name] += kernel.bytes
        return sums

    @property
    def operations(self) -> int:
        """Number of operations and kernels of Triton."""
        return sum(kernel.name != _BIAS for kernel in self.kernels)

    def __enter__(self) -> BytesMode:
        if self._depth == 0:
            self._hooks.enter_context(_watch_triton(self._add_triton))
        self._depth += 1
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._depth -= 1
        if self._depth == 0:
            self._hooks.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            with self:
                return func(*args, **kwargs)
        kernels = [
            torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key)
            for key in ("CompositeImplicitAutograd", self._kind.upper())
        ]
        if kernels == [True, False]:
            with self:  # made of others, such as a linear layer called without autograd
                return func.decompose(*args, **kwargs)
        if func.namespace not in _OF_TORCH and (key := self._backend(args, kwargs)) is not None:
            before = len(self.kernels)
            with self:
                out = func.redispatch(torch._C.DispatchKeySet(key), *args, **kwargs)
            if len(self.kernels) > before:
                return out
        else:
            out = func(*args, **kwargs)
        self._add(func, args, kwargs, out)
        return out

    def _add(self, func: OpOverload, args: Any, kwargs: Any, out: Any) -> None:
        name = func._schema.name.partition("::")[2]
        if name in _NO_KERNEL or _is_view(func):
            return
        read, written = self._operands(func, args, kwargs)
        given = {id(tensor) for tensor in (*read, *written)}
        written += [tensor for tensor in self._here(out) if id(tensor) not in given]
        if not read and not written:
            return
        size = sum(map(_size, {id(tensor): tensor for tensor in read}.values())) + sum(map(_size, written))
        grouped = name in _GROUPS and args[_GROUPS[name]] > 1
        self.kernels.append(Kernel(name, size, _flop(func, args, kwargs, out), grouped=grouped))
        if name == "convolution" and isinstance(args[2], Tensor):
            self.kernels.append(Kernel(_BIAS, 2 * _size(out)))
        if name == "convolution_backward" and args[-1][2]:
            self.kernels.append(Kernel(_BIAS, _size(args[0])))

    def _operands(self, func: OpOverload, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tensors among the arguments that are read, and those that are written."""
        read, written = [], []
        for number, argument in enumerate(func._schema.arguments):
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            tensors = self._here(value)
            changed = argument.alias_info is not None and argument.alias_info.is_write
            if changed and argument.name == "grads" and kwargs.get("grad_scale") is None:
                changed = False  # fused optimizers change gradients only to unscale them
            if changed:
                written += tensors
            if not changed or not (argument.is_out or _OVERWRITES.fullmatch(func._schema.name)):
                read += tensors
        return read, written

    def _add_triton(self, name: str, operands: Any, size: float | None) -> None:
        """Add a kernel of Triton with its size by Inductor, or else by its tensors."""
        found = sum(map(_size, self._here(operands))) if size is None else round(size)
        self.kernels.append(Kernel(name, found, generated=True))

    def _backend(self, args: Any, kwargs: Any) -> torch._C.DispatchKey | None:
        return getattr(torch._C.DispatchKey, self._kind.upper()) if self._here((args, kwargs)) else None

    def _here(self, values: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.device.type == self._kind]


def _is_view(func: OpOverload) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _flop(func: OpOverload, args: Any, kwargs: Any, out: Any) -> int:
    """Return the FLOP of an operation by torch's formulas; 0 where it has none."""
    if func._overloadpacket is torch.ops.aten.convolution_backward:
        return flop_of_convolution_backward(*(getattr(given, "shape", given) for given in args))
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


@contextmanager
def counted_by_inductor() -> Iterator[None]:
    """Let Inductor count the bytes of each kernel that it generates in the block."""
    from torch._inductor import config

    with config.patch(benchmark_kernel=True):  # its benchmarks need these counts
        yield


@contextmanager
def _watch_triton(launched: Callable[[str, Any, float | None], None]) -> Iterator[None]:
    """Call `launched` with the name, the arguments and the bytes, where Inductor counted them, of Triton's kernels."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner
    from triton.runtime.jit import JITFunction

    run_generated, run = CachingAutotuner.run, JITFunction.run

    def generated(self: Any, *args: Any, benchmark_run: bool = False, **kwargs: Any) -> Any:
        if not benchmark_run:
            size = self.inductor_meta.get("kernel_num_gb")
            launched(
                self.inductor_meta.get("kernel_name", self.fn.__name__), args, None if size is None else 1e9 * size
            )
        return run_generated(self, *args, **kwargs, **({"benchmark_run": True} if benchmark_run else {}))

    def direct(self: Any, *args: Any, warmup: bool = False, **kwargs: Any) -> Any:
        if not warmup:
            launched(self.fn.__name__, (args, kwargs), None)
        return run(self, *args, warmup=warmup, **kwargs)

    CachingAutotuner.run, JITFunction.run = generated, direct
    try:
        yield
    finally:
        CachingAutotuner.run, JITFunction.run = run_generated, run


def _size(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory: an expanded one is as large as what it repeats."""
    if 0 in tensor.stride():
        return min(tensor.untyped_storage().nbytes(), tensor.nbytes)
    return tensor.nbytes


@dataclass
class Profile:
    """Counts of a step (`graphs` are among the launches), and device microseconds a step and calls by kernel."""

    launches: float = 0.0
    graphs: float = 0.0
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
            counts.graphs += number * bool(_GRAPH.fullmatch(event.key))
        elif _COPY.fullmatch(event.key):
            counts.copies += number
        elif _SET.fullmatch(event.key):
            counts.fills += number
    return counts
