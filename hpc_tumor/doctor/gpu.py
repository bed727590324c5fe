"""Check the GPUs of this machine and of a cluster's nodes against the installed torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.doctor.probe import Gpu, Probe, TorchFacts
from hpc_tumor.system.torch_builds import (
    Capability,
    advice,
    arch_name,
    capability_of,
    number_formats,
    refusal,
    runs_on,
)  # fmt: skip
from hpc_tumor.vocabulary import counted

_MIN_DRIVERS = {11: 450, 12: 525, 13: 580}  # by major CUDA version, from NVIDIA's minor version compatibility


class Remedy(str):
    """Remedy for GPUs that the installed torch cannot use: the same for this machine and a cluster of such GPUs."""


WITH_GPUS = Remedy("install a build of torch for these GPUs: for CUDA (NVIDIA), ROCm (AMD) or XPU (Intel)")
WITH_NCCL = Remedy("install an official build of torch")


def check_gpus(probe: Probe, visible: str | None = None) -> list[Finding]:
    """Check the GPUs of one machine; `visible` is its CUDA_VISIBLE_DEVICES."""
    if probe.torch is None:
        return [warning("GPUs: not checked, because torch cannot be imported", "fix that first, see above")]
    if not probe.gpus and not probe.torch.gpus:
        return _no_gpus(probe, visible)
    gpus = probe.gpus or probe.torch.gpus
    if visible is not None and not _visible(visible):
        text = f"{_names(gpus)}: hidden by CUDA_VISIBLE_DEVICES='{visible}', so runs use the CPU"
        return [warning(text, "unset CUDA_VISIBLE_DEVICES")]
    findings = _driver(probe)
    unsupported = {gpu.name: fault for gpu in gpus if (fault := _no_code(probe.torch, gpu.name, _capability(gpu)))}
    for gpu in probe.torch.gpus:
        if gpu.missing_code is not None:
            text, remedy = gpu.missing_code
            unsupported[gpu.name] = error(text, Remedy(remedy))
    findings += unsupported.values()
    if probe.torch.gpus:
        seen = len(probe.torch.gpus)
        of = f" of {len(gpus)} (CUDA_VISIBLE_DEVICES={visible})" if seen < len(gpus) and visible else ""
        if seen < len(gpus) and not visible:
            text = f"nvidia-smi lists {counted(len(gpus), 'GPU')}, torch sees {seen}"
            findings.append(warning(text, "one may be broken or partitioned (MIG): see nvidia-smi -L"))
        if not unsupported:
            findings.append(ok(f"{_names(probe.torch.gpus)}{of}: torch supports {_archs(gpus)}"))
            findings.append(ok(f"precision auto is {probe.torch.precision[0]}, {probe.torch.precision[1]}"))
            findings += _compiling(probe.torch)
    elif not findings:
        why = probe.torch.refusal or "torch gives no reason"
        way = "check the driver with nvidia-smi, or ask an administrator"
        findings.append(error(f"{_names(gpus)}, but torch cannot use {'it' if len(gpus) == 1 else 'them'}: {why}", way))
    return [*findings, *_nccl(probe.torch)]


def check_model(torch: TorchFacts | None, model: str | None, cluster: str, tried: bool = False) -> list[Finding]:
    """Check that torch supports the GPUs that a cluster profile names; `tried`: the test job will show it."""
    if torch is None:
        return []
    if not torch.build.for_gpus:
        text = f"torch {torch.build.version} is built for CPUs: the GPUs of {cluster} would stay idle"
        return [error(text, WITH_GPUS)]
    capability = capability_of(model)
    if capability is None:
        if tried:
            return []
        text = f"unknown GPU model {model!r} of {cluster}" if model else f"{cluster} names no GPU model"
        return [warning(f"{text}: torch may not support it", "--submit tries it on a node")]
    if torch.build.cuda is None:
        text = f"torch {torch.build.version} is built for {torch.build.purpose}: it cannot use {model} of {cluster}"
        return [error(text, WITH_GPUS)]
    if refusal := _no_code(torch, f"{model} of {cluster}", capability):
        return [refusal]
    precision = precision_on(capability)
    why = {"bfloat16": "", "float16": " (no bfloat16)"}.get(precision, " (no fast half precision)")
    return [
        ok(f"{model} of {cluster} ({arch_name(capability)}): supported by torch; precision auto is {precision}{why}"),
        *_nccl(torch),
    ]


def _no_gpus(probe: Probe, visible: str | None) -> list[Finding]:
    if visible is not None and _visible(visible):
        text = f"CUDA_VISIBLE_DEVICES={visible}, but torch finds no GPU here: runs use the CPU"
        return [warning(text, "unset CUDA_VISIBLE_DEVICES, or check the GPUs with nvidia-smi")]
    precision = f"; precision auto on its CPU is {probe.torch.precision[0]}" if probe.torch else ""
    return [ok(f"no GPU on this machine{precision}")]


def _driver(probe: Probe) -> list[Finding]:
    torch = probe.torch
    if torch is None or torch.build.cuda is None or probe.driver is None:
        return []
    least = minimum_driver(torch.build.cuda)
    major = probe.driver.partition(".")[0]
    if least is None or not major.isdigit() or int(major) >= least:
        return []
    best = max((cuda for cuda in (11, 12, 13) if (minimum_driver(str(cuda)) or 0) <= int(major)), default=None)
    older = f"install a torch built for CUDA {best}" if best else "install an older torch"
    version, cuda = torch.build.version, torch.build.cuda
    text = f"driver {probe.driver} is too old for torch {version}: CUDA {cuda} needs {least} or newer"
    return [error(text, f"{older}, or a newer driver")]


def _no_code(torch: TorchFacts, name: str, capability: Capability | None) -> Finding | None:
    """Return an error if torch does not support the GPU; None if it does or that is unknown."""
    if not torch.build.for_gpus:
        return error(f"{name}: torch {torch.build.version} is built for CPUs and cannot use it", WITH_GPUS)
    if capability is None or not torch.archs or torch.build.rocm or runs_on(torch.archs, capability):
        return None
    return error(refusal(name, capability, torch.build, torch.archs), Remedy(advice(capability)))


def _nccl(torch: TorchFacts) -> list[Finding]:
    if torch.build.cuda and torch.nccl is None:
        text = f"torch {torch.build.version} has no NCCL: runs on several GPUs cannot start"
        return [error(text, WITH_NCCL)]
    return []


def _compiling(torch: TorchFacts) -> list[Finding]:
    if torch.not_compiling is None:
        return []
    text = f"torch cannot compile networks for GPUs, since {torch.not_compiling} is missing: training is slower"
    return [warning(text, "install it, or add a module that has it to `modules` of the cluster profile")]


def _visible(text: str) -> list[str]:
    return [item for item in text.split(",") if item.strip() and not item.strip().startswith("-")]


def _capability(gpu: Gpu) -> Capability | None:
    return gpu.capability or capability_of(gpu.name)


def _archs(gpus: Sequence[Gpu]) -> str:
    return ", ".join(sorted({arch_name(capability) for gpu in gpus if (capability := _capability(gpu))})) or "them"


def _names(gpus: Sequence[Gpu]) -> str:
    """`2 × NVIDIA A100-SXM4-40GB`."""
    counts = Counter(gpu.name for gpu in gpus)
    return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items())


def precision_on(capability: Capability) -> str:
    """Return the precision that `hardware.precision = "auto"` chooses on such a GPU."""
    return min(number_formats(capability))  # bfloat16 before float16 before float32


def minimum_driver(cuda: str) -> int | None:
    """Return the oldest driver for a build with that CUDA version; None if unknown."""
    major = cuda.partition(".")[0]
    return _MIN_DRIVERS.get(int(major)) if major.isdigit() else None
