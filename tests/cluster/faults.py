"""Inject faults into a job: killed or stopped processes, dead daemons and nodes, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launching import wait_for
from local_slurm import DEFAULT_DIR, slurm_tool
from slurm_cluster_config import Layout, find_layout
from slurm_cluster_daemons import node_states, running_daemons


def processes(**variables: str) -> dict[int, str]:
    """Return the command line of each process started with these variables."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended, or is not readable
                if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def ranks(job_id: str) -> dict[int, int]:
    """Return the process of each rank of a running job."""
    found = {}
    for rank in range(8):
        for pid, command in processes(SLURM_JOB_ID=job_id, SLURM_PROCID=str(rank)).items():
            if "submitit.core._submit" in command and not command.startswith("srun "):
                found[rank] = pid
    return found


def send(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_batch_script(job_id: str) -> None:
    for pid, command in processes(SLURM_JOB_ID=job_id).items():
        if "slurm_script" in command:
            send(pid)


def layout() -> Layout:
    found = find_layout(DEFAULT_DIR)
    assert found is not None
    return found


def kill_daemon(name: str) -> None:
    pid = running_daemons(layout())[name]
    send(pid)
    wait_for(lambda: name not in running_daemons(layout()), seconds=20)


def kill_node(node: str) -> None:
    """Kill a node as in a power failure: the daemon, the job steps and their children, at once."""
    kill_daemon(f"slurmd-{node}")
    for pid in processes(SLURMD_NODENAME=node):
        with suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if b"slurmstepd" in Path(f"/proc/{parent}/cmdline").read_bytes():
                send(parent)
        send(pid)


def repair() -> None:
    """Restore all daemons and nodes of the cluster."""
    done = slurm_tool("up", "--no-install")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not any("down" in state for state in node_states(layout()).values()), seconds=60)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of so many megabytes on `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Fill the disk with one file."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    with suppress(OSError), filler.open("ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    return filler
