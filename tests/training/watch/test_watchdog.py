"""Ranks that hang, stop, vanish or never come are named, and end the others; slow ones are left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
import timeit
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from hpc_tumor.cluster.node.local import rank_variables
from hpc_tumor.errors import TrainingError
from hpc_tumor.training.distributed import Distributed, init_distributed
from hpc_tumor.training.watch.torch_errors import is_rank_loss
from hpc_tumor.training.watch.watchdog import Mark, Verdict, Watchdog, explain_loss, judge

TIMEOUT = 3.0  # seconds; a rank counts as gone after half of that
MARGIN = 8.0  # by which ranks end later than that, on a busy machine


def at(rank: int, phase: str, collectives: int = 20, **more: float) -> Mark:
    """Return the mark of a rank that stands still for 900 s, and began its last collective before that."""
    return replace(Mark(rank, f"gpu00{rank}", 5, phase, 7, collectives, since=950, still=900), **more)


def joined(rank: int, phase: str, collectives: int = 21, **more: float) -> Mark:
    """Return the mark of a rank that has begun the next collective, and waits in it."""
    return at(rank, phase, collectives, waits=True, **{"since": 900, **more})


def judged(*marks: Mark | None, own: int = 0) -> Verdict | None:
    return judge(list(marks), own, timeout=900, quiet=120)


def named(*marks: Mark | None) -> int | None:
    verdict = judged(*marks)
    assert verdict is not None
    return verdict.rank


def test_the_rank_that_works_alone_is_the_cause() -> None:
    marks = [joined(0, "backward", still=910), at(1, "data"), joined(2, "agree", still=905)]
    for own in range(3):
        assert judged(*marks, own=own) == Verdict(
            1, "rank 1 on gpu001 has made no progress for 900 s (in data, step 7)"
        )


def test_the_rank_furthest_behind_is_the_cause_even_where_it_waits() -> None:
    assert named(at(0, "data", 25), joined(1, "backward", 21), at(2, "forward", 24)) == 1


def test_of_ranks_that_have_begun_the_same_the_one_that_does_not_wait_is_the_cause() -> None:
    others = joined(0, "backward"), joined(2, "backward", still=910)
    assert named(others[0], at(1, "loss", 21), others[1]) == 1
    assert judged(others[0], at(1, "loss", 21, still=899), others[1]) is None


def test_of_ranks_with_full_queues_the_first_to_stop_is_the_cause() -> None:
    assert named(at(0, "forward", still=902), at(1, "update", still=903), at(2, "forward", still=901)) == 1


@pytest.mark.parametrize("still", [0.0, 100.0, 899.0])
@pytest.mark.parametrize(
    "waiting",
    [
        joined(0, "agree", still=5000),
        # On GPUs: in a copy of results, in a launch into a full queue, wherever the next version waits.
        *(at(0, phase, 22, still=5000) for phase in ("metrics", "data", "forward", "evaluate", "checkpoint", "new")),
    ],
    ids=lambda mark: mark.phase,
)
def test_whoever_waits_for_a_rank_that_goes_on_is_left_alone(waiting: Mark, still: float) -> None:
    assert judged(waiting, at(1, "evaluate", still=still, since=6000)) is None


def test_whoever_waited_for_a_rank_that_has_just_come_is_left_alone() -> None:
    """Its result may still be on its way; but not for long."""
    assert judged(at(0, "metrics", 22), joined(1, "backward", 22, still=1, since=1)) is None
    assert judged(joined(0, "agree", 22), joined(1, "agree", 22, still=1, since=1)) is None
    assert named(at(0, "metrics", 22), at(1, "evaluate", 22, still=1, since=120)) == 0


def test_a_rank_that_hangs_at_work_is_named_even_while_another_goes_on() -> None:
    assert named(joined(0, "agree"), at(1, "data"), at(2, "evaluate", still=2)) == 1


def test_a_silent_rank_is_gone_long_before_the_timeout_unless_the_others_go_on() -> None:
    verdict = judged(joined(0, "backward", still=120), at(1, "data", still=3, silent=120))
    assert verdict is not None
    assert (verdict.rank, "silent for 120 s" in verdict.reason) == (1, True)
    assert judged(joined(0, "backward", still=119), at(1, "data", still=3, silent=300)) is None
    assert judged(joined(0, "backward", still=899), at(1, "data", still=3, silent=119)) is None


def test_a_rank_that_never_came_is_named_after_the_whole_timeout() -> None:
    assert judged(joined(0, "rendezvous", 1, still=899), None) is None
    verdict = judged(joined(0, "rendezvous", 1, still=900), None)
    assert verdict is not None
    assert (verdict.rank, "did not join" in verdict.reason) == (1, True)


def test_ranks_that_wait_for_each_other_are_all_named() -> None:
    assert judged(joined(0, "agree"), joined(1, "backward")) == Verdict(
        None, "no rank has made progress for 900 s: all wait for each other (rank 0 in agree, rank 1 in backward)"
    )


def test_a_loss_is_told_from_a_cause() -> None:
    assert is_rank_loss(RuntimeError("[pair.cc:534] Connection closed by peer [10.0.0.1]:1234"))
    assert not is_rank_loss(RuntimeError("CUDA out of memory"))
    assert not is_rank_loss(ConnectionResetError("Connection reset by peer"))  # of some file server
    assert not is_rank_loss(TrainingError("Broken pipe in the store"))
    assert explain_loss(RuntimeError("Connection closed by peer")) is None  # nobody watches


def test_a_mark_costs_next_to_nothing() -> None:
    watched = Distributed(watchdog=Watchdog())
    seconds = min(timeit.repeat(lambda: watched.mark("data", 3), number=10_000, repeat=5))
    assert seconds / 10_000 < 2e-6


def test_nobody_watches_a_process_that_is_alone_on_purpose() -> None:
    Distributed().mark("data", 3)
    assert init_distributed(1, threads=1, alone=True).watchdog is None


# What the ranks of the tests below do. They train nothing: they mark, wait for each other, and are told what to do.


def asleep_in_the_reader() -> None:
    time.sleep(60)


def hang(distributed: Distributed) -> None:
    distributed.mark("data", 4)
    if distributed.rank == distributed.world_size - 1:
        asleep_in_the_reader()
    distributed.mark("forward", 4)
    distributed.barrier()


def slow(distributed: Distributed) -> None:
    for step in range(int(2 * TIMEOUT / 0.2) if distributed.rank == 1 else 0):
        distributed.mark("evaluate", step)
        time.sleep(0.2)
    distributed.barrier()


def slow_for_a_gpu(distributed: Distributed) -> None:
    """Begin a collective, and wait for it in another phase, as a rank does whose GPU has a queue."""
    for step in range(int(2 * TIMEOUT / 0.2) if distributed.rank == 1 else 0):
        distributed.mark("data", step)
        time.sleep(0.2)
    distributed.mark("forward", 40, collective=True)
    distributed.mark("metrics", 40)
    dist.barrier()


def steps(distributed: Distributed) -> None:
    for step in range(60):
        distributed.mark("data", step)
        time.sleep(0.05)
        distributed.barrier()


def one_rank(folder: Path, rank: int, world_size: int, port: int, task: Callable[[Distributed], None]) -> None:
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(rank_variables(rank, world_size, port))

    def say(reason: str, culprit: int | None, stack: str = "") -> None:
        with suppress(FileExistsError), (folder / f"{rank}.json").open("x") as file:  # the first cause, as in a run
            json.dump({"reason": reason, "culprit": culprit, "stack": stack}, file)

    distributed = init_distributed(TIMEOUT / 60, 1, say)
    (folder / f"{rank}.ready").touch()
    try:
        task(distributed)
    except Exception as error:
        lost = explain_loss(error)
        say(lost.reason if lost else f"unexplained: {error!r}", lost.rank if lost else -1)
        raise
    distributed.shutdown()


class Ranks:
    """Ranks as processes, forked from one that has imported torch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[int, BaseProcess] = {}

    def start(self, task: Callable[[Distributed], None], world_size: int = 2, absent: int | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hpc_tumor.training.distributed"])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(world_size):
            if rank != absent:
                process = context.Process(target=one_rank, args=(self.folder, rank, world_size, port, task))
                process.start()
                self.processes[rank] = process

    def wait_until_ready(self) -> None:
        end = time.monotonic() + 60
        while not all((self.folder / f"{rank}.ready").exists() for rank in self.processes):
            assert time.monotonic() < end
            time.sleep(0.05)

    def send(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.processes[rank].pid or 0, number)

    def codes(self, seconds: float, *ranks: int) -> list[int | None]:
        """Exit codes of `ranks`; None for one that is still there after so many seconds."""
        end = time.monotonic() + seconds
        for rank in ranks:
            self.processes[rank].join(max(0.0, end - time.monotonic()))
        return [self.processes[rank].exitcode for rank in ranks]

    def said(self, rank: int) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / f"{rank}.json").read_text())
        return values


@pytest.fixture
def ranks(tmp_path: Path) -> Any:
    started = Ranks(tmp_path)
    yield started
    for process in started.processes.values():
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_rank_that_hangs_is_named_by_all(ranks: Ranks) -> None:
    ranks.start(hang)
    ranks.wait_until_ready()
    began = time.monotonic()
    assert ranks.codes(TIMEOUT + MARGIN, 0, 1) == [1, 1]
    assert time.monotonic() - began > 0.8 * TIMEOUT
    assert ranks.said(0)["reason"] == ranks.said(1)["reason"]
    assert ranks.said(0)["culprit"] == 1
    assert ranks.said(0)["reason"].startswith(f"rank 1 on {socket.gethostname()} has made no progress for 3 s")
    assert ranks.said(0)["reason"].endswith("(in data, step 4)")
    assert "asleep_in_the_reader" in ranks.said(1)["stack"]
    assert "in barrier" in ranks.said(0)["stack"]
    assert "asleep_in_the_reader" in (ranks.folder / "1.log").read_text()


@pytest.mark.slow
def test_alone_a_hang_ends_too(ranks: Ranks) -> None:
    ranks.start(hang, world_size=1)
    ranks.wait_until_ready()
    assert ranks.codes(TIMEOUT + MARGIN, 0) == [1]
    assert ranks.said(0)["culprit"] == 0
    assert "asleep_in_the_reader" in ranks.said(0)["stack"]


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_by_the_other(ranks: Ranks, stopped: int) -> None:
    """Rank 0 keeps the store: stopped, it never answers."""
    ranks.start(steps)
    ranks.wait_until_ready()
    time.sleep(0.5)
    ranks.send(stopped, signal.SIGSTOP)
    assert ranks.codes(TIMEOUT + MARGIN, 1 - stopped) == [1]
    said = ranks.said(1 - stopped)
    assert said["culprit"] == stopped
    assert said["reason"].startswith(f"rank {stopped} on {socket.gethostname()} has been silent")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_named_by_the_other(ranks: Ranks, killed: int) -> None:
    ranks.start(steps)
    ranks.wait_until_ready()
    time.sleep(0.5)
    ranks.send(killed, signal.SIGKILL)
    assert ranks.codes(MARGIN, 1 - killed) == [1]
    said = ranks.said(1 - killed)
    assert said["culprit"] == killed
    assert said["reason"].startswith(f"rank {killed} on {socket.gethostname()} is gone: killed, or its node failed")


@pytest.mark.slow
@pytest.mark.parametrize("absent", [0, 1])
def test_a_rank_that_never_comes_is_named(ranks: Ranks, absent: int) -> None:
    ranks.start(steps, absent=absent)
    assert ranks.codes(TIMEOUT + MARGIN + 10, 1 - absent) == [1]  # here the import of torch counts, too
    assert ranks.said(1 - absent)["reason"].startswith(f"rank {absent} did not join the others within 3 s")


@pytest.mark.slow
@pytest.mark.parametrize("task", [slow, slow_for_a_gpu])
def test_a_slow_rank_and_one_that_waits_for_it_are_left_alone(
    ranks: Ranks, task: Callable[[Distributed], None]
) -> None:
    ranks.start(task)
    assert ranks.codes(2 * TIMEOUT + MARGIN + 10, 0, 1) == [0, 0]


@pytest.mark.slow
def test_time_in_which_all_ranks_were_suspended_does_not_count(ranks: Ranks) -> None:
    ranks.start(steps)
    ranks.wait_until_ready()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in (0, 1):
            ranks.send(rank, number)
        if number == signal.SIGSTOP:
            time.sleep(TIMEOUT + 0.5)
    assert ranks.codes(3 + MARGIN, 0, 1) == [0, 0]
