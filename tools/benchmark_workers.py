"""Worker processes that measure alternately, so that memory and threads of one do not affect the others.

A benchmark starts itself again with `--worker JOB`, JOB in JSON. The worker prepares, then answers each
request, one line, with one line of JSON, so that nothing else runs while one measures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmark_feeding import _brats_store, _real

from hpc_tumor.data.convert.prepare import prepare_dataset
from hpc_tumor.data.phantom.dataset import make_phantom
from hpc_tumor.data.raw.sources import inspect_source

Job = dict[str, Any]
Answer = Callable[[str], Any]
_IMAGES = 800  # synthetic, of which about 500 train
_SAID = 2000  # characters of a worker's stderr to show


class WorkerError(RuntimeError):
    """A worker ended before it answered."""


class Worker:
    """Another process of the same benchmark. Close it, or use it as a context manager."""

    def __init__(self, job: Job, variables: dict[str, str] | None = None) -> None:
        self.job = job
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - open for as long as the process
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], "--worker", json.dumps(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said, text=True, env={**os.environ, **(variables or {})},
        )  # fmt: skip

    def ask(self, question: str = "") -> Any:
        """Return the worker's answer. WorkerError if it ended instead."""
        self.begin(question)
        return self.answer()

    def begin(self, question: str = "") -> None:
        """Send a request without waiting, so that several workers can run at once."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def answer(self) -> Any:
        """Return the answer to the pending request."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it ended by itself
            self._process.stdin.close()
        self._process.wait()
        self._said.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()
        self.close()

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        self._said.seek(0)
        return WorkerError(f"{self.job} ended with code {code}: {self._said.read()[-_SAID:].strip()}")


def serve(prepare: Callable[[], Answer]) -> None:
    """Run as a worker: prepare, then answer requests until stdin is closed. Printed text goes to a log."""
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        answer = prepare()
        for line in sys.stdin:
            print(json.dumps(answer(line.strip())), file=channel, flush=True)


def network_options(options: argparse.ArgumentParser) -> None:
    """Add the options for networks and their size, and --worker, with which a benchmark starts itself."""
    options.add_argument("--networks", default="all", help="names with commas between them, or all")
    options.add_argument("--filters", type=int, help="first filters of the U-Nets; default: the published 32")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)


def data_options(options: argparse.ArgumentParser) -> None:
    """Add the options for the training samples."""
    options.add_argument("--data", type=Path, default=_real("brats"), help="BraTS patients; default: synthetic ones")
    options.add_argument("--images", type=Path, default=_real("brain-mri"), help="folder of Brain MRI images")


def make_stores(root: Path, given: argparse.Namespace, tasks: set[str]) -> dict[str, str]:
    """Make a store for each task from the samples that `data_options` name, or from synthetic ones."""
    stores: dict[str, str] = {}
    if "segmentation" in tasks:
        stores["segmentation"] = str(_brats_store(root, given.data).path)
    if "classification" in tasks:
        source = given.images or root / "raw-images"
        if given.images is None:
            make_phantom(source, "brain-mri", _IMAGES, seed=0)
        prepare_dataset(inspect_source(source).reader, source, root / "images.zarr")
        stores["classification"] = str(root / "images.zarr")
    return stores


def cores() -> int:
    """Return the number of cores of this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
