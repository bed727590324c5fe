"""Ranks from the variables of torchrun and of SLURM; part of them is an error."""

import socket

import pytest
import torch

from hpc_tumor.errors import UsageError
from hpc_tumor.training.distributed import (
    Distributed,
    check_network_interfaces,
    check_one_rank_per_gpu,
    cpus_of_rank,
    device_of_rank,
    init_distributed,
    read_ranks,
)

MASTER = {"MASTER_ADDR": "gpu001", "MASTER_PORT": "20001"}


def test_alone_without_variables() -> None:
    assert read_ranks({}) == (0, 0, 1, 1)


def test_torchrun() -> None:
    variables = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", **MASTER}
    assert read_ranks(variables) == (3, 1, 4, 2)


def test_slurm_step_over_two_nodes() -> None:
    variables = {"SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4", **MASTER}
    assert read_ranks({**variables, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}) == (2, 0, 4, 2)


def test_torchrun_inside_a_slurm_job_counts_as_torchrun() -> None:
    slurm = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"}
    torchrun = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **MASTER}
    assert read_ranks({**slurm, **torchrun})[:3] == (1, 1, 2)


def test_single_task_job_is_alone() -> None:
    assert read_ranks({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == (0, 0, 1, 1)


@pytest.mark.parametrize(
    "variables",
    [{"RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "0", **MASTER}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", **MASTER}],
)
def test_part_of_the_variables_is_an_error(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="the rank variables are incomplete"):
        read_ranks(variables)


def test_alone_collectives_are_the_identity() -> None:
    alone = Distributed()
    assert alone.any(True, False) == [True, False]
    assert alone.gather("x") == ["x"]


def test_cpus_are_those_that_slurm_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cpus_of_rank(2) == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert cpus_of_rank(2) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert cpus_of_rank(2) == 2


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of_rank(rank, 2, shared=True).index for rank in range(2)] == [0, 1]
    with pytest.raises(UsageError, match="3 ranks on this node, but only 2 GPUs visible"):
        device_of_rank(2, 3, shared=True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert device_of_rank(1, 2, shared=False).index == 0  # SLURM shows this task one GPU, its own
    with pytest.raises(UsageError, match="2 ranks on this node, but only 1 GPU visible"):
        device_of_rank(1, 2, shared=True)


def test_ranks_that_got_the_same_gpu_are_named() -> None:
    check_one_rank_per_gpu([("a", "1"), ("a", "2"), ("b", "3")])
    check_one_rank_per_gpu([("a", None), ("a", None)])  # torch does not know
    with pytest.raises(UsageError, match=r"ranks 1, 3 on b all got the same GPU, 7: request one GPU per rank"):
        check_one_rank_per_gpu([("b", "6"), ("b", "7"), ("a", "7"), ("b", "7")])


@pytest.mark.parametrize(
    ("variable", "value", "device", "named"),
    [
        ("GLOO_SOCKET_IFNAME", "nosuch0", "cpu", "nosuch0"),
        ("GLOO_SOCKET_IFNAME", "nosuch0,ib0", "cuda", "nosuch0"),
        ("GLOO_SOCKET_IFNAME", "ib0,eth0", "cpu", None),
        ("GLOO_SOCKET_IFNAME", "ib", "cpu", "ib"),
        ("NCCL_SOCKET_IFNAME", "ib,nosuch", "cuda", None),  # beginnings
        ("NCCL_SOCKET_IFNAME", "nosuch,other", "cuda", "nosuch, other"),
        ("NCCL_SOCKET_IFNAME", "=ib", "cuda", "ib"),
        ("NCCL_SOCKET_IFNAME", "=ib0", "cuda", None),
        ("NCCL_SOCKET_IFNAME", "^docker,nosuch", "cuda", None),
        ("NCCL_SOCKET_IFNAME", "nosuch", "cpu", None),  # nobody asks
    ],
)
def test_a_network_interface_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, device: str, named: str | None
) -> None:
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0"), (3, "ib0")])
    if named is None:
        check_network_interfaces({variable: value}, torch.device(device))
        return
    with pytest.raises(
        UsageError, match=rf"{variable} names {named}, but \S+ has the network interfaces lo, eth0, ib0"
    ):
        check_network_interfaces({variable: value}, torch.device(device))


def test_a_missing_interface_is_named_before_the_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        **MASTER,
        "GLOO_SOCKET_IFNAME": "longer-than-any-can-be",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="GLOO_SOCKET_IFNAME names longer-than-any-can-be"):
        init_distributed(1, threads=1)
