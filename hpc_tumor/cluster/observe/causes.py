"""Messages of a scheduler and logs of a job → the cause in one sentence, with what to do."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_tumor.cluster.launch.snapshot import CODE_LOST_FAULT, CODE_LOST_LINE, CODE_LOST_REMEDY
from hpc_tumor.errors import Cause

NO_ROOM = 28  # what a job ends with that could write no more, not even why
_TAIL = 64_000  # bytes of a log that are looked through


@dataclass(frozen=True)
class Diagnosis:
    """A known cause: what is wrong, what to do (empty: nothing that is known), and the cause for code."""

    fault: str
    remedy: str
    cause: Cause | None = None

    def __str__(self) -> str:
        return f"{self.fault}: {self.remedy}" if self.remedy else self.fault


def _known(pattern: str, fault: str, remedy: str, cause: Cause | None = None) -> tuple[re.Pattern[str], Diagnosis]:
    return re.compile(pattern, re.IGNORECASE), Diagnosis(fault, remedy, cause)


# The first that fits is believed: what is said early by the system, before what follows from it. {0}: the first group.
_CAUSES = (
    _known(re.escape(CODE_LOST_LINE), CODE_LOST_FAULT, CODE_LOST_REMEDY),
    _known(r"following module\(s\) are unknown: \"?([^\"\n]+)|Unable to locate a modulefile for '([^']+)'",
     "the module {0} is not there on the node",
     "correct `modules` in the cluster profile (`module avail` lists them)"),
    _known(r"module: command not found",
     "the node knows no `module`",
     "leave `modules` in the cluster profile empty, or source the site's own set-up"),
    _known(r"conda: command not found|not been properly configured to use 'conda|Run 'conda init' before",
     "conda is not ready on the node",
     "name its script in `setup` of the cluster profile, `source …/conda.sh`, or leave conda out: the job's Python is"
     " named by its whole path"),
    _known(r"EnvironmentNameNotFound: Could not find conda environment: (\S+)",
     "there is no conda environment {0} on the node",
     "correct `setup` in the cluster profile"),
    _known(r"(/\S*python[\d.]*): (?:No such file or directory|not found|cannot execute|Permission denied)",
     "the node has no Python at {0}",
     "the environment must lie where all nodes see it, not on a disk of the login node"),
    _known(r"execve\(\): (\S+): No such file",
     "the node has no program {0}",
     "it must lie where all nodes see it"),
    _known(r"is not yours(?:, or gone)?: it is not run",
     "the job's own folder belongs to somebody else now, or is gone, so nothing of it was run",
     "submit again, with another --runs"),
    _known(r"No module named '?([\w.]+)",
     "Python on the node cannot import {0}",
     "install hpc-tumor, with all it needs, where the nodes see it"),
    _known(r"(GLIBC(?:XX)?_[\d.]+)' not found",
     "the node's system is too old for a package ({0} is missing)",
     "install the environment on a node, or load a newer compiler module"),
    _known(r"(lib\S+\.so[\d.]*): cannot open shared object file",
     "the node lacks the library {0}",
     "load the module that has it, in `modules` of the cluster profile"),
    _known(r"no kernel image is available|not compatible with the current PyTorch installation",
     "torch was built without support for this GPU",
     "install a build that has it; hpc-tumor doctor says which"),
    _known(r"driver on your system is too old|driver version is insufficient",
     "the node's NVIDIA driver is too old for this torch",
     "install a torch for an older CUDA"),
    _known(r"oom.?kill|out.of.memory handler|Exceeded job memory limit|exceeded memory limit",
     "more main memory was needed than asked for",
     "submit with more --memory",
     Cause.HOST_MEMORY),
    _known(r"CUDA out of memory|HIP out of memory",
     "the GPU's memory did not suffice",
     "a smaller batch, or --accumulate N, which keeps the batch",
     Cause.GPU_MEMORY),
    _known(r"/dev/shm/nccl-",
     "the ranks of a node talk over its /dev/shm, which has no room or cannot be written",
     "ask for a larger one, or set NCCL_SHM_DISABLE to 1 in `variables` of the cluster profile"),
    _known(r"Disk quota exceeded",
     "a quota is used up, in bytes or in files",
     "remove what is not needed, then resume"),
    _known(r"No space left on device|disk or quota full, cannot write",
     "a disk is full",
     "make room on it, then resume"),
    _known(r"Stale file handle|Transport endpoint is not connected|Input/output error",
     "the shared file system stumbled",
     "resume, and tell the site's support where it comes again"),
    _known(r"Permission denied: '([^']+)'|Permission denied: (\S+)",
     "{0} may not be read or written on the node",
     ""),
    _known(r"Read-only file system: '([^']+)'",
     "{0} lies on a file system that the nodes cannot write",
     "name other --runs"),
    _known(r"ncclSystemError|ncclRemoteError|NCCL WARN.*(?:connect|socket)|Gloo connectFullMesh failed|No route to host"
     r"|Name or service not known|unable to resolve",
     "the nodes did not reach each other",
     "name their network interface in `variables` of the cluster profile, as NCCL_SOCKET_IFNAME and"
     " GLOO_SOCKET_IFNAME"),
    _known(r"Address already in use",
     "the port at which the ranks meet was taken on the node",
     "resume, which takes another"),
    _known(r"Invalid job credential|Munge .*(?:expired|failed|Rewound)|Unable to confirm allocation",
     "the node and the controller of SLURM did not agree, often because a clock is wrong",
     "resume, and tell the site"),
    _known(r"DUE TO TIME LIMIT",
     "its time was up",
     "hpc-tumor resume goes on from its last checkpoint"),
    _known(r"DUE TO NODE FAILURE|Node failure on",
     "a node failed",
     "hpc-tumor resume goes on from its last checkpoint"),
    _known(r"DUE TO PREEMPTION",
     "a job of higher priority took its place",
     "hpc-tumor resume goes on"),
)  # fmt: skip
_REFUSALS = tuple((re.compile(pattern, re.IGNORECASE), words) for pattern, words in (
    (r"Invalid account|account/partition", "name an account of yours with --account; `hpc-tumor doctor` lists them"),
    (r"Invalid partition|partition.*not available", "name one that `sinfo` lists with --partition"),
    (r"Invalid qos|QOS .*not permitted", "name another --qos, or leave it out"),
    (r"QOSMaxSubmit|MaxSubmitJobs|AssocMaxSubmit|violates accounting/QOS policy",
     "you may not have so much in the queue: wait until some jobs have ended, or ask for less"),
    (r"time limit is invalid|TimeLimit", "ask for a shorter --time"),
    (r"node configuration is not available|node count|Requested nodes are busy|Invalid feature",
     "no node here has what is asked for: fewer --gpus, less --memory or --cpus, another --constraint"),
    (r"Invalid generic resource|gres", "`gpu_type` or `gpu_request` of the profile is not what this cluster calls it"),
    (r"contact slurm controller|Socket timed out|Connection refused|Resource temporarily unavailable",
     "SLURM does not answer at this moment: try again in a minute"),
    (r"memory specification", "ask for less --memory"),
    (r"reservation", "the reservation is not there, not yet open, or not for you"),
))  # fmt: skip

_LASTING = re.compile(r"ModuleNotFoundError|ImportError|oom.?kill|out.?of.?memory|No space left|quota exceeded", re.I)
_WARNED = re.compile(r"srun: error: .*User defined signal 2")
_LOST = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (Killed|Terminated|Aborted|Segmentation fault|Bus error)")


def recognise(text: str) -> Diagnosis | None:
    """Return the cause that `text`, a log or an error, tells of; None where it tells of none that is known."""
    for pattern, known in _CAUSES:
        if match := pattern.search(text):
            group = next((group for group in match.groups() if group), "")
            return replace(known, fault=known.fault.format(group), remedy=known.remedy.format(group))
    return None


def remedy(refusal: str) -> str:
    """Return the remedy for a refusal of sbatch; empty where that is not known."""
    return next((words for pattern, words in _REFUSALS if pattern.search(refusal)), "")


def recognise_in(logs: list[Path]) -> Diagnosis | None:
    """Return the cause that the ends of these logs tell of, the latest first."""
    for log in reversed(logs):
        with suppress(OSError), log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            if cause := recognise(file.read().decode("utf-8", errors="replace")):
                return cause
    return None


def would_come_again(log: str) -> bool:
    """Return True where the log of a start tells of what the next start would meet again."""
    return _LASTING.search(log) is not None


def was_warned(log: str) -> bool:
    """Return True where srun says that the warning of the time limit came before a rank could listen."""
    return _WARNED.search(log) is not None


def lost_rank(log: str) -> tuple[int | None, str]:
    """Return the rank that srun says was lost, and how, in words; a rank that was killed could not say so itself."""
    match = _LOST.search(log)
    if match is None:
        return None, ""
    node, ranks, how = match.groups()
    several = not ranks.isdigit()
    who = f"ranks {ranks}" if several else f"rank {ranks}"
    words = f"{who} on {node} {'were' if several else 'was'} killed: by hand, or by the system for want of memory"
    if how != "Killed":
        words = f"{who} on {node} ended: {how.lower()}"
    return None if several else int(ranks), words
