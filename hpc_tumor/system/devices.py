"""Devices that torch computes on: NVIDIA, AMD and Intel GPUs, and CPUs.

The only module that knows torch's names of GPUs: `cuda` for NVIDIA's and, in builds for ROCm, AMD's; `xpu` for Intel's.
Others ask it, or use `torch.accelerator`, `torch.Event` and `torch.Stream`, which serve all kinds. Apple's GPUs are not
used. It imports torch, so commands that do not compute must not import it.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, supported_activities

from hpc_tumor.errors import UsageError
from hpc_tumor.system import torch_builds
from hpc_tumor.system.resources import own_share
from hpc_tumor.system.torch_builds import Capability, TorchBuild, advice, refusal, runs_on

T = TypeVar("T")
CPU = torch.device("cpu")
GPU_TYPES = ("cuda", "xpu")
# gfx names of AMD GPUs with bfloat16 in hardware: MI100 and later, RDNA 3 and later (matrix or WMMA instructions).
_AMD_BFLOAT16 = re.compile(r"gfx(?:908|90a|94\d|95\d|1[12]\d\d)\b")
_TENSORS_OF_SHARED = 0.9
_TRITON_SINCE = (7, 5)
_LIBRARIES = {"cuda": "nccl", "xpu": "xccl"}  # RCCL, on ROCm, also goes by the name nccl


@dataclass(frozen=True)
class PeakMemory:
    """Peak bytes of this process on a GPU: of its tensors, and of what torch reserved for them."""

    allocated: int
    reserved: int


def find_gpu(index: int = 0) -> torch.device | None:
    """Return the GPU `index` of those that torch can use here; None if it can use none."""
    kind = _gpu_type()
    return torch.device(kind, index) if kind else None


def count_gpus() -> int:
    """Return the number of GPUs that torch can use here."""
    kind = _gpu_type()
    return int(torch.get_device_module(kind).device_count()) if kind else 0


def _gpu_type() -> str | None:
    return next((kind for kind in GPU_TYPES if torch.get_device_module(kind).is_available()), None)


def is_gpu(device: torch.device) -> bool:
    """Return True for a GPU of any maker, whose work is queued and whose memory is its own."""
    return device.type in GPU_TYPES


def is_nvidia(device: torch.device) -> bool:
    """Return True for a GPU of NVIDIA, which nvidia-smi lists."""
    return device.type == "cuda" and torch.version.hip is None


def has_nccl(device: torch.device) -> bool:
    """Return True for a GPU whose ranks communicate by NCCL or RCCL, which read the same variables."""
    return _LIBRARIES.get(device.type) == "nccl"


def is_amd(device: torch.device) -> bool:
    """Return True for a GPU of AMD, which torch also names cuda."""
    return device.type == "cuda" and torch.version.hip is not None


def build() -> TorchBuild:
    """Return the build of this torch."""
    version = torch.version
    return TorchBuild(torch.__version__, version.cuda, version.hip, getattr(version, "xpu", None))


def code_archs() -> tuple[str, ...]:
    """Return the architectures that this torch has code for, as ("sm_80", "compute_90") or ("gfx90a",), if known."""
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: "")  # in torch 2.6 get_arch_list() is empty without a GPU
    return tuple((flags() or "").split())


def capability(device: torch.device) -> Capability | None:
    """Return the compute capability of an NVIDIA GPU, as (9, 0); None for other devices."""
    if not is_nvidia(device):
        return None
    with warnings.catch_warnings():  # torch's first call warns, at length, of GPUs that `check_code` refuses
        warnings.simplefilter("ignore")
        major, minor = torch.cuda.get_device_capability(device)
    return major, minor


@functools.cache
def runs_triton(device: torch.device) -> bool:
    """Return True for an NVIDIA GPU that Triton compiles for."""
    own = capability(device)
    return own is not None and own >= _TRITON_SINCE


def has_graphs(device: torch.device) -> bool:
    """Return True for a GPU whose steps torch can capture and replay dependably: NVIDIA's."""
    return is_nvidia(device)


def use_own_stream(device: torch.device) -> None:
    """Compute on a stream that a graph can capture from now on, in this thread; nothing for devices without graphs.

    The default stream cannot be captured. Work before and in a capture must have the same stream: autograd's and DDP's
    nodes keep theirs, and libraries keep memory and choices by stream.
    """
    if has_graphs(device):
        torch.cuda.set_stream(_own_stream(device))


@functools.cache
def _own_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def capture(work: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """Capture `work` on the current stream in a graph, without doing it; return its replay, and what `work` returned.

    Only the memory of the result stays valid. Other threads may use the GPU meanwhile. Raises what `work`, or torch for
    what cannot be captured, raises: then allocator and random generator are as before.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    generator = torch.cuda.default_generators[device.index]
    drawn = generator.clone_state()
    stream = torch.cuda.current_stream(device)
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = work()
    except BaseException:
        generator.graphsafe_set_state(drawn)
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
            if hasattr(torch._C, name):
                with suppress(RuntimeError):  # newer versions of torch have done it
                    getattr(torch._C, name)(device.index, pool)
        torch.cuda.set_stream(stream)
        raise
    return graph.replay, result


def initialise() -> None:
    """Prepare the GPUs that this torch is built for. Raises torch's error, with the reason, if it can use none."""
    own = build()
    if own.for_gpus:
        torch.get_device_module("xpu" if own.xpu else "cuda").init()


def nccl_version() -> str | None:
    """Return the version of NCCL or RCCL, such as `2.30.7`; None if this torch has none."""
    return ".".join(map(str, torch.cuda.nccl.version())) if dist.is_available() and dist.is_nccl_available() else None


def missing_code(device: torch.device) -> tuple[str, str] | None:
    """Return why this torch has no code for a GPU, whose first kernel would fail, and what to install; else None."""
    archs, own = code_archs(), capability(device)
    if own is not None and archs and not runs_on(archs, own):
        return refusal(name(device), own, build(), archs), advice(own)
    if is_amd(device) and archs:
        arch = str(_properties(device).gcnArchName).partition(":")[0]  # gfx90a:sramecc+:xnack-
        # Generic code, as for gfx9-4-generic, serves a family of GPUs that its name does not tell.
        if not any(item.partition(":")[0] == arch or item.endswith("-generic") for item in archs):
            only = f"torch {torch.__version__} has no code for it, only for {', '.join(archs)}"
            return (
                f"{name(device)} ({arch}): {only}",
                "install a build of torch for ROCm that has, or choose other GPUs",
            )
    return None


def check_code(device: torch.device) -> None:
    """Raise UsageError if this torch has no code for the GPU."""
    if (missing := missing_code(device)) is not None:
        fault, remedy = missing
        raise UsageError(f"{fault}: {remedy}.")


def use(device: torch.device) -> None:
    """Make a GPU the current one of its kind, on which new streams and events are made; nothing for a CPU."""
    if is_gpu(device):
        _module(device).set_device(device)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which a GPU is the current one of its kind, on which kernels run; nothing for a CPU."""
    return _module(device).device(device) if is_gpu(device) else nullcontext()


def name(device: torch.device) -> str:
    """Return the name of a device for people: `NVIDIA A100-SXM4-40GB`, or `CPU`."""
    return str(_module(device).get_device_name(device)) if is_gpu(device) else "CPU"


def uuid(device: torch.device) -> str | None:
    """Return the UUID of a GPU, without a prefix; None for a CPU, and where torch does not know it."""
    value = getattr(_properties(device), "uuid", None) if is_gpu(device) else None
    return None if value is None else str(value)


def smi_name(device: torch.device) -> str | None:
    """Return the UUID as nvidia-smi lists it: `GPU-…`, or `MIG-…` for an instance, a part of a GPU."""
    value = uuid(device)
    kind = "MIG" if " MIG " in name(device) else "GPU"  # as in NVIDIA A100-SXM4-40GB MIG 3g.20gb
    return None if value is None else f"{kind}-{value}"


def total_memory(device: torch.device) -> int:
    """Return the memory of a GPU in bytes; of a shared one, the share of this process."""
    return int(_properties(device).total_memory * _share_of_memory())


def free_memory(device: torch.device) -> int:
    """Return the bytes of a GPU that no process uses, or less, what is left of this process's share.

    If the driver cannot tell, those that this process does not use.
    """
    module = _module(device)
    left = total_memory(device) - int(module.memory_reserved(device))
    try:
        free = int(module.mem_get_info(device)[0])
    except RuntimeError:
        if device.type == "cuda":
            raise
        return left  # Intel's integrated GPUs do not tell
    return free if own_share() >= 1 else min(free, left)


def limit_memory(device: torch.device) -> None:
    """Keep this process to its share of a GPU's memory, so that it cannot take that of others; nothing if it is alone.

    torch refuses to allocate more, as if the GPU was full.
    """
    if is_gpu(device) and own_share() < 1 and hasattr(_module(device), "set_per_process_memory_fraction"):
        _module(device).set_per_process_memory_fraction(_share_of_memory(), device)


def _share_of_memory() -> float:
    """Return the share of a GPU's memory for tensors: each process needs more, for its context and libraries."""
    return 1.0 if own_share() >= 1 else _TENSORS_OF_SHARED * own_share()


def peak_memory(device: torch.device) -> PeakMemory:
    """Return the peaks of a GPU's memory since the start or the last `reset_peak_memory`."""
    module = _module(device)
    return PeakMemory(int(module.max_memory_allocated(device)), int(module.max_memory_reserved(device)))


def reset_peak_memory(device: torch.device) -> None:
    """Count the peaks of a GPU's memory from now on; nothing for a CPU."""
    if is_gpu(device):
        _module(device).reset_peak_memory_stats(device)


def free_unused_memory(device: torch.device) -> None:
    """Give the memory that torch keeps for later tensors back to the GPU; nothing for a CPU."""
    if is_gpu(device):
        _module(device).empty_cache()


def random_state(device: torch.device) -> torch.Tensor | None:
    """Return the state of a GPU's random generator; None for a CPU, whose generator is torch's own."""
    return _module(device).get_rng_state(device) if is_gpu(device) else None


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Restore the random generator of a GPU; nothing on a CPU, for a run that began on a GPU."""
    if is_gpu(device):
        _module(device).set_rng_state(state.cpu(), device)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all of its work; nothing for a CPU."""
    if is_gpu(device):
        _module(device).synchronize(device)


def number_formats(device: torch.device) -> set[str]:
    """Return the formats that a GPU computes in at full speed: float32, and those of half precision."""
    if is_nvidia(device):
        return torch_builds.number_formats(torch.cuda.get_device_capability(device))
    about = _properties(device)
    if is_amd(device):
        return {"float32", "float16"} | ({"bfloat16"} if _AMD_BFLOAT16.match(about.gcnArchName) else set())
    has = {"float16": "has_fp16", "bfloat16": "has_bfloat16_conversions"}
    return {"float32"} | {name for name, attribute in has.items() if getattr(about, attribute, False)}


def allow_tf32(device: torch.device, allowed: bool) -> None:
    """Let a GPU round the factors of float32 products to TensorFloat-32, where it has that; nothing for a CPU."""
    if not is_gpu(device):
        return
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = allowed
    else:
        torch.backends.mkldnn.allow_tf32 = allowed  # type: ignore[assignment]


def search_kernels(wanted: bool) -> None:
    """Let convolutions of new shapes time their kernels from now on, or take the one that heuristics name first.

    The setting is global: it also holds in the threads of a backward pass. A shape keeps the kernels of its first use.
    """
    torch.backends.cudnn.benchmark = wanted  # MIOpen of ROCm follows it, too


def backend(device: torch.device) -> str:
    """Return the backend of collectives: gloo on the CPU, and on GPUs NCCL, RCCL or XCCL beside it.

    Raises UsageError if this torch lacks it.
    """
    if not is_gpu(device):
        return "gloo"
    library = _LIBRARIES[device.type]
    if not dist.is_backend_available(library):
        raise UsageError(
            f"torch {torch.__version__} has no {library.upper()}, which several {name(device)} need to train together:"
            " install a torch that has it, or train on one GPU (--gpus 1)."
        )
    return f"cpu:gloo,{device.type}:{library}"


def backend_name(device: torch.device) -> str:
    """Return the libraries of `backend` for people."""
    if not is_gpu(device):
        return "gloo"
    return f"{'RCCL' if is_amd(device) else _LIBRARIES[device.type].upper()} and gloo"


def profiler_activities(device: torch.device) -> list[ProfilerActivity]:
    """Return the activities that a profile of a device records, as far as this torch can."""
    own = ProfilerActivity.XPU if device.type == "xpu" else ProfilerActivity.CUDA
    return [ProfilerActivity.CPU, *([own] if is_gpu(device) and own in supported_activities() else [])]


def _module(device: torch.device) -> Any:
    """Return `torch.cuda` or `torch.xpu`: `torch.accelerator` lacks memory and properties in torch 2.6."""
    return torch.get_device_module(device)


def _properties(device: torch.device) -> Any:
    return _module(device).get_device_properties(device)
