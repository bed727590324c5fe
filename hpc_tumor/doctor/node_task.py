"""One task of the test job on its node: read the token, gather the facts, communicate with the other task.

`python -m hpc_tumor.doctor.node_task FOLDER`, under srun. Each step writes its result to the folder at once, in case a
later step hangs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from hpc_tumor.doctor.probe import probe_here
from hpc_tumor.errors import HpcTumorError
from hpc_tumor.system import atomic

TOKEN, QUESTION = "token.txt", "question.json"
_MEET_SECONDS = 90  # for two tasks to connect and to compute a sum


def answer_path(folder: Path, rank: int) -> Path:
    """Return the file of a task's answer."""
    return folder / f"answer-{rank}.json"


def meeting_path(folder: Path, rank: int) -> Path:
    """Return the file of a task's communication test."""
    return folder / f"meeting-{rank}.json"


def answer(folder: Path) -> dict[str, Any]:
    """Return the facts of this node and of its file systems."""
    question = json.loads((folder / QUESTION).read_text(encoding="utf-8"))
    store = question.get("store")
    return {
        "token": (folder / TOKEN).read_text(encoding="utf-8"),
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0],
        "time": time.time(),
        "requested_cpus": int(os.environ.get("SLURM_CPUS_PER_TASK") or 0),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "store": _read_fault(Path(store) / "zarr.json") if store else None,
        "local": _local_disk(),
        "probe": probe_here().as_dict(),
    }


def meet(suffix: str) -> dict[str, Any]:
    """Sum a number over all tasks with training's backends; return backend, seconds, and whether the sum is right."""
    from hpc_tumor.cluster.node.job import rendezvous

    address, port = rendezvous(os.environ, suffix)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    import torch
    import torch.distributed as dist

    from hpc_tumor.system import devices
    from hpc_tumor.training.distributed import check_network_interfaces

    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    gpus = devices.count_gpus()
    device = (devices.find_gpu(int(os.environ.get("SLURM_LOCALID") or 0) % gpus) if gpus else None) or devices.CPU
    devices.check_code(device)
    devices.use(device)
    begun = time.monotonic()
    check_network_interfaces(os.environ, device)
    timeout = timedelta(seconds=_MEET_SECONDS)
    dist.init_process_group(devices.backend(device), rank=rank, world_size=ranks, timeout=timeout)
    sums = []
    for place in dict.fromkeys((devices.CPU, device)):
        number = torch.full((1 << 20,), float(rank + 1), device=place)
        dist.all_reduce(number)
        sums.append(number[-1].item())
    seconds = time.monotonic() - begun
    dist.destroy_process_group()
    right = all(value == ranks * (ranks + 1) / 2 for value in sums)
    return {"backend": devices.backend_name(device), "seconds": seconds, "right": right}


def _read_fault(path: Path) -> str:
    """Return why a file cannot be read; "" if it can."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _local_disk() -> dict[str, Any]:
    """Return path, file system and free bytes of the folder for temporary files."""
    from hpc_tumor.doctor.filesystems import read_room

    with suppress(OSError):
        folder = Path(tempfile.gettempdir())
        room = read_room(folder)
        return {"path": str(folder), "kind": room.kind, "bytes_left": room.bytes_left}
    return {"path": "", "kind": "", "bytes_left": None}


def main(arguments: list[str]) -> int:
    """Write the answer, and communicate with the other tasks; return 1 if that failed."""
    folder = Path(arguments[0])
    rank = int(os.environ.get("SLURM_PROCID") or 0)
    atomic.write_json(answer_path(folder, rank), answer(folder))
    question = json.loads((folder / QUESTION).read_text(encoding="utf-8"))
    if int(os.environ.get("SLURM_NTASKS") or 1) < 2:
        return 0
    try:
        meeting = meet(question["master_suffix"])
    except HpcTumorError as error:
        meeting = {"error": str(error)}
    except Exception as error:
        meeting = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    atomic.write_json(meeting_path(folder, rank), meeting)
    return 1 if "error" in meeting else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
