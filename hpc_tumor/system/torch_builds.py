"""Builds of torch, and the GPUs that they have code for. Does not import torch: a build is read from its files."""

from __future__ import annotations

import ast
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

Capability = tuple[int, int]  # compute capability of an NVIDIA GPU: (7, 0)

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


@dataclass(frozen=True)
class TorchBuild:
    """Build of torch. `cuda`, `rocm` and `xpu` are versions of the one that it is built for; all None for CPUs."""

    version: str
    cuda: str | None = None
    rocm: str | None = None
    xpu: str | None = None

    @property
    def for_gpus(self) -> bool:
        """True if it can use GPUs of any maker."""
        return any((self.cuda, self.rocm, self.xpu))

    @property
    def purpose(self) -> str:
        """Platform that it is built for: `CUDA 13.0`, `ROCm 7.2`, `XPU` or `CPUs`."""
        return f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.rocm}" if self.rocm else "XPU" if self.xpu else "CPUs"

    @property
    def minor(self) -> int | None:
        """Minor version: 14 for 2.14.1."""
        match = re.match(r"2\.(\d+)", self.version)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class _Wheels:
    """Official wheels for Linux on x86-64: their CUDA, first and last minor version of torch 2, and architectures."""

    cuda: str
    first: int
    last: int | None  # None: still built
    archs: tuple[str, ...]

    def describe(self) -> str:
        """Return `torch 2.6 to 2.14 with CUDA 12.6 (a build named +cu126)`."""
        versions = f"2.{self.first} to 2.{self.last}" if self.last else f"2.{self.first} or newer"
        return f"torch {versions} with CUDA {self.cuda} (a build named +cu{self.cuda.replace('.', '')})"


_UP_TO_HOPPER = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
_FROM_TURING = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
# From the "CUDA Support Matrix" in RELEASE.md of torch 2.9 to 2.14, PYTORCH_RELEASES_CODE_CC in torch/cuda of 2.14, and
# torch.cuda.get_arch_list() of 2.6.0+cu124.
# Later rows are preferred. Intermediate code (PTX) is left out: it was in some releases of these builds only.
_WHEELS = (
    _Wheels("12.4", 6, 6, _UP_TO_HOPPER),
    _Wheels("12.8", 9, 10, ("sm_70", *_FROM_TURING)),
    _Wheels("12.8", 11, 11, _FROM_TURING),
    _Wheels("12.6", 6, 14, _UP_TO_HOPPER),
    _Wheels("13.0", 9, None, _FROM_TURING),
)


def installed_build() -> TorchBuild | None:
    """Return the build that `import torch` would load here, without importing it; None if there is none."""
    spec = find_spec("torch")
    return read_build(Path(spec.origin).parent) if spec and spec.origin else None


def read_build(package: Path) -> TorchBuild | None:
    """Return the build in the folder of a torch package, from its version.py; None if that cannot be read."""
    texts = {}
    try:
        for node in ast.parse((package / "version.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if isinstance(node.value.value, str):
                    texts[ast.unparse(target)] = node.value.value
    except (OSError, SyntaxError, ValueError):
        return None
    version = texts.get("__version__")
    return TorchBuild(version, texts.get("cuda"), texts.get("hip"), texts.get("xpu")) if version else None


def archs_of_wheel(build: TorchBuild) -> tuple[str, ...]:
    """Return the architectures of an official wheel on this kind of CPU; empty if they are not known."""
    official = build.cuda is not None and build.version.endswith(f"+cu{build.cuda.replace('.', '')}")
    if not official or build.minor is None or platform.machine() != "x86_64":
        return ()
    fitting = [row for row in _WHEELS if row.cuda == build.cuda and row.first <= build.minor <= (row.last or 999)]
    return fitting[-1].archs if fitting else ()


def refusal(name: str, capability: Capability, build: TorchBuild, archs: Sequence[str]) -> str:
    """Return why a build with code for `archs` cannot use the GPU, in one sentence."""
    return (
        f"{name} (compute capability {capability[0]}.{capability[1]}): torch {build.version} has no code for"
        f" {arch_name(capability)}, only for {describe_archs(archs)}"
    )


def advice(capability: Capability) -> str:
    """Return the torch to install for a GPU, as a clause that begins with a verb."""
    fitting = [row for row in _WHEELS if runs_on(row.archs, capability)]
    if fitting:
        return f"install {fitting[-1].describe()}"
    if capability > max(_capability(arch) for arch in _FROM_TURING):
        return "install a newer torch, built for a newer CUDA"
    return "choose other GPUs: no torch that hpc-tumor supports has code for it"


def capability_of(model: str | None) -> Capability | None:
    """Return the compute capability of a GPU model, e.g. (7, 0) for `V100 PCIe 32 GB`; None if unknown."""
    for pattern, capability in _MODELS:
        if model and re.search(pattern, model, re.IGNORECASE):
            return capability
    return None


def arch_name(capability: Capability) -> str:
    """Return torch's name of an architecture, e.g. `sm_70` for (7, 0)."""
    return f"sm_{capability[0]}{capability[1]}"


def describe_archs(archs: Sequence[str]) -> str:
    """Return `sm_75 to sm_120` for a list of architectures."""
    known = sorted((arch for arch in archs if arch.startswith("sm_")), key=_capability)
    return f"{known[0]} to {known[-1]}" if len(known) > 2 else ", ".join(known or archs)


def _capability(arch: str) -> Capability:
    number = int(re.sub(r"\D", "", arch))
    return number // 10, number % 10


def runs_on(archs: Iterable[str], capability: Capability) -> bool:
    """Return True if code for `archs` runs on a GPU of that capability.

    Machine code (sm) runs on the same major version with the same or a later minor version; intermediate code (compute)
    is compiled for all later GPUs when it is first used.
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        made_for = int(match[2]), int(match[3])
        if match[4] == "a":  # exactly this GPU
            fits = made_for == capability
        elif match[1] == "compute" and not match[4]:
            fits = made_for <= capability
        else:
            fits = made_for[0] == capability[0] and made_for[1] <= capability[1]
        if fits:
            return True
    return False


def number_formats(capability: Capability) -> set[str]:
    """Return the number formats that an NVIDIA GPU computes in at full speed."""
    half = ({"float16"} if capability[0] >= 7 else set()) | ({"bfloat16"} if capability[0] >= 8 else set())
    return {"float32"} | half
