"""Estimates of tools/roofline.py from counts: limited by memory, products or the host, and summed over the study."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from gpu_report.counting import Kernel  # noqa: E402
from gpu_report.study import total  # noqa: E402
from roofline import Assumed, Count, device_seconds, estimate, fastest_ways, study_seconds  # noqa: E402

PEAKS = {"memory": 2e12, "bfloat16": 1e15, "float32": 5e13}
ASSUMED = Assumed(memory=0.5, products=0.1, own=0.05, grouped=0.2, kernel=1e-6, launch=1e-5, graph=1e-3)
# So 1 TB/s, and 100, 50 (own) and 10 TFLOP/s (grouped).
MOVES, COMPUTES, TINY = Kernel("add", 10**9), Kernel("mm", 10**6, 10**12), Kernel("fill", 4)


def counted(network: str = "unet", way: str = "eager", kernels: int = 100, step: list[Kernel] | None = None) -> Count:
    given = [MOVES] if step is None else step
    large = network == "unet"
    return Count(network, way, 32, 0.0, kernels, 1, kernels, 0.0, 0.0, 10**9, large, given, 64, [MOVES])


def test_each_kernel_is_limited_by_memory_products_or_its_start() -> None:
    assert device_seconds([MOVES], 0, PEAKS, ASSUMED) == pytest.approx(1e-3)
    assert device_seconds([COMPUTES], 0, PEAKS, ASSUMED) == pytest.approx(1e-2)
    grouped = Kernel("convolution", 10**6, 10**12, grouped=True)
    assert device_seconds([grouped], 0, PEAKS, ASSUMED) == pytest.approx(1e-1)
    assert device_seconds([TINY], 0, PEAKS, ASSUMED) == pytest.approx(1e-6)
    assert device_seconds([MOVES, COMPUTES, TINY], 0, PEAKS, ASSUMED) == pytest.approx(1e-3 + 1e-2 + 1e-6)


def test_products_that_no_operation_computes_are_those_of_tritons_kernels() -> None:
    fused = Kernel("pointwise", 10**9, generated=True)
    assert device_seconds([fused, COMPUTES], 1e12, PEAKS, ASSUMED) == pytest.approx(1e-3 + 1e-2)
    assert device_seconds([fused, COMPUTES], 3e12, PEAKS, ASSUMED) == pytest.approx(4e-2 + 1e-2)
    assert device_seconds([COMPUTES], 3e12, PEAKS, ASSUMED) == pytest.approx(1e-2)


def test_a_step_waits_for_the_host_unless_it_is_a_graph() -> None:
    found = estimate(counted(kernels=1000, step=[MOVES, MOVES]), PEAKS, ASSUMED)
    assert (found.by_bytes, found.by_flop) == (1e-3, 0)
    assert (found.device, found.launched, found.graph) == pytest.approx((2e-3, 1e-2, 2e-3))
    assert estimate(counted(step=[TINY]), PEAKS, ASSUMED).graph == 1e-3


def test_a_run_is_the_sum_of_its_parts() -> None:
    found = estimate(counted(), PEAKS, ASSUMED).run
    assert found["training"] == pytest.approx(20 * 720 * 1e-3)
    assert found["validation"] == pytest.approx(20 * 33 * 155 * 1e-3 / 64)
    assert found["test"] == pytest.approx(2 * 37 * 155 * 1e-3 / 64)
    assert found["checkpoints"] == pytest.approx(0.05)  # one: the run takes less than a minute
    assert found["reading"] == 0  # faster than training
    assert found["start"] == ASSUMED.start
    assert estimate(counted(way="compiled"), PEAKS, ASSUMED).run["start"] == ASSUMED.start + ASSUMED.compiling


def test_the_study_takes_the_faster_way_of_each_network_one_after_the_other() -> None:
    counts = [counted(), counted(way="compiled", step=[TINY]), counted("vit")]
    rows = [(count, estimate(count, PEAKS, ASSUMED)) for count in counts]
    best = fastest_ways(rows)
    assert {name: count.way for name, (count, _) in best.items()} == {"unet": "eager", "vit": "eager"}
    after = 37 * ASSUMED.surfaces + ASSUMED.pictures
    assert study_seconds(best, ASSUMED) == pytest.approx(total(rows[0][1].run) + total(rows[2][1].run) + after)


def test_small_networks_beside_a_large_one_cost_only_their_kernels() -> None:
    rows = [(count, estimate(count, PEAKS, ASSUMED)) for count in (counted(), counted("vit", step=[TINY]))]
    (_, large), (_, small) = rows
    kernels = small.run["validation"] + small.run["test"] + 50 * 157 * ASSUMED.kernel
    after = 37 * ASSUMED.surfaces + ASSUMED.pictures
    assert study_seconds(fastest_ways(rows), ASSUMED, shared=True) == pytest.approx(total(large.run) + kernels + after)
    alone = fastest_ways(rows[1:])
    assert study_seconds(alone, ASSUMED, shared=True) == study_seconds(alone, ASSUMED)


@pytest.mark.slow
def test_a_gpu_without_datasheet_is_refused() -> None:
    command = [sys.executable, "tools/roofline.py", "--gpu", "NVIDIA GeForce RTX 3060"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'NVIDIA GeForce RTX 3060' has no datasheet in tools/gpu_report/datasheet.py" in done.stderr
