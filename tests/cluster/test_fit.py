"""What clusters say of themselves, as made-up commands repeat it, and what of a plan they can give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from launching import ORFEO, profile_with

from hpc_tumor.cluster.facts import Facts, Limits, read_gres
from hpc_tumor.cluster.fit import fit_to_cluster
from hpc_tumor.cluster.plan import make_plan
from hpc_tumor.errors import UsageError


@pytest.mark.parametrize(
    ("text", "gpus", "types"),
    [
        ("gpu:2", 2, ()), ("gpu:a100:4(S:0-1)", 4, ("a100",)), ("gpu:v100:2,gpu:a100:2", 4, ("v100", "a100")),
        ("gpu:h100:8,shard:16", 8, ("h100",)), ("(null)", 0, ()), ("shard:8", 0, ()), ("gpu", 1, ()),
        ("mps:100,gpu:1(IDX:0)", 1, ()),
    ],
)  # fmt: skip
def test_gpus_of_a_node(text: str, gpus: int, types: tuple[str, ...]) -> None:
    assert read_gres(text) == (gpus, types)


def test_what_orfeo_says(site: Callable[[dict[str, str]], Facts]) -> None:
    facts = site(ORFEO)
    assert facts.missing == ()
    assert (facts.cluster, facts.requeue, facts.max_array, facts.default_account) == ("orfeo", True, 501, "dssc")
    assert facts.partitions is not None
    gpu, mixed, epyc = (facts.partitions[name] for name in ("GPU", "MIXED", "EPYC"))
    assert (gpu.default, gpu.walltime, gpu.max_nodes, gpu.accounts) == (True, 1080, 2, ("dssc", "lade"))
    assert (gpu.largest.gpus, gpu.largest.cpus, round(gpu.largest.memory_gb)) == (2, 24, 234)
    assert (mixed.nodes, mixed.largest.gpu_types, mixed.walltime) == (13, ("h100",), None)
    assert not epyc.up
    assert facts.accounts == {"dssc": Limits(walltime=120, running=5, queued=20)}
    assert facts.qos is not None
    assert facts.qos["gpuq"] == Limits(walltime=720, gpus=4, nodes=2, running=5, queued=20)
    assert facts.own_qos == ("gpuq", "normal")


def test_commands_that_fail_are_named_and_the_rest_is_known(site: Callable[[dict[str, str]], Facts]) -> None:
    facts = site({**ORFEO, "sacctmgr": "exit 1", "sinfo": "sleep 5"})
    assert {name.partition(" ")[0] for name in facts.missing} == {"sinfo", "sacctmgr"}
    assert facts.accounts is facts.qos is None
    assert facts.partitions is not None
    assert facts.partitions["GPU"].walltime == 1080
    nothing = site({"sinfo": "exit 1", "scontrol": "exit 1", "sacctmgr": "exit 1"})
    assert nothing == replace(Facts(), missing=nothing.missing)
    plan = make_plan(profile_with(), 4)
    assert fit_to_cluster(plan, profile_with(), nothing, set()).plan == plan


def test_nonsense_is_no_fact(site: Callable[[dict[str, str]], Facts]) -> None:
    facts = site({"sinfo": "a|b\n\n|||||||\n", "scontrol": "?\n", "sacctmgr": "what\n"})
    assert facts.partitions is facts.accounts is facts.qos is facts.own_qos is facts.max_array is facts.requeue is None


STUDENT = profile_with(slurm={"partition": "GPU", "account": "dssc"})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "GPUS"}, "unknown partition 'GPUS'. Did you mean 'GPU'?"),
        ({"partition": "EPYC"}, "closed for now"),
        ({"partition": "DGX"}, "not for the account dssc: only for lade"),
        ({"account": "lade"}, "unknown account of yours 'lade'"),
        ({"qos": "gpu"}, "unknown QOS 'gpu'"),
        ({"qos": "long"}, "--qos long is not open to you"),
    ],
)
def test_what_this_account_may_not_have(
    site: Callable[[dict[str, str]], Facts], options: dict[str, str], words: str
) -> None:
    plan = make_plan(STUDENT, 2, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        fit_to_cluster(plan, STUDENT, site(ORFEO), set(options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_no_node_has(site: Callable[[dict[str, str]], Facts]) -> None:
    facts = site(ORFEO)
    eight = profile_with(node={"gpus": 8, "cpus": 96, "memory_gb": 900})
    with pytest.raises(UsageError, match="no node of the partition GPU has so many GPUs: ask for at most 2"):
        fit_to_cluster(make_plan(eight, 8), eight, facts, set())
    more = profile_with(limits={"nodes": 8})
    with pytest.raises(UsageError, match="8 GPUs are more than one user may ever have here at once: ask for at most 4"):
        fit_to_cluster(make_plan(more, 8), more, facts, set())
    typed = profile_with(slurm={"partition": "MIXED", "gpu_type": "a100"})
    with pytest.raises(UsageError, match="asks for GPUs of the type a100; MIXED has h100"):
        fit_to_cluster(make_plan(typed, 2), typed, facts, set())
    featured = profile_with(slurm={"partition": "MIXED", "constraint": "h200"})
    with pytest.raises(UsageError, match=r"unknown feature 'h200'\. Did you mean 'h100'"):
        fit_to_cluster(make_plan(featured, 2), featured, facts, set())


def test_what_only_the_profile_asks_for_is_lowered_and_said(site: Callable[[dict[str, str]], Facts]) -> None:
    facts = site(ORFEO)
    large = profile_with(node={"cpus": 48, "memory_gb": 500}, limits={"walltime": "24h"})
    fitted = fit_to_cluster(make_plan(large, 2), large, facts, set())
    assert (fitted.plan.cpus_per_task, round(fitted.plan.memory_gb), fitted.plan.walltime) == (12, 234, 720)
    # The partition's QOS goes before the account.
    assert len(fitted.notes) == 3
    with pytest.raises(UsageError, match="--memory 400 GB is more than a node of GPU has: at most 234"):
        fit_to_cluster(make_plan(large, 2, memory_gb=400), large, facts, {"memory_gb"})
    with pytest.raises(UsageError, match="--cpus 20"):
        fit_to_cluster(make_plan(large, 2, cpus=20), large, facts, {"cpus"})


def test_what_fits_is_left_as_it_is(site: Callable[[dict[str, str]], Facts]) -> None:
    plan = make_plan(STUDENT, 4)
    fitted = fit_to_cluster(plan, STUDENT, site(ORFEO), set())
    assert (fitted.plan, fitted.notes) == (plan, ())
