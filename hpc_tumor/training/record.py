"""What a run leaves behind while it trains and when it ends: heartbeat, metrics, scores of each test case, result."""

from __future__ import annotations

import csv
import io
import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hpc_tumor import atomic
from hpc_tumor.config import Experiment
from hpc_tumor.data.loader import Batch
from hpc_tumor.data.samples import SlicePart
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training import metrics
from hpc_tumor.training.checkpoint import TrainState
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.evaluate import Evaluation

if TYPE_CHECKING:
    from hpc_tumor.training.setup import Setup

LOG_SECONDS = 15.0  # between two lines of progress in the log


class Heartbeat:
    """Progress of a run: status.json every few seconds, a line in the log now and then, a line of metrics per epoch.

    Only rank 0 writes. The loss is read from the device only when a heartbeat is due.
    """

    def __init__(self, run: RunDir, experiment: Experiment, state: TrainState, distributed: Distributed, every: float):
        self.run, self.experiment, self.state, self.distributed = run, experiment, state, distributed
        self.every = every
        self.steps = 0
        self.loss: float | None = None
        self.rate: float | None = None
        self._written = self._logged = self._checkpoint = time.monotonic()
        self._epoch_began = self._began = time.monotonic()
        self._samples_at_start = self._samples_at_epoch = state.samples
        self._waited_at_epoch = 0.0

    def start_epoch(self, steps: int, waited: float) -> None:
        """An epoch of `steps` steps begins."""
        self.steps, self._waited_at_epoch = steps, waited
        self._epoch_began, self._samples_at_epoch = time.monotonic(), self.state.samples

    def beat(self, loss: torch.Tensor, batch: Batch) -> None:
        """After a step: write what is due."""
        now = time.monotonic()
        if not self.distributed.is_main or now - self._written < self.every:
            return
        self.loss = loss.item()
        self.rate = (self.state.samples - self._samples_at_epoch) / max(now - self._epoch_began, 1e-9)
        self.write("training")
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            progress = (
                f"epoch {self.state.epoch + 1}/{self.experiment.recipe.epochs} step {batch.step + 1}/{self.steps}"
            )
            say(f"{progress}  loss {self.loss:.4g}  {self.rate:.1f} samples/s  {self._remaining_text()}")

    def alive(self) -> None:
        """During an evaluation: show that it goes on."""
        if time.monotonic() - self._written >= self.every:
            self.write("evaluating")

    def write(self, state: str) -> None:
        """Replace status.json."""
        if not self.distributed.is_main:
            return
        self._written = time.monotonic()
        try:
            self._write(state)
        except OSError as error:  # a full disk, or a network file system that stumbles, is no reason to stop training
            say(f"the heartbeat cannot be written: {error}")

    def _write(self, state: str) -> None:
        self.run.write_status(
            state=state, epoch=self.state.epoch + (state == "training"), epochs=self.experiment.recipe.epochs,
            step=self.state.step, steps=self.steps, loss=self.loss, rate=self.rate, eta_s=self._remaining(),
            best=self.state.best_score, best_epoch=self.state.best_epoch, restarts=self.state.restarts,
        )  # fmt: skip

    def end_epoch(self, scores: dict[str, float], rate_of_learning: float, waited: float) -> None:
        """The training scores of the epoch that just ended."""
        if not self.distributed.is_main:
            return
        seconds = time.monotonic() - self._epoch_began
        waiting = (waited - self._waited_at_epoch) / max(seconds, 1e-9)
        samples = self.state.samples - self._samples_at_epoch
        self.loss, self.rate = scores["loss"], samples / max(seconds, 1e-9)
        self.run.add_metrics(
            self.state.epoch + 1, "train", **scores, seconds=seconds, rate=self.rate, learning_rate=rate_of_learning,
            data_wait=waiting,
        )  # fmt: skip
        tail = f"  {self.rate:.1f} samples/s, {waiting:.1%} waiting for data"
        self._epoch_line("train", self.state.epoch + 1, scores, tail)

    def validated(self, scores: dict[str, float], seconds: float) -> None:
        """The validation scores of the epoch that just ended."""
        if self.distributed.is_main:
            self.run.add_metrics(self.state.epoch, "val", **scores, seconds=seconds)
            self._epoch_line("val", self.state.epoch, scores, "")

    def checkpoint_due(self) -> bool:
        """Whether the last checkpoint is as old as the experiment allows."""
        return time.monotonic() - self._checkpoint >= 60 * self.experiment.checkpoint_minutes

    def checkpoint_written(self) -> None:
        """A checkpoint was just written."""
        self._checkpoint = time.monotonic()

    def _epoch_line(self, part: str, epoch: int, scores: dict[str, float], tail: str) -> None:
        main = "dice" if "dice" in scores else "accuracy"
        text = f"epoch {epoch}/{self.experiment.recipe.epochs} {part:<5}  loss {scores['loss']:.4g}"
        say(f"{text}  {main} {scores[main]:.3f}{tail}")
        self._logged = time.monotonic()

    def _remaining(self) -> float | None:
        """Seconds until the last epoch ends, from the samples done since this start."""
        if not self.steps or self.state.samples == self._samples_at_start:
            return None
        steps_left = (self.experiment.recipe.epochs - self.state.epoch) * self.steps - self.state.step
        samples_left = max(0, steps_left) * self.experiment.recipe.batch_size
        elapsed = time.monotonic() - self._began
        return samples_left * elapsed / (self.state.samples - self._samples_at_start)

    def _remaining_text(self) -> str:
        left = self._remaining()
        return "" if left is None else f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left"


def say(text: str) -> None:
    """One line in the log, with the time."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def write_result(setup: Setup, heartbeat: Heartbeat, stop: Callable[[], str | None]) -> bool:
    """Score the test part with the last and the best weights; write cases.csv, and result.json as the last file.

    False: a stop was asked for before the scores were complete. The last checkpoint leads back here.
    """
    state, main = setup.state, setup.distributed.is_main
    seconds, memory = setup.seconds(), max(setup.distributed.gather(peak_memory_gb(setup.distributed.device)))
    last = best = setup.evaluate(setup.parts.test, heartbeat.alive)
    if setup.distributed.any(stop() is not None)[0]:
        return False
    if setup.val is None:
        setup.save_best()
    elif state.best_epoch != state.epoch:
        setup.load_best()
        best = setup.evaluate(setup.parts.test, heartbeat.alive)
    if main:
        _write_result(setup, heartbeat, last, best, seconds, memory)
    setup.distributed.barrier()
    return True


def _write_result(
    setup: Setup, heartbeat: Heartbeat, last: Evaluation, best: Evaluation, seconds: float, memory: float
) -> None:
    state = setup.state
    _write_cases(setup, best)
    atomic.write_json(setup.run.result, _result(setup, last, best, seconds, memory))
    setup.run.add_event("finished", epoch=state.epoch, seconds=seconds)
    heartbeat.write("finished")
    score = best.scores[setup.main_score]
    say(f"finished: test {setup.main_score} {score:.3f} with the weights of epoch {state.best_epoch}")


def _result(setup: Setup, last: Evaluation, best: Evaluation, seconds: float, memory: float) -> dict[str, Any]:
    experiment, distributed, parts, state = setup.experiment, setup.distributed, setup.parts, setup.state
    gpu = distributed.device.type == "cuda"
    training = [line for line in setup.run.read_metrics() if line["part"] == "train"]
    technical = ("epoch", "part", "seconds", "rate", "learning_rate", "data_wait")
    train_scores = {key: value for key, value in (training[-1] if training else {}).items() if key not in technical}
    return {
        "run": setup.run.name,
        "model": experiment.model.name,
        "task": experiment.task,
        "dataset": parts.store.dataset,
        "seed": experiment.seed,
        "split": parts.split.kind,
        "split_seed": parts.split.seed,
        "split_leaks": parts.split.leaks,
        "fold": experiment.data.fold,
        "store": str(experiment.data.store),
        "fingerprint": parts.store.fingerprint,
        "parameters": sum(weights.numel() for weights in setup.bare.parameters() if weights.requires_grad),
        "gpus": distributed.world_size,
        "nodes": distributed.nodes,
        "device": torch.cuda.get_device_name(distributed.device) if gpu else "cpu",
        "precision": setup.precision.name,
        "epochs": state.epoch,
        "batch_size": experiment.recipe.batch_size,
        "image_size": list(parts.image_size),
        "limit_batches": experiment.limit_batches,
        "seconds": seconds,
        "gpu_hours": seconds / 3600 * distributed.world_size if gpu else 0.0,
        "restarts": state.restarts,
        "samples_per_second": sum(line["rate"] for line in training) / len(training) if training else None,
        "data_wait": sum(line["data_wait"] for line in training) / len(training) if training else None,
        "peak_memory_gb": memory,
        "cases": parts.counts(),
        "chosen_by": f"val {setup.main_score}" if setup.val is not None else "last epoch",
        "best": {"epoch": state.best_epoch, "val": state.best_score, "test": best.scores},
        "last": {"epoch": state.epoch, "train": train_scores, "test": last.scores},
    }


def _write_cases(setup: Setup, best: Evaluation) -> None:
    there = best.counted > 0
    names = [name for name, counted in zip(setup.parts.test_names, there, strict=True) if counted]
    if setup.classes is None:
        rows = metrics.segmentation_rows(best.details[there], names, best.counted[there])
    else:
        rows = _image_rows(setup, best.details, [int(index) for index in there.nonzero()[0]])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["case"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(setup.run.cases, text.getvalue())


def _image_rows(setup: Setup, probabilities: Any, positions: list[int]) -> list[dict[str, object]]:
    part, classes = setup.parts.test.part, setup.classes or []
    assert not isinstance(part, SlicePart)
    rows: list[dict[str, object]] = []
    for position in positions:
        chances, label = probabilities[position], int(part.classes[position])  # type: ignore[attr-defined]
        predicted = int(chances.argmax())
        rows.append({
            "case": setup.parts.test_names[position], "label": classes[label], "prediction": classes[predicted],
            "correct": int(predicted == label), "confidence": float(chances.max()),
            "group": int(setup.parts.store.group[part.indices[position]]),  # type: ignore[attr-defined]
            **{f"p_{name}": float(chance) for name, chance in zip(classes, chances, strict=True)},
        })  # fmt: skip
    return rows


def peak_memory_gb(device: torch.device) -> float:
    """Most memory this process has held: on its GPU, else in the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
