"""Find out which rank this process is, and on which device. The only module that reads rank variables."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpc_tumor.errors import UsageError
from hpc_tumor.training.watch.progress_marks import Marks
from hpc_tumor.training.watch.watchdog import OnHang, Watchdog
from hpc_tumor.vocabulary import counted

_THREADS_END = 0.2  # seconds for threads of groups that something still holds to let go of their last work
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Distributed:
    """This process among the others. Alone, every collective is the identity."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    nodes: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watchdog: Watchdog | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Return True if this rank writes the record."""
        return self.rank == 0

    def mark(self, phase: str, step: int | None = None) -> None:
        """Note progress: `phase` begins, in `step`, counted over all epochs. For the main thread; it costs nothing.

        A rank that marks nothing for `hardware.timeout_minutes` counts as hung. The collectives here mark themselves.
        """
        if self.watchdog is not None:
            self.watchdog.mark(phase, step)

    @contextmanager
    def _waiting(self, phase: str) -> Iterator[None]:
        if self.watchdog is None:
            yield
        else:
            with self.watchdog.waiting(phase):
                yield

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` added up over all ranks, in place."""
        with self._waiting("sum"):
            if self.world_size > 1:
                dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """The largest value over all ranks of each element of `tensor`, in place."""
        with self._waiting("agree"):
            if self.world_size > 1:
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Rank 0's `tensor` on every rank, in place."""
        with self._waiting("broadcast"):
            if self.world_size > 1:
                dist.broadcast(tensor, src=0)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether any rank raised it. On the CPU: it never waits for a GPU."""
        with self._waiting("agree"):
            if self.world_size == 1:
                return list(flags)
            raised = torch.tensor(flags, dtype=torch.int32)
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
            return [bool(flag) for flag in raised]

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, in order, on every rank."""
        with self._waiting("gather"):
            if self.world_size == 1:
                return [value]
            values: list[Any] = [None] * self.world_size
            dist.all_gather_object(values, value)
            return values

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.world_size > 1:
            self.any(False)

    def shutdown(self) -> None:
        """Leave the group of ranks.

        Gloo's threads may still hold a tensor when a collective has ended. One that lets go of it after the interpreter
        has begun to end takes the whole process down (SIGABRT), so they are ended here: with the last reference to the
        group, which a network in DDP holds, too.
        """
        if self.world_size > 1 and dist.is_initialized():
            self.barrier()
            gc.collect()
            dist.destroy_process_group()
            gc.collect()
            time.sleep(_THREADS_END)
        if self.watchdog is not None:
            self.watchdog.stop()


def init_distributed(
    timeout_minutes: float = 15, threads: int | None = None, on_hang: OnHang | None = None, *, alone: bool = False
) -> Distributed:
    """Join the ranks that torchrun or SLURM started, or be alone where neither did.

    NCCL carries the gradients between GPUs, gloo those between CPUs and all control messages.

    Args:
        timeout_minutes: without any progress, after which this process ends with exit code 1; see watchdog.py. A
            collective may take more than twice as long, so that a rank that hangs is named before it fails.
        threads: CPU threads of this rank; by default OMP_NUM_THREADS, else the CPUs given.
        on_hang: called before that with the reason, the rank that is the cause, and the stack of the main thread.
        alone: be one process whatever the rank variables say, and watched by nobody (debugging inside a job).

    Raises:
        UsageError: only part of the rank variables is set, there are fewer GPUs than ranks on this node, or variables
            name a network interface that this node does not have.
    """
    rank, local_rank, world_size, ranks_here = (0, 0, 1, 1) if alone else read_ranks(os.environ)
    place = device_of_rank(local_rank, ranks_here, shared="RANK" in os.environ and not alone)
    torch.set_num_threads(threads or max(1, cpus_of_rank(ranks_here)))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    nodes = -(-world_size // ranks_here)
    if alone:
        return Distributed(rank, local_rank, world_size, nodes, place)
    if world_size > 1:
        refuse_missing_interfaces(os.environ, place.type)
    marks = Marks(rank, world_size, _store_client(os.environ)) if world_size > 1 else None
    watchdog = Watchdog(rank, 60 * timeout_minutes, on_hang, marks)
    watchdog.start()  # before the others are here: one that never comes is noticed, too
    if world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        patience = timedelta(minutes=2 * timeout_minutes, seconds=60)
        with watchdog.waiting("rendezvous"):
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=patience)
    return Distributed(rank, local_rank, world_size, nodes, place, watchdog)


def refuse_missing_interfaces(variables: Mapping[str, str], device: str) -> None:
    """Raises UsageError where gloo, or NCCL on a GPU, is told to use a network interface that this node does not have.

    GLOO_SOCKET_IFNAME lists names. NCCL_SOCKET_IFNAME lists beginnings of names, or names after `=`; those after `^`
    are left out, and may be missing.
    """
    there = [name for _, name in socket.if_nameindex()]
    gloo = [name for name in variables.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    missing = {"GLOO_SOCKET_IFNAME": [name for name in gloo if name not in there]}
    nccl = variables.get("NCCL_SOCKET_IFNAME", "")
    if device == "cuda" and nccl and not nccl.startswith("^"):
        names = [name for name in nccl.removeprefix("=").split(",") if name]
        is_one = str.__eq__ if nccl.startswith("=") else str.startswith
        if not any(is_one(interface, name) for interface in there for name in names):
            missing["NCCL_SOCKET_IFNAME"] = names
    for variable, names in missing.items():
        if names:
            raise UsageError(
                f"{variable} names {', '.join(names)}, but {socket.gethostname()} has the network interfaces"
                f" {', '.join(there)}: correct it in `variables` of the cluster profile, or where your shell sets it."
            )


def _store_client(variables: Mapping[str, str]) -> Callable[[], dist.Store | None]:
    """Gives a client of the store at which the ranks meet, None while it is not there.

    A client of its own: what waits in one client, as the ranks do when they join, blocks all others that use it.
    """
    host, port = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
    restart = variables.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store over restarts

    def connect() -> dist.Store | None:
        try:
            socket.create_connection((host, port), timeout=2).close()  # unlike torch's client, this tries in silence
        except OSError:
            return None
        client = dist.TCPStore(host, port, None, False, timedelta(seconds=30), wait_for_workers=False)
        return dist.PrefixStore(f"watchdog/{restart}", client)

    return connect


def read_ranks(variables: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Rank, local rank, world size and ranks on this node, as torchrun or SLURM set them; alone where neither did.

    Raises UsageError where only part of the variables is set.
    """
    if any(name in variables for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")):
        rank, local_rank, world_size = (int(value) for value in _all_or_none(variables, _TORCHRUN)[:3])
        return rank, local_rank, world_size, int(variables.get("LOCAL_WORLD_SIZE", world_size))
    if "SLURM_PROCID" in variables and int(variables.get("SLURM_NTASKS", "1")) > 1:
        rank, local_rank, world_size = (int(value) for value in _all_or_none(variables, _SLURM)[:3])
        per_node = variables.get("SLURM_STEP_TASKS_PER_NODE") or variables.get("SLURM_TASKS_PER_NODE", "")
        first = per_node.split(",")[0].split("(")[0]
        return rank, local_rank, world_size, int(first) if first.isdigit() else world_size
    return 0, 0, 1, 1


def _all_or_none(variables: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    missing = [name for name in names if name not in variables]
    if missing:
        raise UsageError(
            f"only part of the rank variables is set: {', '.join(missing)} missing among {', '.join(names)}."
            " Start ranks with torchrun or hpc-tumor submit, or unset all of them to train alone."
        )
    return [variables[name] for name in names]


def device_of_rank(local_rank: int, ranks_here: int, shared: bool) -> torch.device:
    """This rank's GPU, or the CPU. `shared`: all ranks of this node see the same GPUs, as under torchrun.

    Raises UsageError where there are fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if seen == 1 and not shared:  # SLURM may show each task its own GPU
        return torch.device("cuda", 0)
    if local_rank >= seen:
        raise UsageError(
            f"{ranks_here} ranks on this node, but only {counted(seen, 'GPU')} visible:"
            " ask for one GPU per rank, or for fewer ranks."
        )
    return torch.device("cuda", local_rank)


def cpus_of_rank(ranks_here: int) -> int:
    """CPUs of one of `ranks_here` ranks on this node: OMP_NUM_THREADS, else what SLURM gave it, else its share."""
    if (chosen := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(chosen) > 0:
        return int(chosen)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK")
    return min(int(given), usable) if given and given.isdigit() else usable // ranks_here
