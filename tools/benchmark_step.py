#!/usr/bin/env python3
"""Measure one training step of this package against plain torch.

    python tools/benchmark_step.py [--networks cnn,unet] [--rounds N] [--batch N] [--compile] [--device cuda]

A step is zero_grad, forward, loss, backward and update, on one batch in memory, without augmentation.
Plain: float32, default memory layout, torch's own layers, losses and Adam, images repeated to three channels. Ours:
`train_step` itself, with the metrics and checks of each step, which the plain step lacks. Each runs in its own
process, since ours changes how a process keeps memory; they alternate.

Ratios are of medians over the rounds, with the lowest and highest of the single rounds. GFLOP are those of the plain
network's convolutions and matrix products. Share: of the fastest product of matrices, 1024 to 4096 a side, in
the number format of ours, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from benchmark_machine import describe_machine
from benchmark_networks import (
    CPU_BATCH,
    experiment_of,
    flops_of_sample,
    names_of,
    own_training,
    plain_tensors,
    plain_training,
    product_rate,
    seconds_of,
)
from benchmark_workers import Answer, Job, Worker, cores, data_options, make_stores, network_options, serve

from hpc_tumor.config import Experiment
from hpc_tumor.models import MODELS
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.parts import make_parts
from hpc_tumor.training.recipe import choose_precision

TARGETS = {
    "cnn": 2.2, "alexnet": 2.0, "vgg16": 2.5, "vit": 1.9, "unet": 2.5, "improved-unet": 4.5, "attention-unet": 4.0,
}  # fmt: skip
WARM = 3  # steps before the first that counts; torch.compile and cuDNN settle in them
Times = dict[str, list[float]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="rounds of each")
    options.add_argument("--seconds", type=float, default=2.0, help="minimum seconds of steps per round")
    options.add_argument("--batch", type=int, help="batch size; default: 64 images; 8 slices on a CPU, 32 on a GPU")
    options.add_argument("--compile", action="store_true", help="also measure ours with torch.compile")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    data_options(options)
    network_options(options)
    given = options.parse_args()
    torch.set_num_threads(cores())
    if given.worker:
        serve(lambda: _worker(given.worker))
        return
    print(describe_machine())
    names = names_of(given.networks)
    with tempfile.TemporaryDirectory(prefix="benchmark-step-") as folder:
        stores = make_stores(Path(folder), given, {MODELS[name].task for name in names})
        compare(names, stores, Path(folder), given)


def compare(names: list[str], stores: dict[str, str], root: Path, given: argparse.Namespace) -> None:
    """Measure and print a line for each network."""
    device = torch.device(given.device)
    precision = choose_precision("auto", device).name
    print(f"\nmilliseconds a sample, on {given.device}; ours in {precision}")
    compiled = f"{'compiled':>10}{'× ours':>8}" if given.compile else ""
    print(f"{'network':<16}{'batch':>6}{'plain':>9}{'ours':>9}{'ratio':>7}{'(range)':>12}{'target':>8}"
          f"{'GFLOP':>8}{'GFLOP/s':>9}{'share':>7}{compiled}")  # fmt: skip
    peak = product_rate(getattr(torch, precision), device)
    for name in names:
        job = {
            "network": name, "store": stores[MODELS[name].task], "runs": str(root / "runs"), "device": given.device,
            "batch": given.batch, "filters": given.filters, "seconds": given.seconds,
        }  # fmt: skip
        times, samples = measure(job, ["plain", "ours", *(["compiled"] if given.compile else [])], given.rounds)
        peak = max(peak, product_rate(getattr(torch, precision), device, repeats=1))
        _print_row(job, times, samples, peak)
    print(f"fastest product of matrices in {precision}: {peak / 1e9:,.0f} GFLOP/s")


def measure(job: Job, ways: list[str], rounds: int) -> tuple[Times, int]:
    """Return the seconds of a step in every round by variant, and the samples in a step."""
    times: Times = {way: [] for way in ways}
    samples = 0
    with ExitStack() as stack:
        workers = {way: stack.enter_context(Worker({**job, "way": way})) for way in ways}
        for worker in workers.values():  # one at a time: each warms up alone
            samples = worker.ask("samples")
        for _ in range(rounds):
            for way, worker in workers.items():
                times[way].append(worker.ask("time"))
    return times, samples


def _print_row(job: Job, times: Times, samples: int, peak: float) -> None:
    middle = {way: statistics.median(seconds) / samples for way, seconds in times.items()}
    each = [plain / ours for plain, ours in zip(times["plain"], times["ours"], strict=True)]
    work = flops_of_sample(_experiment(job))
    rate = work / middle["ours"]
    extra = ""
    if "compiled" in middle:
        extra = f"{1000 * middle['compiled']:>10.2f}{middle['ours'] / middle['compiled']:>8.2f}"
    span = f"{min(each):.2f}–{max(each):.2f}"
    print(f"{job['network']:<16}{samples:>6}{1000 * middle['plain']:>9.2f}{1000 * middle['ours']:>9.2f}"
          f"{middle['plain'] / middle['ours']:>7.2f}{span:>12}{TARGETS[job['network']]:>8.1f}"
          f"{work / 1e9:>8.1f}{rate / 1e9:>9,.0f}{rate / peak:>7.0%}{extra}", flush=True)  # fmt: skip


def _experiment(job: Job) -> Experiment:
    segmentation = MODELS[job["network"]].task == "segmentation"
    batch = job["batch"] or (CPU_BATCH[MODELS[job["network"]].task] if job["device"] == "cpu" else None)
    return experiment_of(
        job["network"], Path(job["store"]),
        model={"filters": job["filters"]} if segmentation else {},
        recipe={"batch_size": batch} if batch else {},
        hardware={"compile": "on" if job.get("way") == "compiled" else "off"},
    )  # fmt: skip


def _worker(job: Job) -> Answer:
    experiment, distributed = _experiment(job), Distributed(device=torch.device(job["device"]))
    if job["way"] == "plain":  # without build_state, which changes how this process keeps memory
        batch = make_parts(experiment, distributed).first_batch(0)
        tensors = plain_tensors(batch, MODELS[job["network"]].in_channels)
        plain = plain_training(experiment, distributed.device)
        step = lambda: plain.step(*tensors)  # noqa: E731
    else:
        ours = own_training(experiment, Path(job["runs"]), distributed)
        batch, step = ours.batch, ours.step  # type: ignore[assignment]
    if len(batch.images) < experiment.recipe.batch_size:
        raise SystemExit(f"the store has only {len(batch.images)} samples to train on: choose a smaller --batch")
    for _ in range(WARM):
        step()

    def answer(question: str) -> float:
        return len(batch.images) if question == "samples" else seconds_of(step, distributed.device, job["seconds"])

    return answer


if __name__ == "__main__":
    main()
