"""Write checkpoints in the background: training waits for a copy of the weights, not for the disk."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hpc_tumor.errors import TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic, devices
from hpc_tumor.training.checkpoints.files import Progress, write_checkpoint, write_weights


class CheckpointWriter:
    """Writes one run's checkpoints in order, in a thread. Only rank 0 has one.

    Attributes:
        cost: seconds that the last checkpoint took, from its request to the disk; infinite until it is written.
    """

    def __init__(self, run: RunDir, identity: dict[str, Any]) -> None:
        self.run, self.identity = run, identity
        self.cost = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: list[Future[None]] = []
        self._lines: deque[Future[None]] = deque()
        self._failure: BaseException | None = None

    def save_last(self, progress: Progress, contents: dict[str, Any], keep: bool = False) -> None:
        """Copy the contents and write them as the checkpoint to resume from; `keep`: also as that of its epoch.

        Raises TrainingError if an earlier one could not be written.
        """
        began, self.cost = time.perf_counter(), math.inf
        self._settle(leave=1)  # so that memory holds at most two copies
        contents, ready = _copy(contents)
        progress = dataclasses.replace(progress, totals=_copy(progress.totals)[0])
        stall = time.perf_counter() - began

        def write() -> None:
            self._refuse_after_failure()
            ready()
            _write_last(self.run, progress, self.identity, contents, keep)
            self.cost = seconds = time.perf_counter() - began
            self.run.add_event("checkpoint", epoch=progress.epoch, step=progress.step, stall_s=stall, seconds=seconds)

        self._writing.append(self._thread.submit(write))

    def save_weights(self, path: Path, progress: Progress, weights: dict[str, Any], about: dict[str, Any]) -> None:
        """Copy the weights and write them to `path`."""
        weights, ready = _copy(weights)
        progress = dataclasses.replace(progress, totals=[])

        def write() -> None:
            self._refuse_after_failure()
            ready()
            try:
                write_weights(path, weights, progress, {**about, "identity": self.identity})
            except BaseException as error:
                self._failure = error
                raise

        self._writing.append(self._thread.submit(write))

    def later(self, write: Callable[[], None]) -> None:
        """Call `write` in the thread, after what was asked for before: each line in a file waits for the disk."""
        while self._lines and self._lines[0].done():
            self._lines.popleft().result()
        self._lines.append(self._thread.submit(write))

    def _refuse_after_failure(self) -> None:
        """Write no checkpoint that names a best epoch whose weights could not be written."""
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Wait until all is written; raise TrainingError if that failed."""
        self._settle(leave=0)
        while self._lines:
            self._lines.popleft().result()

    def _settle(self, leave: int) -> None:
        try:
            while len(self._writing) > leave or (self._writing and self._writing[0].done()):
                self._writing.pop(0).result()
        except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError) and atomic.is_disk_full(cause):
                raise disk_full_error(self.run) from error
            raise

    def close(self) -> None:
        """Wait and end the thread; ignore write errors while another error propagates."""
        try:
            if sys.exc_info()[0] is None:
                self.wait()
        finally:
            self._thread.shutdown()


def disk_full_error(run: RunDir) -> TrainingError:
    """Return the error for a full disk or quota."""
    return TrainingError(f"disk or quota full, cannot write to {run.path}: free space, then `hpc-tumor resume` it.")


def _write_last(
    run: RunDir, progress: Progress, identity: dict[str, Any], contents: dict[str, Any], keep: bool
) -> None:
    last, new = run.last_checkpoint, run.checkpoints / ".last.pt.new.tmp"
    write_checkpoint(new, progress, identity, contents)
    with suppress(FileNotFoundError):
        link(last, run.previous_checkpoint)
    new.replace(last)
    if keep:
        link(last, run.epoch_checkpoint(progress.epoch))


def link(path: Path, to: Path) -> None:
    """Hard-link `path` as `to`, replacing it; copy on file systems without hard links."""
    beside = to.with_name(f".{to.name}.link.tmp")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except FileNotFoundError:
        raise
    except OSError:
        atomic.write_bytes(beside, path.read_bytes())
    beside.replace(to)


def _copy(value: Any) -> tuple[Any, Callable[[], None]]:
    """Copy the tensors of nested dictionaries and lists to main memory; also return a function that waits for them.

    The stream orders copies from a GPU before the next step, so nothing waits here.
    """
    events: list[torch.Event] = []

    def copy(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if not devices.is_gpu(item.device):
                return item.detach().clone()
            # Keep the strides: fused optimizers assume that weights and moments have the same.
            beside = torch.empty_like(item, device="cpu", pin_memory=True).copy_(item.detach(), non_blocking=True)
            if not events:
                events.append(torch.Event())
            return beside
        if isinstance(item, dict):
            return {key: copy(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return type(item)(copy(inner) for inner in item)
        return item

    result = copy(value)
    for event in events:
        event.record()

    def ready() -> None:
        for event in events:
            event.synchronize()

    return result, ready
