"""Compiled networks on the null GPU: Inductor and Triton compile for it, and their kernels run in the step."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
import torch
from child import Watch, watched
from null_runs import join_ranks, null_run, skip_initial_values, watch_steps
from processes import NullGpu

from hpc_tumor.models import MODELS
from hpc_tumor.training.scoring.metrics import count_labels
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.tuning import compiled

FASTEST = "cnn"  # to compile


def watch_compiled(store: Path, model: str) -> Watch:
    return watch_steps(store, model, hardware={"compile": "on"})


@pytest.mark.campaign  # the ordinary run captures a compiled step of cnn in a graph: one that waits cannot be
@pytest.mark.parametrize("model", MODELS)
def test_compiled_steps_wait_for_nothing(
    model: str, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    watch = null_gpu.call(watch_compiled, stores[MODELS[model].task], model, variables=variables, timeout=550)
    assert watch.faults() == {}
    assert any(name.startswith("triton_") for name in watch.by_kernel)


def choose_again(store: Path) -> tuple[str, int, bool]:
    """Let a run decide whether to compile; return answer, captures, and if random numbers or gradients are left."""
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        run = null_run(Path(folder), store, FASTEST, hardware={"compile": "auto"})
        state = build_state(run.experiment(), run, join_ranks())
        drawn = torch.cuda.get_rng_state()
        with watched() as watch:
            answer = compiled.choose(state)
        left = any(weights.grad is not None for weights in state.parameters)
        return answer, watch.captures, left or not torch.equal(drawn, torch.cuda.get_rng_state())


@pytest.mark.slow
def test_ranks_time_their_steps_together_and_agree(null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path) -> None:
    variables = {"HPC_TUMOR_CACHE_DIR": str(tmp_path)}
    first, second = null_gpu.call(choose_again, stores[MODELS[FASTEST].task], ranks=2, variables=variables)
    assert first == second
    answer, captures, left = first
    assert re.fullmatch("off, .+ of training are too short to try it", answer)
    assert captures == 1
    assert not left


@pytest.mark.campaign
def test_compiled_steps_of_two_ranks_wait_for_nothing(
    null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    """With synchronised batch norm."""
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    store = stores[MODELS[FASTEST].task]
    watches = null_gpu.call(watch_compiled, store, FASTEST, ranks=2, variables=variables, timeout=550)
    assert [watch.faults() for watch in watches] == [{}, {}]
    assert all(not any("batch_norm" in name for name in watch.by_kernel) for watch in watches)


def count_compiled(exclusive: bool) -> tuple[int, ...]:
    logits, labels = torch.zeros(2, 3, 32, 32, device="cuda"), torch.zeros(2, 32, 32, dtype=torch.uint8, device="cuda")
    return tuple(torch.compile(count_labels, fullgraph=True)(logits, labels, exclusive).shape)


@pytest.mark.slow
@pytest.mark.parametrize("exclusive", [False, True])
def test_triton_accepts_the_code_that_counts_labels(null_gpu: NullGpu, tmp_path: Path, exclusive: bool) -> None:
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    assert null_gpu.call(count_compiled, exclusive, variables=variables) == (2, 4, 8)
