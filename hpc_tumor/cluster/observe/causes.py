"""Recognise known causes in scheduler messages and job logs, and name the remedy."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_tumor.cluster.launch.snapshot import CODE_LOST_FAULT, CODE_LOST_LINE, CODE_LOST_REMEDY
from hpc_tumor.errors import Cause

NO_ROOM = 28  # exit code of a job whose full disk kept it from recording the cause
_TAIL = 64_000  # bytes searched at the end of a log


@dataclass(frozen=True)
class Diagnosis:
    """A known cause: the fault, the remedy (empty if none is known), and the cause for code to act on."""

    fault: str
    remedy: str
    cause: Cause | None = None

    def __str__(self) -> str:
        return f"{self.fault}: {self.remedy}" if self.remedy else self.fault


def _known(pattern: str, fault: str, remedy: str, cause: Cause | None = None) -> tuple[re.Pattern[str], Diagnosis]:
    return re.compile(pattern, re.IGNORECASE), Diagnosis(fault, remedy, cause)


# The first match counts: system messages before the errors that follow from them. {0}: the first matching group.
_CAUSES = (
    _known(re.escape(CODE_LOST_LINE), CODE_LOST_FAULT, CODE_LOST_REMEDY),
    _known(r"following module\(s\) are unknown: \"?([^\"\n]+)|Unable to locate a modulefile for '([^']+)'",
     "the module {0} does not exist on the node",
     "correct `modules` in the cluster profile (`module avail` lists them)"),
    _known(r"module: command not found",
     "the node has no `module` command",
     "leave `modules` in the cluster profile empty, or source the site's setup script in `setup`"),
    _known(r"conda: command not found|not been properly configured to use 'conda|Run 'conda init' before",
     "conda is not initialised on the node",
     "add `source …/conda.sh` to `setup` in the cluster profile, or leave conda out: the job calls Python by its full"
     " path"),
    _known(r"EnvironmentNameNotFound: Could not find conda environment: (\S+)",
     "the conda environment {0} does not exist on the node",
     "correct `setup` in the cluster profile"),
    _known(r"(/\S*python[\d.]*): (?:No such file or directory|not found|cannot execute|Permission denied)",
     "the node has no Python at {0}",
     "move the environment to a file system that all nodes see"),
    _known(r"execve\(\): (\S+): No such file",
     "the node has no program {0}",
     "move it to a file system that all nodes see"),
    _known(r"is not yours(?:, or gone)?: it is not run",
     "the job's folder was removed or now belongs to another user, so nothing was run",
     "submit again with another --runs"),
    _known(r"No module named '?([\w.]+)",
     "Python on the node cannot import {0}",
     "install hpc-tumor and its dependencies where the nodes see them"),
    _known(r"(GLIBC(?:XX)?_[\d.]+)' not found",
     "the node's system is too old for a package ({0} is missing)",
     "install the environment on a node, or load a newer compiler module"),
    _known(r"(lib\S+\.so[\d.]*): cannot open shared object file",
     "the node lacks the library {0}",
     "load the module that provides it, in `modules` of the cluster profile"),
    _known(r"no kernel image is available|not compatible with the current PyTorch installation",
     "torch was built without support for this GPU",
     "install a build with it; hpc-tumor doctor names one"),
    _known(r"driver on your system is too old|driver version is insufficient",
     "the node's NVIDIA driver is too old for this torch",
     "install a torch for an older CUDA"),
    _known(r"oom.?kill|out.of.memory handler|Exceeded job memory limit|exceeded memory limit",
     "the job needed more main memory than requested",
     "submit with more --memory",
     Cause.HOST_MEMORY),
    _known(r"CUDA out of memory|HIP out of memory",
     "out of GPU memory",
     "use a smaller batch, or --accumulate N to keep the batch",
     Cause.GPU_MEMORY),
    _known(r"/dev/shm/nccl-",
     "the node's /dev/shm, which its ranks communicate through, is full or not writable",
     "ask your site's support for a larger one, or set NCCL_SHM_DISABLE to 1 in `variables` of the cluster profile"),
    _known(r"Disk quota exceeded",
     "a quota is exceeded, in bytes or files",
     "remove files you do not need, then resume"),
    _known(r"No space left on device|no room left to write|disk or quota full, cannot write",
     "a disk is full",
     "free some space, then resume"),
    _known(r"Stale file handle|Transport endpoint is not connected|Input/output error",
     "the shared file system failed temporarily",
     "resume; if it happens again, tell your site's support"),
    _known(r"Permission denied: '([^']+)'|Permission denied: (\S+)",
     "no permission to access {0} on the node",
     ""),
    _known(r"Read-only file system: '([^']+)'",
     "{0} is on a file system that is read-only on the node",
     "choose another --runs"),
    _known(r"ncclSystemError|ncclRemoteError|NCCL WARN.*(?:connect|socket)|Gloo connectFullMesh failed|No route to host"
     r"|Name or service not known|unable to resolve",
     "the nodes could not connect to each other",
     "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to their network interface in `variables` of the cluster profile"),
    _known(r"Address already in use",
     "the rendezvous port was in use on the node",
     "resume, which uses another port"),
    _known(r"Invalid job credential|Munge .*(?:expired|failed|Rewound)|Unable to confirm allocation",
     "the node and SLURM's controller did not accept each other's credentials, often because a clock is wrong",
     "resume, and tell your site's support"),
    _known(r"DUE TO TIME LIMIT",
     "the time limit was reached",
     "hpc-tumor resume continues from its last checkpoint"),
    _known(r"DUE TO NODE FAILURE|Node failure on",
     "a node failed",
     "hpc-tumor resume continues from its last checkpoint"),
    _known(r"DUE TO PREEMPTION",
     "preempted by a job of higher priority",
     "hpc-tumor resume continues from its last checkpoint"),
)  # fmt: skip
_REFUSALS = tuple((re.compile(pattern, re.IGNORECASE), words) for pattern, words in (
    (r"Invalid account|account/partition", "choose one of your accounts with --account; `hpc-tumor doctor` lists them"),
    (r"Invalid partition|partition.*not available", "choose one that `sinfo` lists with --partition"),
    (r"Invalid qos|QOS .*not permitted", "choose another --qos, or leave it out"),
    (r"QOSMaxSubmit|MaxSubmitJobs|AssocMaxSubmit|violates accounting/QOS policy",
     "your limit of queued jobs is reached: wait until some have ended, or request less"),
    (r"time limit is invalid|TimeLimit", "request a shorter --time"),
    (r"node configuration is not available|node count|Requested nodes are busy|Invalid feature",
     "no node satisfies the request: use fewer --gpus, less --memory, fewer --cpus or another --constraint"),
    (r"Invalid generic resource|gres", "correct `gpu_type` or `gpu_request` in the profile: the cluster rejects them"),
    (r"contact slurm controller|Socket timed out|Connection refused|Resource temporarily unavailable",
     "SLURM does not answer: try again in a minute"),
    (r"memory specification", "request less --memory"),
    (r"reservation", "the reservation does not exist, has not begun, or is not open to you"),
))  # fmt: skip

_LASTING = re.compile(r"ModuleNotFoundError|ImportError|oom.?kill|out.?of.?memory|No space left|quota exceeded", re.I)
_WARNED = re.compile(r"srun: error: .*User defined signal 2")
_LOST = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (Killed|Terminated|Aborted|Segmentation fault|Bus error)")


def recognise(text: str) -> Diagnosis | None:
    """Return the known cause in `text`, a log or an error message; None if there is none."""
    for pattern, known in _CAUSES:
        if match := pattern.search(text):
            group = next((group for group in match.groups() if group), "")
            return replace(known, fault=known.fault.format(group), remedy=known.remedy.format(group))
    return None


def remedy(refusal: str) -> str:
    """Return the remedy for an error message of sbatch; empty if none is known."""
    return next((words for pattern, words in _REFUSALS if pattern.search(refusal)), "")


def recognise_in(logs: list[Path]) -> Diagnosis | None:
    """Return the known cause at the end of these logs, the last log first."""
    for log in reversed(logs):
        with suppress(OSError), log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            if cause := recognise(file.read().decode("utf-8", errors="replace")):
                return cause
    return None


def would_fail_again(log: str) -> bool:
    """Return True if the log of a start shows an error that the next start would meet again."""
    return _LASTING.search(log) is not None


def was_warned(log: str) -> bool:
    """Return True if srun reports that the time-limit signal arrived before a rank could handle it."""
    return _WARNED.search(log) is not None


def lost_rank(log: str) -> tuple[int | None, str]:
    """Return the rank that srun reports as lost (None for several) and a description; None and "" if there is none."""
    match = _LOST.search(log)
    if match is None:
        return None, ""
    node, ranks, how = match.groups()
    several = not ranks.isdigit()
    subject = f"ranks {ranks}" if several else f"rank {ranks}"
    verb = "were" if several else "was"
    message = f"{subject} on {node} {verb} killed: by a user, or by the system because memory ran out"
    if how != "Killed":
        message = f"{subject} on {node} ended: {how.lower()}"
    return None if several else int(ranks), message
