"""Ends ranks that make no progress, and names the rank that is the cause rather than those that wait for it.

Each rank marks its progress. A thread renews the rank's mark in the store at which the ranks meet, and reads those of
the others once its own rank stands still. What follows of that:

- A rank hangs where Python still runs: after `timeout` the first to notice writes its verdict into the store, all take
  that one, and end within some 10 s more.
- A rank no longer renews its mark (killed, stopped, its node gone, or inside a native call that keeps Python's lock):
  the others end once they have stood still for it, and it was silent, for 120 s, or half of `timeout` if that is less.
- A rank dies and its connections break: the others fail at once, and `explain_loss` names it within 5 s. Where none
  breaks, or NCCL does not notice, it is silent, as above.
- A rank that is slow but marks progress is left alone, and so are those that wait for it.

Time in which this process itself did not run (suspended by SLURM, a laptop asleep) does not count. Alone, a native
call that keeps Python's lock keeps this thread from running, too: such a hang is not noticed.
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

from hpc_tumor.training.watch.torch_words import says_rank_lost

# Phases in which a rank may stand still because of another one. In all others it works alone.
WAITING = frozenset({"rendezvous", "backward", "agree", "sum", "gather", "broadcast", "end"})
EXPLAIN_SECONDS = 5.0
_TELL_SECONDS = 5.0  # a log or a run directory that hangs, too, must not keep a rank from ending
_MOST_QUIET = 120.0
_ENDED = "ended"

OnHang = Callable[[str, int | None, str], None]


class Exchange(Protocol):
    """Exchange of marks between the watchdogs of all ranks; `ProgressMarks` does it through torch's store."""

    verdict: Verdict | None

    def start(self, own: Callable[[], Mark], every: float) -> None:
        """Begin to renew the mark that `own` gives, every so many seconds."""

    def stop(self) -> None:
        """Renew it a last time, and end."""

    def tick(self, ran: float, reading: bool) -> None:
        """`ran` seconds have passed; whether the marks of the others are of interest now."""

    def marks(self) -> list[Mark | None]:
        """Last known mark of each rank, this one's as it is now; None for one that never came."""

    def agree(self, verdict: Verdict) -> Verdict:
        """The verdict of whoever came first; this one, where the others cannot be asked."""


@dataclass(frozen=True)
class Mark:
    """Progress of a rank when it last renewed its mark.

    Attributes:
        beat: how often the mark was renewed.
        step: steps since training began, over all epochs; -1 before the first.
        still: seconds without progress, as the rank itself saw them.
        silent: seconds since the mark was renewed, as the reader saw them.
    """

    rank: int
    host: str
    beat: int = 0
    phase: str = "start"
    step: int = -1
    still: float = 0.0
    silent: float = 0.0

    @property
    def waits(self) -> bool:
        return self.phase in WAITING

    @property
    def name(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def place(self) -> str:
        return self.phase if self.step < 0 else f"{self.phase}, step {self.step}"


@dataclass(frozen=True)
class Verdict:
    """Reason why the run ends, and the rank that is the cause; None where all wait for each other."""

    rank: int | None
    reason: str


def judge(marks: list[Mark | None], own: int, timeout: float, quiet: float) -> Verdict | None:
    """Find the rank that keeps the others from going on; None while that cannot be said, or one still works.

    Args:
        marks: of each rank; None for one that never came.
        own: the rank that judges.
        timeout: seconds without progress, after which a rank hangs.
        quiet: seconds without a renewed mark, after which a rank counts as gone.
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
            f"rank {absent} has not joined the others in {still:.0f} s: it did not start, hung before it could, or"
            " does not reach the node of rank 0",
        )
    # While one rank goes on, others may be waiting for it, however long: only one that works alone hangs then.
    hung = [mark for mark in present if mark.still >= timeout]
    at_fault = hung if len(hung) == len(present) else [mark for mark in hung if not mark.waits]
    if not at_fault:
        return None
    # Where ranks wait without saying so (a full queue of kernels), the one that stopped first is the cause.
    behind = min(at_fault, key=lambda mark: (mark.step, mark.waits, -mark.still))
    if behind.waits and len(hung) > 1 and all(mark.step == behind.step for mark in hung):
        where = ", ".join(f"rank {mark.rank} in {mark.phase}" for mark in hung[:8])
        return Verdict(None, f"no rank has made progress for {behind.still:.0f} s: all wait for each other ({where})")
    return Verdict(behind.rank, f"{behind.name} has made no progress for {behind.still:.0f} s (in {behind.place})")


def _describe_silent(mark: Mark) -> str:
    if mark.phase == _ENDED:
        return f"{mark.name} ended before the others"
    return (
        f"{mark.name} has given no sign of life for {mark.silent:.0f} s: killed, stopped, or its node failed"
        f" (last in {mark.place})"
    )


class Watchdog:
    """Watches one rank, and through the store the others. `mark` is for the main thread, and cheap."""

    def __init__(
        self,
        rank: int = 0,
        timeout: float = 900.0,
        on_hang: OnHang | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        """Watch nothing yet.

        Args:
            timeout: seconds without progress, after which this process ends with exit code 1.
            on_hang: called before that with the reason, the rank that is the cause (None: all wait for each other),
                and the stack of this process's main thread; it has 5 s.
            exchange: with the other ranks; None where there are none.
        """
        self.rank, self.timeout = rank, timeout
        self._on_hang, self._exchange = on_hang, exchange
        self._every = min(1.0, timeout / 20)
        self._quiet = min(_MOST_QUIET, timeout / 2)
        self._count, self._phase, self._step, self._still = 0, "start", -1, 0.0
        self._asked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch; `explain_loss` asks this object from now on."""
        global _current
        _current = self
        atexit.register(self.stop)  # a thread inside the store when the interpreter ends would abort the process
        self._thread.start()
        if self._exchange:
            self._exchange.start(self._own, self._every)

    def stop(self) -> None:
        """End the threads. The other ranks learn that this one ended, and did not vanish."""
        global _current
        atexit.unregister(self.stop)
        if _current is self:
            _current = None
        self._stop.set()
        self._phase = _ENDED
        if self._exchange:
            self._exchange.stop()
        if self._thread.is_alive():
            self._thread.join(_TELL_SECONDS)

    def mark(self, phase: str, step: int | None = None) -> None:
        """Note progress: `phase` begins. `step` counts over all epochs, and stays where it is not given."""
        self._count += 1
        self._phase = phase
        if step is not None:
            self._step = step

    @contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """Mark a phase of WAITING, and the one before it again once that is over."""
        before = self._phase
        self.mark(phase)
        yield
        self.mark(before)  # not after an error: that came of waiting

    def explain(self, error: BaseException) -> Verdict | None:
        """Find the rank that was lost, where `error` says that one was; takes up to 5 s. None where it does not.

        These seconds also give a rank that failed time to record why.
        """
        if self._exchange is None or not says_rank_lost(error):
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
                why = "ended before the others" if first.phase == _ENDED else "is gone: killed, or its node failed"
                return Verdict(first.rank, f"{first.name} {why} (rank {self.rank} lost the connection to it)")
            time.sleep(self._every / 4)
        return None

    def _own(self) -> Mark:
        return Mark(self.rank, socket.gethostname(), 0, self._phase, self._step, self._still)

    def _watch(self) -> None:
        last, count = time.monotonic(), self._count
        while not self._stop.wait(self._every):
            now = time.monotonic()
            ran = min(now - last, 2 * self._every)  # more than that: this process was stopped, and nobody hung
            self._still = self._still + ran if self._count == count else 0.0
            last, count = now, self._count
            if verdict := self._look(ran):
                self._end(verdict)

    def _look(self, ran: float) -> Verdict | None:
        if self._exchange is None:
            return judge([self._own()], 0, self.timeout, self._quiet)
        self._exchange.tick(ran, reading=self._asked or self._still > 3 * self._every)
        verdict = self._exchange.verdict or judge(self._exchange.marks(), self.rank, self.timeout, self._quiet)
        return verdict and self._exchange.agree(verdict)

    def _end(self, verdict: Verdict) -> None:
        teller = threading.Thread(target=self._tell, args=(verdict,), daemon=True)
        teller.start()
        teller.join(_TELL_SECONDS)
        if self._exchange:
            time.sleep(3 * self._every)  # rank 0 takes the store with it: the others are to read the verdict first
        os._exit(1)  # the main thread may never come back from where it is

    def _tell(self, verdict: Verdict) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        stack = "".join(traceback.format_stack(frame))
        said = f"{time.strftime('%H:%M:%S')} {verdict.reason}: rank {self.rank} ends. Its main thread was in\n{stack}"
        print(said, file=sys.stderr, flush=True)
        if self._on_hang:
            self._on_hang(verdict.reason, verdict.rank, stack)
        sys.stdout.flush()


_current: Any = None


def explain_loss(error: BaseException) -> Verdict | None:
    """Find the rank that was lost, where `error` says that this process lost another; see `Watchdog.explain`."""
    watchdog: Watchdog | None = _current
    return watchdog.explain(error) if watchdog else None
