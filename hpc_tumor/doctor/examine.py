"""Run all checks: Python and GPUs here, the cluster, the folders, and a test job on a node."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hpc_tumor.cluster.describe.facts import Facts, read_facts
from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.causes import remedy
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor import node, slurm
from hpc_tumor.doctor.configuration import check_configuration, choose_cluster, runs_folder
from hpc_tumor.doctor.finding import Finding, Section, error, exit_code, warning
from hpc_tumor.doctor.gpu import Remedy, check_gpus, check_model
from hpc_tumor.doctor.machine import check_machine
from hpc_tumor.doctor.node_job import plan_of, try_on_node
from hpc_tumor.doctor.packages import check_packages
from hpc_tumor.doctor.probe import Probe, probe_here
from hpc_tumor.doctor.storage import check_storage
from hpc_tumor.errors import ClusterError, UsageError

Say = Callable[[str, bool], None]  # progress message; whether the step may take minutes


def examine(
    *,
    cluster: str | None = None,
    data: Path | None = None,
    runs: Path | None = None,
    account: str | None = None,
    partition: str | None = None,
    submit: bool = False,
    say: Say = lambda line, long: None,
) -> Iterator[Section]:
    """Yield the findings by section; `say` is called with the current step.

    Raises:
        UsageError: unknown profile, or `submit` without a SLURM cluster.
    """
    profile, chosen = choose_cluster(cluster)
    on_slurm = profile is not None and profile.name != LOCAL
    if submit and (profile is None or not on_slurm):
        raise UsageError("--submit needs a SLURM cluster: choose one with --cluster, or leave it out.")
    folder, visible = runs_folder(runs), os.environ.get("CUDA_VISIBLE_DEVICES")
    say("importing packages and torch", False)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(read_facts) if shutil.which("sinfo") else None
        here = pool.submit(probe_here).result()
        facts = reading.result() if reading else None
    gpus = check_gpus(here, visible)
    if on_slurm and profile and profile.node.gpus:
        known = {item.way_out for item in gpus if isinstance(item.way_out, Remedy)}  # report each problem once
        of_cluster = check_model(here.torch, profile.node.gpu_model, profile.name, submit)
        gpus += [item for item in of_cluster if item.way_out not in known]
    yield Section("python", "Python and packages", check_packages(here))
    yield Section("gpu", "GPUs", gpus)
    machine = check_machine(here, os.environ, profile if on_slurm else None)
    yield Section("machine", f"This login, on {socket.gethostname().partition('.')[0]}", machine)
    yield Section("configuration", "Configuration", [*check_configuration(), *chosen])
    cluster_findings = _cluster(profile if on_slurm else None, facts, account, partition)
    if on_slurm or cluster_findings:
        yield Section("slurm", f"Cluster {profile.name}" if on_slurm and profile else "SLURM", cluster_findings)
    say("checking the folders", False)
    yield Section("storage", "Folders", check_storage(folder, data, profile, submit))
    if submit and profile is not None:
        if exit_code([Section("slurm", "", cluster_findings)]):
            skipped = warning("not submitted because of the cluster errors above", "fix them first")
            yield Section("job", "Test job", [skipped])
        else:
            yield _job(profile, facts, folder, data, here, account, partition, say)


def _cluster(
    profile: ClusterProfile | None, facts: Facts | None, account: str | None, partition: str | None
) -> list[Finding]:
    """Return the findings on SLURM; none if it is not installed and no cluster is chosen."""
    if profile is None:
        if facts is None or facts.partitions is None:
            return []
        return [*slurm.check_commands(facts), *slurm.describe_partitions(facts)]
    findings = slurm.check_commands(facts)
    if facts is None or findings[0].level == "error":
        return findings
    return [
        *findings,
        *slurm.check_account(profile, facts, account),
        *slurm.check_partition(profile, facts, partition, account),
    ]


def _job(
    profile: ClusterProfile, facts: Facts | None, runs: Path, data: Path | None, here: Probe,
    account: str | None, partition: str | None, say: Say,
) -> Section:  # fmt: skip
    """Run the test job and return its findings."""
    began = time.time()
    try:
        plan = plan_of(profile, facts or Facts(), account=account, partition=partition)
        outcome = try_on_node(profile, plan, runs, data, lambda line: say(line, True))
    except ClusterError as problem:
        way = remedy(str(problem)) or "runs would be refused too: correct the profile or use an option"
        return Section("job", "Test job", [error(str(problem).rstrip("."), way)])
    except (UsageError, OSError) as problem:
        return Section("job", "Test job", [error(str(problem).rstrip("."), "choose another folder with --runs")])
    nodes = f" on {outcome.nodes}" if outcome.nodes else ""
    return Section("job", f"Test job {outcome.job_id}{nodes}", node.judge(outcome, here, profile, began))
