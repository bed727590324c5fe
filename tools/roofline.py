"""Count what a training step of each network computes, moves and launches; estimate the published study's time from it.

    python tools/roofline.py [--networks unet,vit] [--ways eager,compiled] [--gpu "NVIDIA H100"] [--json FILE]

Counted, on the published recipe at its published batch: the package's own `train_step`, with feeding, augmentation and
optimizer. FLOP: convolutions and matrix products of the published network, forward and backward; what is computed again
to save memory is not counted. GB: what its kernels read and write, see `gpu_report/counting.py`. Launches: kernels and
copies that the host starts without a graph; replay: what it starts where the step is one CUDA graph of so many kernels.

Estimated, from the datasheet of a GPU and the assumptions that are printed: the time of a step, and that of the study.

Runs on this machine's GPU, else on the null GPU of the tests (needs g++), which computes nothing: counts are the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

TOOLS = Path(__file__).resolve().parent
sys.path[:0] = [str(TOOLS), str(TOOLS.parent / "tests/null_gpu")]
from benchmark_networks import flops_of_sample, names_of  # noqa: E402
from gpu_report.counting import BytesMode, Kernel, counted_by_inductor, profile_steps  # noqa: E402
from gpu_report.datasheet import datasheet  # noqa: E402
from gpu_report.job import Job  # noqa: E402
from gpu_report.study import PIECES, SIZES, Rates, Seconds, run_seconds, total  # noqa: E402
from gpu_report.work import Running, experiment_of  # noqa: E402

from hpc_tumor.cluster.launch.sharing import estimate_need  # noqa: E402
from hpc_tumor.config import Experiment  # noqa: E402
from hpc_tumor.data.convert.prepare import prepare_dataset  # noqa: E402
from hpc_tumor.data.phantom.dataset import make_phantom  # noqa: E402
from hpc_tumor.data.raw.sources import inspect_source  # noqa: E402
from hpc_tumor.system import devices  # noqa: E402
from hpc_tumor.training.graph import WARM as BEFORE_GRAPH  # noqa: E402
from hpc_tumor.training.scoring.evaluate import evaluate  # noqa: E402

# Assumptions under which the estimate is given, too.
PESSIMISTIC = {"memory": 0.6, "products": 0.3, "own": 0.12, "grouped": 0.12}
H100 = "NVIDIA H100 80GB HBM3"
# Settings of the experiment by way of running the step: a new one is one line here.
WAYS: dict[str, dict[str, Any]] = {
    "eager": {"hardware": {"compile": "off"}},
    "compiled": {"hardware": {"compile": "on"}},
}
GRAPH = {"hardware": {"graph": "on"}}
SCORED = ("validation", "test")
WARM = 2  # steps until memory, libraries and compiled code are there
TIMED = 10  # steps, for the host's time
# The fewest for a batch to train on and one to validate.
PHANTOMS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "segmentation": ("brats", 7, {"shape": (240, 240, 24)}), "classification": ("brain-mri", 120, {}),
}  # fmt: skip


@dataclass(frozen=True)
class Assumed:
    """Values that nobody counted: without a source, a guess, for which tools/gpu_report.sh measures the truth."""

    memory: float = 0.8  # of the datasheet's bandwidth; large copies reach 0.9
    products: float = 0.5  # of the datasheet's FLOP/s; large products reach 0.7 on an H100
    own: float = 0.25  # the same in kernels of Triton, some of which compute again what they do not store
    grouped: float = 0.25  # of the float32 FLOP/s, in convolutions in groups
    kernel: float = 2e-6  # seconds of the smallest kernel in a graph
    launch: float = 14e-6  # seconds of the host: CPU time here, on the null GPU, is 10 to 16 µs a launch
    graph: float = 0.5e-3  # seconds of the host for a step that is one graph
    start: float = 8.0  # seconds from the process's start to the first batch; imports take 2 s of CPU time here
    compiling: float = 10.0  # seconds more with full caches; 3 to 10 s of CPU time here
    to_host: float = 20e9  # bytes/s from the GPU to pinned memory
    read: float = 1 / (8 * 9_400)  # seconds a sample, eight cores: docs/explanation/speed.md
    surfaces: float = 0.5  # CPU seconds of HD95 and NSD of a case: 0.35 to 0.46 here, real patients
    pictures: float = 5.0  # seconds


@dataclass(frozen=True)
class Count:
    """Counts of a training step of `batch` samples, and of scoring `scored` samples.

    Attributes:
        flop: of the step, by the published network.
        launches: of the host, kernel by kernel, with copies.
        replay: the same where the step is a graph of `kernels` kernels and copies; None without graphs.
        host_seconds, replay_seconds: CPU time of the process; on a real GPU it includes waiting.
        state_bytes: of a checkpoint's tensors.
        large: it has a GPU's larger part if networks share it.
    """

    network: str
    way: str
    batch: int
    flop: float
    launches: float
    replay: float | None
    kernels: float
    host_seconds: float
    replay_seconds: float
    state_bytes: int
    large: bool
    step: list[Kernel] = field(repr=False)
    scored: int
    scoring: list[Kernel] = field(repr=False)

    @property
    def bytes(self) -> int:
        """Bytes that the kernels of the step read and write."""
        return sum(kernel.bytes for kernel in self.step)

    @property
    def megabytes(self) -> int:
        """The same in 10⁶ bytes, rounded up."""
        return -(-self.bytes // 10**6)


def make_stores(folder: Path) -> None:
    """Make a store of synthetic samples of the published sizes for each task."""
    for task, (dataset, cases, options) in PHANTOMS.items():
        raw = folder / "raw" / task
        make_phantom(raw, dataset, cases, seed=0, **options)
        prepare_dataset(inspect_source(raw).reader, raw, folder / f"{task}.zarr", workers=1)


def count(network: str, way: str, job: Job, null: bool) -> Count:
    """Count a step in this process, without a graph and as one, and a validation pass."""
    if null:
        import child  # noqa: F401 - switches off what the stubs lack
    experiment = experiment_of(network, job, WAYS[way])
    with counted_by_inductor() if way == "compiled" else nullcontext():
        running = _started(experiment, job, WARM)
        scored, scoring = _count_scoring(running)
        launches, _, host = _launches(running, null)
        with BytesMode(running.device) as mode:
            running.step()
        replay, kernels, replay_host = None, launches, host
        if devices.has_graphs(running.device):
            graphed = _started(experiment_of(network, job, WAYS[way], GRAPH), job, BEFORE_GRAPH + WARM)
            replay, kernels, replay_host = _launches(graphed, null)
    flop, large = running.batch * flops_of_sample(experiment), estimate_need(experiment).is_large
    return Count(
        network, way, running.batch, flop, launches, replay, kernels, host, replay_host, _state_bytes(running), large,
        mode.kernels, scored, scoring,
    )  # fmt: skip


def _started(experiment: Experiment, job: Job, steps: int) -> Running:
    running = Running(experiment, job)
    for _ in range(steps):
        running.step()
    return running


def _count_scoring(running: Running) -> tuple[int, list[Kernel]]:
    state = running.state
    assert state.parts.val is not None
    for _ in range(WARM):
        with BytesMode(running.device) as mode:
            evaluate(state.network, state.parts.val, state.spec, state.distributed)
    state.network.train()
    size = state.parts.val.batch_size
    return -(-len(state.parts.val.part) // size) * size, mode.kernels  # the last batch is filled up


def _launches(running: Running, null: bool) -> tuple[float, float, float]:
    """Return what the host starts in a step, kernels and copies in its graphs, and its CPU time."""
    if null:
        from child import watched

        with watched() as watch:
            running.step()
        launches, kernels = float(watch.operations), float(watch.graph_kernels)
    else:
        seen = profile_steps(running.step, running.device)
        launches = seen.launches + seen.copies + seen.fills
        kernels = sum(calls for _, calls in seen.kernels.values()) if seen.graphs else 0.0
    began = time.process_time()
    for _ in range(TIMED):
        running.step()
    return launches, kernels, (time.process_time() - began) / TIMED


def _state_bytes(running: Running) -> int:
    moments = [value for values in running.state.optimizer.state.values() for value in values.values()]
    tensors = [*running.state.network.state_dict().values(), *filter(torch.is_tensor, moments)]
    return sum(tensor.nbytes for tensor in tensors)


def device_seconds(kernels: list[Kernel], flop: float, peaks: dict[str, float], assumed: Assumed) -> float:
    """Estimate the seconds of kernels one after another, each limited by memory, products or its start.

    FLOP that no operation was seen to compute are those of the kernels of Triton, together.
    """
    memory, products = assumed.memory * peaks["memory"], assumed.products * peaks["bfloat16"]
    grouped = assumed.grouped * peaks["float32"]
    seen = [kernel for kernel in kernels if not kernel.generated]
    generated = [kernel for kernel in kernels if kernel.generated]
    left = max(0.0, flop - sum(kernel.flop for kernel in seen)) if generated else 0.0
    moving = sum(max(kernel.bytes / memory, assumed.kernel) for kernel in generated)
    return max(moving, left / (assumed.own * peaks["bfloat16"])) + sum(
        max(kernel.bytes / memory, kernel.flop / (grouped if kernel.grouped else products), assumed.kernel)
        for kernel in seen
    )


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step: limits of the GPU, and estimates; `run` has the pieces of a whole run in a graph."""

    by_flop: float
    by_bytes: float
    device: float
    launched: float
    graph: float
    run: Seconds


def estimate(count: Count, peaks: dict[str, float], assumed: Assumed = Assumed()) -> Estimate:
    """Estimate a step, launched kernel by kernel and as one graph, and a published run of such graphs."""
    device = device_seconds(count.step, count.flop, peaks, assumed)
    graph = max(device, assumed.graph)
    forward = count.flop / 3 * count.scored / count.batch
    scored = device_seconds(count.scoring, forward, peaks, assumed)
    scored = max(scored, len(count.scoring) * assumed.launch) / count.scored
    rates = Rates(
        count.batch, graph, scored, 2 * scored,  # tested with the last weights and with the best
        count.state_bytes / assumed.to_host, assumed.read,
        assumed.start + (assumed.compiling if count.way == "compiled" else 0.0),
    )  # fmt: skip
    by_flop, by_bytes = count.flop / peaks["bfloat16"], count.bytes / peaks["memory"]
    launched = max(device, count.launches * assumed.launch)
    return Estimate(by_flop, by_bytes, device, launched, graph, run_seconds(count.network, rates))


def fastest_ways(rows: list[tuple[Count, Estimate]]) -> dict[str, tuple[Count, Estimate]]:
    """Return the faster way of each network."""
    fastest: dict[str, tuple[Count, Estimate]] = {}
    for one, row in rows:
        if one.network not in fastest or total(row.run) < total(fastest[one.network][1].run):
            fastest[one.network] = one, row
    return fastest


def after_last(assumed: Assumed = Assumed()) -> float:
    """Return the seconds from the last run's training to its result: one core measures distances between surfaces.

    Those of other runs are measured while the next run trains.
    """
    return assumed.surfaces * SIZES["segmentation"].test_cases + assumed.pictures


def study_seconds(ways: dict[str, tuple[Count, Estimate]], assumed: Assumed = Assumed(), shared: bool = False) -> float:
    """Return the seconds of all runs one after the other on one GPU; `shared`: small ones beside the large ones.

    The kernels of a small run take their time from the large one; its start and its host do not.
    """
    seconds, any_large = after_last(assumed), any(one.large for one, _ in ways.values())
    for one, row in ways.values():
        if shared and any_large and not one.large:
            seconds += (row.run["training"] or 0) * row.device / row.graph
            seconds += sum(row.run[piece] or 0 for piece in SCORED)
        else:
            seconds += total(row.run)
    return seconds


def step_table(rows: list[tuple[Count, Estimate]]) -> str:
    """Return the table of steps: counts, limits of the GPU, estimates."""
    head = ["network", "way", "batch", "GFLOP", "GB", "launches", "replay", "kernels", "ms by FLOP",
            "ms by bytes", "est. launched", "est. graph"]  # fmt: skip
    return _table(head, [
        [one.network, one.way, str(one.batch), f"{one.flop / 1e9:.0f}", f"{one.bytes / 1e9:.2f}", f"{one.launches:.0f}",
         "-" if one.replay is None else f"{one.replay:.0f}", f"{one.kernels:.0f}",
         *(f"{1e3 * value:.2f}" for value in (e.by_flop, e.by_bytes, e.launched, e.graph))]
        for one, e in rows
    ])  # fmt: skip


def study_table(ways: dict[str, tuple[Count, Estimate]]) -> str:
    """Return the table of the whole study, in seconds."""
    rows = [
        [name, one.way, *(f"{row.run[piece] or 0:.1f}" for piece in PIECES), f"{total(row.run):.0f}"]
        for name, (one, row) in ways.items()
    ]
    blank, whole = [""] * (len(PIECES) + 1), study_seconds(ways)
    rows.append(["after the last", *blank, f"{after_last():.0f}"])
    rows.append([f"all {len(ways)}: {whole / 60:.1f} minutes", *blank, f"{whole:.0f}"])
    beside = study_seconds(ways, shared=True)
    rows.append([f"with --share-gpu: {beside / 60:.1f} minutes", *blank, f"{beside:.0f}"])
    return _table(["network", "way", *PIECES, "sum"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, *rows)
    )


def main() -> None:
    """Count, print the tables, and write the JSON file."""
    given = _options()
    gpu = devices.find_gpu()
    print(
        f"Counted on {devices.name(gpu) if gpu else 'the null GPU, which computes nothing'}, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory(prefix="roofline-") as folder:
        make_stores(Path(folder))
        job = Job(str(gpu or "cuda:0"), False, folder, ("bfloat16",))
        requests = [(name, way, job, gpu is None) for way in given.ways for name in given.networks]
        counts = list(_on_gpu(requests) if gpu else _on_null_gpu(requests, given.gpu))
    rows = [(one, estimate(one, given.peaks)) for one in counts]
    print(f"{step_table(rows)}\n\nEstimated for {given.gpu}: the published study in seconds, each step as one graph\n")
    print(study_table(fastest_ways(rows)))
    print(f"\nAssumed: {_listed(asdict(Assumed()))}; see `Assumed`.")
    worse = replace(Assumed(), **PESSIMISTIC)
    seconds = study_seconds(fastest_ways([(one, estimate(one, given.peaks, worse)) for one in counts]), worse)
    print(f"If kernels reach less ({_listed(PESSIMISTIC)}): {seconds / 60:.1f} minutes")
    if given.json:
        steps = [{**asdict(one), "bytes": one.bytes, "estimate": asdict(row)} for one, row in rows]
        values = {"gpu": given.gpu, "peaks": given.peaks, "torch": torch.__version__, "assumed": asdict(Assumed()),
                  "seconds": study_seconds(fastest_ways(rows))}  # fmt: skip
        given.json.write_text(json.dumps({**values, "steps": steps}, indent=1), encoding="utf-8")


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


def _on_gpu(requests: list[tuple[Any, ...]]) -> Iterator[Count]:
    """Count each request in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        yield from pool.map(count, *zip(*requests, strict=True))


def _on_null_gpu(requests: list[tuple[Any, ...]], name: str) -> Iterator[Count]:
    from building import UnavailableError, build
    from processes import NullGpu

    try:
        null_gpu = NullGpu(build())
    except UnavailableError as error:
        raise SystemExit(f"no GPU found, and {error}") from None
    function = import_module("roofline").count  # of this module by its name, for the process that counts
    for request in requests:
        yield null_gpu.call(
            function, *request, name=name, timeout=600, variables={"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        )
    null_gpu.close()


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", default="all", metavar="NAMES", help="with commas between them; default: all")
    options.add_argument(
        "--ways", default="eager", metavar="NAMES", help=f"of {','.join(WAYS)}, or all; default: eager"
    )
    options.add_argument("--gpu", default=H100, metavar="NAME", help=f"as torch names it; default: {H100}")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all counts and estimates")
    given = options.parse_args()
    given.networks, given.ways = names_of(given.networks), names_of(given.ways, WAYS)
    given.peaks = datasheet(given.gpu)
    if given.peaks is None:
        options.error(f"--gpu {given.gpu!r} has no datasheet in tools/gpu_report/datasheet.py")
    return given


if __name__ == "__main__":
    main()
