"""No orphans: a process of the local queue ends when the one that started it is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(signum: signal.Signals, expected: str | None = None) -> None:
    """Let this process get `signum` when its parent dies; `expected` is the parent's id as the parent knew it."""
    parent = os.getppid()
    if expected is not None and parent != int(expected):  # it died before we could say so
        os.kill(os.getpid(), signum)
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signum))
        if os.getppid() != parent:
            os.kill(os.getpid(), signum)
        return
    threading.Thread(target=_watch, args=(parent, signum), daemon=True).start()


def _watch(parent: int, signum: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signum)
