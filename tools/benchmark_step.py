#!/usr/bin/env python3
"""Measure one training step of this package against the best of four plain loops of torch.

    python tools/benchmark_step.py [--networks cnn,unet] [--rounds N] [--compile] [--device cuda] [--cpu-time]

A step is zero_grad, forward, loss, backward and update, on one batch in memory, without augmentation.
Plain: torch's own layers, losses and Adam, images repeated to three channels; float32 or bfloat16 by autocast, default
memory layout or channels-last. The fastest of the four is the baseline. Ours: `train_step` itself, in the formats that
`auto` chooses, with the metrics and checks of each step, which the plain step lacks. Each of the five runs in its own
process, since ours changes how a process keeps memory, and so does a plain loop for the next; they alternate.

Ratios are of medians over the rounds, with the lowest and highest of the single rounds. GFLOP are those of the plain
network's convolutions and matrix products. Share: of the fastest product of matrices, 1024 to 4096 a side, in
the number format of ours, measured in the same rounds.

--cpu-time measures the CPU time of one thread, which hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmark_machine import describe_machine
from benchmark_networks import (
    CPU_BATCH,
    PLAIN_WAYS,
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

TARGETS = {
    "cnn": 1.0, "alexnet": 1.0, "vgg16": 1.0, "vit": 1.0, "unet": 1.0, "improved-unet": 2.0, "attention-unet": 2.0,
}  # fmt: skip
WARM = 3  # steps before the first that counts, where torch.compile or cuDNN settle in them
Times = dict[str, list[float]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="rounds of each")
    options.add_argument("--seconds", type=float, default=2.0, help="minimum seconds of steps per round")
    options.add_argument("--batch", type=int, help="batch size; default: 64 images; 8 slices on a CPU, 32 on a GPU")
    options.add_argument("--compile", action="store_true", help="also measure ours with torch.compile")
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, for busy machines")
    data_options(options)
    network_options(options)
    given = options.parse_args()
    torch.set_num_threads(1 if (given.worker or vars(given))["cpu_time"] else cores())
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
    print(f"\nmilliseconds a sample, on {given.device}{', CPU time of one thread' if given.cpu_time else ''}")
    compiled = f"{'compiled':>10}{'× ours':>8}" if given.compile else ""
    print(f"{'network':<16}{'batch':>6}{'plain':>9} {'in':<23}{'ours':>9} {'in':<23}{'ratio':>7}{'(range)':>12}"
          f"{'target':>8}{'GFLOP':>8}{'GFLOP/s':>9}{'share':>7}{compiled}")  # fmt: skip
    for name in names:
        job = {
            "network": name, "store": stores[MODELS[name].task], "runs": str(root / "runs"), "device": given.device,
            "batch": given.batch, "filters": given.filters, "seconds": given.seconds, "cpu_time": given.cpu_time,
            "warm": WARM if given.compile or given.device != "cpu" else 1,
        }  # fmt: skip
        times, samples, chosen = measure(job, ["ours", *(["compiled"] if given.compile else [])], given.rounds)
        peak = product_rate(getattr(torch, chosen.partition(" ")[0]), device, cpu_time=given.cpu_time)
        _print_row(job, times, samples, chosen, peak)


def measure(job: Job, ways: list[str], rounds: int) -> tuple[Times, int, str]:
    """Return the seconds of a step in every round by variant, the samples in a step, and the formats of ours."""
    times: Times = {}
    with ExitStack() as stack:
        workers = {way: stack.enter_context(Worker({**job, "way": way})) for way in (*PLAIN_WAYS, *ways)}
        # One at a time: each warms up alone.
        answers = {way: worker.ask("about") for way, worker in workers.items()}
        for _ in range(rounds):
            for way, worker in workers.items():
                times.setdefault(way, []).append(worker.ask("time"))
    return times, answers["ours"]["samples"], answers["ours"]["formats"]


def _print_row(job: Job, times: Times, samples: int, chosen: str, peak: float) -> None:
    middle = {way: statistics.median(seconds) / samples for way, seconds in times.items()}
    best = min(PLAIN_WAYS, key=middle.__getitem__)
    each = [plain / ours for plain, ours in zip(times[best], times["ours"], strict=True)]
    work = flops_of_sample(_experiment(job))
    rate = work / middle["ours"]
    extra = ""
    if "compiled" in middle:
        extra = f"{1000 * middle['compiled']:>10.2f}{middle['ours'] / middle['compiled']:>8.2f}"
    span = f"{min(each):.2f}–{max(each):.2f}"
    print(f"{job['network']:<16}{samples:>6}{1000 * middle[best]:>9.2f} {best:<23}{1000 * middle['ours']:>9.2f} "
          f"{chosen:<23}{middle[best] / middle['ours']:>7.2f}{span:>12}{TARGETS[job['network']]:>8.1f}"
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
    step: Callable[[], Any]
    if job["way"] in PLAIN_WAYS:  # without build_state, which changes how this process keeps memory
        batch, formats = make_parts(experiment, distributed).first_batch(0), job["way"]
        plain = plain_training(experiment, distributed.device, job["way"])
        step = partial(plain.step, *plain_tensors(batch, MODELS[job["network"]].in_channels, plain.layout))
    else:
        ours = own_training(experiment, Path(job["runs"]), distributed)
        batch, step, forward = ours.batch, ours.step, ours.state.spec.forward
        layout = "channels_last" if forward.memory_format == torch.channels_last else "contiguous"
        formats = f"{forward.precision.name} {layout}"
    if len(batch.images) < experiment.recipe.batch_size:
        raise SystemExit(f"the store has only {len(batch.images)} samples to train on: choose a smaller --batch")
    for _ in range(job["warm"]):
        step()

    def answer(question: str) -> Any:
        if question == "about":
            return {"samples": len(batch.images), "formats": formats}
        return seconds_of(step, distributed.device, job["seconds"], job["cpu_time"])

    return answer


if __name__ == "__main__":
    main()
