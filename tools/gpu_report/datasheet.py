"""Peaks of GPUs by their manufacturers' datasheets: dense products, so without sparsity."""

from __future__ import annotations

import re

# Pattern of torch's name: TFLOP/s of float16 or bfloat16 products, of TensorFloat-32, of float32; TB/s of memory.
# The first that matches counts. V100 and T4 have no bfloat16. For MI250X: of one of its two chips, as torch sees it.
_SHEETS: tuple[tuple[str, float, float | None, float, float], ...] = (
    (r"H200 NVL", 835, 417, 60, 4.8),
    (r"GH200 480GB", 989, 495, 67, 4.0),
    (r"H200", 989, 495, 67, 4.8),
    (r"H100 NVL", 835, 417, 60, 3.9),
    (r"H100 PCIe", 756, 378, 51, 2.0),
    (r"H100", 989, 495, 67, 3.35),
    (r"A100 80GB PCIe", 312, 156, 19.5, 1.935),
    (r"A100\b.*80GB", 312, 156, 19.5, 2.039),
    (r"A100\b", 312, 156, 19.5, 1.555),
    (r"V100\b", 125, None, 15.7, 0.9),
    (r"L40S", 362, 183, 91.6, 0.864),
    (r"A40\b", 149.7, 74.8, 37.4, 0.696),
    (r"A30\b", 165, 82, 10.3, 0.933),
    (r"L4\b", 121, 60, 30.3, 0.3),
    (r"T4\b", 65, None, 8.1, 0.32),
    (r"MI300X", 1307, 654, 163.4, 5.3),
    (r"MI250X", 191.5, None, 47.9, 1.6),
)


def datasheet(name: str) -> dict[str, float] | None:
    """Return the peaks of the GPU of this name in FLOP/s and bytes a second; None for one that is not listed."""
    for pattern, half, tf32, single, memory in _SHEETS:
        if re.search(pattern, name):
            peaks = {"bfloat16": half, "float16": half, "float32": single, **({"tf32": tf32} if tf32 else {})}
            return {**{kind: 1e12 * value for kind, value in peaks.items()}, "memory": 1e12 * memory}
    return None
