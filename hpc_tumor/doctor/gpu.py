"""Check the GPUs of this machine and of a cluster's nodes against the installed torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from enum import StrEnum

from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.doctor.probe import Gpu, Probe, TorchFacts
from hpc_tumor.vocabulary import counted

Capability = tuple[int, int]

# By model name, the first match counts; from NVIDIA's list of compute capabilities.
_MODELS: tuple[tuple[str, Capability], ...] = (
    (r"B300|GB300", (10, 3)),
    (r"B200|B100|GB200", (10, 0)),
    (r"H100|H200|H800|H20\b|GH200", (9, 0)),
    (r"RTX PRO \d000|RTX 50\d\d", (12, 0)),
    (r"\bL4\b|L40S?|L20\b|\bAda\b|RTX 40\d\d", (8, 9)),
    (r"A100|A800|\bA30\b", (8, 0)),
    (r"\bA(?:2|10G?|16|40)\b|RTX A\d000|\bA[2456][05]00\b|RTX 30\d\d", (8, 6)),
    (r"\bT4G?\b|RTX 20\d\d|Quadro RTX|Titan RTX|GTX 16\d\d", (7, 5)),
    (r"V100|Titan V|GV100", (7, 0)),
    (r"P100|GP100", (6, 0)),
    (r"\bP40?\b|\bP6\b|GTX 10\d\d|Titan X[pP]?", (6, 1)),
    (r"\bM(?:4|40|60)\b|GTX 9\d\d", (5, 2)),
    (r"\bK80\b", (3, 7)),
    (r"\bK(?:20|40)[xcm]?\b", (3, 5)),
)
_MIN_DRIVERS = {11: 450, 12: 525, 13: 580}  # by major CUDA version, from NVIDIA's minor version compatibility
_WHERE = "see pytorch.org/get-started"


class Remedy(StrEnum):
    """Remedies for GPUs that the installed torch cannot use."""

    WITH_CUDA = f"install a torch build with CUDA that supports the GPUs: {_WHERE}"
    NEWER = f"install a newer torch, built for a newer CUDA: {_WHERE}"
    OTHER_GPUS = "no torch version that hpc-tumor supports runs on it: choose other GPUs"
    # Builds for CUDA 12.6 include Maxwell, Pascal and Volta; those for 12.8 included Volta up to torch 2.10.
    CUDA_12_6 = f"install a torch built for CUDA 12.6 (cu126), which still supports it: {_WHERE}"
    WITH_NCCL = f"install the official build of torch: {_WHERE}"


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
    elif not findings:
        why = probe.torch.refusal or "torch gives no reason"
        way = "check the driver with nvidia-smi, or ask an administrator"
        findings.append(error(f"{_names(gpus)}, but torch cannot use {'it' if len(gpus) == 1 else 'them'}: {why}", way))
    return [*findings, *_nccl(probe.torch)]


def check_model(torch: TorchFacts | None, model: str | None, cluster: str, tried: bool = False) -> list[Finding]:
    """Check that torch supports the GPUs that a cluster profile names; `tried`: the test job will show it."""
    if torch is None:
        return []
    if torch.cuda is None and torch.hip is None:
        text = f"torch {torch.version} is built for CPUs: the GPUs of {cluster} would stay idle"
        return [error(text, Remedy.WITH_CUDA)]
    capability = capability_of(model)
    if capability is None:
        if tried:
            return []
        text = f"unknown GPU model {model!r} of {cluster}" if model else f"{cluster} names no GPU model"
        return [warning(f"{text}: torch may not support it", "--submit tries it on a node")]
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
    if torch is None or torch.cuda is None or probe.driver is None:
        return []
    least = minimum_driver(torch.cuda)
    major = probe.driver.partition(".")[0]
    if least is None or not major.isdigit() or int(major) >= least:
        return []
    best = max((cuda for cuda in (11, 12, 13) if (minimum_driver(str(cuda)) or 0) <= int(major)), default=None)
    older = f"install a torch built for CUDA {best} ({_WHERE})" if best else "install an older torch"
    text = f"driver {probe.driver} is too old for torch {torch.version}: CUDA {torch.cuda} needs {least} or newer"
    return [error(text, f"{older}, or a newer driver")]


def _no_code(torch: TorchFacts, name: str, capability: Capability | None) -> Finding | None:
    """Return an error if torch does not support the GPU; None if it does or that is unknown."""
    if torch.cuda is None and torch.hip is None:
        return error(f"{name}: torch {torch.version} is built for CPUs and cannot use it", Remedy.WITH_CUDA)
    if capability is None or not torch.archs or torch.hip or runs_on(torch.archs, capability):
        return None
    build = f"torch {torch.version.partition('+')[0]} for CUDA {torch.cuda}"
    text = f"{name} ({arch_name(capability)}): not supported by {build}, which supports {_range(torch.archs)}"
    return error(text, _other_torch(torch, capability))


def _other_torch(torch: TorchFacts, capability: Capability) -> Remedy:
    newest = max((arch for arch in torch.archs if arch.startswith("sm_")), key=_number, default="")
    if newest and capability > divmod(_number(newest), 10):
        return Remedy.NEWER
    return Remedy.OTHER_GPUS if capability < (5, 0) else Remedy.CUDA_12_6


def _nccl(torch: TorchFacts) -> list[Finding]:
    if torch.cuda and torch.nccl is None:
        text = f"torch {torch.version} has no NCCL: runs on several GPUs cannot start"
        return [error(text, Remedy.WITH_NCCL)]
    return []


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


def _range(archs: Sequence[str]) -> str:
    known = sorted((arch for arch in archs if arch.startswith("sm_")), key=_number)
    return f"{known[0]} to {known[-1]}" if len(known) > 2 else ", ".join(known or archs)


def _number(arch: str) -> int:
    return int(re.sub(r"\D", "", arch) or 0)


def capability_of(model: str | None) -> Capability | None:
    """Return the compute capability of a GPU model, e.g. (7, 0) for `V100 PCIe 32 GB`; None if unknown."""
    for pattern, capability in _MODELS:
        if model and re.search(pattern, model, re.IGNORECASE):
            return capability
    return None


def arch_name(capability: Capability) -> str:
    """Return torch's name of an architecture, e.g. `sm_70` for (7, 0)."""
    return f"sm_{capability[0]}{capability[1]}"


def runs_on(archs: Iterable[str], capability: Capability) -> bool:
    """Return True if code for `archs` runs on a GPU of that capability.

    Machine code (sm) runs on the same major version with the same or a later minor version; intermediate code (compute)
    on all later GPUs.
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        made_for = int(match[2]), int(match[3])
        if match[4] == "a":  # exactly this GPU
            fits = made_for == capability
        elif match[1] == "compute":
            fits = made_for <= capability
        else:
            fits = made_for[0] == capability[0] and made_for[1] <= capability[1]
        if fits:
            return True
    return False


def precision_on(capability: Capability) -> str:
    """Return the precision that `hardware.precision = "auto"` chooses on such a GPU."""
    return "bfloat16" if capability[0] >= 8 else "float16" if capability[0] >= 7 else "float32"


def minimum_driver(cuda: str) -> int | None:
    """Return the oldest driver for a build with that CUDA version; None if unknown."""
    major = cuda.partition(".")[0]
    return _MIN_DRIVERS.get(int(major)) if major.isdigit() else None
