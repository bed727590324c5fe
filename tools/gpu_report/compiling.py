"""Fill the compilers' caches, several networks at once, so that `steps` can measure compiled networks in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from benchmark_workers import cores

from gpu_report.job import Job, Tell
from hpc_tumor.system import devices

_CORES_EACH, _MEMORY_EACH = 3, 24 * 10**9


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Compile all networks in the fastest format; nothing else is measured meanwhile."""
    networks = item["networks"].split()
    device = torch.device(job.device)
    room = devices.total_memory(device) // _MEMORY_EACH if devices.is_gpu(device) else 1
    at_once = max(1, min(len(networks), cores() // _CORES_EACH, room))
    with ThreadPoolExecutor(at_once) as pool:
        for network, found in zip(networks, pool.map(lambda name: _compile(name, job), networks), strict=True):
            tell(**{network: found})


def _compile(network: str, job: Job) -> dict[str, float | str]:
    """Take the first steps of a compiled network in another process; return how long it was until after the first."""
    item = {"network": network, "format": job.formats[0], "variant": "compiled"}
    request = {"module": "gpu_report.steps", "items": [item], "job": job.to_json(), "parent": str(os.getpid())}
    done = subprocess.run(
        [sys.executable, "-m", "gpu_report.child", json.dumps(request)], stdout=subprocess.PIPE, check=False, text=True,
    )  # fmt: skip
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    values = {key: value for message in messages for key, value in message.get("values", {}).items()}
    if "first_step_seconds" in values:
        return {"first_step_seconds": values["built_seconds"] + values["first_step_seconds"]}
    return {"error": next((message["error"] for message in messages if "error" in message), "its process was killed")}
