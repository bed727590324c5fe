"""Checks of tools/gpu_report on a GPU that computes nothing: they fail for numbers, and hold for everything else."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import NullGpu

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
from gpu_report.job import Job  # noqa: E402

Checks = dict[str, dict[str, Any]]


class Collected:
    """Stands in for `Tell`."""

    def __init__(self) -> None:
        self.checks: Checks = {}
        self.values: dict[str, Any] = {}

    def __call__(self, **values: Any) -> None:
        self.values.update(values)

    def check(self, name: str, passed: bool | None, **details: Any) -> None:
        self.checks[name] = {"passed": passed, **details}


def measure(part: str, item: dict[str, str], job: Job) -> Checks:
    """Return the checks of one item of a part."""
    import child  # noqa: F401 - switches off what the stubs lack

    tell = Collected()
    import_module(f"gpu_report.{part}").measure(item, job, tell)
    return {**tell.checks, "values": tell.values} if part == "steps" else tell.checks


@pytest.fixture
def job(stores: dict[str, Path], tmp_path: Path) -> Job:
    for task, store in stores.items():
        (tmp_path / f"{task}.zarr").symlink_to(store)
    return Job("cuda:0", True, str(tmp_path), ("bfloat16", "float32"))


@pytest.mark.slow
def test_losses_and_gradients_that_are_zero_fail(null_gpu: NullGpu, job: Job) -> None:
    checks = null_gpu.call(measure, "numbers", {"network": "alexnet"}, job)
    assert sorted(checks) == [f"{kind}: {what}" for kind in job.formats for what in ("gradients", "loss")]
    assert not any(check["passed"] for check in checks.values())


@pytest.mark.slow
def test_weights_that_nothing_computes_do_not_pass_as_equal(null_gpu: NullGpu, job: Job) -> None:
    checks = null_gpu.call(measure, "resume", {"network": "cnn"}, job)
    assert checks["steps were replayed as a CUDA graph"]["passed"]
    assert checks["stopped within an epoch, and resumed there"]["passed"]
    same = checks["the same bits as without the interruption"]
    assert (same["passed"], same["why"]) == (False, "nothing was computed, so equality means nothing")


@pytest.mark.slow
@pytest.mark.parametrize("network", ["cnn", pytest.param("unet", marks=pytest.mark.campaign)])
def test_steps_wait_for_nothing_but_have_no_losses(null_gpu: NullGpu, job: Job, network: str) -> None:
    checks = null_gpu.call(measure, "assertions", {"network": network}, job)
    for name in ("keep=gpu", "keep=host", "keep=none", "CUDA graph"):
        assert checks[f"{name}: no hidden wait"]["passed"]
        assert not checks[f"{name}: losses are finite and above 0"]["passed"]
        # The profiler needs a library of the driver that the null GPU lacks.
        assert checks[f"{name}: no copy from or to pageable memory"]["passed"] is None
    assert checks["CUDA graph: the host starts few operations"]["passed"] is None
    races = checks["losses have the same bits however samples are kept"]
    assert (races["passed"], races["why"]) == (False, "nothing was computed, so equality means nothing")


@pytest.mark.slow
def test_steps_are_counted_without_their_numbers(null_gpu: NullGpu, job: Job) -> None:
    item = {"network": "cnn", "format": "bfloat16", "variant": "eager"}
    found = null_gpu.call(measure, "steps", item, job)
    values = found.pop("values")
    assert {name: check["passed"] for name, check in found.items()} == {"losses are finite and above 0": False}
    assert values["batch"] == 4
    assert values["operations"] > 50
    assert min(values[name] for name in ("step_ms", "host_ms", "gflop", "gbytes", "memory_gb")) > 0
    assert "no kernels" in values["not_profiled"]


def count_graph(job: Job, waits: bool) -> tuple[Checks, tuple[int, bool, bool]]:
    """Return the checks of the part, its captures, whether graphs were replayed, and whether they had many kernels."""
    from child import watched
    from gpu_report import graph, steps

    tell = Collected()
    if waits:
        graph.backward = lambda *given: (loss := steps.backward(*given)) + loss.item()
    with watched() as watch, pytest.raises(RuntimeError, match="capturing") if waits else nullcontext():
        graph.measure({"network": "cnn"}, job, tell)  # type: ignore[arg-type]
    counts = watch.captures, watch.graph_launches > 0, watch.graph_kernels > 50 * watch.graph_launches
    return tell.checks, counts


@pytest.mark.slow
def test_a_graph_is_captured_without_its_numbers(null_gpu: NullGpu, job: Job) -> None:
    checks, counts = null_gpu.call(count_graph, job, False)
    assert counts == (1, True, True)
    assert [check["passed"] for check in checks.values()] == [True, False]
    assert list(checks.values())[1]["why"] == "nothing was computed, so equality means nothing"


def test_a_step_that_waits_cannot_be_captured_and_says_why(null_gpu: NullGpu, job: Job) -> None:
    checks, counts = null_gpu.call(count_graph, job, True)
    assert counts == (1, False, False)
    ((passed, why),) = [(check["passed"], check["why"]) for check in checks.values()]
    assert not passed
    assert "capturing" in why
    assert "\n" not in why


@pytest.mark.slow
def test_planted_faults_are_noticed(null_gpu: NullGpu, job: Job) -> None:
    checks = null_gpu.call(measure, "assertions", {"planted": "faults"}, job)
    assert checks["a planted wait is noticed"]["passed"]
    assert checks["planted mixed devices are noticed"]["passed"]


def test_running_out_of_memory_is_explained(null_gpu: NullGpu, job: Job) -> None:
    (check,) = null_gpu.call(measure, "assertions", {"memory": "runs out"}, job, name="NVIDIA A100").values()
    assert check["passed"], check["why"]


def wait_in(place: str, job: Job) -> str | None:
    """Return what the check says of a step that waits."""
    import child  # noqa: F401 - switches off what the stubs lack
    from gpu_report.assertions import find_wait
    from gpu_report.work import Running, experiment_of

    running = Running(experiment_of("cnn", job), job)
    running.step()
    one = torch.ones(1, device=running.device)
    running.state.watched = lambda phase: one.item() if phase == place else None  # type: ignore[return-value]
    return find_wait(running.step)


@pytest.mark.slow
def test_a_wait_in_a_step_is_found_with_its_place(null_gpu: NullGpu, job: Job) -> None:
    found = null_gpu.call(wait_in, "metrics", job)
    assert found is not None
    assert "step.py:" in found
    assert null_gpu.call(wait_in, "never", job) is None


def test_a_gpu_that_torch_has_no_code_for_is_reported(null_gpu: NullGpu, job: Job) -> None:
    from processes import NullGpuError

    with pytest.raises(NullGpuError, match="has no code for sm_37"):
        null_gpu.call(measure, "machine", {"what": "device"}, job, capability=3.7, name="Tesla K80")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("item", "waits"),
    [
        pytest.param({"ranks": "2", "on": "a GPU each"}, True, marks=pytest.mark.campaign),
        ({"ranks": "2", "on": "a GPU each", "steps": "CUDA graph"}, True),
        pytest.param({"ranks": "1", "on": "a GPU each"}, True, marks=pytest.mark.campaign),
        pytest.param({"ranks": "2", "on": "one GPU"}, False, marks=pytest.mark.campaign),
    ],
)
def test_ranks_agree_but_their_weights_mean_nothing(
    null_gpu: NullGpu, job: Job, item: dict[str, str], waits: bool
) -> None:
    path = {"PYTHONPATH": ":".join([str(TOOLS), str(TOOLS.parent)])}
    checks = null_gpu.call(measure, "ranks", item, job, devices=2, variables=path)
    for network in ("unet", "improved-unet"):
        assert checks[f"{network}: all ranks have the same weights"]["passed"]
        assert not checks[f"{network}: the weights of one rank"]["passed"]
        assert (f"{network}: no hidden wait on any rank" in checks) == waits
        assert checks.get(f"{network}: steps were replayed as a CUDA graph", {"passed": True})["passed"]
        assert (f"{network}: steps were replayed as a CUDA graph" in checks) == ("steps" in item)
    if waits:
        assert checks["unet: no hidden wait on any rank"]["passed"]
