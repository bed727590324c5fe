"""What the launching tests share: a small experiment, a profile, and waiting for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_tumor.config import ClusterProfile, Experiment
from hpc_tumor.run_dir import RunDir
from hpc_tumor.validation import build

STAND_IN = Path(__file__).parent / "stand_in"
# What the commands of a cluster print: a text, or a script that begins with `case`.
ORFEO = {
    "sinfo": """GPU|up|18:00:00|4|24|240000|gpu:2|(null)
DGX|up|6-06:00:00|2|128|1000000|gpu:a100:8(S:0-7)|dgx,a100
MIXED|up|infinite|3+|112|1000000|gpu:h100:8,shard:16|h100
MIXED|up|infinite|10|64|500000|(null)|cpu
EPYC|inact|6-06:00:00|8|128|512000|(null)|(null)
""",
    "scontrol": """case "$*" in
*partition*) cat <<'END'
PartitionName=GPU AllowAccounts=dssc,lade AllowQos=ALL Default=YES MaxNodes=2 MaxTime=18:00:00 QoS=gpuq State=UP
PartitionName=DGX AllowAccounts=lade AllowQos=normal,long Default=NO MaxTime=6-06:00:00 QoS=N/A State=UP
END
;;
*) printf 'ClusterName = orfeo\\nJobRequeue = 1\\nMaxArraySize = 501\\nSLURM_VERSION = 23.11.4\\n' ;;
esac""",
    "sacctmgr": """case "$*" in
*assoc*) echo 'dssc||normal,gpuq|5|20|2:00:00' ;;
*user*) echo dssc ;;
*qos*) printf 'normal||||||\\nlong|6-00:00:00|||||\\ngpuq|12:00:00|cpu=96,gres/gpu=4|5|20|node=2|\\n' | sed 's/|$//' ;;
esac""",
}


def small_experiment(store: Path = Path("brats.zarr"), gpus: int = 1, **values: Any) -> Experiment:
    settings = {
        "model": {"name": "unet"},
        "task": "segmentation",
        "data": {"store": store},
        "hardware": {"gpus": gpus},
        **values,
    }
    return build(Experiment, settings, where="test")


def profile_with(name: str = "two-gpu-nodes", **sections: Any) -> ClusterProfile:
    """Nodes of 2 GPUs, 24 CPUs and 234 GB; two of them, for two hours."""
    values = {
        "name": name,
        "description": "made up",
        "slurm": {"partition": "GPU"},
        "node": {"gpus": 2, "cpus": 24, "memory_gb": 234},
        "limits": {"walltime": "2h", "nodes": 2},
    }
    for section, more in sections.items():
        values[section] = {**values.get(section, {}), **more}  # type: ignore[dict-item]
    return build(ClusterProfile, values, where="test")


def wait_for(condition: Callable[[], Any], seconds: float = 30, every: float = 0.1) -> Any:
    """What `condition` gives once that is true; the test fails where it does not become true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"not true after {seconds} s: {condition}")


def events(run: RunDir) -> list[str]:
    return [line["event"] for line in run.read_events()]
