"""Processes that are started from here: programs of the system; and Python, never with modules of the current folder.

Python looks there first for `-m` and `-c`, and for an empty entry of PYTHONPATH: a file called types.py or numpy.py
beside the user's data would be imported in place of the real one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import hpc_tumor

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_quietly(*command: str, seconds: float) -> subprocess.CompletedProcess[str] | None:
    """Run a program without input, its output in English; None where it is missing, or takes longer."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
            timeout=seconds, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def python_variables(code: Path | None = None) -> dict[str, str]:
    """Variables with which a job imports hpc_tumor from `code`, or from where it is, then what the user named.

    Its logs are UTF-8, whatever the locale of the node.
    """
    home = package_home()
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(home))]
    first = [str(code)] if code else [] if home.name in ("site-packages", "dist-packages") else [str(home)]
    path = {"PYTHONPATH": os.pathsep.join(first + others)} if first or "PYTHONPATH" in os.environ else {}
    return {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8:backslashreplace", **path}


def module_command(module: str, *arguments: str) -> list[str]:
    """Command line that runs a module of this package as a program of its own."""
    return [sys.executable, "-P", "-m", module, *arguments]


def start_process(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a Python process on this machine that finds modules where this one does, as Popen with these `options`."""
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}, **options)


def import_path() -> list[str]:
    """Folders of `sys.path`, without the current one unless it holds this package or PYTHONPATH names it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return [path for path in sys.path if path]
    named = [Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    kept = here in (package_home(), *named)
    return [path for path in sys.path if path and (kept or Path(path).resolve() != here)]


def package_home() -> Path:
    """Folder, or archive, that hpc_tumor is imported from."""
    return Path(hpc_tumor.__file__).resolve().parent.parent


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
