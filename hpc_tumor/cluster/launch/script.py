"""The text around a job's Python: what sbatch is asked for, what its script runs before and after the ranks."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from hpc_tumor.cluster.launch.snapshot import CHECK
from hpc_tumor.cluster.plan.plan import Plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError
from hpc_tumor.system.processes import python_variables

# A folder that is shared can be moved by others: the pickle is used only where this user made it, and so is the code.
_OWNED = '[ -O "$hpc_tumor_job" ] || { echo "error: $hpc_tumor_job is not yours, or gone: it is not run" >&2; exit 1; }'
# `verified` of the snapshot, as the script has it: Python, then what it is to check, then the command.
VERIFIED_PYTHON = f'{shlex.quote(sys.executable)} -I -S -c "$hpc_tumor_check" "$hpc_tumor_code"'

# Python takes an empty entry for the current folder; `PATH:$PYTHONPATH` leaves one where there was nothing before.
_NO_CURRENT_FOLDER = (
    "while [[ $PYTHONPATH == *::* ]]; do PYTHONPATH=${PYTHONPATH//::/:}; done;"
    " PYTHONPATH=${PYTHONPATH#:} PYTHONPATH=${PYTHONPATH%:}"
)


def sbatch_parameters(
    name: str, profile: ClusterProfile, plan: Plan, folder: Path, code: Path, after: str | None = None,
    at_once: int = 0, tasks: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Return the parameters with which submitit asks SLURM for a job of that name.

    Args:
        folder: the job's own folder, with its pickle and its logs.
        code: the snapshot of the package that it runs from.
        after: job that must have ended before.
        at_once: tasks of an array that may run at the same time; 0: as many as SLURM lets.
        tasks: of the array.
    """
    # A step does not inherit --cpus-per-task (SLURM 22.05); one lost rank ends the others, which would wait for it.
    srun_args = [f"--cpus-per-task={plan.cpus_per_task}", "--kill-on-bad-exit=1", "--wait=60"]
    further = _further(profile, plan, profile.slurm.requeue)
    if "%" in str(folder):  # submitit would give it as it is
        logs = f"{log_folder(folder)}/{'%A_%a' if tasks > 1 else '%j'}"
        further["output"] = f"{logs}_0_log.out"
        srun_args.append(f"--output={logs}_%t_log.out")
    return {
        **_request(name, profile, plan),
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
        "additional_parameters": further,
        "srun_args": srun_args,
    }


def sbatch_options(
    name: str, profile: ClusterProfile, plan: Plan, output: str, *, requeue: bool, **more: str
) -> list[str]:  # fmt: skip
    """The same request as options on sbatch's command line, for a script that names none; `output` is the log."""
    asked = {**_request(name, profile, plan), **_further(profile, plan, requeue), "output": output, **more}
    given = {
        key.replace("_", "-"): value for key, value in {**asked, "open_mode": "append"}.items() if value is not None
    }
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items()]


def _request(name: str, profile: ClusterProfile, plan: Plan) -> dict[str, Any]:
    gpus = f"{profile.slurm.gpu_type}:{plan.gpus_per_node}" if profile.slurm.gpu_type else str(plan.gpus_per_node)
    request = profile.slurm.gpu_request if plan.gpus_per_node else "none"
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
    }


def _further(profile: ClusterProfile, plan: Plan, requeue: bool) -> dict[str, Any]:
    """Options that the profile and the user name themselves, and those that submitit has no name for."""
    given = {**profile.slurm.extra, **plan.options}
    extra = {key.replace("-", "_"): value for key, value in given.items() if value is not False}
    if reservation := plan.reservation or profile.slurm.reservation:
        extra["reservation"] = reservation
    return {**extra, "requeue" if requeue else "no_requeue": True}


def log_folder(folder: Path, way: str = "") -> str:
    """Return `folder` as names of logs hold it for SLURM, with each % doubled.

    Raises UsageError for a path that cannot be said so, with the `way` to another one: SLURM has no escape for a
    backslash and a line end, and submitit puts numbers in the place of %j, %t, %A and %a.
    """
    if re.search(r"[\n\\]|%[jtAa]", str(folder)):
        signs = "a backslash, a line end, %j, %t, %A and %a mean something else to SLURM there."
        raise UsageError(f"{str(folder)!r}: {signs} {way}".rstrip())
    return str(folder).replace("%", "%%")


def setup_lines(profile: ClusterProfile, code: Path | None = None) -> list[str]:
    """Return the lines before Python: modules, the site's own lines, variables; it imports from `code`."""
    ours = python_variables(code)
    path = ours.pop("PYTHONPATH", None)
    return [
        *(f"module load {shlex.quote(module)} || exit 1" for module in profile.environment.modules),
        *profile.environment.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in {**ours, **profile.environment.variables}.items()),
        # Last and first: whatever the site or the profile puts on the path, the code is that which was submitted.
        *([f'export PYTHONPATH={shlex.quote(path)}"${{PYTHONPATH:+:$PYTHONPATH}}"'] if path else []),
        _NO_CURRENT_FOLDER,
    ]


def _guard(folder: Path, code: Path) -> list[str]:
    # The warning before the time limit is for the ranks; this shell only has to outlive it.
    return [
        f"hpc_tumor_job={shlex.quote(str(folder))} hpc_tumor_code={shlex.quote(str(code))}",
        f"hpc_tumor_check={shlex.quote(CHECK)}",
        _OWNED,
        "trap : USR2",
    ]


def _batch(when: str) -> str:
    return f'{VERIFIED_PYTHON} -m hpc_tumor.cluster.node.batch {when} "$hpc_tumor_job"'
