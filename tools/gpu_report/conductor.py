"""Run the parts one after another, each in a child process with a time limit, and report what arrives at once."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpu_report.job import Job
from gpu_report.plan import Item, Part, label
from gpu_report.report import Report

STARTING = 60.0  # seconds until a child's first item must have begun: it imports torch, perhaps from a slow disk
LEAST = 3.0  # seconds: no child is started for less
_LOOK = 0.25  # seconds between two looks at the clock and at signals
_TAIL = 600  # characters of a child's stderr that explain its end


class Conductor:
    """Runs parts until the deadline, or until `cut` returns a reason to stop."""

    def __init__(self, report: Report, deadline: float, cut: Callable[[], str | None], log: Path) -> None:
        """`deadline` is a time of `time.monotonic`; `log` takes what the children print."""
        self.report = report
        self._deadline, self._cut, self._log = deadline, cut, log

    def run(self, part: Part, job: Job) -> None:
        """Run a part as far as time allows."""
        missing = [name for name in part.needs if not self.report.is_done(name)]
        if missing:
            self.report.give_up(part.name, f"needs {' and '.join(missing)}, which failed or did not run")
            return
        waiting = list(part.items)
        while waiting and self.reason_to_stop() is None:
            waiting = self._child(part, waiting, job)
        self.report.close(part.name)

    def reason_to_stop(self) -> str | None:
        """Return why no further child is started."""
        if (reason := self._cut()) is not None:
            return reason
        return "out of time" if self._deadline - time.monotonic() < LEAST else None

    def _child(self, part: Part, items: list[Item], job: Job) -> list[Item]:
        """Measure the items in one child; return those left after one that failed."""
        request = {"module": part.module, "items": items, "job": job.to_json(), "parent": str(os.getpid())}
        with tempfile.TemporaryFile() as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "gpu_report.child", json.dumps(request)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip
            try:
                listener = _Listener(self.report, part, items)
                why = self._listen(child, listener, part.seconds)
            finally:
                _end(child)
            text = _read(errors)
        self._keep(part, text)
        left = listener.left()
        if why is None and not left:
            return []
        if why is None:
            why = listener.error or _explain(child.returncode, text)
        if listener.begun < 0:  # none would start
            for item in left:
                self.report.fail(part.name, label(item), why)
            return []
        if left:
            self.report.fail(part.name, label(left[0]), why)
        return left[1:]

    def _listen(self, child: subprocess.Popen[bytes], listener: _Listener, seconds: float) -> str | None:
        """Pass on the child's messages until it ends; return why it has to be ended instead."""
        assert child.stdout is not None
        handle, rest = child.stdout.fileno(), b""
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                limit = seconds if listener.begun >= 0 else STARTING
                if (reason := self._cut()) is not None:
                    return f"cut short: {reason}"
                if now >= self._deadline:
                    return "cut short: out of time"
                if now - listener.since >= limit:
                    return f"took longer than its limit of {limit:.0f} s"
                if not selector.select(_LOOK):
                    continue
                data = os.read(handle, 2**16)
                if not data:
                    return None
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    listener.hear(json.loads(line))

    def _keep(self, part: Part, text: str) -> None:
        """Append what the child printed to the log; a full disk must not stop the report."""
        if text.strip():
            with suppress(OSError), self._log.open("a", encoding="utf-8") as file:
                file.write(f"==== {part.name}\n{text.rstrip()}\n")


class _Listener:
    """Messages of one child, as they go into the report."""

    def __init__(self, report: Report, part: Part, items: list[Item]) -> None:
        self._report, self._part, self._items = report, part, items
        self.begun, self._ended = -1, -1  # numbers of items
        self.since = time.monotonic()
        self.error: str | None = None

    def hear(self, message: dict[str, Any]) -> None:
        """Add a message to the report."""
        if "begin" in message:
            self.begun, self.since = message["begin"], time.monotonic()
        name = label(self._items[self.begun])
        if "begin" in message:
            self._report.begin(self._part.name, name)
        elif "values" in message:
            self._report.add(self._part.name, name, message["values"])
        elif "check" in message:
            self._report.add_check(self._part.name, name, message["check"])
        elif "end" in message:
            self._ended = message["end"]
            self._report.finish(self._part.name, name, message["seconds"])
        elif "error" in message:
            self.error = message["error"]

    def left(self) -> list[Item]:
        """Return the items that have not ended."""
        return self._items[self._ended + 1 :]


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started."""
    for signum, seconds in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signum)
        with suppress(subprocess.TimeoutExpired):  # in the driver, perhaps for good
            child.wait(seconds)
    if child.stdout is not None:
        child.stdout.close()


def _read(file: Any) -> str:
    file.seek(0)
    text: bytes = file.read()
    return text.decode("utf-8", "replace")


def _explain(code: int | None, text: str) -> str:
    """Return how a child ended without a message."""
    lines = [line for line in text.splitlines() if line.strip()]
    last = f": {lines[-1][-_TAIL:]}" if lines else ""
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}{last}"
    return f"its process ended with code {code}{last}"
