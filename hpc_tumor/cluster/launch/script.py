"""Write job scripts: options of sbatch, and the shell lines before and after the ranks."""

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

# Others may replace files in a shared folder: the pickle and the code must belong to this user.
_OWNED = '[ -O "$hpc_tumor_job" ] || { echo "error: $hpc_tumor_job is not yours, or gone: it is not run" >&2; exit 1; }'
VERIFIED_PYTHON = f'{shlex.quote(sys.executable)} -I -S -c "$hpc_tumor_check" "$hpc_tumor_code"'  # see snapshot.py

# Python takes an empty entry in PYTHONPATH for the current folder.
_NO_CURRENT_FOLDER = (
    "while [[ $PYTHONPATH == *::* ]]; do PYTHONPATH=${PYTHONPATH//::/:}; done;"
    " PYTHONPATH=${PYTHONPATH#:} PYTHONPATH=${PYTHONPATH%:}"
)


def sbatch_parameters(
    name: str, profile: ClusterProfile, plan: Plan, folder: Path, code: Path, after: str | None = None,
    at_once: int = 0, tasks: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Return the parameters of a job for submitit.

    Args:
        folder: folder of the job, with its pickle and logs.
        code: snapshot of the package to run from.
        after: job that must end first.
        at_once: limit of array tasks at the same time; 0: unlimited.
        tasks: number of array tasks.
    """
    # Steps do not inherit --cpus-per-task (since SLURM 22.05). A lost rank must end the others, which wait for it.
    srun_args = [f"--cpus-per-task={_tasks(plan)[1]}", "--kill-on-bad-exit=1", "--wait=60"]
    extra = _extra_options(profile, plan, profile.slurm.requeue)
    if "%" in str(folder):  # submitit does not escape it
        logs = f"{log_folder(folder)}/{'%A_%a' if tasks > 1 else '%j'}"
        extra["output"] = f"{logs}_0_log.out"
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
        "additional_parameters": extra,
        "srun_args": srun_args,
    }


def sbatch_options(
    name: str, profile: ClusterProfile, plan: Plan, output: str, *, requeue: bool, **more: str
) -> list[str]:  # fmt: skip
    """Return the options of a job for sbatch's command line; `output` is the log."""
    options = {**_request(name, profile, plan), **_extra_options(profile, plan, requeue), "output": output, **more}
    options["open_mode"] = "append"
    present = {key.replace("_", "-"): value for key, value in options.items() if value is not None}
    return [f"--{key}" if value is True else f"--{key}={value}" for key, value in present.items()]


def _request(name: str, profile: ClusterProfile, plan: Plan) -> dict[str, Any]:
    gpus = f"{profile.slurm.gpu_type}:{plan.gpus_per_node}" if profile.slurm.gpu_type else str(plan.gpus_per_node)
    request = profile.slurm.gpu_request if plan.gpus_per_node else "none"
    tasks, cpus = _tasks(plan)
    return {
        "job_name": name,
        "partition": plan.partition,
        "account": plan.account,
        "qos": plan.qos,
        "constraint": plan.constraint,
        "nodes": plan.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cpus,
        "mem": f"{int(plan.memory_gb * 1024)}M",
        "time": plan.walltime,
        "gres": f"gpu:{gpus}" if request == "gres" else None,
        "gpus_per_node": gpus if request == "gpus-per-node" else None,
    }


def _tasks(plan: Plan) -> tuple[int, int]:
    """Return SLURM's tasks per node, and their CPUs: a task per rank, or one that starts the ranks of several runs."""
    per_rank = plan.tasks_per_node, plan.cpus_per_task
    return per_rank if plan.runs == 1 else (1, plan.tasks_per_node * plan.cpus_per_task)


def _extra_options(profile: ClusterProfile, plan: Plan, requeue: bool) -> dict[str, Any]:
    """Return the extra options of the profile and the user, and those unknown to submitit."""
    options = {**profile.slurm.extra, **plan.options}
    extra = {key.replace("-", "_"): value for key, value in options.items() if value is not False}
    if reservation := plan.reservation or profile.slurm.reservation:
        extra["reservation"] = reservation
    return {**extra, "requeue" if requeue else "no_requeue": True}


def log_folder(folder: Path, advice: str = "") -> str:
    """Return `folder` escaped for SLURM's log file names.

    Raises UsageError, with `advice`, for characters that SLURM or submitit cannot escape.
    """
    if re.search(r"[\n\\]|%[jtAa]", str(folder)):
        fault = "the path of SLURM's logs cannot contain a backslash, a line break, %j, %t, %A or %a."
        raise UsageError(f"{str(folder)!r}: {fault} {advice}".rstrip())
    return str(folder).replace("%", "%%")


def setup_lines(profile: ClusterProfile, code: Path | None = None) -> list[str]:
    """Return the shell lines before Python: modules, set-up lines, variables, and `code` on the path."""
    ours = python_variables(code)
    path = ours.pop("PYTHONPATH", None)
    return [
        *(f"module load {shlex.quote(module)} || exit 1" for module in profile.environment.modules),
        *profile.environment.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in {**ours, **profile.environment.variables}.items()),
        # Last, so that the submitted code is first on the path whatever the site adds.
        *([f'export PYTHONPATH={shlex.quote(path)}"${{PYTHONPATH:+:$PYTHONPATH}}"'] if path else []),
        _NO_CURRENT_FOLDER,
    ]


def _guard(folder: Path, code: Path) -> list[str]:
    # The ranks handle the signal before the time limit; the shell ignores it.
    return [
        f"hpc_tumor_job={shlex.quote(str(folder))} hpc_tumor_code={shlex.quote(str(code))}",
        f"hpc_tumor_check={shlex.quote(CHECK)}",
        _OWNED,
        "trap : USR2",
    ]


def _batch(when: str) -> str:
    return f'{VERIFIED_PYTHON} -m hpc_tumor.cluster.node.batch {when} "$hpc_tumor_job"'
