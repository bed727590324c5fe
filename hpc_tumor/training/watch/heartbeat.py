"""Progress of a run while it trains: status.json, lines in the log, lines of metrics."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from hpc_tumor.training.watch.memory import peak_memory_gb

if TYPE_CHECKING:
    from hpc_tumor.training.working_set import Setup

STATUS_SECONDS = 2.0  # between two writings of status.json
LOG_SECONDS = 15.0  # between two lines of progress in the log


class Heartbeat:
    """Progress of a run: status.json every few seconds, a line in the log now and then, a line of metrics per epoch.

    Only rank 0 writes. The loss is read from the device only when a heartbeat is due.
    """

    def __init__(self, setup: Setup):
        self.setup, self.state = setup, setup.state
        self.epochs = setup.experiment.recipe.epochs
        self.steps = setup.steps
        self.loss: float | None = None
        self.rate: float | None = None
        self._main = setup.distributed.is_main
        self._written = self._logged = self._checkpoint = time.monotonic()
        self._epoch_began = self._began = time.monotonic()
        self._samples_at_start = self._samples_at_epoch = self.state.samples
        self._waited_at_epoch = 0.0

    def start_epoch(self) -> None:
        """An epoch begins."""
        self._waited_at_epoch = self.setup.train.waited
        self._epoch_began, self._samples_at_epoch = time.monotonic(), self.state.samples

    def beat(self) -> None:
        """After a step: write what is due."""
        now = time.monotonic()
        if not self._main or now - self._written < STATUS_SECONDS:
            return
        self.loss = self.setup.loss_now()
        self.rate = self._rate(now)
        self.write("training")
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            progress = f"epoch {self.state.epoch + 1}/{self.epochs} step {self.state.step}/{self.steps}"
            speed = f"{self.rate:.1f} samples/s, {self._waiting(now):.1%} waiting for data, {self._memory():.1f} GB"
            loss = "" if self.loss is None else f"loss {self.loss:.4g}  "
            say(f"{progress}  {loss}{speed}  {self._remaining_text()}")

    def alive(self) -> None:
        """During an evaluation: show that it goes on."""
        self.setup.mark("evaluate")
        if self._main and time.monotonic() - self._written >= STATUS_SECONDS:
            self.write("evaluating")

    def write(self, state: str) -> None:
        """Replace status.json."""
        if not self._main:
            return
        self._written = time.monotonic()
        try:
            self._write(state)
        except OSError as error:  # a full disk, or a network file system that stumbles, is no reason to stop training
            say(f"the heartbeat cannot be written: {error}")

    def _write(self, state: str) -> None:
        self.setup.run.write_status(
            state=state, epoch=self.state.epoch + (state == "training"), epochs=self.epochs, step=self.state.step,
            steps=self.steps, loss=self.loss, rate=self.rate, eta_s=self._remaining(), best=self.setup.best_shown,
            best_epoch=self.state.best_epoch, restarts=self.state.restarts, data_wait=self._waiting(time.monotonic()),
            memory_gb=self._memory(), skipped_steps=self.state.skipped,
        )  # fmt: skip

    def end_epoch(self, scores: dict[str, float], learning_rate: float) -> None:
        """The training scores of the epoch that just ended."""
        if not self._main:
            return
        now = time.monotonic()
        seconds, waiting = now - self._epoch_began, self._waiting(now)
        self.loss, self.rate = scores["loss"], self._rate(now)
        self.setup.run.add_metrics(
            self.state.epoch + 1, "train", **scores, seconds=seconds, rate=self.rate, learning_rate=learning_rate,
            data_wait=waiting, memory_gb=self._memory(),
        )  # fmt: skip
        tail = f"  {self.rate:.1f} samples/s, {waiting:.1%} waiting for data, {self._memory():.1f} GB"
        self._epoch_line("train", self.state.epoch + 1, scores, tail)

    def validated(self, scores: dict[str, float], seconds: float) -> None:
        """The validation scores of the epoch that just ended."""
        if self._main:
            self.setup.run.add_metrics(self.state.epoch, "val", **scores, seconds=seconds)
            self._epoch_line("val", self.state.epoch, scores, "")

    def checkpoint_due(self) -> bool:
        """Return True if the last checkpoint is as old as the experiment allows."""
        return time.monotonic() - self._checkpoint >= 60 * self.setup.experiment.checkpoint_minutes

    def checkpoint_written(self) -> None:
        """A checkpoint was just written."""
        self._checkpoint = time.monotonic()

    def _epoch_line(self, part: str, epoch: int, scores: dict[str, float], tail: str) -> None:
        main = "dice" if "dice" in scores else "accuracy"
        text = f"epoch {epoch}/{self.epochs} {part:<5}  loss {scores['loss']:.4g}"
        say(f"{text}  {main} {scores[main]:.3f}{tail}")
        self._logged = time.monotonic()

    def _rate(self, now: float) -> float:
        """Samples per second in this epoch."""
        return (self.state.samples - self._samples_at_epoch) / max(now - self._epoch_began, 1e-9)

    def _waiting(self, now: float) -> float:
        """Share of this epoch's time in which training waited for data."""
        return (self.setup.train.waited - self._waited_at_epoch) / max(now - self._epoch_began, 1e-9)

    def _memory(self) -> float:
        return peak_memory_gb(self.setup.distributed.device)

    def _remaining(self) -> float | None:
        """Seconds until the last epoch ends, from the samples done since this start."""
        if not self.steps or self.state.samples == self._samples_at_start:
            return None
        steps_left = (self.epochs - self.state.epoch) * self.steps - self.state.step
        samples_left = max(0, steps_left) * self.setup.experiment.recipe.batch_size
        elapsed = time.monotonic() - self._began
        return samples_left * elapsed / (self.state.samples - self._samples_at_start)

    def _remaining_text(self) -> str:
        left = self._remaining()
        return "" if left is None else f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"


def say(text: str) -> None:
    """One line in the log, with the time."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
