"""Steps as CUDA graphs on the null GPU: few operations of the host, buffers that hold what each step needs."""

from __future__ import annotations

import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from budgets import GRAPH, GRAPH_RANKS, check_budget
from child import Watch, memory_at_launch, watched
from null_runs import join_ranks, null_run, skip_initial_values, train_run, watch_steps
from processes import NullGpu, NullGpuError
from training_runs import result_of

from hpc_tumor.data.feed.augment import image_amounts
from hpc_tumor.data.feed.augment_slices import SliceParameters, slice_amounts
from hpc_tumor.data.feed.loader import ReadShare, epoch_order
from hpc_tumor.data.feed.transfer import Uploaded
from hpc_tumor.models import MODELS
from hpc_tumor.settings import merge
from hpc_tumor.system import devices
from hpc_tumor.training import graph
from hpc_tumor.training.graph import WARM, take_step
from hpc_tumor.training.recipe import learning_rate
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState, epoch_totals
from hpc_tumor.training.step import draw_parameters
from hpc_tumor.training.watch.guard import check_steps

STEPS = 3
MOST = 20  # operations of the host in a step
EVERYTHING: dict[str, Any] = {
    "recipe": {
        "augment": True, "clip_gradients": 1.0, "ema": 0.9, "skip_nonfinite": 5, "schedule": "cosine",
        "class_weights": "balanced", "batch_size": 4,
    },
    "hardware": {"precision": "float16", "accumulate": 2},
}  # fmt: skip


def watch_graphs(store: Path, model: str) -> dict[str, Watch]:
    """Return three replayed steps by what they train with."""
    cases = {
        "augmented": {"data": {"keep": "gpu"}, "recipe": {"augment": True}},
        "everything": {**EVERYTHING, "data": {"keep": "none"}},
        "deterministic": {
            "data": {"keep": "host"},
            "recipe": {"optimizer": "sgd"},
            "hardware": {"deterministic": True},
        },
    }
    return {name: watch_steps(store, model, STEPS, graph="on", **settings) for name, settings in cases.items()}


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_replayed_steps_take_few_operations_of_the_host_and_wait_for_nothing(
    model: str, null_gpu: NullGpu, stores: dict[str, Path]
) -> None:
    watches = null_gpu.call(watch_graphs, stores[MODELS[model].task], model)
    assert {name: watch.faults() for name, watch in watches.items() if watch.faults()} == {}
    assert {watch.graph_launches for watch in watches.values()} == {STEPS}
    assert max(watch.operations for watch in watches.values()) <= MOST * STEPS
    check_budget(f"GRAPH[{model!r}]", -(-watches["augmented"].operations // STEPS), GRAPH[model][0])
    check_budget(f"kernels of GRAPH[{model!r}]", watches["augmented"].graph_kernels // STEPS, GRAPH[model][1])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_replayed_steps_of_two_ranks_take_few_operations_of_the_host(
    model: str, null_gpu: NullGpu, stores: dict[str, Path]
) -> None:
    watches = null_gpu.call(watch_steps, stores[MODELS[model].task], model, STEPS, "on", ranks=2)
    assert [watch.faults() for watch in watches] == [{}, {}]
    assert {watch.graph_launches for watch in watches} == {STEPS}
    assert all(watch.operations <= GRAPH[model][0] * STEPS for watch in watches)
    check_budget(f"GRAPH_RANKS[{model!r}]", max(watch.graph_kernels for watch in watches) // STEPS, GRAPH_RANKS[model])


def watch_compiled(store: Path) -> Watch:
    return watch_steps(store, "cnn", STEPS, graph="on", hardware={"compile": "on"}, recipe={"augment": True})


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_a_graph_holds_compiled_code(ranks: int, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path) -> None:
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    store = stores["classification"]
    watches = null_gpu.call(watch_compiled, store, ranks=ranks, variables=variables, timeout=550)
    for watch in [watches] if ranks == 1 else watches:
        assert watch.faults() == {}
        assert (watch.graph_launches, watch.operations <= MOST * STEPS) == (STEPS, True)
        assert watch.graph_kernels / STEPS < 0.9 * GRAPH["cnn"][1]


def stepping(
    store: Path, model: str, epochs: int = 2, **settings: Any
) -> Iterator[tuple[TrainingState, ReadShare, Callable[[], None]]]:
    """Yield the state of a run, the share of each step, and what takes the step."""
    skip_initial_values()
    with tempfile.TemporaryDirectory() as folder:
        run = null_run(Path(folder), store, model, **settings)
        state = build_state(run.experiment(), run, join_ranks())
        state.network.train()
        loader = state.parts.train
        for _ in range(epochs):
            totals = epoch_totals(state)
            for share in loader.shares(epoch_order(len(loader.part), 0, state.progress.epoch)):
                yield state, share, partial(take_step, state, share, totals, (False, False))
                check_steps(state, totals)
            state.progress.epoch += 1


def stale_buffers(store: Path, model: str, keep: str, stale: bool = False) -> tuple[int, list[str]]:
    """Return the number of replays, and what they did not find in device memory of all that changes between steps."""
    seed, replays, missing = 0x5EED, 0, []
    if stale:
        Uploaded.replace = lambda self, arrays: None  # type: ignore[method-assign, assignment]
    recipe = {"augment": True, "schedule": "cosine", "ema": 0.9}
    for state, share, step in stepping(store, model, data={"keep": keep}, recipe=recipe, hardware={"graph": "on"}):
        torch.cuda.manual_seed(seed := seed + 1)
        torch.cuda.default_generators[0].set_offset(4 * seed)
        expected = numbers_of_step(state, share, seed)
        with watched() as watch:
            step()
        if watch.graph_launches:
            found = b"".join(memory_at_launch().values())
            expected |= arrays_of_step(state, share)
            missing += [f"{name} of replay {replays}" for name, value in expected.items() if value not in found]
            replays += 1
    return replays, missing


def numbers_of_step(state: TrainingState, share: ReadShare, seed: int) -> dict[str, bytes]:
    """Return, by name, the numbers that a graph of the next step reads, as in memory."""
    rate = learning_rate(state.experiment.recipe, state.progress.epoch, share.step, state.steps)
    steps = state.progress.updates + 1
    mean = 1 - min(0.9, (1 + steps) / (10 + steps))
    numbers = {"learning rate": struct.pack("f", rate), "rate of the mean": struct.pack("f", mean)}
    if any(isinstance(module, torch.nn.Dropout) and module.p for module in state.network.modules()):
        numbers |= {"seed": struct.pack("q", seed), "offset": struct.pack("q", 4 * seed)}
    return numbers


def arrays_of_step(state: TrainingState, share: ReadShare) -> dict[str, bytes]:
    """Return, by name, the arrays that a graph of this step read."""
    assert state.graph.shape is not None
    parameters = draw_parameters(share, state.experiment, state.distributed, state.progress.epoch)
    if isinstance(parameters, SliceParameters):
        amounts = slice_amounts(parameters, state.graph.shape)
    else:
        assert parameters is not None
        amounts = image_amounts(parameters, state.graph.shape)
    arrays = [*state.parts.train.part.beside(share.positions), *amounts]
    if state.experiment.data.keep == "gpu":
        arrays.append(share.positions)
    else:
        arrays += share.request.buffer.arrays(len(share.positions))
    assert any(array.any() for array in arrays)
    return {f"array {number}": array.tobytes() for number, array in enumerate(arrays)}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "keep"), [("cnn", "gpu"), ("unet", "gpu"), ("unet", "host"), ("unet", "none")])
def test_each_replay_finds_its_own_batch_amounts_rates_seed_and_offset(
    model: str, keep: str, null_gpu: NullGpu, stores: dict[str, Path]
) -> None:
    replays, missing = null_gpu.call(stale_buffers, stores[MODELS[model].task], model, keep)
    assert (replays > WARM, missing) == (True, [])


def test_buffers_that_nothing_replaces_are_found(null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    replays, missing = null_gpu.call(stale_buffers, stores["segmentation"], "unet", "gpu", True)
    assert len({name.partition(" of ")[0] for name in missing}) > 8
    assert f"array 0 of replay {replays - 1}" in missing


def random_states(store: Path, model: str, graph: str) -> tuple[bytes, int, dict[str, int]]:
    """Return the state of the GPU's generator after some steps, the replays among them, and the last one's kernels."""
    replays, kernels = 0, {}
    for _, share, step in stepping(store, model, hardware={"graph": graph}, data={"keep": "gpu"}, recipe={"ema": 0.5}):
        if share.total < 8 and model == "vit":
            continue
        with watched() as watch:
            step()
        replays += watch.graph_launches
        if watch.captures or share.step == 4:
            kernels = watch.by_kernel
    return torch.cuda.get_rng_state().numpy().tobytes(), replays, kernels


@pytest.mark.parametrize("model", ["cnn", "vit"])
def test_dropout_draws_the_same_numbers_with_a_graph_and_without(
    model: str, null_gpu: NullGpu, stores: dict[str, Path]
) -> None:
    (eager, none, _), (replayed, some, _) = (
        null_gpu.call(random_states, stores["classification"], model, graph) for graph in ("off", "on")
    )
    assert (none, some > WARM) == (0, True)
    assert eager == replayed


def kernels_of(store: Path, model: str, settings: dict[str, Any]) -> tuple[Counter[str], Counter[str]]:
    """Return the kernels of the last step without a graph, and of the one that is captured."""
    before: Counter[str] = Counter()
    for _, _, step in stepping(store, model, epochs=1, **settings):
        with watched() as watch:
            step()
        kernels = Counter({name: count for name, count in watch.by_kernel.items() if "FillFunctor" not in name})
        if watch.captures:
            return before, kernels
        before = kernels
    raise AssertionError("no step was captured")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_graph_has_the_kernels_of_a_step_without_one(model: str, null_gpu: NullGpu, stores: dict[str, Path]) -> None:
    settings = merge(EVERYTHING, {"hardware": {"graph": "on"}, "data": {"keep": "none"}})
    before, captured = null_gpu.call(kernels_of, stores[MODELS[model].task], model, settings)
    assert before == captured
    assert sum(captured.values()) > 100


def train_with(path: Path, fault: str, stops: list[int | None]) -> tuple[list[str], int]:
    """Train a run whose captures fail; return the outcomes and the number of graphs that were launched."""
    compute = graph.compute_step

    def spoilt(state: TrainingState, *arguments: Any) -> Any:
        if torch.cuda.is_current_stream_capturing() and fault == "wait of rank 1" and state.distributed.rank == 1:
            state.parameters[0].register_hook(lambda gradient: gradient * gradient.sum().item())
        report, requests = compute(state, *arguments)
        if torch.cuda.is_current_stream_capturing():
            if fault == "wait":
                report.sum().item()
            if fault == "pageable":
                torch.ones(4).to("cuda", non_blocking=True)
            if fault == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            if fault == "stream":
                torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
        return report, requests

    with patch.object(graph, "compute_step", spoilt), watched() as watch:
        outcomes = train_run(path, stops)
    return outcomes, watch.graph_launches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("wait", "capturing"), ("pageable", "capturing"), ("memory", "out of memory"), ("stream", "uncaptured work")],
)
def test_a_step_that_cannot_be_captured_runs_without_a_graph(
    fault: str, reason: str, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path, capfd: Any
) -> None:
    """Even in float16, whose scaler is half-way through a step, and with dropout."""
    settings = {"hardware": {"precision": "float16"}, "recipe": {"epochs": 2, "clip_gradients": 1.0}}
    run = null_run(tmp_path, stores["classification"], "cnn", **settings)
    outcomes, launched = null_gpu.call(train_with, run.path, fault, [None])
    assert (outcomes, launched) == (["finished"], 0)


@pytest.mark.slow
def test_ranks_run_without_graphs_if_one_of_them_cannot_capture(
    null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    """DDP, which the end of the capture left in the middle of a backward pass, is made anew."""
    run = null_run(tmp_path, stores["classification"], "cnn", recipe={"epochs": 2})
    results = null_gpu.call(train_with, run.path, "wait of rank 1", [None], ranks=2)
    assert results == [(["finished"], 0)] * 2


def train_in_full_memory(path: Path, used: float) -> int:
    """Train while steps take this share of the GPU's memory; return the number of graphs that were launched."""
    peak = devices.PeakMemory(int(used * devices.total_memory(torch.device("cuda", 0))), 0)
    with patch.object(devices, "peak_memory", lambda _: peak):
        return train_with(path, "none", [None])[1]


@pytest.mark.slow
@pytest.mark.parametrize(("used", "captured"), [(0.45, False), (0.2, True)])
def test_a_graph_leaves_memory_for_what_runs_beside_it(
    used: float, captured: bool, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores["classification"], "cnn", recipe={"epochs": 1})
    assert (null_gpu.call(train_in_full_memory, run.path, used) > 0) == captured


def test_a_graph_that_was_requested_is_not_replaced_in_silence(
    null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores["classification"], "cnn", hardware={"graph": "on"})
    with pytest.raises(NullGpuError, match=r"cannot be captured: \w+: .*capturing.* Set hardware.graph=off"):
        null_gpu.call(train_with, run.path, "wait", [None])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_is_stopped_resumed_and_finished_with_graphs(
    ranks: int, null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path
) -> None:
    run = null_run(tmp_path, stores["classification"], "cnn", **merge(EVERYTHING, {"recipe": {"epochs": 3}}))
    results = null_gpu.call(train_with, run.path, "none", [8, None], ranks=ranks)
    for outcomes, launched in [results] if ranks == 1 else results:
        assert outcomes == ["stopped", "finished"]
        assert launched > 10
    assert result_of(run)["epochs"] == 3


@pytest.mark.slow
def test_variables_for_debugging_forbid_graphs(null_gpu: NullGpu, stores: dict[str, Path], tmp_path: Path) -> None:
    variables = {"CUDA_LAUNCH_BLOCKING": "1"}
    run = null_run(tmp_path, stores["classification"], "cnn", recipe={"epochs": 1})
    assert null_gpu.call(train_with, run.path, "none", [None], variables=variables) == (["finished"], 0)
    asked = null_run(tmp_path, stores["classification"], "cnn", hardware={"graph": "on"})
    with pytest.raises(NullGpuError, match="CUDA_LAUNCH_BLOCKING=1 is set: unset it"):
        null_gpu.call(train_with, asked.path, "none", [None], variables=variables)
