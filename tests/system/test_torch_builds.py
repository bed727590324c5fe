"""Builds of torch against GPUs: what runs on what, and what to install instead."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from hpc_tumor.system import torch_builds
from hpc_tumor.system.torch_builds import (
    TorchBuild,
    advice,
    archs_of_wheel,
    capability_of,
    installed_build,
    read_build,
    runs_on,
)


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (("sm_80",), (8, 6), True),  # machine code runs on later ones of its generation
        (("sm_86",), (8, 0), False),
        (("sm_80",), (9, 0), False),
        (("compute_80",), (9, 0), True),  # intermediate code on all later ones
        (("compute_90",), (8, 0), False),
        (("sm_90a",), (9, 0), True),
        (("sm_100a",), (10, 3), False),
        (("sm_100",), (10, 3), True),
        (("sm_120",), (10, 0), False),
        (("gfx942",), (9, 4), False),
        ((), (8, 0), False),
    ],
)
def test_which_code_runs_on_which_gpu(archs: tuple[str, ...], capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(archs, capability) is runs


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("V100 SXM2 16 or 32 GB", (7, 0)), ("Tesla V100-PCIE-32GB", (7, 0)), ("A100 SXM 64 GB", (8, 0)),
        ("NVIDIA A100-SXM4-40GB", (8, 0)), ("NVIDIA H100 80GB HBM3", (9, 0)), ("GH200 480GB", (9, 0)),
        ("NVIDIA A40", (8, 6)), ("NVIDIA A10", (8, 6)), ("NVIDIA RTX A6000", (8, 6)), ("NVIDIA L40S", (8, 9)),
        ("NVIDIA L4", (8, 9)), ("NVIDIA RTX 6000 Ada Generation", (8, 9)), ("NVIDIA GeForce RTX 3090", (8, 6)),
        ("Tesla T4", (7, 5)), ("Tesla P100-PCIE-16GB", (6, 0)), ("NVIDIA B200", (10, 0)), ("NVIDIA GB300", (10, 3)),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0)), ("Tesla K80", (3, 7)), ("AMD MI250X", None),
        ("none (made up)", None), (None, None),
    ],
)  # fmt: skip
def test_models_by_name(name: str | None, capability: tuple[int, int] | None) -> None:
    assert capability_of(name) == capability


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ((7, 0), "install torch 2.6 to 2.14 with CUDA 12.6 (a build named +cu126)"),
        ((6, 1), "install torch 2.6 to 2.14 with CUDA 12.6 (a build named +cu126)"),
        ((10, 3), "install torch 2.9 or newer with CUDA 13.0 (a build named +cu130)"),
        ((3, 7), "choose other GPUs: no torch that hpc-tumor supports has code for it"),
        ((15, 0), "install a newer torch, built for a newer CUDA"),
    ],
)
def test_the_torch_to_install(capability: tuple[int, int], words: str) -> None:
    assert advice(capability) == words


def test_the_build_installed_here_is_read_as_torch_reports_it() -> None:
    import torch

    build = installed_build()
    assert build is not None
    assert (build.version, build.cuda, build.rocm) == (torch.__version__, torch.version.cuda, torch.version.hip)


def test_the_code_in_official_wheels_is_that_of_the_table() -> None:
    """The table must not promise code, nor refuse GPUs, that the torch installed here does not."""
    from hpc_tumor.system.devices import code_archs

    build = installed_build()
    known = archs_of_wheel(build) if build else ()
    if not known:
        pytest.skip("this torch is no official wheel with CUDA")
    assert {arch for arch in code_archs() if arch.startswith("sm_")} == set(known)


@pytest.mark.parametrize(
    ("version", "cuda", "runs_on_v100"),
    [
        ("2.14.1+cu130", "13.0", False), ("2.11.0+cu128", "12.8", False), ("2.10.0+cu128", "12.8", True),
        ("2.14.1+cu126", "12.6", True), ("2.6.0+cu126", "12.6", True),
    ],
)  # fmt: skip
def test_official_wheels_and_a_v100(
    monkeypatch: pytest.MonkeyPatch, version: str, cuda: str, runs_on_v100: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert runs_on(archs_of_wheel(TorchBuild(version, cuda)), (7, 0)) is runs_on_v100


@pytest.mark.parametrize(
    ("machine", "version", "cuda"),
    [
        ("aarch64", "2.14.1+cu130", "13.0"),  # other architectures than on x86-64
        ("x86_64", "2.14.1", "13.0"),  # built by a distribution or a site
        ("x86_64", "2.7.0+cu118", "11.8"),
        ("x86_64", "2.14.1+cpu", None),
    ],
)
def test_other_builds_are_not_known(
    monkeypatch: pytest.MonkeyPatch, machine: str, version: str, cuda: str | None
) -> None:
    monkeypatch.setattr(torch_builds.platform, "machine", lambda: machine)
    assert archs_of_wheel(TorchBuild(version, cuda)) == ()


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("__version__ = '2.9.0+rocm6.4'\ncuda: Optional[str] = None\nhip = '6.4.43482'\n",
         TorchBuild("2.9.0+rocm6.4", rocm="6.4.43482")),
        ("__version__ = '2.9.0+xpu'\ncuda = None\nxpu: Optional[str] = '20250302'\n",
         TorchBuild("2.9.0+xpu", xpu="20250302")),
        ("__version__ = 'cut off", None),
        ("", None),
    ],
)  # fmt: skip
def test_a_build_is_read_from_its_file(tmp_path: Path, text: str, build: TorchBuild | None) -> None:
    (tmp_path / "version.py").write_text(text)
    assert read_build(tmp_path) == build
    assert read_build(tmp_path / "missing") is None
