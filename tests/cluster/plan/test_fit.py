"""Limits of a cluster for a plan, from simulated commands."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from launching import profile_with
from local_slurm import LOCAL_TEST
from sites import JEAN_ZAY, LEONARDO, ORFEO

from hpc_tumor.cluster.describe.facts import read_facts
from hpc_tumor.cluster.describe.profiles import find_profile
from hpc_tumor.cluster.describe.site import Facts, Limits, NodeKind, Partition
from hpc_tumor.cluster.plan import fit as fit_module
from hpc_tumor.cluster.plan.fit import Fitted, check_torch, fit_to_cluster
from hpc_tumor.cluster.plan.plan import Plan, make_plan
from hpc_tumor.config import ClusterProfile
from hpc_tumor.errors import UsageError
from hpc_tumor.system import torch_builds
from hpc_tumor.system.torch_builds import TorchBuild

Site = Callable[[dict[str, str]], Facts]
STUDENT = profile_with(slurm={"partition": "GPU", "account": "dssc"})


def fit(profile: ClusterProfile, gpus: int, facts: Facts, **options: Any) -> Fitted:
    return fit_to_cluster(make_plan(profile, gpus, **options), profile, facts, set(options))


def refusal(profile: ClusterProfile, gpus: int, facts: Facts, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        fit(profile, gpus, facts, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 240
    return text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "GPUS"}, "--partition: unknown partition 'GPUS'. Did you mean 'GPU'?"),
        ({"partition": "GPU,NONE"}, "--partition: unknown partition 'NONE'."),
        ({"partition": "EPYC"}, "is down: wait, or choose another with --partition: DGX, GPU, MIXED"),
        ({"partition": "DGX"}, "not for the account dssc: only for lade"),
        ({"account": "lade"}, "--account: unknown account of yours 'lade'. Known: dssc."),
        ({"qos": "gpu"}, "--qos: unknown QOS 'gpu'. Did you mean 'gpuq'?"),
        ({"qos": "long"}, "the QOS long is not open to the account dssc: choose gpuq, normal"),
        ({"constraint": "a100"}, "the nodes of the partition GPU have no features"),
    ],
)
def test_what_this_account_may_not_have(site: Site, options: dict[str, str], words: str) -> None:
    assert words in refusal(STUDENT, 2, site(ORFEO), **options)


def test_where_a_wrong_name_comes_from_is_said(site: Site) -> None:
    facts = site(LEONARDO)
    assert "the profile two-gpu-nodes: unknown partition 'GPU'" in refusal(profile_with(), 2, facts)
    denied = profile_with(slurm={"partition": "boost_usr_prod"})
    facts = replace(facts, enforced=frozenset({"qos"}), accounts=None)
    assert "not for the partition boost_usr_prod" in refusal(denied, 2, facts, qos="boost_qos_fuadbg")


def test_what_is_not_enforced_is_not_refused(site: Site) -> None:
    lax = replace(site(ORFEO), enforced=frozenset())
    assert fit(STUDENT, 2, lax, account="whoever", partition="MIXED", qos="long").plan.account == "whoever"
    assert fit(profile_with(), 4, lax, walltime="10h").plan.walltime == 120


def test_letters_of_accounts_and_qos_may_be_written_either_way(site: Site) -> None:
    assert fit(STUDENT, 2, site(ORFEO), account="DSSC", qos="Normal").notes == ()


def test_what_no_node_has(site: Site) -> None:
    facts = site(ORFEO)
    eight = profile_with(node={"gpus": 8, "cpus": 96, "memory_gb": 900}, limits={"nodes": 8})
    assert "nodes of the partition GPU have at most 2 GPUs: choose --gpus 2," in refusal(eight, 3, facts)
    assert "8 GPUs are more than the limit per user: choose at most 4" in refusal(eight, 8, facts)
    cpus = replace(
        facts, partitions={**(facts.partitions or {}), "CPU": Partition("CPU", kinds=(NodeKind(9, 64, 500.0),))}
    )
    assert "have no GPUs: choose --partition DGX or GPU or MIXED" in refusal(eight, 3, cpus, partition="CPU")
    typed = profile_with(slurm={"partition": "MIXED", "gpu_type": "a100"})
    assert "requests GPUs of type a100; the partition MIXED has h100" in refusal(typed, 2, facts)
    assert fit(profile_with(slurm={"partition": "MIXED", "gpu_type": "h100"}), 2, facts).plan.gpus == 2
    featured = profile_with(slurm={"partition": "MIXED"})
    assert "in the partition MIXED: unknown feature 'h200'. Did you mean 'h100'" in refusal(
        featured, 2, facts, constraint="h200"
    )
    assert "the partition MIXED with cpu have no GPUs" in refusal(featured, 2, facts, constraint="cpu")
    assert fit(featured, 2, facts, constraint="cpu|h100").plan.constraint == "cpu|h100"  # SLURM reads expressions


def test_nodes_without_the_gpus_do_not_count(site: Site) -> None:
    facts = site(ORFEO)
    whole = profile_with(slurm={"partition": "MIXED"}, node={"gpus": 8, "cpus": 64}, limits={"nodes": 8})
    assert fit(whole, 24, facts).plan.nodes == 3
    assert (
        "4 nodes are more than a job may use in the partition MIXED: at most 3, with 8 GPUs each: --gpus 24"
        in refusal(whole, 32, facts)
    )


def test_what_only_the_profile_asks_for_is_lowered_and_said(site: Site) -> None:
    facts = site(ORFEO)
    large = profile_with(node={"cpus": 48, "memory_gb": 500}, limits={"walltime": "24h"})
    fitted = fit(large, 2, facts)
    assert (fitted.plan.cpus_per_task, round(fitted.plan.memory_gb), fitted.plan.walltime) == (12, 234, 120)
    assert len(fitted.notes) == 3
    assert "--memory 400: nodes of the partition GPU have less. Choose at most 234.3 GB" in refusal(
        large, 2, facts, memory_gb=400
    )
    assert "have only 24. Choose at most 12" in refusal(large, 2, facts, cpus=20)
    assert fit(large, 2, facts, walltime="10h").plan.walltime == 120  # the rest is for further starts


def test_nodes_that_differ() -> None:
    kinds = (NodeKind(1, 64, 100.0, 2), NodeKind(1, 32, 200.0, 2))
    facts = Facts({"GPU": Partition("GPU", default=True, kinds=kinds)}, has_submit_plugin=False)
    whole = profile_with(node={"cpus": 64, "memory_gb": 200})
    both = fit(whole, 4, facts).plan
    assert (both.nodes, both.cpus_per_task, both.memory_gb) == (2, 16, 100)
    one = fit(whole, 2, facts).plan
    assert (one.cpus_per_task, one.memory_gb) == (32, 100)
    asked = fit(whole, 2, facts, memory_gb=150).plan
    assert (asked.cpus_per_task, asked.memory_gb) == (16, 150)
    assert "no 1 nodes have 64 CPUs and 150 GB each" in refusal(whole, 2, facts, memory_gb=150, cpus=32)


def test_without_a_partition_the_default_one_is_used() -> None:
    default, other = Partition("GPU", default=True, kinds=(NodeKind(1, 32, 200.0, 2),)), NodeKind(9, 32, 200.0, 8)
    facts = Facts({"GPU": default, "DGX": Partition("DGX", kinds=(other,))}, has_submit_plugin=False)
    anywhere = profile_with(slurm={"partition": None}, node={"gpus": 8, "cpus": 32, "memory_gb": 200})
    assert "have at most 2 GPUs" in refusal(anywhere, 8, facts)
    assert fit(anywhere, 2, facts).plan.gpus == 2


def test_limits_of_a_qos_hold_over_all_nodes() -> None:
    kinds = (NodeKind(4, 24, 234.0, 2),)
    qos = {"normal": Limits(cpus=24, memory_gb=200)}
    facts = Facts({"GPU": Partition("GPU", kinds=kinds)}, qos=qos)
    fitted = fit(profile_with(), 4, facts)
    assert (fitted.plan.cpus_per_task, fitted.plan.memory_gb) == (6, 100)
    assert all("your QOS or account gives no more" in note for note in fitted.notes)
    assert "Choose at most 100 GB" in refusal(profile_with(), 4, facts, memory_gb=120)
    none = Facts({"GPU": Partition("GPU", kinds=kinds)}, qos={"normal": Limits(gpus=0)})
    assert "choose another --qos" in refusal(profile_with(), 2, none)


def test_of_several_partitions_one_that_fits_is_enough(site: Site) -> None:
    facts = site(ORFEO)
    profile = profile_with(slurm={"partition": "GPU,MIXED"}, node={"cpus": 48, "memory_gb": 500})
    assert fit(profile, 2, facts).notes == ()
    assert "is down" in refusal(profile, 2, facts, partition="EPYC,DGX")


def test_what_fits_is_left_as_it_is(site: Site) -> None:
    plan = make_plan(STUDENT, 4)
    fitted = fit_to_cluster(plan, STUDENT, site(ORFEO), set())
    assert (fitted.plan, fitted.notes) == (plan, ())


@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 64])
def test_leonardo_gives_what_its_profile_asks_for(site: Site, gpus: int) -> None:
    leonardo = find_profile("leonardo-booster")
    assert fit(leonardo, gpus, site(LEONARDO), account="iscra_a").notes == ()


def test_a_qos_of_leonardo_lifts_the_limit_of_its_partition(site: Site) -> None:
    leonardo = find_profile("leonardo-booster")
    long = leonardo.model_copy(update={"limits": leonardo.limits.model_copy(update={"walltime": 4 * 1440})})
    facts = site(LEONARDO)
    fitted = fit(long, 8, facts, account="iscra_a", qos="boost_qos_lprod")
    assert (fitted.plan.walltime, fitted.notes) == (4 * 1440, ())
    assert fit(long, 8, facts, account="iscra_a").plan.walltime == 1440
    assert "not open to the account EUHPC_B" in refusal(long, 8, facts, account="EUHPC_B", qos="boost_qos_lprod")
    assert "at most 12" in refusal(long, 16, facts, account="iscra_a", qos="boost_qos_lprod")


def test_where_a_plugin_chooses_the_partition_any_of_them_will_do(site: Site) -> None:
    facts = site(JEAN_ZAY)
    assert fit(find_profile("jean-zay"), 4, facts, account="xxx@v100").notes == ()
    assert fit(find_profile("jean-zay-h100"), 8, facts, account="xxx@h100").notes == ()
    assert "in this cluster: unknown feature 'h200'" in refusal(
        find_profile("jean-zay"), 4, facts, account="xxx@v100", constraint="h200"
    )
    assert "unknown account of yours 'xxx@a100'. Did you mean" in refusal(
        find_profile("jean-zay"), 4, facts, account="xxx@a100"
    )
    assert "more than the limit per user: choose at most 16" in refusal(
        find_profile("jean-zay"), 32, facts, account="xxx@v100", qos="qos_gpu-t4"
    )


def test_what_is_not_known_is_not_refused(site: Site) -> None:
    nothing = site({"sinfo": "exit 1", "scontrol": "exit 1", "sacctmgr": "exit 1"})
    for profile in (profile_with(), STUDENT):
        plan = make_plan(profile, 4, account="x", qos="y", constraint="z", walltime="10h")
        assert fit_to_cluster(plan, profile, nothing, {"account", "qos"}) == Fitted(plan)
    no_nodes = site({**ORFEO, "sinfo": "exit 1"})
    assert fit(STUDENT, 4, no_nodes).notes == ()


@pytest.fixture
def narrow(slurm: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A partition of the test cluster that gives less than the others, and not to everybody."""
    name = f"narrow{os.getpid()}"
    monkeypatch.setenv("SLURM_CONF", slurm["SLURM_CONF"])
    limits = "MaxTime=30 MaxNodes=1 MaxMemPerNode=4000 MaxCPUsPerNode=6 DenyAccounts=root State=UP"
    subprocess.run(["scontrol", "create", f"PartitionName={name}", "Nodes=gpu[001-002]", *limits.split()], check=True)
    yield name
    subprocess.run(["scontrol", "delete", f"PartitionName={name}"], check=True)


def taken_by_sbatch(plan: Plan) -> bool:
    shape = [f"--nodes={plan.nodes}", f"--ntasks-per-node={plan.tasks_per_node}", f"--gres=gpu:{plan.gpus_per_node}"]
    share = [f"--cpus-per-task={plan.cpus_per_task}", f"--mem={int(plan.memory_gb * 1024)}", f"--time={plan.walltime}"]
    where = [f"--partition={plan.partition}", f"--account={plan.account}"]
    kind = [f"--constraint={plan.constraint}"] if plan.constraint else []
    command = ["sbatch", "--test-only", *shape, *share, *where, *kind, "--wrap=true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("gpus", "options", "possible"),
    [
        (1, {}, True), (2, {}, True), (2, {"walltime": "1h"}, True), (4, {}, False), (2, {"account": "root"}, False),
        (2, {"memory_gb": 6}, False), (2, {"cpus": 4}, False), (2, {"constraint": "a100"}, False),
        (2, {"account": "nobody"}, False), (4, {"partition": "GPU"}, True), (4, {"partition": "GPU,NARROW"}, True),
    ],
)  # fmt: skip
def test_the_real_controller_agrees(narrow: str, gpus: int, options: dict[str, Any], possible: bool) -> None:
    profile = find_profile(LOCAL_TEST)
    options = {"partition": "NARROW", **options}
    options["partition"] = options["partition"].replace("NARROW", narrow)
    if possible:
        fitted = fit(profile, gpus, read_facts(), **options)
        assert taken_by_sbatch(fitted.plan)
        assert taken_by_sbatch(make_plan(profile, gpus, **options)) or fitted.notes
    else:
        refusal(profile, gpus, read_facts(), **options)
        assert not taken_by_sbatch(make_plan(profile, gpus, **options))


FOR_13, FOR_126 = TorchBuild("2.14.1+cu130", "13.0"), TorchBuild("2.14.1+cu126", "12.6")
V100 = {"node": {"gpus": 2, "cpus": 24, "memory_gb": 234, "gpu_model": "V100 PCIe 32 GB"}}


@pytest.mark.parametrize(
    ("build", "sections", "options", "refused"),
    [
        (FOR_13, V100, {}, True),
        (FOR_126, V100, {}, False),
        (FOR_13, {"slurm": {"gpu_type": "V100"}}, {}, True),
        (FOR_13, {"node": {**V100["node"], "gpu_model": "A100 SXM 40 GB"}}, {}, False),
        # The node will tell.
        (FOR_13, {}, {}, False),
        (None, V100, {}, False),
        (TorchBuild("2.14.1", "13.0"), V100, {}, False),
        (FOR_13, {**V100, "environment": {"modules": ["pytorch/2.6"]}}, {}, False),
        (FOR_13, {**V100, "environment": {"variables": {"PYTHONPATH": "/site"}}}, {}, False),
        (FOR_13, V100, {"partition": "A100"}, False),
        (FOR_13, V100, {"constraint": "a100"}, False),
    ],
)
def test_a_torch_without_code_for_the_gpus_of_the_profile(
    monkeypatch: pytest.MonkeyPatch,
    build: TorchBuild | None,
    sections: dict[str, Any],
    options: dict[str, Any],
    refused: bool,
) -> None:
    monkeypatch.setattr(fit_module, "installed_build", lambda: build)
    monkeypatch.setattr(torch_builds.platform, "machine", lambda: "x86_64")
    profile = profile_with(**sections)
    plan = make_plan(profile, 2, **options)
    if not refused:
        check_torch(plan, profile)
        return
    with pytest.raises(UsageError, match=r"V100.* of two-gpu-nodes .* install torch 2\.6 to 2\.14 with CUDA 12\.6"):
        check_torch(plan, profile)
