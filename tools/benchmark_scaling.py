#!/usr/bin/env python3
"""Measure the gain of a second process: two ranks of one thread against one process with one and two threads.

    python tools/benchmark_scaling.py [--networks cnn,unet] [--rounds N] [--batch N]

All on the CPU, with gloo between the ranks, on two cores. The global batch is the same in all cases, as in training:
each rank has half of it. The ranks connect and share the network as in a run (`init_distributed`, `build_state`); they
and the two single processes alternate. Steps are `train_step` on a batch in memory.

Communication: the time of a step in which DDP adds up the gradients while the backward pass runs, against one under
no_sync, on the same two ranks, and against one in which they are added up when the backward pass is over. Hidden: what
DDP saves of the time that the last takes.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmark_loop import experiment_for
from benchmark_machine import describe_machine
from benchmark_networks import OwnTraining, names_of, own_training
from benchmark_workers import Answer, Job, Worker, cores, data_options, make_stores, network_options, serve
from torch.nn.parallel import DistributedDataParallel

from hpc_tumor.models import MODELS
from hpc_tumor.training.distributed import Distributed, init_distributed

RANKS = 2
WARM = 3  # steps before the first that counts
HOW = ("shared", "alone", "after")  # gradients summed by DDP, not at all, after the backward pass
Group = list[Worker]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="rounds of each")
    options.add_argument("--seconds", type=float, default=2.0, help="seconds of steps per round, about")
    options.add_argument("--batch", type=int, help="global batch size; default: 64 images, 8 slices")
    data_options(options)
    network_options(options)
    given = options.parse_args()
    if given.worker:
        serve(lambda: _worker(given.worker))
        return
    print(describe_machine())
    if cores() < RANKS:
        raise SystemExit(f"this process has one core: {RANKS} ranks side by side need {RANKS}.")
    if hasattr(os, "sched_setaffinity"):  # no more than two, which the processes below inherit
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:RANKS])
    names = names_of(given.networks)
    with tempfile.TemporaryDirectory(prefix="benchmark-scaling-") as folder:
        stores = make_stores(Path(folder), given, {MODELS[name].task for name in names})
        print(f"\n{'':<16}{'':>6}{'samples/s':>27}{'2 ranks against':>18}   communication, of a step"
              f"\n{'network':<16}{'batch':>6}{'1 thread':>10}{'2 threads':>10}{'2 ranks':>9}{'1 th.':>8}{'2 th.':>8}"
              f"{'DDP':>10}{'after':>8}{'hidden':>8}")  # fmt: skip
        for name in names:
            job = {
                "network": name, "store": stores[MODELS[name].task], "runs": f"{folder}/runs", "batch": given.batch,
                "filters": given.filters,
            }  # fmt: skip
            _print_row(name, *measure(job, given.rounds, given.seconds))


def measure(job: Job, rounds: int, seconds: float) -> tuple[int, dict[str, list[float]]]:
    """Return the samples in a step, and its seconds in every round by kind of process and of communication."""
    times: dict[str, list[float]] = {way: [] for way in ("1 thread", "2 threads", "2 ranks", *HOW)}
    with ExitStack() as stack:
        rendezvous = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(RANKS),
            "LOCAL_WORLD_SIZE": str(RANKS),
        }  # fmt: skip
        ranks = [{**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(RANKS)]
        groups: dict[str, Group] = {
            "1 thread": [stack.enter_context(Worker({**job, "threads": 1}))],
            "2 threads": [stack.enter_context(Worker({**job, "threads": 2}))],
            "2 ranks": [stack.enter_context(Worker({**job, "threads": 1}, variables)) for variables in ranks],
        }
        samples = {way: round(sum(_ask(group, "samples"))) for way, group in groups.items()}  # when all are ready
        # As many steps for all ranks, or one of them would wait for a step that the other does not take.
        steps = {way: max(1, round(seconds / max(_ask(group, "train 1")))) for way, group in groups.items()}
        for _ in range(rounds):
            for way, group in groups.items():
                times[way].append(max(_ask(group, f"train {steps[way]}")))
            for how in HOW:
                times[how].append(max(_ask(groups["2 ranks"], f"{how} {steps['2 ranks']}")))
    return samples["2 ranks"], times


def _ask(group: Group, question: str) -> list[float]:
    """Return the answers of workers that handle a request together."""
    for worker in group:
        worker.begin(question)
    return [worker.answer() for worker in group]


def _print_row(name: str, samples: int, times: dict[str, list[float]]) -> None:
    middle = {way: statistics.median(seconds) for way, seconds in times.items()}
    one, two, ranks = (samples / middle[way] for way in ("1 thread", "2 threads", "2 ranks"))
    shared, after = middle["shared"] - middle["alone"], middle["after"] - middle["alone"]
    hidden = f"{1 - shared / after:.0%}" if after > 0 else "–"
    print(f"{name:<16}{samples:>6}{one:>10.2f}{two:>10.2f}{ranks:>9.2f}{ranks / one:>8.2f}{ranks / two:>8.2f}"
          f"{shared / middle['shared']:>10.1%}{after / middle['after']:>8.1%}{hidden:>8}", flush=True)  # fmt: skip


def _worker(job: Job) -> Answer:
    """Run as a single process, or as a rank if the rank variables are set; always without a GPU."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(job["threads"])
    distributed = init_distributed(threads=job["threads"]) if "RANK" in os.environ else Distributed()
    training = own_training(
        experiment_for(job, hardware={"gpus": distributed.world_size}), Path(job["runs"]), distributed
    )
    for _ in range(WARM):
        training.step()
    ways: dict[str, Callable[[], Any]] = {"train": training.step}
    if distributed.world_size > 1:
        ways.update({how: partial(_step, training, how) for how in HOW})

    def answer(question: str) -> float:
        if question == "samples":
            return len(training.batch.images)
        how, steps = question.split()
        ways[how]()  # the first after another kind of step finds other memory
        distributed.barrier()
        began = time.perf_counter()
        for _ in range(int(steps)):
            ways[how]()
        return (time.perf_counter() - began) / int(steps)

    return answer


def _step(training: OwnTraining, how: str) -> None:
    """Take a step without checks and totals; `how` selects how gradients are summed."""
    state, batch = training.state, training.batch
    network = state.wrapped
    assert isinstance(network, DistributedDataParallel)
    state.optimizer.zero_grad(set_to_none=True)
    with nullcontext() if how == "shared" else network.no_sync():
        losses, _ = network(batch.images, batch.targets)
        losses.mean().backward()
    if how == "after":
        gradients = [weights.grad for weights in state.parameters if weights.grad is not None]
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()
    state.optimizer.found_inf = None  # type: ignore[attr-defined]  # a step of the loop leaves its own there
    state.optimizer.step()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
