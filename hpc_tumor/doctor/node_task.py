"""One task of the test job on its node: read the token, gather the facts, meet the other task.

`python -m hpc_tumor.doctor.node_task FOLDER`, under srun. Each step leaves its answer in the folder at once, so that
what was found stays known where a later step hangs.
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
_MEET_SECONDS = 90  # for two tasks to meet and to add a number up


def answer_path(folder: Path, rank: int) -> Path:
    """File in which a task writes what it found."""
    return folder / f"answer-{rank}.json"


def meeting_path(folder: Path, rank: int) -> Path:
    """File in which a task writes whether it could talk with the others."""
    return folder / f"meeting-{rank}.json"


def answer(folder: Path) -> dict[str, Any]:
    """Facts of this node, and of the file system that it sees."""
    question = json.loads((folder / QUESTION).read_text(encoding="utf-8"))
    store = question.get("store")
    return {
        "token": (folder / TOKEN).read_text(encoding="utf-8"),
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0],
        "time": time.time(),
        "asked_cpus": int(os.environ.get("SLURM_CPUS_PER_TASK") or 0),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "store": _reads(Path(store) / "zarr.json") if store else None,
        "local": _local_disk(),
        "probe": probe_here().as_dict(),
    }


def meet(suffix: str) -> dict[str, Any]:
    """Add up a number over all tasks, over the network as training does: the backend, and the seconds that it took."""
    from hpc_tumor.cluster.node.job import rendezvous

    address, port = rendezvous(os.environ, suffix)
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    import torch
    import torch.distributed as dist

    from hpc_tumor.training.distributed import check_network_interfaces

    gpu = torch.cuda.is_available() and torch.cuda.device_count() > 0
    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    if gpu:
        torch.cuda.set_device(int(os.environ.get("SLURM_LOCALID") or 0) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
    begun = time.monotonic()
    check_network_interfaces(os.environ, "cuda" if gpu else "cpu")
    dist.init_process_group(backend, rank=rank, world_size=ranks, timeout=timedelta(seconds=_MEET_SECONDS))
    devices = ["cpu", "cuda"] if gpu else ["cpu"]
    sums = []
    for device in devices:
        number = torch.full((1 << 20,), float(rank + 1), device=device)
        dist.all_reduce(number)
        sums.append(number[-1].item())
    seconds = time.monotonic() - begun
    dist.destroy_process_group()
    right = all(value == ranks * (ranks + 1) / 2 for value in sums)
    return {"backend": "NCCL and gloo" if gpu else "gloo", "seconds": seconds, "right": right}


def _reads(path: Path) -> str:
    """Reason why a file cannot be read; "" where it can."""
    try:
        path.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _local_disk() -> dict[str, Any]:
    """The folder for temporary files: where, on what, how much room."""
    from hpc_tumor.doctor.filesystems import room_in

    with suppress(OSError):
        folder = Path(tempfile.gettempdir())
        room = room_in(folder)
        return {"path": str(folder), "kind": room.kind, "bytes_left": room.bytes_left}
    return {"path": "", "kind": "", "bytes_left": None}


def main(arguments: list[str]) -> int:
    """Answer, and meet the other tasks; 1 where that failed."""
    folder = Path(arguments[0])
    rank = int(os.environ.get("SLURM_PROCID") or 0)
    atomic.write_json(answer_path(folder, rank), answer(folder))
    question = json.loads((folder / QUESTION).read_text(encoding="utf-8"))
    if int(os.environ.get("SLURM_NTASKS") or 1) < 2:
        return 0
    try:
        met = meet(question["master_suffix"])
    except HpcTumorError as error:
        met = {"error": str(error)}
    except Exception as error:
        met = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    atomic.write_json(meeting_path(folder, rank), met)
    return 1 if "error" in met else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
