"""GPU models and what they can: compute capability by name, code that runs on it, number formats, drivers."""

from __future__ import annotations

import re
from collections.abc import Iterable

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
    """What `hardware.precision = "auto"` chooses on such a GPU."""
    return "bfloat16" if capability[0] >= 8 else "float16" if capability[0] >= 7 else "float32"


def least_driver(cuda: str) -> int | None:
    """The oldest driver that runs a build for that CUDA; None where that is not known."""
    major = cuda.partition(".")[0]
    return _LEAST_DRIVERS.get(int(major)) if major.isdigit() else None
