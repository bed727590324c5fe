"""Conditions under which a step is compiled, and training with compiled steps."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_runs import new_run, scores, train_here

from hpc_tumor.errors import UsageError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.checkpoints.files import load_checkpoint
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.objective import Objective
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.tuning import compiled

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")


def prepared(tmp_path: Path, store: Path, **hardware: Any) -> TrainingState:
    run = new_run(tmp_path, store, "unet", hardware=hardware)
    return build_state(run.experiment(), run, Distributed())


def on_gpu(
    state: TrainingState, monkeypatch: pytest.MonkeyPatch, seconds: dict[bool, float], cache: Path
) -> list[bool]:
    """Let `state` look as if it were on a GPU, where a pass takes so long plain (False) and compiled (True)."""
    timed: list[bool] = []

    def time_it(_: TrainingState, objective: Objective) -> float:
        fast = objective.compiled is not None
        timed.append(fast)
        return seconds[fast]

    state.distributed = SimpleNamespace(  # type: ignore[assignment]
        device=torch.device("cuda"), is_main=True, rank=0, world_size=1, gather=lambda value: [value]
    )
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *package: name == "triton" or find_spec(name, *package)
    )
    monkeypatch.setenv("HPC_TUMOR_CACHE_DIR", str(cache))
    monkeypatch.setattr(compiled, "step_seconds", time_it)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    return timed


def test_on_cpus_only_where_it_is_asked_for(tmp_path: Path, slice_store: Path) -> None:
    assert not compiled.choose(prepared(tmp_path, slice_store))[0]


def test_asking_without_a_compiler_is_refused(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match=r"hardware.compile = 'on' needs a C\+\+ compiler"):
        prepared(tmp_path, slice_store, compile="on")


@pytest.mark.parametrize(
    ("seconds", "faster"), [({False: 100.0, True: 50.0}, True), ({False: 100.0, True: 99.0}, False)]
)
def test_gpus_are_measured_once(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, seconds: dict[bool, float], faster: bool
) -> None:
    state = prepared(tmp_path, slice_store, deterministic=False)
    timed = on_gpu(state, monkeypatch, seconds, tmp_path / "cache")
    answer, why = compiled.choose(state)
    assert (answer, timed) == (faster, [False, True])
    assert "measured now" in why
    assert compiled.choose(state) == (faster, why.replace("now", "before"))
    assert len(timed) == 2


def test_short_and_deterministic_runs_are_not_measured(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = prepared(tmp_path, slice_store, deterministic=False)
    timed = on_gpu(short, monkeypatch, {False: 0.01, True: 0.001}, tmp_path / "cache")
    assert compiled.choose(short) == (False, "the run is too short to gain from it")
    exact = prepared(tmp_path, slice_store)
    on_gpu(exact, monkeypatch, {False: 100.0, True: 1.0}, tmp_path / "cache")
    assert not compiled.choose(exact)[0]
    assert timed == [False]


def test_what_cannot_be_compiled_is_trained_as_it_is(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = prepared(tmp_path, slice_store, deterministic=False)
    on_gpu(state, monkeypatch, {False: 100.0}, tmp_path / "cache")
    assert compiled.choose(state) == (False, "compiling failed (KeyError)")


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
