"""Judge the answers of the test job: can a node run what this machine submits?"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hpc_tumor.cluster.observe.causes import recognise
from hpc_tumor.config import ClusterProfile
from hpc_tumor.console import size
from hpc_tumor.doctor.configuration import line_to_change
from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.doctor.gpu import capability_of, check_gpus
from hpc_tumor.doctor.machine import check_limits
from hpc_tumor.doctor.node_job import MINUTES, PATIENCE, SETUP_DONE, Outcome
from hpc_tumor.doctor.packages import check_packages, compare_packages
from hpc_tumor.doctor.probe import Probe, probe_from
from hpc_tumor.vocabulary import counted, duration

_LITTLE_DISK = 10_000_000_000
_MOST_SKEW = 10.0  # seconds between the clocks of two machines
_NO_REMEDY = "look at the lines above"


def judge(outcome: Outcome, here: Probe, profile: ClusterProfile, began: float) -> list[Finding]:
    """All findings of the test job. `began`: this machine's time when it was submitted."""
    if outcome.waited:
        return [_still_queued(outcome)]
    if not outcome.answers:
        return [_no_answer(outcome)]
    findings = [_visible(outcome), *_setup(outcome), *_missing(outcome), *_clocks(outcome, began)]
    by_node = {answer["node"]: answer for answer in outcome.answers.values()}
    findings += _together(
        {name: _node(probe_from(answer["probe"]), answer, here, profile) for name, answer in by_node.items()}
    )
    findings += _meeting(outcome)
    return findings


def _still_queued(outcome: Outcome) -> Finding:
    why = f": {outcome.reason}" if outcome.reason else ""
    return warning(
        f"test job {outcome.job_id} was still queued after {duration(PATIENCE)} and was cancelled{why}",
        "sinfo shows which partitions have idle nodes; --partition tries another one; or try again later",
    )


def _no_answer(outcome: Outcome) -> Finding:
    code = outcome.exit_code.removesuffix(":0")
    how = (outcome.state or "it is not known how") + (f", exit code {code}" if code not in ("", "0") else "")
    ended = f"test job {outcome.job_id} ended ({how})"
    if outcome.state == "TIMEOUT":
        way = "the file system of the Python environment may be slow, or a setup line waits: look at their load"
        return error(f"test job {outcome.job_id} did not answer within {MINUTES} minutes", way)
    if not outcome.printed.strip():
        return error(
            f"{ended} without a word: {outcome.nodes or 'the node'} seems not to see {outcome.folder.parent}",
            "name a folder on a file system that all nodes see with --runs, as one on the scratch",
        )
    if cause := recognise(outcome.printed):
        return error(f"{ended}: {cause.fault}", cause.remedy or _NO_REMEDY)
    stage = "after its setup lines" if SETUP_DONE in outcome.printed else "in its setup lines"
    way = "correct what it says, in [environment] of the profile"
    return error(f"{ended} {stage}; its last line: {_last_line(outcome.printed)}", way)


def _setup(outcome: Outcome) -> list[Finding]:
    """A warning for setup lines that failed, although the job went on."""
    before, done, _ = outcome.printed.partition(SETUP_DONE)
    cause = recognise(before) if done else None
    return [warning(f"a setup line failed: {cause.fault}", cause.remedy or _NO_REMEDY)] if cause else []


def _visible(outcome: Outcome) -> Finding:
    tokens = {answer.get("token") for answer in outcome.answers.values()}
    where = outcome.folder.parent
    if tokens != {outcome.token}:
        return error(
            f"the node reads another file than this machine wrote in {where}",
            "it is another file system under the same name: choose a shared folder with --runs",
        )
    wait = f"after {duration(outcome.queued_s)} in the queue" if outcome.queued_s > 5 else "at once"
    store = "; the store is read there" if all(answer["store"] == "" for answer in outcome.answers.values()) else ""
    return ok(f"started {wait}; what is written in {where} is read on the nodes, and back{store}")


def _missing(outcome: Outcome) -> list[Finding]:
    tasks = outcome.plan.nodes * outcome.plan.tasks_per_node
    if len(outcome.answers) == tasks:
        return []
    lost = tasks - len(outcome.answers)
    text = f"{counted(lost, 'task')} of {tasks} did not answer; the last line: {_last_line(outcome.printed)}"
    return [error(text, f"look at the nodes {outcome.nodes}: sinfo -N -l")]


def _clocks(outcome: Outcome, began: float) -> list[Finding]:
    """Check whether a node's clock says that it answered between the submission and now."""
    times = [answer["time"] for answer in outcome.answers.values()]
    behind, ahead = began - min(times), max(times) - time.time()
    if max(behind, ahead) < _MOST_SKEW:
        return []
    words = f"{duration(max(behind, ahead))} {'behind' if behind > ahead else 'ahead of'}"
    text = f"a node's clock is {words} this machine's: ages of heartbeats will be wrong by as much"
    return [warning(text, "tell an administrator")]


def _node(probe: Probe, answer: Mapping[str, Any], here: Probe, profile: ClusterProfile) -> list[Finding]:
    """The findings of one node, without its name."""
    findings = compare_packages(here, probe)
    packages = check_packages(probe)
    findings += [item for item in packages if item.level != "ok"]
    if not findings:
        findings.append(ok("the same Python, torch and packages as here, and all import"))
    findings += _gpus(probe, answer.get("visible"), profile)
    findings += _cpus(probe, answer)
    findings += check_limits(probe)
    findings += _disks(answer, probe)
    if answer.get("store"):
        findings.append(error(f"the store cannot be read there: {answer['store']}", "put it where all nodes see it"))
    return findings


def _gpus(probe: Probe, visible: str | None, profile: ClusterProfile) -> list[Finding]:
    """The GPUs that a node showed to the task, against those that the profile promises."""
    if not profile.node.gpus or profile.slurm.gpu_request == "none":
        return check_gpus(probe, visible)
    if not probe.gpus and (probe.torch is None or not probe.torch.gpus):
        given = f"SLURM gave the GPU {visible}" if visible else "SLURM gave no GPU (CUDA_VISIBLE_DEVICES is not set)"
        if visible:
            driver = "but no driver answers there (nvidia-smi), so runs use the CPU"
            return [warning(f"{given}, {driver}", "nvidia-smi there says more; an administrator can help")]
        return [error(given, "gpu_request of the profile may be wrong: gres, or gpus-per-node")]
    return [*check_gpus(probe, visible), *_other_model(probe, profile)]


def _other_model(probe: Probe, profile: ClusterProfile) -> list[Finding]:
    """A warning where the node has GPUs of another generation than the profile says."""
    promised = capability_of(profile.node.gpu_model)
    there = probe.torch.gpus if probe.torch and probe.torch.gpus else probe.gpus or ()
    if promised is None or not there or there[0].capability in (None, promised):
        return []
    text = f"the profile says {profile.node.gpu_model}, but the node has {there[0].name}"
    return [warning(text, line_to_change(profile, "node", f'gpu_model = "{there[0].name}"'))]


def _cpus(probe: Probe, answer: Mapping[str, Any]) -> list[Finding]:
    asked = int(answer.get("asked_cpus") or 0)
    if not asked or probe.cpus == asked:
        return [ok(f"{counted(probe.cpus, 'CPU')} for each task, as asked")] if asked else []
    if probe.cpus < asked:
        text = f"a task may use {counted(probe.cpus, 'CPU')}, though {asked} were asked for"
        return [warning(text, "ask an administrator whether the node has as many as SLURM believes")]
    return [ok(f"{asked} CPUs for each task, as asked, and it is not kept to them ({probe.cpus} may be used)")]


def _disks(answer: Mapping[str, Any], probe: Probe) -> list[Finding]:
    local, shared = answer.get("local") or {}, probe.shared_memory
    left = local.get("bytes_left")
    if left is None:
        return []
    memory = f"; /dev/shm {size(shared)}" if shared else ""
    text = f"its own disk, {local['path']} ({local['kind']}): {size(left)} free{memory}"
    if left < _LITTLE_DISK // 100:
        return [warning(text, "set TMPDIR in [environment] variables to a folder with more room")]
    return [ok(text)]


def _meeting(outcome: Outcome) -> list[Finding]:
    tasks = outcome.plan.nodes * outcome.plan.tasks_per_node
    if tasks < 2 or not outcome.answers:
        return []
    where = "two nodes" if outcome.plan.nodes > 1 else "two tasks of a node"
    met = list(outcome.meetings.values())
    failed = next((item["error"] for item in met if "error" in item), None)
    interfaces = sorted({name for answer in outcome.answers.values() for name in answer["probe"]["interfaces"]})
    way = (
        "name the network in [environment] variables of the profile:"
        f" NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, one of {', '.join(interfaces) or 'those of ip link'}"
    )
    if failed or len(met) < tasks:
        # gloo begins with where in its source it is
        why = re.sub(r"\[enforce fail at [^\]]*\] (.*?nullptr\. )?", "", failed or "they did not meet in time")
        return [error(f"{where} could not talk with each other: {why}", way)]
    if not all(item["right"] for item in met):
        return [error(f"{where} added up a number wrongly", "tell an administrator: the network may be damaged")]
    seconds = max(item["seconds"] for item in met)
    return [ok(f"{where} talk with each other, by {met[0]['backend']} ({duration(seconds)} to meet)")]


def _together(per_node: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Findings that all nodes have in common once; others with the name of the node."""
    lists = list(per_node.values())
    common = [item for item in lists[0] if all(item in other for other in lists)]
    findings = list(common)
    for host, items in per_node.items():
        findings += [Finding(item.level, f"{host}: {item.text}", item.way_out) for item in items if item not in common]
    return findings


def _last_line(text: str) -> str:
    lines = [line for line in map(_plain, text.splitlines()) if line and line != SETUP_DONE]
    return lines[-1][:200] if lines else "nothing was printed"


def _plain(line: str) -> str:
    """A line without the path of the script that bash puts before it."""
    return re.sub(r"^\S*/slurm_script: (line \d+: )?", "", line.strip())
