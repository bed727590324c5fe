"""Whose turn it is among runs of this machine, some of which died."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from hpc_tumor.cluster.node.local_queue import give_back, is_turn, positions, take_ticket


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
