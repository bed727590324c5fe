"""Progress of each rank, told to all others through the store at which they met."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from hpc_tumor.training.watch.watchdog import Mark, Verdict

_STORE_ENDS = 5.0  # seconds for a talk with the store to end


class ProgressMarks:
    """The marks of all ranks, through their store: the `Exchange` of a watchdog.

    It talks to the store in a thread of its own, which a store whose host was stopped may hold for good. Seconds are
    those in which this process ran.
    """

    def __init__(self, rank: int, world_size: int, connect: Callable[[], Any]) -> None:
        self.verdict: Verdict | None = None
        self._rank, self._connect = rank, connect
        self._every = 1.0
        self._own: Callable[[], Mark] = lambda: Mark(rank, "")
        self._marks: list[Mark | None] = [None] * world_size
        self._changed = [0.0] * world_size  # when a new mark of each rank was read
        self._clock = self._read_at = self._answered = 0.0
        self._reading = False
        self._proposal: Verdict | None = None
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="marks", daemon=True)

    def start(self, own: Callable[[], Mark], every: float) -> None:
        """Begin to renew the mark that `own` gives, every so many seconds."""
        self._own, self._every = own, every
        self._thread.start()

    def stop(self) -> None:
        """Renew it a last time, and end."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_STORE_ENDS)

    def tick(self, ran: float, reading: bool) -> None:
        """`ran` seconds have passed; whether the marks of the others are of interest now."""
        self._clock += ran
        self._reading = reading

    def marks(self) -> list[Mark | None]:
        """Last known mark of each rank, this one's as it is now; None for one that never came."""
        marks = [
            mark and replace(mark, silent=self._read_at - self._changed[rank]) for rank, mark in enumerate(self._marks)
        ]
        marks[self._rank] = self._own()
        if self._rank != 0 and marks[0] is not None:  # it keeps the store: no answer is no sign of life of rank 0
            marks[0] = replace(marks[0], silent=max(marks[0].silent, self._clock - self._answered))
        return marks

    def agree(self, verdict: Verdict) -> Verdict:
        """The verdict of whoever came first; this one, where the store does not answer."""
        self._proposal = verdict
        self._wake.set()
        end = time.monotonic() + max(2.0, 3 * self._every)
        while self.verdict is None and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.05)
        return self.verdict or verdict

    def _run(self) -> None:
        store, beat = None, 0
        try:
            while not self._stop.is_set():
                store, beat = store or self._connect(), beat + 1
                if store:
                    self._talk(store, beat)
                self._wake.wait(self._every)
                self._wake.clear()
            if store:
                self._renew(store, beat + 1)
        except Exception:
            return  # the store is gone with its host, which `marks` tells by the clock

    def _talk(self, store: Any, beat: int) -> None:
        self._renew(store, beat)
        if self._proposal:
            self.verdict = _verdict(store.compare_set("verdict", "", json.dumps(asdict(self._proposal))))
        elif store.check(["verdict"]):
            self.verdict = _verdict(store.multi_get(["verdict"])[0])
        self._answered = self._clock
        if self._reading or None in self._marks:
            self._read(store)

    def _renew(self, store: Any, beat: int) -> None:
        store.set(str(self._rank), json.dumps(asdict(replace(self._own(), beat=beat))))

    def _read(self, store: Any) -> None:
        there = [rank for rank, mark in enumerate(self._marks) if mark is not None or store.check([str(rank)])]
        now = self._clock
        for rank, text in zip(there, store.multi_get([str(rank) for rank in there]), strict=True):
            mark, before = Mark(**json.loads(text)), self._marks[rank]
            if before is None or mark.beat != before.beat:
                self._changed[rank] = now
            self._marks[rank] = mark
        self._read_at = now


def _verdict(text: bytes) -> Verdict:
    return Verdict(**json.loads(text))
