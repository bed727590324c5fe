"""Devices of all makers, from made-up modules of torch: no such GPU is at hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hpc_tumor.errors import UsageError
from hpc_tumor.system import devices

XPU, CUDA = torch.device("xpu", 0), torch.device("cuda", 0)
ABSENT = SimpleNamespace(is_available=lambda: False, device_count=lambda: 0)
MakeUp = Callable[..., None]


@pytest.fixture
def make_up(monkeypatch: pytest.MonkeyPatch) -> MakeUp:
    """Replace the modules of torch by made-up ones, by kind of device; the other kinds are not there."""

    def replace(hip: str | None = None, **modules: Any) -> None:
        monkeypatch.setattr(torch, "get_device_module", lambda device: modules.get(torch.device(device).type, ABSENT))
        monkeypatch.setattr(torch.version, "hip", hip)

    return replace


def gpus(count: int = 1, **more: Any) -> SimpleNamespace:
    properties = SimpleNamespace(name="made up", total_memory=16 * 2**30, uuid=None, **more)
    return SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: count,
        get_device_name=lambda device: properties.name,
        get_device_properties=lambda device: properties,
        memory_reserved=lambda device: 2 * 2**30,
    )


def test_without_gpus_there_is_the_cpu(make_up: MakeUp) -> None:
    make_up()
    assert devices.count_gpus() == 0
    assert devices.find_gpu() is None
    assert devices.backend(devices.CPU) == devices.backend_name(devices.CPU) == "gloo"
    assert devices.random_state(devices.CPU) is None
    assert devices.name(devices.CPU) == "CPU"


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_gpus_of_any_kind_are_found(make_up: MakeUp, kind: str) -> None:
    make_up(**{kind: gpus(4)})
    assert devices.count_gpus() == 4
    assert devices.find_gpu(3) == torch.device(kind, 3)


def test_gpus_are_told_apart_by_their_maker(make_up: MakeUp) -> None:
    make_up(cuda=gpus())
    assert (devices.is_nvidia(CUDA), devices.is_amd(CUDA)) == (True, False)
    make_up(cuda=gpus(), hip="6.4")
    assert (devices.is_nvidia(CUDA), devices.is_amd(CUDA)) == (False, True)
    assert not devices.is_nvidia(XPU)
    assert all(map(devices.is_gpu, (CUDA, XPU)))
    assert not devices.is_gpu(devices.CPU)


@pytest.mark.parametrize(
    ("name", "bfloat16"),
    [
        ("gfx906:sramecc+:xnack-", False), ("gfx1030", False), ("gfx908:sramecc+:xnack-", True),
        ("gfx90a:sramecc+:xnack-", True), ("gfx942:sramecc+:xnack-", True), ("gfx1100", True), ("gfx1201", True),
    ],
)  # fmt: skip
def test_number_formats_of_amds_gpus(make_up: MakeUp, name: str, bfloat16: bool) -> None:
    """torch reports bfloat16 on all of them, and a capability that is not NVIDIA's: (9, 0) of an MI50."""
    make_up(cuda=gpus(gcnArchName=name), hip="6.4")
    assert devices.number_formats(CUDA) == {"float32", "float16"} | ({"bfloat16"} if bfloat16 else set())


@pytest.mark.parametrize(
    ("aspects", "formats"),
    [
        ({"has_fp16": True, "has_bfloat16_conversions": True}, {"float32", "float16", "bfloat16"}),
        ({"has_fp16": True, "has_bfloat16_conversions": False}, {"float32", "float16"}),
        ({}, {"float32"}),
    ],
)
def test_number_formats_of_intels_gpus(make_up: MakeUp, aspects: dict[str, bool], formats: set[str]) -> None:
    make_up(xpu=gpus(**aspects))
    assert devices.number_formats(XPU) == formats


def test_free_memory_where_the_driver_cannot_tell(make_up: MakeUp) -> None:
    def refuse(device: torch.device) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying the available free memory.")

    module = gpus()
    module.mem_get_info = refuse
    make_up(xpu=module)
    assert devices.free_memory(XPU) == 14 * 2**30
    make_up(cuda=module)
    with pytest.raises(RuntimeError):  # there it is an error of the GPU
        devices.free_memory(CUDA)


@pytest.mark.parametrize(
    ("device", "hip", "backend", "name"),
    [
        (CUDA, None, "cpu:gloo,cuda:nccl", "NCCL and gloo"), (CUDA, "6.4", "cpu:gloo,cuda:nccl", "RCCL and gloo"),
        (XPU, None, "cpu:gloo,xpu:xccl", "XCCL and gloo"),
    ],
)  # fmt: skip
def test_collectives(
    make_up: MakeUp, monkeypatch: pytest.MonkeyPatch, device: torch.device, hip: str | None, backend: str, name: str
) -> None:
    make_up(hip, **{device.type: gpus()})
    monkeypatch.setattr(dist, "is_backend_available", lambda library: True)
    assert (devices.backend(device), devices.backend_name(device)) == (backend, name)
    monkeypatch.setattr(dist, "is_backend_available", lambda library: False)
    with pytest.raises(UsageError, match=r"has no [NX]CCL, .* or train on one GPU \(--gpus 1\)"):
        devices.backend(device)


@pytest.mark.parametrize(
    ("archs", "fits"),
    [
        (("gfx908", "gfx90a", "gfx942"), True), (("gfx90a:xnack-",), True), (("gfx9-4-generic",), True), ((), True),
        (("gfx942", "gfx1100"), False),
    ],
)  # fmt: skip
def test_code_for_amds_gpus(
    make_up: MakeUp, monkeypatch: pytest.MonkeyPatch, archs: tuple[str, ...], fits: bool
) -> None:
    make_up(cuda=gpus(gcnArchName="gfx90a:sramecc+:xnack-"), hip="6.4")
    monkeypatch.setattr(devices, "code_archs", lambda: archs)
    if fits:
        devices.check_code(CUDA)
        return
    with pytest.raises(UsageError, match=r"made up \(gfx90a\): .* only for gfx942, gfx1100: install"):
        devices.check_code(CUDA)


@pytest.mark.parametrize(
    ("capability", "archs", "words"),
    [
        ((7, 0), ("sm_75", "sm_80", "sm_90"), r"made up \(compute capability 7\.0\): torch \S+ has no code for sm_70,"
         r" only for sm_75 to sm_90: install torch 2\.6 to 2\.14 with CUDA 12\.6 \(a build named \+cu126\)\.$"),
        ((10, 0), ("sm_80", "sm_90"), "install torch 2.9 or newer with CUDA 13.0"),
        ((10, 0), ("sm_80", "compute_90"), None),  # compiled forward
        ((8, 6), ("sm_80", "sm_90"), None),
        ((8, 0), (), None),  # unknown
    ],
)  # fmt: skip
def test_code_for_nvidias_gpus(
    make_up: MakeUp, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], archs: tuple[str, ...],
    words: str | None,
) -> None:  # fmt: skip
    make_up(cuda=gpus())
    monkeypatch.setattr(devices, "capability", lambda device: capability)
    monkeypatch.setattr(devices, "code_archs", lambda: archs)
    if words is None:
        devices.check_code(CUDA)
        return
    with pytest.raises(UsageError, match=words) as refused:
        devices.check_code(CUDA)
    assert "http" not in str(refused.value)
    assert ".org" not in str(refused.value)


def test_tf32_only_where_a_gpu_may_use_it(make_up: MakeUp) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        devices.allow_tf32(devices.CPU, True)
        assert torch.get_float32_matmul_precision() == before
        devices.allow_tf32(CUDA, True)
        assert torch.get_float32_matmul_precision() == "high"
        devices.allow_tf32(CUDA, False)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = True
