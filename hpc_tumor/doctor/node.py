"""Judge the answers of the test job: whether a node can run what this machine submits."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hpc_tumor.cluster.observe.causes import recognise
from hpc_tumor.config import ClusterProfile
from hpc_tumor.console import size
from hpc_tumor.doctor.configuration import profile_edit
from hpc_tumor.doctor.finding import Finding, error, ok, warning
from hpc_tumor.doctor.gpu import check_gpus
from hpc_tumor.doctor.machine import check_limits
from hpc_tumor.doctor.node_job import MINUTES, PATIENCE, SETUP_DONE, Outcome
from hpc_tumor.doctor.packages import check_packages, compare_packages
from hpc_tumor.doctor.probe import Probe, probe_from
from hpc_tumor.system.torch_builds import capability_of
from hpc_tumor.vocabulary import counted, duration

_MIN_DISK = 100_000_000
_MAX_SKEW = 10.0  # seconds between the clocks of two machines
_NO_REMEDY = "see the output above"


def judge(outcome: Outcome, here: Probe, profile: ClusterProfile, began: float) -> list[Finding]:
    """Return all findings of the test job; `began` is this machine's time of its submission."""
    if outcome.waited:
        return [_still_queued(outcome)]
    if not outcome.answers:
        return [_no_answer(outcome)]
    findings = [_visible(outcome), *_setup(outcome), *_missing(outcome), *_clocks(outcome, began)]
    by_node = {answer["node"]: answer for answer in outcome.answers.values()}
    findings += _merge_nodes(
        {name: _node(probe_from(answer["probe"]), answer, here, profile) for name, answer in by_node.items()}
    )
    findings += _meeting(outcome)
    return findings


def _still_queued(outcome: Outcome) -> Finding:
    why = f": {outcome.reason}" if outcome.reason else ""
    return warning(
        f"test job {outcome.job_id} was still queued after {duration(PATIENCE)} and was cancelled{why}",
        "see sinfo for partitions with idle nodes and choose one with --partition, or try again later",
    )


def _no_answer(outcome: Outcome) -> Finding:
    code = outcome.exit_code.removesuffix(":0")
    state = (outcome.state or "unknown state") + (f", exit code {code}" if code not in ("", "0") else "")
    ended = f"test job {outcome.job_id} ended ({state})"
    if outcome.state == "TIMEOUT":
        way = "the file system of the Python environment may be slow, or a setup line may hang: check both"
        return error(f"test job {outcome.job_id} did not answer within {MINUTES} minutes", way)
    if not outcome.printed.strip():
        return error(
            f"{ended} without output: {outcome.nodes or 'the node'} probably does not see {outcome.folder.parent}",
            "choose a folder that all nodes see with --runs, for example on the scratch file system",
        )
    if cause := recognise(outcome.printed):
        return error(f"{ended}: {cause.fault}", cause.remedy or _NO_REMEDY)
    stage = "after its setup lines" if SETUP_DONE in outcome.printed else "in its setup lines"
    way = "correct it in [environment] of the profile"
    return error(f"{ended} {stage}; last line: {_last_line(outcome.printed)}", way)


def _setup(outcome: Outcome) -> list[Finding]:
    """Warn about setup lines that failed without ending the job."""
    before, done, _ = outcome.printed.partition(SETUP_DONE)
    cause = recognise(before) if done else None
    return [warning(f"a setup line failed: {cause.fault}", cause.remedy or _NO_REMEDY)] if cause else []


def _visible(outcome: Outcome) -> Finding:
    tokens = {answer.get("token") for answer in outcome.answers.values()}
    where = outcome.folder.parent
    if tokens != {outcome.token}:
        return error(
            f"the node does not read the file that this machine wrote in {where}",
            "the node has another file system at that path: choose a shared folder with --runs",
        )
    wait = f"after {duration(outcome.queued_s)} in the queue" if outcome.queued_s > 5 else "at once"
    store = "; the nodes read the store" if all(answer["store"] == "" for answer in outcome.answers.values()) else ""
    return ok(f"started {wait}; this machine and the nodes share {where}{store}")


def _missing(outcome: Outcome) -> list[Finding]:
    tasks = outcome.plan.nodes * outcome.plan.tasks_per_node
    if len(outcome.answers) == tasks:
        return []
    lost = tasks - len(outcome.answers)
    text = f"{counted(lost, 'task')} of {tasks} did not answer; last line: {_last_line(outcome.printed)}"
    return [error(text, f"check the nodes {outcome.nodes} with sinfo -N -l")]


def _clocks(outcome: Outcome, began: float) -> list[Finding]:
    """Check that the nodes' clocks place their answers between the submission and now."""
    times = [answer["time"] for answer in outcome.answers.values()]
    behind, ahead = began - min(times), max(times) - time.time()
    if max(behind, ahead) < _MAX_SKEW:
        return []
    skew = f"{duration(max(behind, ahead))} {'behind' if behind > ahead else 'ahead of'}"
    text = f"a node's clock is {skew} this machine's: heartbeat ages will be wrong by as much"
    return [warning(text, "tell an administrator")]


def _node(probe: Probe, answer: Mapping[str, Any], here: Probe, profile: ClusterProfile) -> list[Finding]:
    """Return the findings of one node, without its name."""
    findings = compare_packages(here, probe)
    packages = check_packages(probe)
    findings += [item for item in packages if item.level != "ok"]
    if not findings:
        findings.append(ok("the same Python, torch and packages as here; all can be imported"))
    findings += _gpus(probe, answer.get("visible"), profile)
    findings += _cpus(probe, answer)
    findings += check_limits(probe)
    findings += _disks(answer, probe)
    if answer.get("store"):
        text = f"the node cannot read the store: {answer['store']}"
        findings.append(error(text, "move it to a file system that all nodes see"))
    return findings


def _gpus(probe: Probe, visible: str | None, profile: ClusterProfile) -> list[Finding]:
    """Check the GPUs that a task got against the profile."""
    if not profile.node.gpus or profile.slurm.gpu_request == "none":
        return check_gpus(probe, visible)
    if not probe.gpus and (probe.torch is None or not probe.torch.gpus):
        if visible:
            text = f"SLURM allocated GPU {visible}, but nvidia-smi finds no driver on the node, so runs use the CPU"
            return [warning(text, "run nvidia-smi on the node, or ask an administrator")]
        text = "SLURM allocated no GPU (CUDA_VISIBLE_DEVICES is not set)"
        return [error(text, "gpu_request of the profile may be wrong: try gres or gpus-per-node")]
    return [*check_gpus(probe, visible), *_other_model(probe, profile)]


def _other_model(probe: Probe, profile: ClusterProfile) -> list[Finding]:
    """Warn if the node's GPUs are of another generation than the profile's."""
    expected = capability_of(profile.node.gpu_model)
    gpus = probe.torch.gpus if probe.torch and probe.torch.gpus else probe.gpus or ()
    if expected is None or not gpus or gpus[0].capability in (None, expected):
        return []
    text = f"the profile says {profile.node.gpu_model}, but the node has {gpus[0].name}"
    return [warning(text, profile_edit(profile, "node", f'gpu_model = "{gpus[0].name}"'))]


def _cpus(probe: Probe, answer: Mapping[str, Any]) -> list[Finding]:
    requested = int(answer.get("requested_cpus") or 0)
    if not requested:
        return []
    if probe.cpus < requested:
        text = f"a task may use only {counted(probe.cpus, 'CPU')} of the {requested} requested"
        return [warning(text, "ask an administrator whether SLURM's CPU count of the node is right")]
    rest = "" if probe.cpus == requested else f" (CPU affinity is not enforced: {probe.cpus} usable)"
    return [ok(f"{counted(requested, 'CPU')} per task, as requested{rest}")]


def _disks(answer: Mapping[str, Any], probe: Probe) -> list[Finding]:
    local, shared = answer.get("local") or {}, probe.shared_memory
    left = local.get("bytes_left")
    if left is None:
        return []
    memory = f"; /dev/shm {size(shared)}" if shared else ""
    text = f"local disk {local['path']} ({local['kind']}): {size(left)} free{memory}"
    if left < _MIN_DISK:
        return [warning(text, "set TMPDIR in [environment] variables to a folder with more space")]
    return [ok(text)]


def _meeting(outcome: Outcome) -> list[Finding]:
    tasks = outcome.plan.nodes * outcome.plan.tasks_per_node
    if tasks < 2 or not outcome.answers:
        return []
    tasks_met = "two nodes" if outcome.plan.nodes > 1 else "two tasks of a node"
    meetings = list(outcome.meetings.values())
    failed = next((item["error"] for item in meetings if "error" in item), None)
    interfaces = sorted({name for answer in outcome.answers.values() for name in answer["probe"]["interfaces"]})
    way = (
        "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME in [environment] variables of the profile to one of"
        f" {', '.join(interfaces) or 'those of ip link'}"
    )
    if failed or len(meetings) < tasks:
        # Without the position in gloo's source.
        why = re.sub(r"\[enforce fail at [^\]]*\] (.*?nullptr\. )?", "", failed or "they did not connect in time")
        return [error(f"{tasks_met} could not communicate: {why}", way)]
    if not all(item["right"] for item in meetings):
        return [error(f"{tasks_met} computed a wrong sum", "tell an administrator: the network may be faulty")]
    seconds = max(item["seconds"] for item in meetings)
    return [ok(f"{tasks_met} communicate with {meetings[0]['backend']} ({duration(seconds)} to connect)")]


def _merge_nodes(per_node: Mapping[str, Sequence[Finding]]) -> list[Finding]:
    """Return findings common to all nodes once, and the others with the node's name."""
    lists = list(per_node.values())
    common = [item for item in lists[0] if all(item in other for other in lists)]
    findings = list(common)
    for host, items in per_node.items():
        findings += [Finding(item.level, f"{host}: {item.text}", item.way_out) for item in items if item not in common]
    return findings


def _last_line(text: str) -> str:
    # bash prefixes its errors with the path of the script.
    stripped = (re.sub(r"^\S*/slurm_script: (line \d+: )?", "", line.strip()) for line in text.splitlines())
    lines = [line for line in stripped if line and line != SETUP_DONE]
    return lines[-1][:200] if lines else "(no output)"
