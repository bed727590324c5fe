from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import profile_with

from hpc_tumor.cluster.describe.profiles import local_profile
from hpc_tumor.cluster.plan.plan import Plan, make_plan
from hpc_tumor.errors import UsageError


def test_four_gpus_on_nodes_of_two() -> None:
    plan = make_plan(profile_with(), 4)
    assert (plan.nodes, plan.tasks_per_node, plan.gpus) == (2, 2, 4)
    assert plan.cpus_per_task == 12
    assert plan.memory_gb == 234
    assert plan.walltime == 120
    assert plan.shape == "2 nodes × 2 GPUs"


def test_half_a_node_gets_half_of_it() -> None:
    plan = make_plan(profile_with(), 1)
    assert (plan.nodes, plan.tasks_per_node, plan.cpus_per_task, plan.memory_gb) == (1, 1, 12, 117)


def test_six_gpus_on_nodes_of_four_are_two_times_three() -> None:
    plan = make_plan(profile_with(node={"gpus": 4}, limits={"nodes": None}), 6)
    assert (plan.nodes, plan.tasks_per_node) == (2, 3)


@pytest.mark.parametrize(
    ("gpus", "nearest"),
    [(0, "Nearest: 1."), (-2, "Nearest: 1."), (3, "Nearest: 2 or 4."), (5, "Nearest: 4."), (900, "4.")],
)
def test_impossible_counts_name_the_nearest(gpus: int, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf"--gpus {gpus} .*2 GPUs, and a run may use at most 2 nodes\. .*{nearest}"):
        make_plan(profile_with(), gpus)


@given(gpus=st.integers(1, 200), per_node=st.integers(1, 8), limit=st.none() | st.integers(1, 12))
def test_a_plan_has_the_gpus_asked_for_or_is_refused(gpus: int, per_node: int, limit: int | None) -> None:
    profile = profile_with(node={"gpus": per_node}, limits={"nodes": limit})
    try:
        plan = make_plan(profile, gpus)
    except UsageError as error:
        nearest = [int(word) for word in str(error).rpartition("Nearest: ")[2].rstrip(".").split(" or ")]
        assert nearest
        assert all(make_plan(profile, count).gpus == count for count in nearest)
        return
    assert plan.gpus == gpus
    assert plan.tasks_per_node <= per_node
    assert limit is None or plan.nodes <= limit
    assert plan.cpus_per_task * plan.tasks_per_node <= profile.node.cpus
    assert plan.memory_gb <= profile.node.memory_gb


def test_walltime() -> None:
    assert make_plan(profile_with(), 1, walltime="30m").walltime == 30
    assert make_plan(profile_with(), 1, walltime="30m").total is None
    with pytest.raises(UsageError, match="--time soon is not a time"):
        make_plan(profile_with(), 1, walltime="soon")


def test_more_time_than_a_job_may_have_is_several_starts() -> None:
    plan = make_plan(profile_with(), 1, walltime="5h")
    assert (plan.walltime, plan.total, plan.starts, plan.links) == (120, 300, 3, 1)
    assert "5:00 h in total: 3 starts, requeued at each time limit" in plan.describe()
    shorter = plan.shortened(60, keep_total=True)
    assert (shorter.walltime, shorter.total, shorter.starts) == (60, 300, 5)

    forbidden = profile_with(slurm={"requeue": False})
    plan = make_plan(forbidden, 1, walltime="5h")
    assert (plan.walltime, plan.links) == (120, 3)
    assert "a chain of dependent jobs" in plan.describe()
    assert make_plan(forbidden, 1).links == 4
    assert make_plan(profile_with(slurm={"requeue": False, "chain": 1}), 1).links == 1


def test_a_shorter_limit_of_the_cluster_keeps_what_was_asked_for() -> None:
    plan = make_plan(profile_with(), 1, walltime="90m")
    assert plan.shortened(60, keep_total=True).total == 90
    assert make_plan(profile_with(), 1).shortened(60, keep_total=False).total is None
    assert plan.shortened(100, keep_total=True) == plan


@pytest.mark.parametrize(("minutes", "delay"), [(1, 30), (10, 120), (120, 360), (1440, 600)])
def test_warning_comes_early_enough_to_save(minutes: int, delay: int) -> None:
    profile = profile_with(limits={"walltime": minutes})
    assert make_plan(profile, 1).signal_delay == delay


def test_more_than_a_node_has_is_refused() -> None:
    with pytest.raises(UsageError, match=r"24 CPUs .* at most 12"):
        make_plan(profile_with(), 2, cpus=16)
    with pytest.raises(UsageError, match="300 GB is more than the 234 GB"):
        make_plan(profile_with(), 2, memory_gb=300)
    assert make_plan(profile_with(), 1, cpus=24, memory_gb=234).cpus_per_task == 24


def test_account_where_the_site_demands_one(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("HPC_TUMOR_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("HPC_TUMOR_ACCOUNT", raising=False)
    profile = profile_with(slurm={"account": "required"})
    with pytest.raises(UsageError, match=r"--account.*HPC_TUMOR_ACCOUNT"):
        make_plan(profile, 1)
    monkeypatch.setenv("HPC_TUMOR_ACCOUNT", "from-variable")
    assert make_plan(profile, 1).account == "from-variable"
    assert make_plan(profile, 1, account="from-flag").account == "from-flag"


def test_this_machine_is_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    plan = make_plan(local_profile(), 2)
    assert (plan.nodes, plan.tasks_per_node, plan.gpus_per_node) == (1, 2, 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UsageError, match=r"nodes have 1 GPU, .*Nearest: 1\."):
        make_plan(local_profile(), 2)


def test_a_plan_survives_json() -> None:
    plan = make_plan(profile_with(), 4)
    assert Plan(**plan.as_dict()) == plan


@pytest.mark.parametrize("memory", [0, -1, 0.01, float("nan"), float("inf")])
def test_memory_is_a_sensible_number(memory: float) -> None:
    with pytest.raises(UsageError, match=r"--memory .*at least 0\.1"):
        make_plan(profile_with(), 1, memory_gb=memory)


@pytest.mark.parametrize("option", ["account", "partition", "qos", "constraint"])
@pytest.mark.parametrize("text", ["a\n#SBATCH --x", "a\x1bb", "", " "])
def test_what_would_break_the_script_is_refused(option: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} "):
        make_plan(profile_with(), 1, **{option: text})  # type: ignore[arg-type]


def test_an_account_of_two_lines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_TUMOR_ACCOUNT", "a\nb")
    with pytest.raises(UsageError, match=r"account .*control character"):
        make_plan(profile_with(), 1)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"walltime": "99h"}, "--time"), ({"account": "a"}, "--account"), ({"partition": "p"}, "--partition"),
        ({"qos": "q"}, "--qos"), ({"constraint": "c"}, "--constraint"), ({"memory_gb": 1e6}, "--memory"),
        ({"cpus": 1}, "--cpus"),
    ],
)  # fmt: skip
def test_options_of_slurm_are_refused_on_this_machine(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=f"^{flag}: only for SLURM clusters, but the run stays on this machine"):
        make_plan(local_profile(), 1, **options)


def test_one_is_no_plural() -> None:
    text = make_plan(profile_with(), 1, cpus=1, memory_gb=1).describe()
    assert "1 node × 1 GPU, 1 CPU per task" in text
