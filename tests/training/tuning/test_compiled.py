"""Conditions under which a step is compiled, and training with compiled steps."""

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_runs import new_run, scores, spawn, train_here

from hpc_tumor.errors import UsageError
from hpc_tumor.models import MODELS
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import compilers
from hpc_tumor.training.batch_norm import synchronise_batch_norm
from hpc_tumor.training.checkpoints.files import load_checkpoint
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.tuning import compiled

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
PLAIN = 100.0  # seconds of a step that is not compiled: 6 steps of a run take ten minutes
COMPILING = 300.0


def prepared(tmp_path: Path, store: Path, **hardware: Any) -> TrainingState:
    run = new_run(tmp_path, store, "unet", hardware=hardware)
    return build_state(run.experiment(), run, Distributed())


class SlowGpu:
    """Makes states look as if they were on a GPU, where steps and compiling take the seconds that a test wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path):
        self.seconds = {False: PLAIN, True: PLAIN / 2}
        self.compiling: float | Exception = COMPILING
        self.timed: list[str] = []
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *package: name == "triton" or find_spec(name, *package)
        )
        monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(cache))
        monkeypatch.setenv(compilers.INDUCTOR, str(cache / "inductor"))
        monkeypatch.setattr(compiled, "step_seconds", self.time_steps)
        monkeypatch.setattr(compiled, "compile_objective", self.compile)
        monkeypatch.setattr(compiled.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(1))
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        self.now = 0.0

    def choose(self, state: TrainingState, before: bool | None = None) -> str:
        state.objective.compiled = None
        state.distributed = SimpleNamespace(  # type: ignore[assignment]
            device=torch.device("cuda"), is_main=True, rank=0, world_size=1, nodes=1, gather=lambda value: [value],
            mark=lambda *_, **__: None,
        )  # fmt: skip
        answer = compiled.choose(state, before)
        assert answer.startswith("on" if state.objective.compiled is not None else "off")
        return answer

    def time_steps(self, state: TrainingState, step: Callable[[], object]) -> float:
        fast = state.objective.compiled is not None
        self.timed.append("compiled" if fast else "plain")
        return self.seconds[fast]

    def compile(self, objective: Any, samples: int) -> None:
        self.timed.append("compiling")

        def first(images: torch.Tensor, targets: torch.Tensor) -> Any:
            if isinstance(self.compiling, Exception):
                raise self.compiling
            self.now += self.compiling
            return objective.compute(images, targets)

        objective.compiled, objective.compiled_samples = first, samples


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SlowGpu:
    return SlowGpu(monkeypatch, tmp_path / "cache")


@pytest.fixture
def state(tmp_path: Path, slice_store: Path) -> TrainingState:
    """A run of 6 steps."""
    return prepared(tmp_path, slice_store, deterministic=False)


def test_on_cpus_only_on_request(state: TrainingState) -> None:
    assert compiled.choose(state) == "off, slower on CPUs"
    assert state.objective.compiled is None


def test_a_request_without_a_compiler_is_refused(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"hardware.compile = 'on' needs a C\+\+ compiler"):
        prepared(tmp_path, slice_store, compile="on")


def test_gpus_are_measured_once(gpu: SlowGpu, state: TrainingState) -> None:
    assert gpu.choose(state) == "on, 2.00 × as fast, measured now; its results differ by rounding"
    assert gpu.timed == ["plain", "compiling", "compiled"]
    assert gpu.choose(state) == "on, 2.00 × as fast, measured before; its results differ by rounding"
    assert gpu.timed[3:] == ["compiling"]


def test_what_is_not_faster_is_not_compiled_again(gpu: SlowGpu, state: TrainingState) -> None:
    gpu.seconds[True] = 0.99 * PLAIN
    assert gpu.choose(state) == "off, 1.01 × as fast, measured now"
    assert gpu.choose(state) == "off, 1.01 × as fast, measured before"
    assert gpu.timed == ["plain", "compiling", "compiled"]


def test_compiling_must_save_more_than_it_takes(gpu: SlowGpu, state: TrainingState, tmp_path: Path) -> None:
    """6 steps save 300 seconds, which is not more than what compiling takes: but with filled caches it takes less."""
    assert gpu.choose(state).startswith("on")
    assert gpu.choose(state).startswith("on")  # and now it is known how long it takes with the caches
    state.progress.epoch = 1
    assert gpu.choose(state) == "off, 2.00 × as fast, measured before, but compiling takes 5 min to save 2 min"
    shutil.rmtree(tmp_path / "cache" / "inductor")  # with what was measured of it
    state.progress.epoch = 0
    assert "but compiling takes 5 min to save 5 min" in gpu.choose(state)


def test_filled_caches_are_expected_to_save_most_of_it(gpu: SlowGpu, state: TrainingState) -> None:
    gpu.choose(state)
    state.progress.epoch = 1  # 3 steps left save 150 seconds
    assert gpu.choose(state).startswith("on")


def test_short_runs_are_not_tried(gpu: SlowGpu, state: TrainingState) -> None:
    gpu.seconds = {False: 1.0, True: 0.1}
    assert gpu.choose(state) == "off, 6.0 s of training are too short to try it"
    assert gpu.timed == ["plain"]


def test_deterministic_runs_are_not_timed(gpu: SlowGpu, tmp_path: Path, slice_store: Path) -> None:
    state = prepared(tmp_path, slice_store, deterministic=True)
    assert gpu.choose(state) == "off, a choice by timing would not be deterministic"
    assert gpu.timed == []


def test_a_resumed_run_stays_as_it_was(gpu: SlowGpu, state: TrainingState, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.choose(state, False) == "off, as before this run was interrupted"
    assert gpu.choose(state, True).startswith("on, as before this run was interrupted")
    assert gpu.timed == ["compiling"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert "needs a C compiler (gcc, clang, or one that CC names) on " in gpu.choose(state, True)
    assert gpu.choose(state, True).endswith(", unlike before this run was interrupted: its results differ by rounding")


def test_what_cannot_be_compiled_is_trained_as_it_is(gpu: SlowGpu, state: TrainingState) -> None:
    gpu.compiling = KeyError("a kernel")
    assert gpu.choose(state) == "off, compiling failed (KeyError)"


def test_trying_leaves_no_trace(gpu: SlowGpu, tmp_path: Path, image_store: Path) -> None:
    """`cnn` has batch norm and dropout."""
    run = new_run(tmp_path, image_store, "cnn", hardware={"deterministic": False}, data={"image_size": 72})
    state = build_state(run.experiment(), run, Distributed())
    before, drawn = {name: value.clone() for name, value in state.network.state_dict().items()}, torch.get_rng_state()
    assert gpu.choose(state).startswith("on")
    assert all(torch.equal(before[name], value) for name, value in state.network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(weights.grad is None for weights in state.parameters)


def test_compiled_code_is_kept_for_later_runs(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (compilers.INDUCTOR, compilers.TRITON):
        monkeypatch.setenv(variable, "")  # restored afterwards
        monkeypatch.delenv(variable)
    monkeypatch.setattr(compilers, "missing_for_cpu", lambda: None)
    monkeypatch.setattr(compiled, "compile_objective", lambda *_: None)
    prepared(tmp_path, slice_store, compile="on")
    assert Path(os.environ[compilers.INDUCTOR]).is_relative_to(os.environ["HPC_TUMOR_CACHE_DIR"])


@pytest.mark.slow
@needs_compiler
def test_compiled_steps_train_as_plain_ones_and_go_on_compiled(tmp_path: Path, slice_store: Path) -> None:
    recipe = {"optimizer": "sgd", "learning_rate": 1e-2}
    runs: dict[str, RunDir] = {}
    for choice in ("off", "on"):
        run = runs[choice] = new_run(
            tmp_path / choice, slice_store, "unet", recipe=recipe, hardware={"compile": choice}
        )
        train_here(run, stop_at=1)
        settings = json.loads(run.config.read_text())
        settings["hardware"]["compile"] = "auto" if choice == "on" else "off"
        run.config.write_text(json.dumps(settings))
        train_here(run)
    for plain, fast in zip(scores(runs["off"]), scores(runs["on"]), strict=True):
        assert fast["loss"] == pytest.approx(plain["loss"], rel=1e-3)
    assert load_checkpoint(runs["on"].last_checkpoint, torch.device("cpu"))["compiled"]
    assert json.loads(runs["on"].result.read_text())["compiled"]
    assert [event["compiled"] for event in runs["on"].read_events("started")] == [True]


def gradients_of_both(distributed: Distributed, path: Path) -> None:
    """Compare gradients and running statistics of a compiled step with those of a plain one, on each rank."""
    run = RunDir(path)
    state = build_state(run.experiment(), run, distributed)
    synchronise_batch_norm(state.network)  # as on GPUs
    for layer in state.network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    batch, buffers = state.parts.first_batch(0), list(state.network.buffers())
    start, results = [buffer.clone() for buffer in buffers], []
    for _ in range(2):
        for buffer, value in zip(buffers, start, strict=True):
            buffer.copy_(value)
        state.optimizer.zero_grad(set_to_none=True)
        losses, counts = state.wrapped(batch.images, batch.targets)
        losses.sum().backward()
        gradients = torch.cat([weights.grad.flatten() for weights in state.parameters if weights.grad is not None])
        results.append((losses.detach(), *counts.values(), gradients.clone(), *[buffer.clone() for buffer in buffers]))
        compute = torch.compile(state.objective.compute, fullgraph=True, dynamic=False, backend="aot_eager")
        state.objective.compiled, state.objective.compiled_samples = compute, len(batch.images)
    for plain, fast in zip(*results, strict=True):
        error, size = (fast - plain).double().norm(), plain.double().norm()
        assert error <= 1e-3 * size, (path, error, size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=() if name in ("cnn", "unet") else pytest.mark.campaign) for name in MODELS],
)
def test_ranks_compile_one_graph_within_ddp(model: str, tmp_path: Path, slice_store: Path, image_store: Path) -> None:
    """Its gradients are those of plain steps, with the all-reduces of synchronised batch norm in the graph."""
    store = image_store if MODELS[model].task == "classification" else slice_store
    run = new_run(tmp_path, store, model, recipe={"batch_size": 5})
    spawn(gradients_of_both, 2, run.path)
