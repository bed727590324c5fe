"""Exchange each rank's progress with the others through torch's rendezvous store."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from hpc_tumor.training.watch.watchdog import Mark, Verdict

_STORE_ENDS = 5.0  # seconds to wait for a call to the store to end


class ProgressMarks:
    """Marks of all ranks, exchanged through the store: the `Exchange` of a watchdog.

    A thread calls the store, since a call blocks forever if the store's host was stopped. Seconds count only time in
    which this process ran.
    """

    def __init__(self, rank: int, world_size: int, connect: Callable[[], Any]) -> None:
        self.verdict: Verdict | None = None
        self._rank, self._connect = rank, connect
        self._every = 1.0
        self._own: Callable[[], Mark] = lambda: Mark(rank, "")
        self._marks: list[Mark | None] = [None] * world_size
        self._changed = [0.0] * world_size  # time at which each rank's mark last changed
        self._clock = self._read_at = self._answered = 0.0
        self._reading = False
        self._proposal: Verdict | None = None
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="marks", daemon=True)

    def start(self, own: Callable[[], Mark], every: float) -> None:
        self._own, self._every = own, every
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_STORE_ENDS)

    def tick(self, ran: float, reading: bool) -> None:
        self._clock += ran
        self._reading = reading

    def marks(self) -> list[Mark | None]:
        marks = [
            mark and replace(mark, silent=self._read_at - self._changed[rank]) for rank, mark in enumerate(self._marks)
        ]
        marks[self._rank] = self._own()
        if self._rank != 0 and marks[0] is not None:  # rank 0 hosts the store: without an answer, it is silent
            marks[0] = replace(marks[0], silent=max(marks[0].silent, self._clock - self._answered))
        return marks

    def agree(self, verdict: Verdict) -> Verdict:
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
                    self._update(store, beat)
                self._wake.wait(self._every)
                self._wake.clear()
            if store:
                self._renew(store, beat + 1)
        except Exception:
            return  # the store is gone with rank 0, which `marks` notices by the clock

    def _update(self, store: Any, beat: int) -> None:
        self._renew(store, beat)
        if self._proposal:
            text = store.compare_set("verdict", "", json.dumps(asdict(self._proposal)))
            self.verdict = Verdict(**json.loads(text))
        elif store.check(["verdict"]):
            self.verdict = Verdict(**json.loads(store.multi_get(["verdict"])[0]))
        self._answered = self._clock
        if self._reading or None in self._marks:
            self._read(store)

    def _renew(self, store: Any, beat: int) -> None:
        store.set(str(self._rank), json.dumps(asdict(replace(self._own(), beat=beat))))

    def _read(self, store: Any) -> None:
        present = [rank for rank, mark in enumerate(self._marks) if mark is not None or store.check([str(rank)])]
        now = self._clock
        for rank, text in zip(present, store.multi_get([str(rank) for rank in present]), strict=True):
            mark, before = Mark(**json.loads(text)), self._marks[rank]
            if before is None or mark.beat != before.beat:
                self._changed[rank] = now
            self._marks[rank] = mark
        self._read_at = now
