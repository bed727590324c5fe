"""Whose turn it is among runs of this machine, some of which died."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpc_tumor.cluster.node.local_queue import (
    MOST_SHARING,
    Ticket,
    give_back,
    hand_over_gpu,
    is_turn,
    positions,
    share_of,
    take_ticket,
)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Callable[..., list[Ticket]]]:
    """Appends runs, each given by its name and the share of the GPU that it needs."""
    tickets: list[Ticket] = []

    def append(**shares: float) -> list[Ticket]:
        tickets.extend(take_ticket(tmp_path, name, share) for name, share in shares.items())
        return tickets

    yield append
    for ticket in tickets:
        os.close(ticket.handle)


def begun(runs: Path, *names: str, in_use: float = 0.0) -> list[str]:
    """Return those of the runs that may start, asked one after another."""
    return [name for name in names if is_turn(runs, name, in_use)]


def test_a_run_waits_for_those_before_it_that_live(tmp_path: Path) -> None:
    dead, first, second = (take_ticket(tmp_path, name) for name in ("dead", "first", "second"))
    dead.hand_over()  # to nobody
    assert positions(tmp_path) == {"first": 0, "second": 1}
    assert not is_turn(tmp_path, "second")
    assert not dead.path.exists()
    assert is_turn(tmp_path, "first")
    give_back(tmp_path, "first")
    assert (first.path.exists(), second.path.exists()) == (False, True)
    assert is_turn(tmp_path, "second")
    assert is_turn(tmp_path, "without a ticket") is False
    give_back(tmp_path, "second")
    assert is_turn(tmp_path, "without a ticket")
    for ticket in (first, second):
        os.close(ticket.handle)


def test_a_ticket_that_cannot_be_made_leaves_the_queue_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take_ticket(tmp_path, "first")

    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(OSError, match="Input/output error"):
            take_ticket(tmp_path, "second")
    assert positions(tmp_path) == {"first": 0}
    os.close(first.handle)


def test_runs_that_fit_on_the_gpu_together_run_side_by_side(tmp_path: Path, queue: Callable[..., list[Ticket]]) -> None:
    queue(large=0.625, small=0.125, other=0.25, third=0.125)
    assert begun(tmp_path, "small") == []  # the first has not begun: what others use of the GPU is not known yet
    assert begun(tmp_path, "large", "small", "other", "third") == ["large", "small", "other"]
    assert positions(tmp_path) == {"large": 0, "small": 0, "other": 0, "third": 3}
    assert share_of(tmp_path, "large") == 0.625
    assert begun(tmp_path, "third") == []
    give_back(tmp_path, "other")
    assert begun(tmp_path, "third") == ["third"]


def test_no_more_than_four_share_a_gpu(tmp_path: Path, queue: Callable[..., list[Ticket]]) -> None:
    names = [f"small{number}" for number in range(MOST_SHARING + 1)]
    queue(**dict.fromkeys(names, 0.125))
    assert begun(tmp_path, *names) == names[:MOST_SHARING]


def test_a_run_that_does_not_share_is_alone(tmp_path: Path, queue: Callable[..., list[Ticket]]) -> None:
    queue(small=0.125, whole=1.0, later=0.125)
    assert begun(tmp_path, "small", "whole", "later") == ["small"]  # nor is it overtaken
    give_back(tmp_path, "small")
    assert begun(tmp_path, "later", "whole", "later") == ["whole"]
    give_back(tmp_path, "whole")
    assert begun(tmp_path, "later") == ["later"]


def test_a_small_run_overtakes_only_if_the_large_one_does_not_wait_longer(
    tmp_path: Path, queue: Callable[..., list[Ticket]]
) -> None:
    queue(large=0.625, second=0.625, small=0.25, other=0.25)
    assert begun(tmp_path, "large", "second", "small", "other") == ["large", "small"]
    give_back(tmp_path, "large")
    assert begun(tmp_path, "other", "second", "other") == ["second"]
    give_back(tmp_path, "small")
    assert begun(tmp_path, "other") == ["other"]


def test_memory_that_other_programs_use_is_left_to_them(tmp_path: Path, queue: Callable[..., list[Ticket]]) -> None:
    queue(large=0.625, small=0.25, tiny=0.125)
    assert begun(tmp_path, "large", in_use=0.2) == ["large"]
    # The large run may have allocated nothing yet, or all of its share.
    assert begun(tmp_path, "small", in_use=0.2) == begun(tmp_path, "small", in_use=0.825) == []
    assert begun(tmp_path, "tiny", in_use=0.9) == []  # others took more meanwhile
    assert begun(tmp_path, "tiny", in_use=0.3) == ["tiny"]


def test_a_run_that_only_needs_cpus_lets_the_next_one_start(tmp_path: Path, queue: Callable[..., list[Ticket]]) -> None:
    queue(first=1.0, second=1.0, third=1.0)
    assert begun(tmp_path, "first", "second") == ["first"]
    hand_over_gpu(tmp_path, "first")
    assert begun(tmp_path, "third", "second", "third") == ["second"]
    assert positions(tmp_path) == {"first": 0, "second": 0, "third": 1}
    hand_over_gpu(tmp_path / "no queue", "first")  # as under SLURM


def test_a_ticket_of_an_earlier_version_needs_the_whole_gpu(tmp_path: Path, queue: Callable[..., list[Ticket]]) -> None:
    running, _ = queue(running=0.125, small=0.125)
    running.path.write_text("")
    assert begun(tmp_path, "small") == []
    assert positions(tmp_path) == {"running": 0, "small": 1}
