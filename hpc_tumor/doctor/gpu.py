"""GPUs: those of this machine and those of a cluster's nodes, against the torch that is installed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.doctor.probe import Gpu, Probe, TorchFacts
from hpc_tumor.vocabulary import counted

Capability = tuple[int, int]

# By name, the first that fits; from NVIDIA's list of compute capabilities.
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
_LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}  # by the version of CUDA, from NVIDIA's minor version compatibility
_WHERE = "pytorch.org/get-started has the line"
_WAY_OUT_OF_CPU = f"install a torch with CUDA, of the GPUs' generation: {_WHERE}"


def check_gpus(probe: Probe, visible: str | None = None) -> list[Finding]:
    """The GPUs of one machine; `visible` is its CUDA_VISIBLE_DEVICES."""
    if probe.torch is None:
        return [warning("GPUs: not looked at, because torch does not import", "repair that first, see above")]
    if not probe.gpus and not probe.torch.gpus:
        return _none(probe, visible)
    there = probe.gpus or probe.torch.gpus
    if visible is not None and not _visible(visible):
        text = f"{_names(there)}: hidden by CUDA_VISIBLE_DEVICES='{visible}', so runs use the CPU"
        return [warning(text, "unset CUDA_VISIBLE_DEVICES")]
    findings = _driver(probe)
    refused = {gpu.name: refusal for gpu in there if (refusal := _no_code(probe.torch, gpu.name, _capability(gpu)))}
    findings += refused.values()
    if probe.torch.gpus:
        seen = len(probe.torch.gpus)
        of = f" of {len(there)} (CUDA_VISIBLE_DEVICES={visible})" if seen < len(there) and visible else ""
        if seen < len(there) and not visible:
            text = f"nvidia-smi lists {counted(len(there), 'GPU')}, torch sees {seen}"
            findings.append(warning(text, "one may be broken or partitioned (MIG): nvidia-smi -L"))
        if not refused:
            findings.append(ok(f"{_names(probe.torch.gpus)}{of}: this torch has code for {_archs(there)}"))
            findings.append(ok(f"precision auto is {probe.torch.precision[0]}, {probe.torch.precision[1]}"))
    elif not findings:
        them, why = "it" if len(there) == 1 else "them", probe.torch.refusal or "it does not say why"
        way = "nvidia-smi tells whether the driver is well; else ask an administrator"
        findings.append(error(f"{_names(there)}, but torch cannot use {them}: {why}", way))
    return [*findings, *_nccl(probe.torch)]


def check_model(torch: TorchFacts | None, model: str | None, cluster: str, tried: bool = False) -> list[Finding]:
    """Check that the installed torch runs on the GPUs that a cluster profile names; `tried`: a job will tell."""
    if torch is None:
        return []
    if torch.cuda is None and torch.hip is None:
        return [error(f"torch {torch.version} is built for CPUs: the GPUs of {cluster} stay idle", _WAY_OUT_OF_CPU)]
    capability = capability_of(model)
    if capability is None:
        if tried:
            return []
        named = f"the GPUs of {cluster}, {model!r}, are not known here" if model else f"{cluster} names no GPU model"
        return [warning(f"{named}: whether torch runs on them is open", "--submit tries it on a node")]
    if refusal := _no_code(torch, f"{model} of {cluster}", capability):
        return [refusal]
    format_ = precision_on(capability)
    rest = {"bfloat16": "", "float16": ", for they have no bfloat16"}.get(format_, ", for they have no fast half")
    return [
        ok(f"{model} of {cluster} ({sm(capability)}): torch has code for it; precision auto is {format_}{rest}"),
        *_nccl(torch),
    ]


def _none(probe: Probe, visible: str | None) -> list[Finding]:
    if visible is not None and _visible(visible):
        text = f"CUDA_VISIBLE_DEVICES={visible}, but there is no GPU here that torch can use: runs use the CPU"
        return [warning(text, "unset CUDA_VISIBLE_DEVICES, or look with nvidia-smi where the GPUs are")]
    precision = f"; precision auto on its CPU is {probe.torch.precision[0]}" if probe.torch else ""
    return [ok(f"no GPU on this machine{precision}")]


def _driver(probe: Probe) -> list[Finding]:
    torch = probe.torch
    if torch is None or torch.cuda is None or probe.driver is None:
        return []
    least = least_driver(torch.cuda)
    major = probe.driver.partition(".")[0]
    if least is None or not major.isdigit() or int(major) >= least:
        return []
    best = max((cuda for cuda in (11, 12, 13) if (least_driver(str(cuda)) or 0) <= int(major)), default=None)
    older = f"install a torch for CUDA {best} ({_WHERE})" if best else "install an older torch"
    text = f"driver {probe.driver} is too old for torch {torch.version}: CUDA {torch.cuda} needs {least} or newer"
    return [error(text, f"{older}, or a newer driver")]


def _no_code(torch: TorchFacts, name: str, capability: Capability | None) -> Finding | None:
    """The error for a GPU that this torch brings no code for; None where it does, or where that is not known."""
    if torch.cuda is None and torch.hip is None:
        return error(f"{name}: torch {torch.version} is built for CPUs, and cannot use it", _WAY_OUT_OF_CPU)
    if capability is None or not torch.archs or torch.hip or runs_on(torch.archs, capability):
        return None
    build = f"torch {torch.version.partition('+')[0]} for CUDA {torch.cuda}"
    text = f"{name} ({sm(capability)}): {build} has no code for it, only for {_range(torch.archs)}"
    return error(text, _other_torch(torch, capability))


def _other_torch(torch: TorchFacts, capability: Capability) -> str:
    newest = max((arch for arch in torch.archs if arch.startswith("sm_")), key=_number, default="")
    if newest and capability > divmod(_number(newest), 10):
        return f"install a newer torch, for a newer CUDA: {_WHERE}"
    if capability < (5, 0):
        return "no torch that hpc-tumor runs with supports it any more: choose other GPUs"
    # Builds for CUDA 12.6 keep Maxwell, Pascal and Volta; those for 12.8 kept Volta to torch 2.10.
    return f"install a torch built for CUDA 12.6 (cu126), which still has it: {_WHERE}"


def _nccl(torch: TorchFacts) -> list[Finding]:
    if torch.cuda and torch.nccl is None:
        text = f"torch {torch.version} has no NCCL: runs on more than one GPU cannot start"
        return [error(text, f"install the official build of torch: {_WHERE}")]
    return []


def _visible(text: str) -> list[str]:
    return [item for item in text.split(",") if item.strip() and not item.strip().startswith("-")]


def _capability(gpu: Gpu) -> Capability | None:
    return gpu.capability or capability_of(gpu.name)


def _archs(gpus: Sequence[Gpu]) -> str:
    return ", ".join(sorted({sm(capability) for gpu in gpus if (capability := _capability(gpu))})) or "them"


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
    """Compute capability of a model by its name, as `V100 PCIe 32 GB` → (7, 0); None for one not known."""
    for pattern, capability in _MODELS:
        if model and re.search(pattern, model, re.IGNORECASE):
            return capability
    return None


def sm(capability: Capability) -> str:
    """(7, 0) → `sm_70`, as builds of torch name it."""
    return f"sm_{capability[0]}{capability[1]}"


def runs_on(archs: Iterable[str], capability: Capability) -> bool:
    """Return True if code for `archs` runs on a GPU of that capability.

    Machine code (sm) runs on its own generation from its own minor version on; intermediate code (compute) on all
    later ones.
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        made_for = int(match[2]), int(match[3])
        if match[4] == "a":  # for that very GPU
            fits = made_for == capability
        elif match[1] == "compute":
            fits = made_for <= capability
        else:
            fits = made_for[0] == capability[0] and made_for[1] <= capability[1]
        if fits:
            return True
    return False


def precision_on(capability: Capability) -> str:
    """Number format that `hardware.precision = "auto"` chooses on such a GPU."""
    return "bfloat16" if capability[0] >= 8 else "float16" if capability[0] >= 7 else "float32"


def least_driver(cuda: str) -> int | None:
    """The oldest driver that runs a build for that CUDA; None where that is not known."""
    major = cuda.partition(".")[0]
    return _LEAST_DRIVERS.get(int(major)) if major.isdigit() else None
