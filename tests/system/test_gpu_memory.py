"""Memory of GPUs without torch, by a made-up nvidia-smi."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_tumor.system.gpu_memory import GpuMemory, read_gpu_memory

TWO = "0, GPU-aa, 81559, 559\n1, GPU-bb, 40960, 0\n"
MB = 2**20


@pytest.mark.parametrize(
    ("printed", "mask", "gpus"),
    [
        (TWO, None, [GpuMemory(81559 * MB, 559 * MB), GpuMemory(40960 * MB, 0)]),
        (TWO, "1", [GpuMemory(40960 * MB, 0)]),
        (TWO, "GPU-bb,0", [GpuMemory(40960 * MB, 0), GpuMemory(81559 * MB, 559 * MB)]),
        (TWO, "", []),
        (TWO, "MIG-aa", []),
        ("0, GPU-aa, [N/A], [N/A]\n", "0", []),
        ("NVIDIA-SMI has failed\n", None, []),
    ],
)
def test_only_what_is_visible_and_known_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, mask: str | None, gpus: list[GpuMemory]
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if mask is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert read_gpu_memory() == gpus


def test_without_nvidia_smi_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpu_memory() == []
