#!/usr/bin/env python3
"""Measure the overhead of training, and an epoch of the U-Nets from the first read to the last score, on CPUs.

    python tools/benchmark_training.py [--sections loop,augmentation,checkpoint,epoch] [--networks unet] [--rounds N]

loop          `train_epoch` against bare steps of the same network on a batch in memory: no data, totals,
              heartbeat, checks or stop; in percent of the bare steps (target below 3 %). The first step of an epoch
              and its end are shown separately. Then the share of the time that data, checks (norm of
              the gradients, flags) and metrics take (metrics: target below 2 %, with a step's bookkeeping).
augmentation  of a batch, in percent of a step without it (cnn: target below 10 %)
checkpoint    how long training waits for one, against one written synchronously; and how much the writing slows
              the steps meanwhile (cnn and vgg16)
epoch         an epoch of the U-Nets, data and metrics included, against the plain loop: one gzip H5 file per slice,
              torch's DataLoader with two workers, the plain network, scores of each batch with .item() (target: 5 ×)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch
from benchmark_epoch import epoch_worker, write_slices
from benchmark_loop import augmentation_worker, checkpoint_worker, loop_worker
from benchmark_machine import describe_machine
from benchmark_networks import names_of
from benchmark_workers import Answer, Job, Worker, cores, data_options, make_stores, network_options, serve

from hpc_tumor.models import MODELS

SECTIONS = ("loop", "augmentation", "checkpoint", "epoch")
U_NETS = [name for name, spec in MODELS.items() if spec.task == "segmentation"]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sections", default="all", help="names with commas between them, or all")
    options.add_argument("--rounds", type=int, default=5, help="rounds of each; at most 3 for epoch")
    options.add_argument("--seconds", type=float, default=5.0, help="minimum seconds of steps per round")
    options.add_argument("--batch", type=int, help="batch size; default: 64 images, 8 slices")
    options.add_argument("--slices", type=int, default=64, help="slices of an epoch; about 1 s each in the plain loop")
    data_options(options)
    network_options(options)
    given = options.parse_args()
    torch.set_num_threads(cores())
    if given.worker:
        serve(lambda: _worker(given.worker))
        return
    print(describe_machine())
    names, sections = names_of(given.networks), names_of(given.sections, SECTIONS)
    with tempfile.TemporaryDirectory(prefix="benchmark-training-") as folder:
        stores = make_stores(Path(folder), given, {MODELS[name].task for name in names})
        jobs = {
            name: {
                "network": name, "store": stores[MODELS[name].task], "runs": f"{folder}/runs", "batch": given.batch,
                "filters": given.filters, "seconds": given.seconds, "slices": given.slices, "h5": f"{folder}/h5-{name}",
            }
            for name in names
        }  # fmt: skip
        for section in sections:
            _PRINT[section](jobs, given.rounds)


def _worker(job: Job) -> Answer:
    return {
        "loop": loop_worker, "augmentation": augmentation_worker, "checkpoint": checkpoint_worker,
        "plain": epoch_worker, "ours": epoch_worker,
    }[job["kind"]](job)  # fmt: skip


def print_loop(jobs: dict[str, Job], rounds: int) -> None:
    """Print parts (a) and (b): the time of the loop itself, and of the metrics."""
    print(f"\nthe loop   {'ms a step':>20}{'overhead, target < 3 %':>26}   shares of the loop's time"
          f"\n{'network':<16}{'bare':>7}{'loop':>8}{'median':>10}{'(range)':>16}{'data':>9}{'checks':>8}{'metrics':>9}"
          f"{'first, end of an epoch':>26}")  # fmt: skip
    for name, job in jobs.items():
        found = _answers(job, "loop", rounds)
        middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
        extra = [one["loop"] / one["bare"] - 1 for one in found]
        shares = [middle[part] / middle["loop"] for part in ("data", "checks", "metrics")]
        print(f"{name:<16}{1e3 * middle['bare']:>7.0f}{1e3 * middle['loop']:>8.0f}"
              f"{middle['loop'] / middle['bare'] - 1:>10.1%}{f'{min(extra):.1%}…{max(extra):.1%}':>16}"
              f"{shares[0]:>9.2%}{shares[1]:>8.2%}{shares[2]:>9.2%}"
              f"{1e3 * middle['first']:>15.0f}, {1e3 * middle['end']:.0f} ms", flush=True)  # fmt: skip


def print_augmentation(jobs: dict[str, Job], rounds: int) -> None:
    """Print part (c): augmentation against the step, also of alexnet and vgg16, whose recipes have none."""
    print(f"\n{'augmentation':<16}{'ms a batch':>11}{'ms a step':>11}{'share':>8}   (target of cnn: < 10 %)")
    for name, job in jobs.items():
        found = _answers(job, "augmentation", rounds)
        batch, step = (statistics.median(one[key] for one in found) for key in ("augmentation", "step"))
        print(f"{name:<16}{1e3 * batch:>11.1f}{1e3 * step:>11.0f}{batch / step:>8.1%}", flush=True)


def print_checkpoint(jobs: dict[str, Job], rounds: int) -> None:
    """Print part (d): how long training waits for a checkpoint."""
    print(f"\n{'checkpoint, ms':<16}{'copy':>8}{'stall':>8}{'at once':>9}{'ratio':>7}{'on disk after':>15}"
          f"{'taken from the steps beside it':>32}")  # fmt: skip
    for name in ("cnn", "vgg16"):
        if name in jobs:
            found = _answers(jobs[name], "checkpoint", rounds)
            middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
            print(f"{name:<16}{1e3 * middle['copy']:>8.1f}{1e3 * middle['stall']:>8.1f}{1e3 * middle['written']:>9.1f}"
                  f"{middle['written'] / middle['stall']:>7.1f}{1e3 * middle['seconds']:>15.0f}"
                  f"{1e3 * middle['taken']:>32.0f}", flush=True)  # fmt: skip


def print_epoch(jobs: dict[str, Job], rounds: int) -> None:
    """Print part (e): an epoch of a U-Net, from files to scores."""
    print(
        f"\n{'an epoch':<16}{'slices':>7}{'batch':>6}{'plain':>9}{'ours':>9}{'ratio':>7}{'(range)':>13}   (target: 5)"
    )
    for name in (name for name in U_NETS if name in jobs):
        job = jobs[name]
        batch = write_slices(job)
        times: dict[str, list[float]] = {"plain": [], "ours": []}
        with Worker({**job, "kind": "plain"}) as plain, Worker({**job, "kind": "ours"}) as ours:
            workers = {"plain": plain, "ours": ours}
            for worker in workers.values():
                worker.ask("warm up")
            for _ in range(min(3, rounds)):
                for way, worker in workers.items():
                    times[way].append(worker.ask("epoch"))
        middle = {way: statistics.median(seconds) for way, seconds in times.items()}
        each = [slow / fast for slow, fast in zip(times["plain"], times["ours"], strict=True)]
        slices, span = job["slices"] // batch * batch, f"{min(each):.2f}–{max(each):.2f}"
        print(f"{name:<16}{slices:>7}{batch:>6}{middle['plain']:>7.1f} s{middle['ours']:>7.1f} s"
              f"{middle['plain'] / middle['ours']:>7.2f}{span:>13}", flush=True)  # fmt: skip


def _answers(job: Job, kind: str, rounds: int) -> list[dict[str, float]]:
    """Return a worker's measurements of a round, after a warm-up."""
    with Worker({**job, "kind": kind}) as worker:
        return [worker.ask() for _ in range(rounds)]


_PRINT = {"loop": print_loop, "augmentation": print_augmentation, "checkpoint": print_checkpoint, "epoch": print_epoch}

if __name__ == "__main__":
    main()
