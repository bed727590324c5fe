"""End ranks that make no progress, and name the rank at fault rather than those that wait for it.

Each rank marks its progress. A thread renews the rank's mark in the rendezvous store, and reads the marks of the other
ranks once its own rank stands still. The cases:

- A rank hangs while Python still runs: after `timeout` the first rank to notice writes its verdict to the store; all
  adopt it and exit within about 10 s.
- A rank no longer renews its mark (killed, stopped, its node gone, or in a native call that holds the GIL): the others
  exit once they have stood still, and it has been silent, for 120 s, or half of `timeout` if that is less.
- A rank dies and its connections break: the others fail at once, and `explain_loss` names it within 5 s. If no
  connection breaks, or NCCL does not notice, the rank is silent, as above.
- A rank that is slow but marks progress is left alone, and so are those that wait for it. Who waits for whom is known
  by the number of collectives that each rank has begun, which all begin in the same order: a rank behind the others
  keeps them waiting, wherever they stand (on a GPU also in a copy, or in a launch into a full queue).

Time in which this process did not run (suspended by SLURM, a laptop asleep) does not count. In a single process, a
native call that holds the GIL blocks this thread, too, so such a hang is not detected.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from hpc_tumor.training.watch.torch_errors import is_rank_loss

EXPLAIN_SECONDS = 5.0
_REPORT_SECONDS = 5.0  # a hanging log or run directory must not keep a rank from exiting
_MOST_QUIET = 120.0
_ENDED = "ended"

OnHang = Callable[[str, int | None, str], None]


class Exchange(Protocol):
    """Exchange of marks between the watchdogs of all ranks; implemented by `ProgressMarks` with torch's store."""

    verdict: Verdict | None

    def start(self, own: Callable[[], Mark], every: float) -> None:
        """Start to renew this rank's mark, as returned by `own`, every `every` seconds."""

    def stop(self) -> None:
        """Renew the mark a last time and end."""

    def tick(self, ran: float, reading: bool) -> None:
        """Advance the clock by `ran` seconds; `reading`: also read the marks of the other ranks from now on."""

    def marks(self) -> list[Mark | None]:
        """Return the last known mark of each rank, with this rank's current one; None for a rank that never joined."""

    def agree(self, verdict: Verdict) -> Verdict:
        """Propose `verdict` and return the first one proposed; `verdict` itself if the store does not answer."""


@dataclass(frozen=True)
class Mark:
    """Progress of a rank at the last renewal of its mark.

    Attributes:
        beat: number of renewals.
        step: steps since training began, over all epochs; -1 before the first.
        collectives: number of collectives begun.
        waits: in a collective, so that it may wait for another rank.
        since: seconds since the last collective was begun, measured by the rank itself.
        still: seconds without progress, measured by the rank itself.
        silent: seconds since the mark was renewed, measured by the reader.
    """

    rank: int
    host: str
    beat: int = 0
    phase: str = "start"
    step: int = -1
    collectives: int = 0
    waits: bool = False
    since: float = 0.0
    still: float = 0.0
    silent: float = 0.0

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def position(self) -> str:
        return self.phase if self.step < 0 else f"{self.phase}, step {self.step}"


@dataclass(frozen=True)
class Verdict:
    """Reason why the run ends, and the rank at fault; None if all ranks wait for each other."""

    rank: int | None
    reason: str


def judge(marks: list[Mark | None], own: int, timeout: float, quiet: float) -> Verdict | None:
    """Find the rank that blocks the others; None while that is unclear or some rank makes progress.

    Args:
        marks: of each rank; None for one that never joined.
        own: the judging rank.
        timeout: seconds without progress after which a rank counts as hung.
        quiet: seconds without a renewed mark after which a rank counts as gone.
    """
    present = [mark for mark in marks if mark is not None]
    still = next(mark.still for mark in present if mark.rank == own)
    silent = [mark for mark in present if mark.rank != own and mark.silent >= quiet]
    if silent and still >= quiet:
        first = max(silent, key=lambda mark: mark.silent)
        return Verdict(first.rank, _describe_silent(first))
    if still < timeout:
        return None
    if None in marks:
        absent = marks.index(None)
        return Verdict(
            absent,
            f"rank {absent} did not join the others within {still:.0f} s: it did not start, hung before joining, or"
            " cannot reach the node of rank 0",
        )
    hung = [mark for mark in present if mark.still >= timeout]
    working = [mark for mark in present if mark.still < timeout]
    # A rank in a collective needs those that have begun no later one. One that has just begun a collective may have
    # been behind until then: the result may still be on its way.
    at_fault = [
        mark
        for mark in hung
        if not any(other.collectives < mark.collectives + mark.waits or other.since < quiet for other in working)
    ]
    if not at_fault:
        return None
    behind = min(at_fault, key=lambda mark: (mark.collectives, mark.waits, -mark.still))
    if behind.waits and len(hung) > 1 and all(mark.collectives == behind.collectives for mark in hung):
        phases = ", ".join(f"rank {mark.rank} in {mark.phase}" for mark in hung[:8])
        return Verdict(None, f"no rank has made progress for {behind.still:.0f} s: all wait for each other ({phases})")
    return Verdict(behind.rank, f"{behind.name} has made no progress for {behind.still:.0f} s (in {behind.position})")


def _describe_silent(mark: Mark) -> str:
    if mark.phase == _ENDED:
        return f"{mark.name} ended before the others"
    return (
        f"{mark.name} has been silent for {mark.silent:.0f} s: killed, stopped, or its node failed"
        f" (last in {mark.position})"
    )


class Watchdog:
    """Watches one rank, and the others through the store. `mark` is cheap and for the main thread only."""

    def __init__(
        self, rank: int = 0, timeout: float = 900.0, on_hang: OnHang | None = None, exchange: Exchange | None = None
    ) -> None:
        """Create a watchdog that is not started.

        Args:
            timeout: seconds without progress after which this process exits with code 1.
            on_hang: called before the exit with the reason, the rank at fault (None: all wait for each other) and the
                stack of this process's main thread; limited to 5 s.
            exchange: with the other ranks; None if there are none.
        """
        self.rank, self.timeout = rank, timeout
        self._on_hang, self._exchange = on_hang, exchange
        self._every = min(1.0, timeout / 20)
        self._quiet = min(_MOST_QUIET, timeout / 2)
        self._count, self._phase, self._step, self._still = 0, "start", -1, 0.0
        self._collectives, self._waits, self._since = 0, False, 0.0
        self._asked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start to watch; `explain_loss` uses this watchdog from now on."""
        global _current
        _current = self
        atexit.register(self.stop)  # a thread in a store call at interpreter exit would abort the process
        self._thread.start()
        if self._exchange:
            self._exchange.start(self._own, self._every)

    def stop(self) -> None:
        """End the threads, and tell the other ranks that this one ended regularly."""
        global _current
        atexit.unregister(self.stop)
        if _current is self:
            _current = None
        self._stop.set()
        self._phase = _ENDED
        if self._exchange:
            self._exchange.stop()
        if self._thread.is_alive():
            self._thread.join(_REPORT_SECONDS)

    def mark(self, phase: str, step: int | None = None, *, collective: bool = False, waits: bool = False) -> None:
        """Note progress: `phase` begins.

        Args:
            step: counts over all epochs; None keeps the last one.
            collective: a collective begins as well, which every rank counts.
            waits: the phase may wait for the other ranks.
        """
        self._count += 1
        self._phase = phase
        self._collectives += collective
        self._waits = waits
        if step is not None:
            self._step = step

    @contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """Mark a collective, which waits for the other ranks, within the block, and the phase before it afterwards."""
        before = self._phase
        self.mark(phase, collective=True, waits=True)
        yield
        self.mark(before)  # not after an error, which occurred while waiting

    def explain(self, error: BaseException) -> Verdict | None:
        """Find the rank whose loss caused `error`; None if it has another cause.

        Takes up to 5 s, which also gives a failed rank time to record why.
        """
        if self._exchange is None or not is_rank_loss(error):
            return None
        self._asked = True
        end = time.monotonic() + EXPLAIN_SECONDS
        while time.monotonic() < end:
            if self._exchange.verdict:
                return self._exchange.verdict
            others = [mark for mark in self._exchange.marks() if mark is not None and mark.rank != self.rank]
            gone = [mark for mark in others if mark.silent >= max(1.0, 2.5 * self._every)]
            if gone:
                first = max(gone, key=lambda mark: mark.silent)
                fate = "ended before the others" if first.phase == _ENDED else "is gone: killed, or its node failed"
                return Verdict(first.rank, f"{first.name} {fate} (rank {self.rank} lost the connection to it)")
            time.sleep(self._every / 4)
        return None

    def _own(self) -> Mark:
        return Mark(
            self.rank, socket.gethostname(), 0, self._phase, self._step, self._collectives, self._waits, self._since,
            self._still,
        )  # fmt: skip

    def _watch(self) -> None:
        last, count, collectives = time.monotonic(), self._count, self._collectives
        while not self._stop.wait(self._every):
            now = time.monotonic()
            ran = min(now - last, 2 * self._every)  # longer: this process was suspended, not hung
            self._still = self._still + ran if self._count == count else 0.0
            self._since = self._since + ran if self._collectives == collectives else 0.0
            last, count, collectives = now, self._count, self._collectives
            if verdict := self._look(ran):
                self._end(verdict)

    def _look(self, ran: float) -> Verdict | None:
        if self._exchange is None:
            return judge([self._own()], 0, self.timeout, self._quiet)
        self._exchange.tick(ran, reading=self._asked or self._still > 3 * self._every)
        verdict = self._exchange.verdict or judge(self._exchange.marks(), self.rank, self.timeout, self._quiet)
        return verdict and self._exchange.agree(verdict)

    def _end(self, verdict: Verdict) -> None:
        reporter = threading.Thread(target=self._report, args=(verdict,), daemon=True)
        reporter.start()
        reporter.join(_REPORT_SECONDS)
        if self._exchange:
            time.sleep(3 * self._every)  # the store ends with rank 0: let the others read the verdict first
        os._exit(1)  # the main thread may never return

    def _report(self, verdict: Verdict) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "".join(traceback.format_stack(frame))
        message = f"{verdict.reason}: rank {self.rank} exits. Its main thread was in\n{stack}"
        print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
        if self._on_hang:
            self._on_hang(verdict.reason, verdict.rank, stack)
        sys.stdout.flush()


_current: Any = None


def explain_loss(error: BaseException) -> Verdict | None:
    """Find the rank whose loss caused `error`; see `Watchdog.explain`."""
    watchdog: Watchdog | None = _current
    return watchdog.explain(error) if watchdog else None
