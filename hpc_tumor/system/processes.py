"""Start programs and Python processes, never with modules of the current folder.

Python searches it first for `-m`, `-c` and an empty entry of PYTHONPATH: a types.py or numpy.py beside the user's data
would shadow the real module.
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
    """Run a program without input and in English; None if it is missing or times out."""
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
            timeout=seconds, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None


def python_variables(code: Path | None = None) -> dict[str, str]:
    """Return variables with which a job imports hpc_tumor from `code` or this package's folder, before PYTHONPATH.

    They also make its logs UTF-8 in every locale.
    """
    home = package_home()
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(home))]
    first = [str(code)] if code else [] if home.name in ("site-packages", "dist-packages") else [str(home)]
    path = {"PYTHONPATH": os.pathsep.join(first + others)} if first or "PYTHONPATH" in os.environ else {}
    return {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8:backslashreplace", **path}


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package."""
    return [sys.executable, "-P", "-m", module, *arguments]


def start_process(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a Python process with the import path of this one; `options` are those of Popen."""
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(import_path())}, **options)


def import_path() -> list[str]:
    """Return `sys.path` without the current folder, unless that contains this package or is in PYTHONPATH."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # removed
        return [path for path in sys.path if path]
    intended = [Path(path).resolve() for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    keep_here = here in (package_home(), *intended)
    return [path for path in sys.path if path and (keep_here or Path(path).resolve() != here)]


def package_home() -> Path:
    """Return the folder or archive that hpc_tumor is imported from."""
    return Path(hpc_tumor.__file__).resolve().parent.parent


def end_with_parent(signum: signal.Signals, expected: str | None = None) -> None:
    """Send `signum` to this process when its parent dies; `expected` is the process id that the parent passed on."""
    parent = os.getppid()
    if expected is not None and parent != int(expected):  # it has already died
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
