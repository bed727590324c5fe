"""SLURM as made-up commands and facts tell it: what is missing, what the profile has wrong, who pays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_tumor.cluster.describe.facts import Facts, Limits, NodeKind, Partition, read_facts
from hpc_tumor.config import ClusterProfile
from hpc_tumor.doctor.configuration import check_configuration, choose_cluster
from hpc_tumor.doctor.finding import Finding, Section, error, exit_code, ok, warning
from hpc_tumor.doctor.node_job import plan_of
from hpc_tumor.doctor.slurm import NEEDED, check_account, check_commands, check_partition
from hpc_tumor.errors import UsageError
from hpc_tumor.validation import build

KIND = NodeKind(nodes=4, cpus=24, memory_gb=234.375, gpus=2)
PARTITION = Partition("GPU", default=True, walltime=1080, kinds=(KIND,))
FACTS = Facts(
    {"GPU": PARTITION}, accounts={"dssc": Limits()}, default_account="dssc", qos={"normal": Limits()}, version="24.11"
)


def profile(**sections: Any) -> ClusterProfile:
    values: dict[str, Any] = {
        "name": "p", "description": "made up", "slurm": {"partition": "GPU"},
        "node": {"gpus": 2, "cpus": 24, "memory_gb": 234}, "limits": {"walltime": "18:00:00", "nodes": 4},
    }  # fmt: skip
    for name, more in sections.items():
        values[name] = {**values[name], **more}
    return build(ClusterProfile, values, "test")


def levels(findings: list[Finding]) -> list[str]:
    return [item.level for item in findings]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def make(folder: Path, *names: str, says: str = "exit 0") -> None:
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{says}\n")
        (folder / name).chmod(0o755)


def test_no_slurm(commands: Path) -> None:
    (found,) = check_commands(None)
    assert (found.level, found.text) == ("error", "not found: sbatch, srun, squeue, scontrol, scancel")


def test_a_controller_that_does_not_answer(commands: Path) -> None:
    words = "slurm_load_partitions: Unable to contact slurm controller (connect failure)"
    make(commands, *NEEDED, "sinfo", "sacct", "sacctmgr", says=f"echo '{words}' >&2; exit 1")
    (found,) = check_commands(read_facts())
    assert found.level == "error"
    assert "Unable to contact slurm controller" in found.text


def test_no_accounting_is_a_warning(commands: Path) -> None:
    make(commands, *NEEDED)
    assert levels(check_commands(FACTS)) == ["ok", "warning"]
    make(commands, "sacct")
    assert levels(check_commands(FACTS)) == ["ok"]


def test_an_accounting_that_does_not_answer_is_a_warning(commands: Path) -> None:
    make(commands, *NEEDED, "sacct")
    found = check_commands(replace(FACTS, missing=("sacctmgr show user",)))
    assert levels(found) == ["ok", "warning"]
    assert "limits of your account were not checked" in found[1].text


def test_commands_of_which_only_some_answer(commands: Path) -> None:
    make(commands, *NEEDED, "sinfo")
    (found,) = check_commands(None)
    assert (found.level, "only some of its commands do" in found.text) == ("error", True)


def test_a_profile_that_fits_is_one_line() -> None:
    (found,) = check_partition(profile(), FACTS, None)
    assert found == ok("partition GPU: 4 nodes of 24 CPUs, 234 GB, 2 GPUs; at most 18:00 h")


@pytest.mark.parametrize(
    ("section", "asked", "line"),
    [
        ("limits", {"walltime": "24:00:00"}, 'walltime = "18:00:00"'), ("limits", {"nodes": 5}, "nodes = 4"),
        ("node", {"gpus": 4}, "gpus = 2"), ("node", {"cpus": 32}, "cpus = 24"),
        ("node", {"memory_gb": 256}, "memory_gb = 234"),
    ],
)  # fmt: skip
def test_a_profile_that_asks_for_too_much_is_told_the_line(section: str, asked: dict[str, Any], line: str) -> None:
    found = check_partition(profile(**{section: asked}), FACTS, None)
    assert levels(found) == ["ok", "warning"]
    assert found[1].way_out == f"in the profile p, [{section}]: {line}"


def test_partitions_of_several_kinds_of_nodes() -> None:
    """Those that the constraint chooses count, and of these the most of each."""
    old = NodeKind(9, 40, 156.0, 4, ("v100",), ("v100",))
    new = NodeKind(9, 64, 500.0, 8, ("a100",), ("a100",))
    facts = Facts({"GPU": Partition("GPU", kinds=(old, new))})
    wide = profile(node={"gpus": 4, "cpus": 64, "memory_gb": 500, "gpu_model": "A100"})
    assert levels(check_partition(wide, facts, None)) == ["ok"]
    chosen = wide.model_copy(update={"slurm": wide.slurm.model_copy(update={"constraint": "v100"})})
    found = check_partition(chosen, facts, None)
    assert [item.way_out.rpartition(": ")[2] for item in found[1:]] == [
        "cpus = 40", "memory_gb = 156", 'gpu_model = "v100"',
    ]  # fmt: skip


def test_the_account_may_have_less_than_the_partition() -> None:
    facts = Facts({"GPU": PARTITION}, accounts={"dssc": Limits(walltime=120, running=5)}, default_account="dssc")
    found = check_partition(profile(limits={"running_jobs": 10}), facts, None)
    assert [item.way_out.rpartition(": ")[2] for item in found[1:]] == ['walltime = "02:00:00"', "running_jobs = 5"]


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        (Partition("GPU", up=False, kinds=(KIND,)), "closed"),
        (Partition("GPU", accounts=("staff",), kinds=(KIND,)), "not open to account dssc"),
    ],
)
def test_partitions_that_are_not_for_this_user(partition: Partition, words: str) -> None:
    facts = Facts({"GPU": partition}, default_account="dssc")
    (found,) = check_partition(profile(), facts, None)
    assert (found.level, words in found.text) == ("error", True)


def test_a_partition_that_is_not_there() -> None:
    (found,) = check_partition(profile(slurm={"partition": "DGX"}), FACTS, None)
    assert found.level == "error"
    assert 'partition = "NAME"; existing partitions: GPU' in found.way_out


@pytest.mark.parametrize(
    ("name", "facts", "level", "words"),
    [
        ("DGX,GPU", FACTS, "ok", "SLURM chooses one"), ("DGX,EPYC", FACTS, "error", "none of the partitions"),
        (None, replace(FACTS, partitions=None), "warning", "sinfo does not answer"),
        (None, replace(FACTS, partitions={"GPU": replace(PARTITION, default=False)}), "warning", "no default"),
        (None, replace(FACTS, partitions={"GPU": replace(PARTITION, kinds=())}), "ok", "partition GPU"),
    ],
)  # fmt: skip
def test_which_partition_is_used(name: str | None, facts: Facts, level: str, words: str) -> None:
    (found,) = check_partition(profile(slurm={"partition": None}), facts, name)
    assert (found.level, words in found.text) == (level, True)


@pytest.mark.parametrize(
    ("open_to", "way"), [(("long", "short"), "--qos with one of long, short"), ((), "another --qos")]
)
def test_a_qos_that_the_partition_does_not_take(open_to: tuple[str, ...], way: str) -> None:
    denied = () if open_to else ("normal",)
    facts = replace(FACTS, partitions={"GPU": replace(PARTITION, qos=open_to, denied_qos=denied)})
    (found,) = check_partition(profile(slurm={"qos": "normal"}), facts, None)
    assert found == error("partition GPU does not accept QOS normal", way)


def test_no_default_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)
    (found,) = check_account(profile(), replace(FACTS, default_account=None), None)
    assert found == warning("no default account", "--account with one of dssc")


@pytest.mark.parametrize(
    ("stated", "given", "level"),
    [("required", None, "error"), ("required", "dssc", "ok"), ("required", "other", "error"), (None, None, "ok")],
)
def test_who_pays(monkeypatch: pytest.MonkeyPatch, stated: str | None, given: str | None, level: str) -> None:
    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)
    (found,) = check_account(profile(slurm={"account": stated}), FACTS, given)
    assert found.level == level
    assert level == "ok" or "dssc" in found.way_out


def test_the_test_job_is_small_and_of_two_nodes_where_there_are() -> None:
    plan = plan_of(profile(), FACTS)
    assert (plan.nodes, plan.tasks_per_node, plan.cpus_per_task, plan.memory_gb, plan.walltime) == (2, 1, 4, 8.0, 5)
    plan = plan_of(profile(limits={"nodes": 1}), FACTS)
    assert (plan.nodes, plan.tasks_per_node, plan.gpus_per_node) == (1, 2, 2)
    single = Facts({"GPU": Partition("GPU", kinds=(NodeKind(1, 24, 234.0, 1),))})
    plan = plan_of(profile(node={"gpus": 1}), single)
    assert (plan.nodes, plan.tasks_per_node) == (1, 1)


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("HPC_TUMOR_CLUSTER", raising=False)
    (tmp_path / "clusters").mkdir()
    return tmp_path


def test_no_configuration_is_fine(own: Path) -> None:
    assert levels(check_configuration()) == ["ok"]


@pytest.mark.parametrize(
    ("text", "level", "words"),
    [
        ("[recipe]\nepoch = 2\n", "error", "recipe.epoch"), ("cluster = 3\n", "error", "not a string"),
        ("[recipe\n", "error", "TOML"), ('[recipe]\nloss = "dice-ce"\n', "warning", "runs of classification"),
        ("[recipe]\nepochs = 2\n", "ok", "is valid"),
    ],
)  # fmt: skip
def test_the_users_file(own: Path, text: str, level: str, words: str) -> None:
    (own / "config.toml").write_text(text)
    (found,) = check_configuration()
    assert (found.level, words in found.text) == (level, True)


def test_broken_profiles_are_named(own: Path) -> None:
    (own / "clusters" / "mine.toml").write_text('description = "d"\n[node]\ngpu = 2\n')
    (found,) = check_configuration()
    assert found.level == "warning"
    assert "mine.toml: unknown setting 'node.gpu'" in found.text


def test_a_default_cluster_that_is_not_there(own: Path) -> None:
    (own / "config.toml").write_text('cluster = "gone"\n')
    found, (line,) = choose_cluster(None)
    assert (found, line.level) == (None, "error")
    with pytest.raises(UsageError, match="unknown cluster profile"):
        choose_cluster("gone")


# -- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"gpu": ok("")}, 0), ({"slurm": warning("", "")}, 0), ({"gpu": error("", "")}, 1),
        ({"slurm": error("", "")}, 4), ({"gpu": error("", ""), "job": error("", "")}, 4),
    ],
)  # fmt: skip
def test_exit_codes(sections: dict[str, Finding], code: int) -> None:
    assert exit_code([Section(key, "", [finding]) for key, finding in sections.items()]) == code
