"""Facts of clusters from simulated commands and from the real local SLURM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sites import JEAN_ZAY, LEONARDO, ORFEO

from hpc_tumor.cluster.describe.facts import parse_gres, parse_minutes, parse_resources, read_facts
from hpc_tumor.cluster.describe.site import Facts, Limits, Partition

Site = Callable[[dict[str, str]], Facts]


@pytest.mark.parametrize(
    ("text", "gpus", "types"),
    [
        ("gpu:2", 2, ()), ("gpu:a100:4(S:0-1)", 4, ("a100",)), ("gpu:v100:2,gpu:a100:2", 4, ("v100", "a100")),
        ("gpu:h100:8,shard:16", 8, ("h100",)), ("(null)", 0, ()), ("shard:8", 0, ()), ("gpu", 1, ()),
        ("mps:100,gpu:1(IDX:0)", 1, ()), ("gpu:2080ti:4", 4, ("2080ti",)), ("gpu:3090:2(S:0,1)", 2, ("3090",)),
        ("gpu:1g.10gb:7", 7, ("1g.10gb",)), ("gpu:a100_3g.20gb:2,gpu:a100:6", 8, ("a100_3g.20gb", "a100")), ("", 0, ()),
    ],
)  # fmt: skip
def test_gpus_of_a_node(text: str, gpus: int, types: tuple[str, ...]) -> None:
    assert parse_gres(text) == (gpus, types)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("2:00:00", 120), ("6-06:00:00", 9000), ("30:00", 30), ("00:00:30", 1), ("UNLIMITED", None), ("infinite", None),
        ("n/a", None), ("", None),
    ],
)  # fmt: skip
def test_times(text: str, minutes: int | None) -> None:
    assert parse_minutes(text) == minutes


def test_resources() -> None:
    said = parse_resources("cpu=96,gres/gpu:a100-sxm=8,gres/gpu=4,mem=500G,node=2")
    assert said == {"cpu": 96, "gres/gpu:a100-sxm": 8, "gres/gpu": 4, "mem": 500, "node": 2}
    assert parse_resources("mem=2048M") == {"mem": 2}
    assert parse_resources("mem=1T")["mem"] == 1024
    assert parse_resources("") == {}


def test_what_orfeo_says(site: Site) -> None:
    facts = site(ORFEO)
    assert facts.missing == ()
    assert (facts.cluster, facts.requeue, facts.max_array, facts.default_account) == ("orfeo", True, 501, "dssc")
    assert facts.partitions is not None
    gpu, mixed, epyc = (facts.partitions[name] for name in ("GPU", "MIXED", "EPYC"))
    assert (gpu.default, gpu.walltime, gpu.max_nodes, gpu.accounts) == (True, 1080, 2, ("dssc", "lade"))
    assert (gpu.largest.gpus, gpu.largest.cpus, round(gpu.largest.memory_gb)) == (2, 24, 234)
    assert (mixed.nodes, mixed.largest.gpu_types, mixed.walltime) == (13, ("h100",), None)
    assert not epyc.up
    assert facts.accounts == {"dssc": Limits(120, running=5, queued=20, qos=("normal", "gpuq"))}  # of this cluster
    assert facts.qos is not None
    assert facts.qos["gpuq"] == Limits(None, gpus=4, nodes=2, running=5, queued=20, cpus=96)
    assert not facts.has_submit_plugin
    assert all(facts.enforces(what) for what in ("associations", "limits", "qos"))


def test_what_leonardo_says(site: Site) -> None:
    facts = site(LEONARDO)
    assert facts.partitions is not None
    boost = facts.partitions["boost_usr_prod"]
    assert [kind.memory_gb for kind in boost.kinds] == [494000 / 1024] * 2  # the partition lets a job have no more
    assert not boost.allows_qos("boost_qos_fuadbg")
    assert boost.allows_qos("normal")
    assert set(facts.accounts or ()) == {"iscra_a", "euhpc_b"}
    assert facts.requeue is False
    assert facts.has_submit_plugin


def test_of_each_limit_the_first_that_is_set_holds(site: Site) -> None:
    facts = site(LEONARDO)
    boost = (facts.partitions or {})["boost_usr_prod"]
    day = facts.limits(boost, None, "iscra_a")
    assert (day.walltime, day.nodes, day.gpus) == (1440, 64, None)
    long = facts.limits(boost, "boost_qos_lprod", "iscra_a")  # its flags lift what the partition says
    assert (long.walltime, long.nodes, long.gpus) == (4 * 1440, 3, 12)
    assert facts.limits(boost, "boost_qos_dbg", "iscra_a").walltime == 30

    orfeo = site(ORFEO)
    gpu = (orfeo.partitions or {})["GPU"]
    assert orfeo.limits(gpu, None, "dssc") == Limits(120, 4, 2, 5, 20, 96)
    assert orfeo.limits(gpu, "long", "DSSC").walltime == 6 * 1440  # the QOS goes before the account, and has the flag
    lax = replace(orfeo, enforced=frozenset({"associations"}))
    assert lax.limits(gpu, None, "dssc") == Limits(1080, nodes=2)

    jean_zay = site(JEAN_ZAY)
    p13 = (jean_zay.partitions or {})["gpu_p13"]
    assert jean_zay.limits(p13, None, None).walltime == 20 * 60  # of the default QOS of the default account
    assert jean_zay.limits(p13, "qos_gpu-t4", "xxx@v100").walltime == 100 * 60


def test_a_qos_may_go_before_the_one_of_the_partition() -> None:
    part = Partition("P", own_qos="Part", walltime=600)
    qos = {"part": Limits(60, gpus=2), "job": Limits(120), "over": Limits(120, flags=("OverPartQOS",))}
    facts = Facts({"P": part}, qos=qos)
    assert facts.limits(part, "job", None).walltime == 60
    assert facts.limits(part, "over", None) == Limits(120, gpus=2)


def test_limits_of_an_account_in_one_partition_hold_there_alone(site: Site) -> None:
    rows = "orfeo|dssc|GPU|normal||1|2|0:30:00||\norfeo|dssc||normal||5|20|2:00:00||\norfeo|lade|DGX|normal|||||||\n"
    facts = site({**ORFEO, "sacctmgr": f"case \"$*\" in\n*assoc*) cat <<'END'\n{rows}END\n;;\nesac"})
    gpu, mixed = ((facts.partitions or {})[name] for name in ("GPU", "MIXED"))
    assert (facts.limits(gpu, None, "dssc").walltime, facts.limits(mixed, None, "dssc").walltime) == (30, 120)
    assert facts.accounts is not None
    assert "dssc" in facts.accounts


@pytest.mark.slow
def test_commands_that_fail_are_named_and_the_rest_is_known(site: Site) -> None:
    facts = site({**ORFEO, "sacctmgr": "exit 1", "sinfo": "sleep 5"})
    assert {name.partition(" ")[0] for name in facts.missing} == {"sinfo", "sacctmgr"}
    assert facts.accounts is facts.qos is None
    assert facts.partitions is not None
    assert (facts.partitions["GPU"].walltime, facts.partitions["GPU"].kinds) == (1080, ())
    nothing = site({"sinfo": "exit 1", "scontrol": "exit 1", "sacctmgr": "exit 1"})
    assert nothing == replace(Facts(), missing=nothing.missing)
    assert len(nothing.missing) == 6
    only_sinfo = site({**ORFEO, "scontrol": "exit 1"})
    assert only_sinfo.default_partition is not None
    assert only_sinfo.default_partition.name == "GPU"


def test_nonsense_is_no_fact(site: Site, tmp_path: Path) -> None:
    facts = site({"sinfo": "a|b\n\n||||||||\n", "scontrol": "?\n", "sacctmgr": "what\n"})
    assert (facts.max_array, facts.accounts, facts.qos, facts.partitions) == (None, None, None, None)
    facts = site(
        {"sinfo": "case x in x) printf '\\377\\376|' ;; esac", "scontrol": "case x in x) printf '\\377' ;; esac"}
    )
    assert facts.partitions is None
    (tmp_path / "bin" / "sinfo").chmod(0o644)  # not for us to run
    assert "sinfo" in read_facts(seconds=2).missing


def test_a_partition_for_other_groups_is_known_but_not_mine(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 54321)
    facts = site(LEONARDO)
    assert facts.partitions is not None
    assert not facts.partitions["boost_fua_dbg"].allows_group
    assert facts.partitions["boost_usr_prod"].allows_group


@pytest.fixture
def strict_qos(slurm: dict[str, str]) -> Iterator[str]:
    """A QOS with limits in the accounting of the test cluster."""
    name = "facts-test"

    def change(*words: str) -> None:
        subprocess.run(["sacctmgr", "-i", *words], env=slurm, capture_output=True, check=True)

    change(
        "add", "qos", name, "set", "MaxWall=00:45:00", "MaxTRESPerUser=gres/gpu=3,mem=6G", "MaxTRESPerJob=node=1",
        "MaxJobsPU=2", "MaxSubmitJobsPU=4", "flags=PartitionTimeLimit,DenyOnLimit",
    )  # fmt: skip
    yield name
    change("delete", "qos", name)


def test_what_the_real_cluster_says(slurm: dict[str, str], strict_qos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**slurm, "SINFO_PARTITION": "HIGH"}.items():  # a user's taste, which must not hide the rest
        monkeypatch.setenv(name, value)
    facts = read_facts()
    assert facts.missing == ()
    assert facts.partitions is not None
    assert facts.qos is not None
    gpu = facts.partitions["GPU"]
    assert (gpu.up, gpu.default, gpu.walltime, gpu.nodes) == (True, True, 120, 4)
    assert (gpu.largest.gpus, gpu.largest.cpus, gpu.largest.memory_gb) == (2, 8, 8000 / 1024)
    assert "hpc" in (facts.accounts or {})
    found = facts.qos[strict_qos]
    assert replace(found, flags=()) == Limits(45, 3, 1, 2, 4, None, 6.0)
    assert set(found.flags) == {"PartitionTimeLimit", "DenyOnLimit"}
    assert facts.enforces("associations")
    assert not facts.enforces("limits")


def test_facts_do_not_import_torch() -> None:
    code = "import sys, hpc_tumor.cluster.plan.fit, hpc_tumor.cluster.describe.discover; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
