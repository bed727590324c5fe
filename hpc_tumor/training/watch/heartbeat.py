"""Report the progress of a run: status.json, log lines and metrics."""

from __future__ import annotations

import time
from functools import partial

from hpc_tumor.console import log
from hpc_tumor.training.state import TrainingState, best_score, last_loss, mark
from hpc_tumor.training.watch.memory import peak_memory_gb
from hpc_tumor.vocabulary import RunStatus

STATUS_SECONDS = 2.0  # between two updates of status.json
LOG_SECONDS = 15.0  # between two progress lines in the log
SOONEST = 60.0  # seconds between two checkpoints, unless the experiment asks for more of them
_SHARE = 0.05  # of the time that checkpoints may cost, unless they are further apart than the experiment allows


class Heartbeat:
    """Writes status.json every few seconds, progress lines to the log, and metrics per epoch.

    Only rank 0 writes. The loss is read from the device only when a heartbeat is due.
    """

    def __init__(self, state: TrainingState):
        self._state, self._progress = state, state.progress
        self._epochs = state.experiment.recipe.epochs
        self._steps = state.steps
        self._loss: float | None = None
        self._rate: float | None = None
        self._main = state.distributed.is_main
        self._written = self._logged = self._checkpoint = time.monotonic()
        self._epoch_began = self._began = time.monotonic()
        self._samples_at_start = self._samples_at_epoch = self._progress.samples
        self._waited_at_epoch = 0.0

    def start_epoch(self) -> None:
        """Start measuring an epoch."""
        self._waited_at_epoch = self._state.parts.train.waited
        self._epoch_began, self._samples_at_epoch = time.monotonic(), self._progress.samples

    def beat(self) -> None:
        """Write what is due after a step."""
        now = time.monotonic()
        if not self._main or now - self._written < STATUS_SECONDS:
            return
        self._loss = last_loss(self._state)
        self._rate = self._samples_per_second(now)
        self.write(RunStatus.TRAINING)
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            progress = f"epoch {self._progress.epoch + 1}/{self._epochs} step {self._progress.step}/{self._steps}"
            speed = f"{self._rate:.1f} samples/s, {self._waiting(now):.1%} waiting for data, {self._memory():.1f} GB"
            loss = "" if self._loss is None else f"loss {self._loss:.4g}  "
            log(f"{progress}  {loss}{speed}  {self._remaining_text()}")

    def alive(self) -> None:
        """Show progress during an evaluation."""
        mark(self._state, "evaluate")
        if self._main and time.monotonic() - self._written >= STATUS_SECONDS:
            self.write(RunStatus.EVALUATING)

    def write(self, status: RunStatus) -> None:
        """Replace status.json."""
        if not self._main:
            return
        self._written = time.monotonic()
        try:
            self._write(status)
        except OSError as error:  # training goes on despite a full disk or a failing network file system
            log(f"status.json cannot be written: {error}")

    def _write(self, status: RunStatus) -> None:
        progress = self._progress
        self._state.run.write_status(
            status, epoch=progress.epoch + (status is RunStatus.TRAINING), epochs=self._epochs, step=progress.step,
            steps=self._steps, loss=self._loss, rate=self._rate, eta_s=self._remaining(), best=best_score(self._state),
            best_epoch=progress.best_epoch, restarts=progress.restarts, data_wait=self._waiting(time.monotonic()),
            memory_gb=self._memory(), skipped_steps=progress.skipped,
        )  # fmt: skip

    def end_epoch(self, scores: dict[str, float], learning_rate: float) -> None:
        """Record the training scores of the epoch that just ended."""
        if not self._main:
            return
        now = time.monotonic()
        seconds, waiting = now - self._epoch_began, self._waiting(now)
        self._loss, self._rate = scores["loss"], self._samples_per_second(now)
        self._add_metrics(
            self._progress.epoch + 1, "train", **scores, seconds=seconds, rate=self._rate, learning_rate=learning_rate,
            data_wait=waiting, memory_gb=self._memory(),
        )  # fmt: skip
        tail = f"  {self._rate:.1f} samples/s, {waiting:.1%} waiting for data, {self._memory():.1f} GB"
        self._epoch_line("train", self._progress.epoch + 1, scores, tail)

    def validated(self, scores: dict[str, float], seconds: float) -> None:
        """Record the validation scores of the epoch that just ended."""
        if self._main:
            self._add_metrics(self._progress.epoch, "val", **scores, seconds=seconds)
            self._epoch_line("val", self._progress.epoch, scores, "")

    def _add_metrics(self, epoch: int, part: str, **values: float) -> None:
        """Add a line before the next checkpoint, without waiting for the disk."""
        assert self._state.writer is not None
        self._state.writer.later(partial(self._state.run.add_metrics, epoch, part, **values))

    def checkpoint_due(self) -> bool:
        """Return True, on rank 0, if the last checkpoint is as old as the experiment allows, or as its cost justifies.

        An epoch's end is no reason: a large network may train an epoch in less time than its checkpoint takes.
        """
        writer, longest = self._state.writer, 60 * self._state.experiment.checkpoint_minutes
        if writer is None:
            return False
        return time.monotonic() - self._checkpoint >= min(longest, max(SOONEST, writer.cost / _SHARE))

    def checkpoint_written(self) -> None:
        """Note that a checkpoint was just written."""
        self._checkpoint = time.monotonic()

    def _epoch_line(self, part: str, epoch: int, scores: dict[str, float], tail: str) -> None:
        main = "dice" if "dice" in scores else "accuracy"
        text = f"epoch {epoch}/{self._epochs} {part:<5}  loss {scores['loss']:.4g}"
        log(f"{text}  {main} {scores[main]:.3f}{tail}")
        self._logged = time.monotonic()

    def _samples_per_second(self, now: float) -> float:
        return (self._progress.samples - self._samples_at_epoch) / max(now - self._epoch_began, 1e-9)

    def _waiting(self, now: float) -> float:
        """Return the share of this epoch's time spent waiting for data."""
        return (self._state.parts.train.waited - self._waited_at_epoch) / max(now - self._epoch_began, 1e-9)

    def _memory(self) -> float:
        return peak_memory_gb(self._state.distributed.device)

    def _remaining(self) -> float | None:
        """Estimate the seconds until the last epoch ends, from the throughput since this start."""
        if not self._steps or self._progress.samples == self._samples_at_start:
            return None
        steps_left = (self._epochs - self._progress.epoch) * self._steps - self._progress.step
        samples_left = max(0, steps_left) * self._state.experiment.recipe.batch_size
        elapsed = time.monotonic() - self._began
        return samples_left * elapsed / (self._progress.samples - self._samples_at_start)

    def _remaining_text(self) -> str:
        seconds = self._remaining()
        return "" if seconds is None else f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"
