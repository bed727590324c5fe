"""Describe the device, and measure what it can reach at most: matrix products, copies, launches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from benchmark_machine import describe_machine
from benchmark_networks import now, product_rate

from gpu_report.datasheet import datasheet
from gpu_report.job import Job, Tell
from hpc_tumor.errors import UsageError
from hpc_tumor.system import devices
from hpc_tumor.system.processes import run_quietly
from hpc_tumor.training.recipe import choose_precision, prepare_backend

SIDES = (2048, 4096, 8192)  # of the matrices
COPIED = 2**30  # bytes, more than any cache
_WARM_UP = 0.5  # seconds until clocks and power have risen
LAUNCHES = 200  # fewer than the queue of a GPU holds
_SMI = ("driver_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
        "temperature.gpu")  # fmt: skip
_COMPUTES = 1e-4  # relative error of a float32 product


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Describe the machine and measure its ceilings."""
    tell(machine=describe_machine(), torch=torch.__version__, commit=_commit())
    device = devices.CPU if job.device == "cpu" else devices.find_gpu()
    if device is None:
        raise SystemExit(f"torch {torch.__version__} finds no GPU: run this where one is (on a cluster: in a job)")
    if devices.is_gpu(device):
        _check_code(device, tell)
    began = time.perf_counter()
    torch.zeros(1, device=device)
    tell(context_seconds=time.perf_counter() - began, start_seconds=_age(), **_describe(device))
    formats = _formats(device)
    tell(device=str(device), formats=formats, gpus=devices.count_gpus(), graphs=devices.has_graphs(device))
    _check_numbers(device, tell)
    tell(idle=_clocks(device))
    sides = SIDES if not job.quick else (256,)
    for name, kind, mode in _products(formats, device):
        prepare_backend(device, mode)
        tell(product_flops={name: product_rate(kind, device, sides=sides)})
    if devices.is_gpu(device):
        tell(loaded=_while_busy(device, lambda: _clocks(device)))
    tell(copy_bytes=_copy_rates(device, 2**24 if job.quick else COPIED), launch_us=_launch_us(device))


def _describe(device: torch.device) -> dict[str, Any]:
    """Return the facts of the device that torch knows."""
    if device.type != "cuda":
        memory = devices.total_memory(device) / 1e9 if devices.is_gpu(device) else None
        return {"name": devices.name(device), "memory_gb": memory}
    about = torch.cuda.get_device_properties(device)
    architecture = about.gcnArchName if devices.is_amd(device) else None
    return {
        "name": about.name, "memory_gb": about.total_memory / 1e9, "multiprocessors": about.multi_processor_count,
        "capability": f"{about.major}.{about.minor}", "architecture": architecture,
        "cuda": torch.version.cuda, "rocm": torch.version.hip, "cudnn": torch.backends.cudnn.version(),
        "nccl": devices.nccl_version(), "built_for": torch.cuda.get_arch_list(), "datasheet": datasheet(about.name),
    }  # fmt: skip


def _commit() -> str | None:
    done = run_quietly("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD", seconds=5)
    return done.stdout.strip() or None if done is not None else None


def _age() -> float:
    """Return the seconds since this process was started; 0 where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _formats(device: torch.device) -> list[str]:
    """Return the number formats of the device, the one that `auto` chooses first."""
    names = [choose_precision("auto", device).name]
    for name in ("bfloat16", "float16", "float32"):
        try:
            names.append(choose_precision(name, device).name)
        except UsageError:
            continue
    return list(dict.fromkeys(names))


def _products(formats: list[str], device: torch.device) -> list[tuple[str, torch.dtype, str]]:
    """Return name, type and precision setting of the matrix products to time; TensorFloat-32 is a way of float32."""
    products = [(name, getattr(torch, name), name) for name in formats]
    return products if device.type == "cpu" else [*products, ("tf32", torch.float32, "auto")]


def _check_numbers(device: torch.device, tell: Tell) -> None:
    """Check that the device computes at all."""
    prepare_backend(device, "float32")
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    exact = a.double() @ b.double()
    error = ((a.to(device) @ b.to(device)).cpu().double() - exact).norm() / exact.norm()
    tell.check("computes a product of matrices", bool(error <= _COMPUTES), value=float(error), limit=_COMPUTES)


def _check_code(device: torch.device, tell: Tell) -> None:
    """Check that torch has code for this GPU; raise UsageError if not, since no kernel would run."""
    name = "torch has code for this GPU"
    try:
        devices.check_code(device)
    except UsageError as error:
        tell.check(name, False, why=str(error))
        raise
    tell.check(name, True)


def _clocks(device: torch.device) -> dict[str, str] | None:
    """Return clocks, power and temperature as nvidia-smi or torch tells them; None if neither does."""
    if name := devices.smi_name(device):
        query = f"--query-gpu={','.join(_SMI)}"
        done = run_quietly("nvidia-smi", query, "--format=csv,noheader", f"--id={name}", seconds=15)
        if done is not None and done.returncode == 0:
            return dict(zip(_SMI, (text.strip() for text in done.stdout.strip().split(",")), strict=False))
    try:  # AMD's, through its own library
        return {
            "clocks.sm": f"{torch.cuda.clock_rate(device)} MHz", "power.draw": f"{torch.cuda.power_draw(device)} mW",
            "temperature.gpu": f"{torch.cuda.temperature(device)} °C",
        }  # fmt: skip
    except Exception:  # the library is missing, or does not know the device
        return None


def _while_busy(device: torch.device, look: Callable[[], Any]) -> Any:
    """Return the result of `look` while the device multiplies matrices."""
    a = torch.randn(4096, 4096, device=device)
    with ThreadPoolExecutor(1) as pool:
        seen, began = None, time.perf_counter()
        while seen is None or not seen.done():
            torch.mm(a, a)
            devices.synchronize(device)
            if seen is None and time.perf_counter() - began > _WARM_UP:
                seen = pool.submit(look)
        return seen.result()


def _copy_rates(device: torch.device, size: int) -> dict[str, float]:
    """Return bytes a second: within the device (read and written), from and to pinned host memory."""
    there = torch.empty(size, dtype=torch.uint8, device=device)
    beside = torch.empty_like(there)
    rates = {"device": 2 * size / _best(lambda: beside.copy_(there), device)}
    if devices.is_gpu(device):
        host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=True)
        part = there[: size // 4]
        rates["to device"] = size / 4 / _best(lambda: part.copy_(host, non_blocking=True), device)
        rates["from device"] = size / 4 / _best(lambda: host.copy_(part, non_blocking=True), device)
    return rates


def _best(call: Callable[[], Any], device: torch.device) -> float:
    """Return the fewest seconds of a call."""
    times = []
    for _ in range(4):
        began = now(device)
        for _ in range(5):
            call()
        times.append((now(device) - began) / 5)
    return min(times[1:])


def _launch_us(device: torch.device) -> float:
    """Return the microseconds that the host needs for the smallest operation."""
    one = torch.zeros(1, device=device)
    times = []
    for _ in range(5):
        began = now(device)
        for _ in range(LAUNCHES):
            one.add_(1)
        times.append((time.perf_counter() - began) / LAUNCHES)
    return 1e6 * min(times)
