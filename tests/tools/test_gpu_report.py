"""The report on a GPU: valid whenever it ends, honest about what is missing, and with checks that can fail."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from gpu_report import graph, numbers  # noqa: E402
from gpu_report.conductor import Conductor  # noqa: E402
from gpu_report.counting import BytesMode, summarise  # noqa: E402
from gpu_report.datasheet import datasheet  # noqa: E402
from gpu_report.job import Job  # noqa: E402
from gpu_report.plan import Part, first_parts, other_parts  # noqa: E402
from gpu_report.report import Report, checks, missing  # noqa: E402
from gpu_report.study import EPOCHS, study  # noqa: E402
from gpu_report.tables import render  # noqa: E402

from hpc_tumor.models import MODELS, build_model  # noqa: E402
from hpc_tumor.settings import preset  # noqa: E402

ABOUT = {"began": "now", "minutes": 1.0, "device": "cpu", "quick": True}
STATES = {"not run", "running", "done", "failed"}
# A part whose items do what their names say.
PART = """
import os, signal, time
def measure(item, job, tell):
    tell(before={item["does"]: 1})
    tell.check("begun", True)
    match item["does"]:
        case "raise": raise ValueError("no kernel image")
        case "crash": os.kill(os.getpid(), signal.SIGSEGV)
        case "hang": time.sleep(60)
        case "print": print("to stdout, which is the conductor's"); os.system("echo from a child")
    tell(after=2)
"""


@pytest.fixture
def conductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """Run a part of these items, and return its report."""
    (tmp_path / "acting.py").write_text(PART)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT / "tools"), str(ROOT)]))

    def run(*does: str, cut: str | None = None, seconds: float = 60.0, module: str = "acting") -> Report:
        report = Report(tmp_path, ABOUT, render)
        part = Part("acting", "A part", module, tuple({"does": what} for what in does), 1.0, needs=())
        report.plan([part])
        deadline = time.monotonic() + seconds
        Conductor(report, deadline, lambda: cut, tmp_path / "log.txt").run(part, Job("cpu", True, str(tmp_path)))
        assert json.loads(report.json.read_text()) == json.loads(json.dumps(report.values))
        return report

    return run


@pytest.mark.slow
def test_what_an_item_has_told_stays_whatever_happens_to_it(conductor: Callable[..., Report], tmp_path: Path) -> None:
    report = conductor("print", "raise", "crash", "hang", "end")
    items = report.items("acting")
    assert {name: item["state"] for name, item in items.items()} == {
        "print": "done", "raise": "failed", "crash": "failed", "hang": "failed", "end": "done",
    }  # fmt: skip
    assert all(item["before"] == {name: 1} for name, item in items.items())
    assert [name for name, item in items.items() if "after" in item] == ["print", "end"]
    assert items["raise"]["error"] == "ValueError: no kernel image"
    assert items["crash"]["error"].startswith("its process was ended by SIGSEGV")
    assert items["hang"]["error"].startswith("took longer than its limit")
    assert report.values["parts"]["acting"]["state"] == "incomplete"
    assert "from a child" in (tmp_path / "log.txt").read_text()
    text = report.markdown.read_text()
    assert "| acting | crash | its process was ended by SIGSEGV" in text
    assert "3 measurements missing" in text


def test_a_part_that_cannot_start_fails_as_a_whole(conductor: Callable[..., Report]) -> None:
    report = conductor("one", "two", module="no_such_module")
    why = "ModuleNotFoundError: No module named 'no_such_module'"
    assert [reason for _, _, reason in missing(report.values)] == [why, why]


@pytest.mark.slow
def test_a_part_that_is_cut_short_says_so(conductor: Callable[..., Report]) -> None:
    report = conductor("end", "hang", "never", seconds=4.0)
    reasons = {item: why for _, item, why in missing(report.values)}
    assert reasons.pop("hang").startswith(("cut short: out of time", "took longer"))
    assert set(reasons) <= {"end", "never"}  # a slow machine may not have begun
    assert [why for _, _, why in missing(conductor("end", cut="SIGTERM").values)] == ["not run"]


def test_a_part_without_what_it_needs_does_not_run(tmp_path: Path) -> None:
    report = Report(tmp_path, ABOUT, render)
    parts = [*first_parts(), *other_parts(["unet"], ["float32"], "cpu", 0, True)]
    report.plan(parts)
    Conductor(report, time.monotonic() + 60, lambda: None, tmp_path / "log.txt").run(
        parts[2], Job("cpu", True, "/none")
    )
    assert report.items("assertions")["unet"]["error"] == "needs machine and data, which failed or did not run"


def command(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the report on the CPU."""
    return subprocess.Popen(
        [sys.executable, "-m", "gpu_report", "--device", "cpu", "--quick", "--networks", "alexnet",
         "--output", str(folder), *more],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "TMPDIR": str(folder.parent)},
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def check_report(folder: Path) -> dict[str, Any]:
    """Read the report, and check that every measurement has a state, and a reason if it is missing."""
    values: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert list(values["parts"])[:2] == ["machine", "data"]
    assert {item["state"] for part in values["parts"].values() for item in part["items"].values()} <= STATES
    text = (folder / "report.md").read_text()
    assert text.startswith("# GPU report: ")
    for part, item, _ in missing(values):
        assert f"| {part} | {item} |" in text
    return values


def left_behind(folder: Path) -> list[str]:
    """Return the command lines of processes that still mention the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def cut(folder: Path, signum: signal.Signals, seconds: float) -> None:
    """Start the report, send it a signal after some seconds, and check what it leaves."""
    process = command(folder)
    began = time.monotonic()
    while not (folder / "report.json").exists():
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    time.sleep(seconds)
    process.send_signal(signum)
    code = process.wait(30)
    values = check_report(folder)
    if signum == signal.SIGKILL:
        assert values["state"] == "running"
    elif values["state"] != "complete":  # it may have ended before the signal
        assert (code, values["state"], values["reason"]) == (2, "cut short", signum.name)
        assert not list(folder.parent.glob("gpu-report-*")), "the temporary folder stayed"
    deadline = time.monotonic() + 10
    while left_behind(folder.parent) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left_behind(folder.parent)


@pytest.mark.slow
def test_a_signal_leaves_a_valid_report_and_no_process(tmp_path: Path) -> None:
    cut(tmp_path / "report", signal.SIGTERM, 1.0)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(12))
def test_the_report_is_valid_whenever_it_is_killed(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    signum = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    cut(tmp_path / "report", signum, draw.uniform(0, 40))


@pytest.mark.slow
def test_a_trial_on_the_cpu_measures_everything_and_passes_all_checks(tmp_path: Path) -> None:
    parts = "assertions,steps,numbers,resume,study,feeding,ranks"
    process = command(tmp_path / "report", "--parts", parts, "--minutes", "20")
    code = process.wait(1200)
    values = check_report(tmp_path / "report")
    assert list(missing(values)) == []
    assert [check for check in checks(values) if check[2]["passed"] is not True] == []
    assert (code, values["state"]) == (0, "complete")
    step = values["parts"]["steps"]["items"][
        f"alexnet {values['parts']['machine']['items']['device']['formats'][0]} eager"
    ]
    assert step["step_ms"] > 0
    assert step["gflop"] > 0
    assert step["gbytes"] > 0


def test_every_network_is_in_every_part_once() -> None:
    parts = {part.name: part for part in other_parts(list(MODELS), ["bfloat16", "float16"], "cuda:0", 2, False)}
    for name in ("assertions", "steps", "numbers", "resume", "study", "variants", "graph", "formats"):
        networks = [item["network"] for item in parts[name].items if "network" in item]
        assert sorted(networks) == sorted(MODELS), name
    assert [item["ranks"] for item in parts["ranks"].items] == ["2", "2"]


class Collected:
    """Stands in for `Tell`."""

    def __init__(self) -> None:
        self.checks: dict[str, dict[str, Any]] = {}

    def __call__(self, **values: Any) -> None:
        pass

    def check(self, name: str, passed: bool | None, **details: Any) -> None:
        self.checks[name] = {"passed": passed, **details}


@pytest.mark.slow
def test_gradients_of_a_wrong_kernel_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare() -> dict[str, dict[str, Any]]:
        tell = Collected()
        numbers.measure({"network": "alexnet"}, Job("cpu", True, "/none"), tell)  # type: ignore[arg-type]
        return tell.checks

    right = compare()
    assert list(right) == ["float32: loss", "float32: gradients"]
    assert all(check["passed"] for check in right.values())
    # Only in the layout of this package: the plain network is not channels-last.
    plain = numbers.tested_network
    monkeypatch.setattr(numbers, "tested_network", lambda *given: double_first(plain(*given)))
    assert compare()["float32: gradients"]["passed"] is False


def test_a_network_without_dropout_draws_nothing_and_the_next_one_does() -> None:
    images = torch.rand(2, 1, 32, 32).expand(-1, 3, -1, -1)
    still, network = numbers.without_dropout(build_model("vit", image_size=32)), build_model("vit", image_size=32)
    assert torch.equal(still(images), still(images))
    assert not torch.equal(network(images), network(images))


def double_first(network: torch.nn.Module) -> torch.nn.Module:
    """Make a network's first gradient twice as large, once its weights are channels-last."""
    weights = next(network.parameters())
    weights.register_hook(lambda gradient: gradient * (1 + weights.is_contiguous(memory_format=torch.channels_last)))
    return network


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("control", [0.0, 1e-3, 5.0])
def test_gradients_that_are_zero_fail_whatever_the_control_says(kind: str, control: float) -> None:
    assert numbers.limit_of(kind, control) < 1


def result(loss: float, *gradients: float) -> tuple[float, torch.Tensor]:
    return loss, torch.tensor(gradients).double()


@pytest.mark.parametrize(
    ("found", "old", "passed"),
    [
        (result(2.0, 1.0, 3.0), result(1.5, 2.0, 1.0), True),
        (result(1.5, 2.0, 1.0), result(1.5, 2.0, 1.0), False),  # it ignores new contents
        (result(2.0, 1.0, 3.1), result(1.5, 2.0, 1.0), False),
        (result(0.0, 0.0, 0.0), result(1.5, 2.0, 1.0), False),
        (result(2.0, 1.0, 3.0), result(2.0, 1.0, 3.0), False),  # new contents could not be told from old ones
    ],
)
def test_a_graph_that_ignores_new_contents_fails(found: graph.Result, old: graph.Result, passed: bool) -> None:
    new = result(2.0, 1.0, 3.0)
    assert graph.judge(found, new, new, old, "bfloat16")[0] is passed


def test_zeros_of_a_graph_do_not_pass_as_equal() -> None:
    assert not graph.judge(*[result(0.0, 0.0, 0.0)] * 4, "bfloat16")[0]


def test_a_device_without_graphs_says_so() -> None:
    tell = Collected()
    graph.measure({"network": "alexnet"}, Job("cpu", True, "/none"), tell)  # type: ignore[arg-type]
    assert tell.checks[graph.CAPTURED]["passed"] is None


def test_the_table_of_graphs_has_what_was_measured() -> None:
    times = {"format": "bfloat16", "batch": 32, "ms": {"eager": 3.0, "graph": 2.0}}
    items = {"unet": {**times, "launches": {"eager": 412.0, "graph": 1.0}}, "vit": times, "cnn": {"format": "bfloat16"}}
    parts = {"graph": {"title": "", "state": "done", "items": {
        name: {"state": "done", "checks": [], **item} for name, item in items.items()
    }}}  # fmt: skip
    text = render({**ABOUT, "state": "complete", "reason": None, "seconds": 1.0, "parts": parts})
    assert "| unet | bfloat16 | 32 | 3.00 | 2.00 | 1.50 | 412 | 1 |" in text
    assert "| vit | bfloat16 | 32 | 3.00 | 2.00 | 1.50 | – | – |" in text
    assert "| cnn |" not in text


def test_bytes_are_those_of_the_tensors() -> None:
    x, weights, bias = torch.zeros(2, 3, 8, 8), torch.zeros(5, 3, 1, 1), torch.zeros(5)
    with BytesMode(torch.device("cpu")) as mode:
        x.view(-1).add_(1)
        assert dict(mode.bytes) == {"add_": 2 * x.nbytes}
        out = torch.nn.functional.conv2d(x, weights, bias)
        out.expand(2, 5, 8, 8)
    read, written = x.nbytes + weights.nbytes + bias.nbytes, out.nbytes
    assert mode.bytes["convolution"] == read + written
    assert mode.bytes["bias of a convolution"] == 2 * out.nbytes
    assert mode.operations == 2
    with BytesMode(torch.device("cpu")) as mode:
        torch.nn.functional.conv2d(x, weights[:3, :1], groups=3)
    assert [(kernel.name, kernel.grouped) for kernel in mode.kernels] == [("convolution", True)]
    with BytesMode(torch.device("cpu")) as mode, torch.inference_mode():
        torch.nn.functional.mish(torch.nn.functional.conv2d(x, weights, bias))
    assert mode.kernels[0].flop == 2 * 2 * 64 * 3 * 5
    assert mode.bytes["mish"] == 2 * out.nbytes  # one kernel, though made of others where a device has none


def event(key: str, count: int, device: str = "CPU", spent: float = 0.0, annotation: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        key=key, count=count, device_type=SimpleNamespace(name=device), self_device_time_total=spent,
        is_user_annotation=annotation,
    )  # fmt: skip


def test_a_profile_counts_launches_copies_and_waits_by_step() -> None:
    counts = summarise(
        [
            event("aten::add", 40), event("cudaLaunchKernel", 30), event("cuLaunchKernelEx", 3),
            event("cudaGraphLaunch", 3), event("cudaMemcpyAsync", 6), event("cudaMemsetAsync", 3),
            event("cudaStreamSynchronize", 3),
            event("cudaDeviceSynchronize", 1), event("cudaEventSynchronize", 3),
            event("gemm", 30, "CUDA", 600.0), event("Optimizer.step", 3, "CUDA", 300.0, annotation=True),
            event("Memcpy HtoD (Pageable -> Device)", 3, "CUDA", 9.0),
            event("Memcpy HtoD (Pinned -> Device)", 3, "CUDA", 9.0),
        ],
        steps=3,
    )  # fmt: skip
    assert (counts.launches, counts.graphs, counts.copies, counts.fills, counts.pageable) == (12, 1, 2, 1, 1)
    assert counts.waits == pytest.approx(4 / 3)  # events are not counted: of the step before, a step may wait for one
    assert counts.kernels == {"gemm": (200.0, 10.0)}
    assert not summarise([event("aten::add", 40)], steps=3).saw_device


def test_the_study_is_the_sum_of_measured_parts() -> None:
    step = {"step_ms": 10.0, "batch": 32, "built_seconds": 2.0, "first_step_seconds": 3.0}
    slow = {**step, "step_ms": 20.0}
    scored = {"val_seconds": 1.0, "val_samples": 1000, "test_seconds": 2.0, "test_samples": 1000,
              "save_stall_seconds": 0.1, "save_seconds": 0.2}  # fmt: skip
    values = {"parts": {
        "machine": {"items": {"device": {"start_seconds": 5.0}}},
        "steps": {"items": {"unet bfloat16 eager": slow, "vit bfloat16 eager": step}},
        "variants": {"items": {"unet bfloat16 compiled": step}},
        "study": {"items": {"unet": scored}},
        "feeding": {"items": {"segmentation none": {"images_per_second": 2000.0}}},
    }}  # fmt: skip
    found = study(values)
    unet = found["unet"]["seconds"]
    assert found["unet"]["variant"] == "bfloat16 compiled"
    assert unet["training"] == pytest.approx(20 * 720 * 0.01)
    assert unet["validation"] == pytest.approx(20 * 33 * 155 / 1000)
    assert unet["test"] == pytest.approx(37 * 155 * 2 / 1000)
    assert unet["checkpoints"] == pytest.approx(3 * 0.1)  # of 144 seconds
    assert unet["reading"] == pytest.approx(23_023 / 2000 - 7.2)
    assert unet["start"] == 10.0
    assert found["unet"]["total"] == pytest.approx(sum(unet.values()))
    assert found["vit"]["missing"] == ["validation", "test", "checkpoints", "reading"]
    assert set(found) == {"unet", "vit"}


def test_graphs_are_variants_where_the_device_has_them() -> None:
    found = {
        graphs: {part.name: part for part in other_parts(["vit"], ["bfloat16"], "cuda:0", 1, False, graphs)}["variants"]
        for graphs in (False, True)
    }
    assert [item["variant"] for item in found[False].items] == ["compiled"]
    assert [item["variant"] for item in found[True].items] == ["graph", "compiled", "compiled graph"]


@pytest.mark.parametrize("name", MODELS)
def test_the_study_has_the_epochs_of_the_recipes(name: str) -> None:
    assert preset(name)["recipe"]["epochs"] == EPOCHS[name]


def test_datasheets_are_found_by_the_names_that_torch_gives() -> None:
    assert datasheet("NVIDIA A100-SXM4-80GB") == pytest.approx(
        {"bfloat16": 312e12, "float16": 312e12, "float32": 19.5e12, "tf32": 156e12, "memory": 2.039e12}
    )
    memory = {
        "NVIDIA H100 PCIe": 2e12, "NVIDIA H100 NVL": 3.9e12, "NVIDIA H200": 4.8e12, "NVIDIA GH200 480GB": 4e12,
        "NVIDIA A100 80GB PCIe": 1.935e12, "NVIDIA A100-PCIE-40GB": 1.555e12, "Tesla V100-SXM2-32GB": 0.9e12,
        "NVIDIA L4": 0.3e12, "NVIDIA L40S": 0.864e12, "NVIDIA A40": 0.696e12, "Tesla T4": 0.32e12,
    }  # fmt: skip
    assert {name: datasheet(name)["memory"] for name in memory} == pytest.approx(memory)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3060", "NVIDIA RTX A1000", "NVIDIA RTX A4000", "NVIDIA T400"])
def test_a_gpu_whose_name_begins_like_another_has_no_datasheet(name: str) -> None:
    assert datasheet(name) is None
