"""Run functions of the tests in processes that see the null GPU: `NullGpu.call`.

The stub libraries must be loaded before torch, so a server is started with them. It imports torch once, and forks a
process for each call: calls share nothing, and may crash, but do not pay for the import of torch.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

IMPORTED = ("pytest", "torch", "hpc_tumor.training.loop", "hpc_tumor.prediction.predict", "child")
GRACE = 5.0  # seconds for other ranks to end after one has failed


class NullGpuError(Exception):
    """A call failed; the message is its traceback, or its signal and what it wrote to stderr."""


@dataclass(frozen=True)
class Request:
    """Function to call with what, on how many ranks, and where its results are put."""

    module: str
    name: str
    arguments: tuple[Any, ...]
    path: list[str]
    folder: str
    ranks: int
    timeout: float
    variables: dict[str, str] = field(default_factory=dict)


class NullGpu:
    """Null GPUs for the tests: each call has a process of its own, or one per rank."""

    def __init__(self, libraries: Sequence[Path]):
        ours, theirs = multiprocessing.Pipe()
        variables = {
            **os.environ,
            "LD_PRELOAD": " ".join(map(str, libraries)),
            "TRITON_LIBCUDA_PATH": str(libraries[0].parent),
            "TRITON_CACHE_DIR": str(
                libraries[0].parents[1] / "triton"
            ),  # the package's own kernels, for later sessions
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        command = [sys.executable, str(Path(__file__)), str(theirs.fileno())]
        self._server = subprocess.Popen(command, env=variables, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        theirs.close()
        self._requests = ours

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        ranks: int = 1,
        devices: int = 1,
        memory_mb: int = 80 << 10,
        capability: float = 9.0,
        name: str = "Null GPU",
        variables: Mapping[str, str] = {},
        timeout: float = 300,
    ) -> Any:
        """Return what `function` returns in a process with `devices` GPUs; with several ranks, a list.

        Arguments and result are pickled, the function by its name: it stands in a module of the tests. Ranks find
        their number in the variables that torchrun sets.

        Raises NullGpuError if a rank fails or crashes, or takes more than `timeout` seconds.
        """
        settings = {
            "NULL_GPU_DEVICES": str(max(ranks, devices)),
            "NULL_GPU_MEMORY_MB": str(memory_mb),
            "NULL_GPU_CAPABILITY": str(round(10 * capability)),
            "NULL_GPU_NAME": name,
            **variables,
        }
        if inductor := settings.get("TORCHINDUCTOR_CACHE_DIR"):  # what it generates is of no use later
            settings["TRITON_CACHE_DIR"] = f"{inductor}/triton"
        with tempfile.TemporaryDirectory() as folder:
            request = Request(
                function.__module__, function.__qualname__, arguments, list(sys.path), folder, ranks, timeout, settings,
            )  # fmt: skip
            try:
                self._requests.send(request)
                statuses = self._requests.recv()
            except (EOFError, OSError):
                raise NullGpuError("the server of the null GPU has ended: its stderr says why") from None
            results = [_result(Path(folder), rank, status) for rank, status in enumerate(statuses)]
        return results[0] if ranks == 1 else results

    def close(self) -> None:
        self._requests.close()
        self._server.wait()


def _result(folder: Path, rank: int, status: int) -> Any:
    """Return the result of a rank, or raise NullGpuError."""
    result, errors = folder / f"result-{rank}", folder / f"output-{rank}"
    said = errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else ""
    if not result.exists():
        end = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        raise NullGpuError(f"rank {rank} ended with {end} and wrote:\n{said}")
    kind, value = pickle.loads(result.read_bytes())
    if kind == "error":
        raise NullGpuError(f"rank {rank} failed:\n{said}\n{value}")
    return value


# ---- in the server


def serve(requests: Connection) -> None:
    """Answer each request with the exit statuses of its ranks until the other end closes."""
    for name in IMPORTED:
        importlib.import_module(name)
    while True:
        try:
            request = requests.recv()
        except EOFError:
            return
        requests.send(_run(request))


def _run(request: Request) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children: dict[int, int] = {}
    for rank in range(request.ranks):
        child = os.fork()
        if child == 0:
            _call(request, rank, port)
        children[child] = rank
    statuses = [0] * request.ranks
    deadline = time.monotonic() + request.timeout
    while children:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            statuses[children.pop(child)] = status = os.waitstatus_to_exitcode(status)
            if status:
                deadline = min(deadline, time.monotonic() + GRACE)
        elif time.monotonic() > deadline:
            deadline += GRACE
            for running in children:
                os.kill(running, signal.SIGKILL)
        else:
            time.sleep(0.005)
    return statuses


def _call(request: Request, rank: int, port: int) -> None:
    """Call the function in this fork, and end it without Python's own end, in which torch aborts."""
    code = 1
    try:
        folder = Path(request.folder)
        with (folder / f"output-{rank}").open("wb") as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
        faulthandler.enable()
        os.environ.update(request.variables)
        if request.ranks > 1:
            number, count = str(rank), str(request.ranks)
            os.environ.update(RANK=number, LOCAL_RANK=number, WORLD_SIZE=count, LOCAL_WORLD_SIZE=count)
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        sys.path[:] = request.path
        try:
            function = getattr(importlib.import_module(request.module), request.name)
            result = ("value", function(*request.arguments))
            contents = pickle.dumps(result)
            code = 0
        except BaseException:
            contents = pickle.dumps(("error", traceback.format_exc()))
        part = folder / f"part-{rank}"
        part.write_bytes(contents)
        part.rename(folder / f"result-{rank}")
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    import processes

    processes.serve(Connection(int(sys.argv[1])))
    os._exit(0)  # as the calls
