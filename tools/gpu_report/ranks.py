"""Train on several ranks: NCCL with a GPU each, or gloo with one GPU (or the CPU) for two; compare with one rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from benchmark_networks import now

from gpu_report.assertions import find_wait
from gpu_report.job import Job, Tell
from gpu_report.plan import EACH, GRAPH
from gpu_report.work import Running, experiment_of, graph_settings
from hpc_tumor.system import devices
from hpc_tumor.system.processes import end_with_parent
from hpc_tumor.training.distributed import Distributed

# Without dropout, which draws by rank; the second has batch norm, which the ranks of GPUs synchronise.
NETWORKS = ("unet", "improved-unet")
STEPS = 4  # the last is replayed where steps are captured
# Relative error of the change of the weights, in float32. Another memory layout on a CPU gives 0.001, as gradients are
# ill-conditioned; batch norm that is not synchronised 0.04, gradients that are not averaged far more.
TOLERANCE = 0.02
SIZES = (2**20, 2**26, 2**28)  # bytes of all-reduces
# Adam would turn the smallest difference of a small gradient into a full step.
SETTINGS: dict[str, Any] = {
    "recipe": {"optimizer": "sgd", "learning_rate": 1e-2, "augment": False, "batch_size": 8},
    "hardware": {"precision": "float32"}, "data": {"keep": "none"},
}  # fmt: skip


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Start the ranks, then compare what they found with one rank."""
    number = int(item["ranks"])
    if number == 1:
        tell(note="only one GPU: NCCL with one rank, which sends nothing")
    found = _run(number, item["on"], item.get("steps", ""), job)
    tell(all_reduce_bytes=found[0]["all_reduce"], backend=found[0]["backend"], step_ms=found[0]["step_ms"])
    for network in NETWORKS[: 1 if job.device == "cpu" else 2]:
        same = all(rank["digests"][network] == found[0]["digests"][network] for rank in found)
        tell.check(f"{network}: all ranks have the same weights", same)
        if item.get("steps") == GRAPH:
            off = [rank["no_graph"][network] for rank in found if rank["no_graph"][network]]
            tell.check(f"{network}: steps were replayed as a CUDA graph", not off, why=off[0] if off else None)
        if "waits" in found[0]:
            waits = [rank["waits"][network] for rank in found if rank["waits"][network]]
            tell.check(f"{network}: no hidden wait on any rank", not waits, why=waits[0] if waits else None)
        one, many = (_change(job, network, count) for count in (0, number))
        error = float((many - one).norm() / one.norm())
        tell.check(f"{network}: the weights of one rank", error <= TOLERANCE, value=error, limit=TOLERANCE)


def _run(number: int, where: str, steps: str, job: Job) -> list[dict[str, Any]]:
    """Run the ranks to their end and return what each found. SystemExit if one failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "gpu_report.ranks", json.dumps(job.to_json()), where, steps, str(os.getpid())],
            stdout=sys.stderr, env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
        )
        for rank in range(number)
    ]  # fmt: skip
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):  # the others would wait for it
            break
        time.sleep(0.1)
    if any(process.poll() != 0 for process in processes):
        raise SystemExit(f"{number} ranks on {where} failed: see log.txt")
    return [json.loads((Path(job.folder) / f"rank-{rank}.json").read_text()) for rank in range(number)]


def rank_main() -> None:
    """Run one rank."""
    job, where = Job.from_json(json.loads(sys.argv[1])), sys.argv[2]
    end_with_parent(signal.SIGKILL, sys.argv[4])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device, backend = devices.CPU, "gloo"
    if job.device != "cpu":
        device = torch.device(torch.device(job.device).type, rank if where == EACH else 0)
        devices.use(device)
        backend = devices.backend(device) if where == EACH else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    distributed = Distributed(rank, rank, ranks, 1, device)
    settings = graph_settings(device) if sys.argv[3] == GRAPH else {}
    found: dict[str, Any] = {"backend": backend.rpartition(":")[2], "digests": {}, "step_ms": {}, "no_graph": {}}
    sizes = SIZES[:1] if job.quick else SIZES
    found["all_reduce"] = {str(size): _all_reduce_rate(size, distributed) for size in sizes}
    for network in NETWORKS[: 1 if job.device == "cpu" else 2]:
        experiment = experiment_of(network, job, SETTINGS, settings)
        running = Running(experiment, job, distributed)
        weights, found["step_ms"][network] = _train(running)
        found["no_graph"][network] = running.state.graph.off
        found["digests"][network] = [float(weights.sum()), float(weights.square().sum())]
        if rank == 0:
            torch.save(weights, _file(job, network, ranks))
            alone = Running(experiment, job, Distributed(device=device))
            torch.save(_weights(alone), _file(job, network, -1))
            torch.save(_train(alone)[0], _file(job, network, 0))
        if device.type == "cuda" and where == EACH:  # gloo waits for GPUs
            dist.barrier()
            found.setdefault("waits", {})[network] = find_wait(partial(_take_steps, running, STEPS))
        dist.barrier()
    (Path(job.folder) / f"rank-{rank}.json").write_text(json.dumps(found))
    sys.stderr.flush()
    os._exit(0)  # gloo's threads and CUDA's libraries may hang or abort at the interpreter's end


def _train(running: Running) -> tuple[torch.Tensor, float]:
    """Return the weights after some steps, and the milliseconds of the last."""
    _take_steps(running, STEPS - 1)
    began = now(running.device)
    _take_steps(running, 1)
    return _weights(running), 1e3 * (now(running.device) - began)


def _take_steps(running: Running, number: int) -> None:
    for _ in range(number):
        running.step()


def _weights(running: Running) -> torch.Tensor:
    return torch.cat([weights.detach().double().cpu().flatten() for weights in running.state.network.parameters()])


def _file(job: Job, network: str, ranks: int) -> Path:
    """Return the file of the weights after training on `ranks` ranks; 0: without DDP, -1: before training."""
    return Path(job.folder) / f"weights-{network}-{ranks}.pt"


def _change(job: Job, network: str, ranks: int) -> torch.Tensor:
    change: torch.Tensor = torch.load(_file(job, network, ranks)) - torch.load(_file(job, network, -1))
    return change


def _all_reduce_rate(size: int, distributed: Distributed) -> float:
    """Return the bytes a second that each rank sends in a ring: 2 (n - 1) / n of the tensor, 0 if it is alone."""
    values, ranks = torch.ones(size // 4, device=distributed.device), distributed.world_size
    times = []
    for _ in range(5):
        began = now(distributed.device)
        dist.all_reduce(values)
        times.append(now(distributed.device) - began)
        values.fill_(1.0)
    return 2 * (ranks - 1) / ranks * size / min(times)


if __name__ == "__main__":
    rank_main()
