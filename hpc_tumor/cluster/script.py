"""The text around a job's Python: what sbatch is asked for, what its script runs before and after the ranks."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import hpc_tumor
from hpc_tumor.cluster.plan import Plan
from hpc_tumor.config import ClusterProfile

# A folder that is shared can be moved by others: pickle and code are used only where this user made them.
_OWNED = (
    'for each in "$hpc_tumor_job" "$hpc_tumor_code"; do'
    ' [ -O "$each" ] || { echo "error: $each is not yours: it is not run" >&2; exit 1; }; done'
)


def sbatch_parameters(
    name: str, profile: ClusterProfile, plan: Plan, folder: Path, code: Path, after: str | None = None, at_once: int = 0
) -> dict[str, Any]:
    """What submitit is to ask SLURM for, for a job of that name.

    Args:
        folder: the job's own folder, with its pickle and its logs.
        code: the snapshot of the package that it runs from.
        after: job that must have ended before.
        at_once: tasks of an array that may run at the same time; 0: as many as SLURM lets.
    """
    gpus = f"{profile.slurm.gpu_type}:{plan.gpus_per_node}" if profile.slurm.gpu_type else str(plan.gpus_per_node)
    request = profile.slurm.gpu_request if plan.gpus_per_node else "none"
    given = {**profile.slurm.extra, **plan.options}
    extra = {key.replace("-", "_"): value for key, value in given.items() if value is not False}
    if reservation := plan.reservation or profile.slurm.reservation:
        extra["reservation"] = reservation
    extra["requeue" if profile.slurm.requeue else "no_requeue"] = True
    return {
        "job_name": name,
        "partition": plan.partition,
        "account": plan.account,
        "qos": plan.qos,
        "constraint": plan.constraint,
        "nodes": plan.nodes,
        "ntasks_per_node": plan.tasks_per_node,
        "cpus_per_task": plan.cpus_per_task,
        "mem": f"{int(plan.memory_gb * 1024)}M",
        "time": plan.walltime,
        "gres": f"gpu:{gpus}" if request == "gres" else None,
        "gpus_per_node": gpus if request == "gpus-per-node" else None,
        "signal_delay_s": plan.signal_delay,
        "dependency": f"afterany:{after}" if after else None,
        "array_parallelism": at_once or 1_000_000,
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": [
            *_guard(folder, code),
            *setup_lines(profile, code),
            f"{_batch('before')} || exit $(($? == 10 ? 0 : $?))",
        ],
        "teardown": [f"{_batch('after')} $?"],
        "additional_parameters": extra,
        # A step does not inherit --cpus-per-task (SLURM 22.05); one lost rank ends the others, which would wait for it.
        "srun_args": [f"--cpus-per-task={plan.cpus_per_task}", "--kill-on-bad-exit=1", "--wait=60"],
    }


def setup_lines(profile: ClusterProfile, code: Path | None = None) -> list[str]:
    """What a job's script runs before Python: modules, the site's own lines, variables; it imports from `code`."""
    ours = python_variables(code)
    path = ours.pop("PYTHONPATH", None)
    return [
        *(f"module load {shlex.quote(module)} || exit 1" for module in profile.environment.modules),
        *profile.environment.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in {**ours, **profile.environment.variables}.items()),
        # Last and first: whatever the site or the profile puts on the path, the code is that which was submitted.
        *([f'export PYTHONPATH={shlex.quote(path)}"${{PYTHONPATH:+:$PYTHONPATH}}"'] if path else []),
    ]


def python_variables(code: Path | None = None) -> dict[str, str]:
    """What lets a job import hpc_tumor from `code`, or from where it is; and nothing from the folder it starts in.

    Its logs are UTF-8, whatever the locale of the node.
    """
    home = Path(hpc_tumor.__file__).resolve().parent.parent
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(home))]
    first = [str(code)] if code else [] if home.name in ("site-packages", "dist-packages") else [str(home)]
    ours = {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    return {**ours, **({"PYTHONPATH": os.pathsep.join(first + others)} if first else {})}


def _guard(folder: Path, code: Path) -> list[str]:
    # The warning before the time limit is for the ranks; this shell only has to outlive it.
    return [f"hpc_tumor_job={shlex.quote(str(folder))} hpc_tumor_code={shlex.quote(str(code))}", _OWNED, "trap : USR2"]


def _batch(when: str) -> str:
    return f'{shlex.quote(sys.executable)} -m hpc_tumor.cluster.batch {when} "$hpc_tumor_job"'
