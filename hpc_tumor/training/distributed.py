"""Rank and device of this process, and its collectives. The only module that reads rank variables."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hpc_tumor.errors import UsageError
from hpc_tumor.system import devices
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.training.watch.progress_marks import ProgressMarks
from hpc_tumor.training.watch.watchdog import OnHang, Watchdog
from hpc_tumor.vocabulary import counted

_THREADS_END = 0.2  # seconds for gloo's threads to release their last tensors
_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Distributed:
    """This rank and its collectives, which are the identity for a single process."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    nodes: int = 1
    device: torch.device = devices.CPU
    watchdog: Watchdog | None = field(default=None, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        """Return True on rank 0, which writes the run directory."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """Name of the device that this rank computes on."""
        return devices.name(self.device)

    def seed_of_rank(self, seed: int) -> int:
        """Return a seed for this rank, so that its dropout differs from that of other ranks."""
        return seed + 1_000_003 * (self.rank + 1)

    def mark(self, phase: str, step: int | None = None, *, collective: bool = False, waits: bool = False) -> None:
        """Tell the watchdog that `phase` begins; see `Watchdog.mark`. For the main thread.

        A rank that marks nothing for `hardware.timeout_minutes` counts as hung. The collectives mark themselves.
        """
        if self.watchdog is not None:
            self.watchdog.mark(phase, step, collective=collective, waits=waits)

    @contextmanager
    def _waiting(self, phase: str) -> Iterator[None]:
        if self.watchdog is None:
            yield
        else:
            with self.watchdog.waiting(phase):
                yield

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place."""
        with self._waiting("sum"):
            if self.world_size > 1:
                dist.all_reduce(tensor)
        return tensor

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        """Take the elementwise maximum of `tensor` over all ranks, in place."""
        with self._waiting("agree"):
            if self.world_size > 1:
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Copy rank 0's `tensor` to every rank, in place."""
        with self._waiting("broadcast"):
            if self.world_size > 1:
                dist.broadcast(tensor, src=0)

    def any(self, *flags: bool) -> list[bool]:
        """Return, for each flag, whether any rank set it. Runs on the CPU, without waiting for a GPU."""
        with self._waiting("agree"):
            if self.world_size == 1:
                return list(flags)
            raised = torch.tensor(flags, dtype=torch.int32)
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
            return [bool(flag) for flag in raised]

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in order of rank."""
        with self._waiting("gather"):
            if self.world_size == 1:
                return [value]
            values: list[Any] = [None] * self.world_size
            dist.all_gather_object(values, value)
            return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            self.any(False)

    def shutdown(self) -> None:
        """Leave the process group and stop the watchdog.

        Gloo's threads may still hold a tensor when a collective has ended; releasing it during interpreter shutdown
        aborts the process (SIGABRT). They end with the last reference to the group, which a DDP network holds, too.
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
    """Join the ranks that torchrun or SLURM started; without either, run as a single process.

    NCCL transfers gradients between GPUs, gloo those between CPUs and all control messages.

    Args:
        timeout_minutes: minutes without progress after which this process exits with code 1; see watchdog.py.
            Collectives time out after more than twice as long, so that a hung rank is named before they fail.
        threads: CPU threads of this rank; by default OMP_NUM_THREADS, else the allocated CPUs.
        on_hang: called before the exit with the reason, the rank at fault, and the stack of the main thread.
        alone: ignore rank variables and run without a watchdog (debugging inside a job).

    Raises:
        UsageError: the rank variables are incomplete, this node has fewer GPUs than ranks, several of its ranks got
            the same GPU, or variables name a network interface that it does not have; this torch has no code for the
            GPU, or cannot connect several.
    """
    rank, local_rank, world_size, ranks_here = (0, 0, 1, 1) if alone else read_ranks(os.environ)
    device = device_of_rank(local_rank, ranks_here, shared="RANK" in os.environ and not alone)
    torch.set_num_threads(threads or max(1, cpus_of_rank(ranks_here)))
    devices.check_code(device)
    devices.use(device)
    devices.limit_memory(device)
    nodes = -(-world_size // ranks_here)
    if alone:
        return Distributed(rank, local_rank, world_size, nodes, device)
    if world_size > 1:
        check_network_interfaces(os.environ, device)
        backend = devices.backend(device)
    marks = ProgressMarks(rank, world_size, _store_client(os.environ)) if world_size > 1 else None
    watchdog = Watchdog(rank, 60 * timeout_minutes, on_hang, marks)
    watchdog.start()  # before joining, so that a rank that never joins is noticed
    if world_size > 1:
        timeout = timedelta(minutes=2 * timeout_minutes, seconds=60)
        with watchdog.waiting("rendezvous"):
            dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timeout)
    distributed = Distributed(rank, local_rank, world_size, nodes, device, watchdog)
    if world_size > 1:
        check_one_rank_per_gpu(distributed.gather((socket.gethostname(), devices.uuid(device))))
    return distributed


def check_one_rank_per_gpu(ranks: Sequence[tuple[str, str | None]]) -> None:
    """Raise UsageError if several ranks compute on one GPU, which NCCL would refuse without naming them.

    SLURM shows all tasks of a node the same GPU if it was requested for the job or the node.

    Args:
        ranks: host and UUID of each rank's GPU; None where torch does not know the UUID.
    """
    of_gpu: dict[tuple[str, str | None], list[str]] = {}
    for rank, gpu in enumerate(ranks):
        of_gpu.setdefault(gpu, []).append(str(rank))
    for (host, uuid), sharing in of_gpu.items():
        if uuid is not None and len(sharing) > 1:
            raise UsageError(
                f"ranks {', '.join(sharing)} on {host} all got the same GPU, {uuid}: request one GPU per rank"
                " (in SLURM, --gpus-per-task=1 or as many --gpus-per-node as tasks), or fewer ranks."
            )


def check_network_interfaces(variables: Mapping[str, str], device: torch.device) -> None:
    """Raise UsageError if gloo, or NCCL on a GPU, is set to a network interface that this node does not have.

    GLOO_SOCKET_IFNAME lists names. NCCL_SOCKET_IFNAME lists prefixes of names, or names after `=`; those after `^`
    are excluded and may be missing.
    """
    interfaces = [name for _, name in socket.if_nameindex()]
    gloo = [name for name in variables.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    missing = {"GLOO_SOCKET_IFNAME": [name for name in gloo if name not in interfaces]}
    nccl = variables.get("NCCL_SOCKET_IFNAME", "")
    if devices.has_nccl(device) and nccl and not nccl.startswith("^"):
        names = [name for name in nccl.removeprefix("=").split(",") if name]
        matches = str.__eq__ if nccl.startswith("=") else str.startswith
        if not any(matches(interface, name) for interface in interfaces for name in names):
            missing["NCCL_SOCKET_IFNAME"] = names
    for variable, names in missing.items():
        if names:
            raise UsageError(
                f"{variable} names {', '.join(names)}, but {socket.gethostname()} has the network interfaces"
                f" {', '.join(interfaces)}: correct it in `variables` of the cluster profile or in your shell."
            )


def _store_client(variables: Mapping[str, str]) -> Callable[[], dist.Store | None]:
    """Return a function that connects to the ranks' rendezvous store; it returns None until the store is up.

    The watchdog needs its own client: a call that waits in a client, as in the rendezvous, blocks its other users.
    """
    host, port = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
    restart = variables.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store across restarts

    def connect() -> dist.Store | None:
        try:
            socket.create_connection((host, port), timeout=2).close()  # unlike torch's client, this logs no failures
        except OSError:
            return None
        client = dist.TCPStore(host, port, None, False, timedelta(seconds=30), wait_for_workers=False)
        return dist.PrefixStore(f"watchdog/{restart}", client)

    return connect


def read_ranks(variables: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Read rank, local rank, world size and ranks on this node as set by torchrun or SLURM; 0, 0, 1, 1 without them.

    Raises UsageError if only some of the variables are set.
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
            f"the rank variables are incomplete: {', '.join(missing)} missing of {', '.join(names)}."
            " Start ranks with torchrun or hpc-tumor submit, or unset all of them to train in one process."
        )
    return [variables[name] for name in names]


def device_of_rank(local_rank: int, ranks_here: int, shared: bool) -> torch.device:
    """Return this rank's GPU, or the CPU. `shared`: all ranks of this node see the same GPUs, as under torchrun.

    Raises UsageError if there are fewer GPUs than ranks.
    """
    visible = devices.count_gpus()
    if visible == 1 and not shared:  # SLURM may show each task its own GPU
        local_rank = 0
    if visible and local_rank >= visible:
        raise UsageError(
            f"{ranks_here} ranks on this node, but only {counted(visible, 'GPU')} visible:"
            " request one GPU per rank, or fewer ranks."
        )
    return devices.find_gpu(local_rank) or devices.CPU


def cpus_of_rank(ranks_here: int) -> int:
    """Return the CPUs of each of `ranks_here` ranks on this node: OMP_NUM_THREADS, else SLURM's, else its share."""
    if (chosen := os.environ.get("OMP_NUM_THREADS", "")).isdigit() and int(chosen) > 0:
        return int(chosen)
    usable = available_cpus()
    allocated = os.environ.get("SLURM_CPUS_PER_TASK")
    return min(int(allocated), usable) if allocated and allocated.isdigit() else usable // ranks_here
