"""Reader of HDF5 files in a separate process.

The HDF5 library does not survive malformed input: one changed byte can make version 2.0 write out of bounds, which
aborts the process. Here this becomes a DataError for the file, and the conversion continues.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.errors import DataError
from hpc_tumor.system.processes import module_command, start_process

SECONDS = 60.0  # limit per file; a slice takes milliseconds
_MEMORY = 4 << 30  # bytes of address space
Arrays = dict[str, NDArray[Any]]


def read_h5_in_subprocess(path: Path, wanted: Mapping[str, str]) -> tuple[Arrays, str]:
    """Run `h5_slice.read_h5` in a process that starts with the first file and ends with this one.

    Raises DataError as `read_h5`, and if the process ends or takes longer than `SECONDS`.
    """
    global _reader
    with _lock:
        if _reader is not None and _reader.folder != Path.cwd():  # relative paths depend on it
            _reader.close()
            _reader = None
        if _reader is None or _reader.owner != os.getpid():
            _reader = H5Process()
        return _reader.read(path, wanted)


class _EndedError(Exception):
    """The process has ended, or its answer is invalid."""


class H5Process:
    """The reader process, restarted after a file that crashed it."""

    def __init__(self, command: Sequence[str] = (), seconds: float = SECONDS):
        self.owner, self.folder = os.getpid(), Path.cwd()
        self._command = list(command) or module_command("hpc_tumor.data.raw.files.h5_subprocess")
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def read(self, path: Path, wanted: Mapping[str, str]) -> tuple[Arrays, str]:
        """See `read_h5_in_subprocess`. Retries in a new process: an earlier file may have corrupted the old one."""
        if self._process is not None:
            with suppress(_EndedError):
                return self._read(self._process, path, wanted)
        self._process = self._start()
        try:
            return self._read(self._process, path, wanted)
        except _EndedError as error:
            raise DataError(f"{path} is not a valid HDF5 file (reading it crashed or hung). Fetch it again.") from error

    def _read(self, process: subprocess.Popen[bytes], path: Path, wanted: Mapping[str, str]) -> tuple[Arrays, str]:
        assert process.stdin is not None
        assert process.stdout is not None
        clock = threading.Timer(self._seconds, process.kill)
        clock.start()
        try:
            process.stdin.write(json.dumps([str(path), dict(wanted)]).encode() + b"\n")
            process.stdin.flush()
            return _receive(process.stdout)
        except DataError:
            raise
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:  # ended, or its memory is corrupted
            self.close()
            raise _EndedError from error
        finally:
            clock.cancel()

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self.owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # In a new session: Ctrl-C reaches only the parent, whose end closes stdin.
        return start_process(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip


def _receive(stream: IO[bytes]) -> tuple[Arrays, str]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer = json.loads(line)
    if "refused" in answer:
        raise DataError(answer["refused"])
    arrays = {}
    for name, dtype, shape in answer["arrays"]:
        data = stream.read(math.prod(shape) * np.dtype(dtype).itemsize)
        if len(data) != math.prod(shape) * np.dtype(dtype).itemsize:
            raise EOFError
        arrays[name] = np.frombuffer(bytearray(data), dtype).reshape(shape)
    return arrays, answer["sha256"]


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests in the reader process: one line with a path and the datasets, until the end of input."""
    from hpc_tumor.data.raw.files.h5_slice import read_h5

    for line in requests:
        path, wanted = json.loads(line)
        try:
            arrays, digest = read_h5(Path(path), wanted)
        except DataError as error:
            answers.write(json.dumps({"refused": str(error)}).encode() + b"\n")
        else:
            shapes = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
            answers.write(json.dumps({"arrays": shapes, "sha256": digest}).encode() + b"\n")
            for array in arrays.values():
                answers.write(np.ascontiguousarray(array).data)
        answers.flush()


_reader: H5Process | None = None
_lock = threading.Lock()

if __name__ == "__main__":
    import resource

    for limit, value in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CORE, 0)):
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (value if most == resource.RLIM_INFINITY else min(value, most), most))
    with os.fdopen(os.dup(1), "wb") as channel:
        os.dup2(2, 1)  # keep output of libraries out of the answers
        _serve(sys.stdin.buffer, channel)
