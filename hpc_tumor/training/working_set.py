"""One rank's working set: all that a training step, an evaluation and a checkpoint need."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.loader import BatchLoader
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, HpcTumorError, TrainingError
from hpc_tumor.run_dir import Damage, RunDir
from hpc_tumor.training.average import WeightAverage
from hpc_tumor.training.checkpoints.files import (
    DamagedWeights,
    TrainState,
    UnreadableWeights,
    load_checkpoint,
    load_weights,
    random_state,
    set_random_state,
)
from hpc_tumor.training.checkpoints.saving import Saver, find_last
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.losses import Loss
from hpc_tumor.training.parts import Parts
from hpc_tumor.training.recipe import Precision
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import Evaluation, evaluate
from hpc_tumor.training.watch.guard import FiniteGuard
from hpc_tumor.vocabulary import LABELS

EXCLUSIVE_LOSSES = ("dice-ce",)  # which teach a network to choose one label per pixel


@dataclass
class Setup:
    """One rank's working set. `bare` is the network itself, `model` what the training step calls (DDP around it)."""

    experiment: Experiment
    run: RunDir
    distributed: Distributed
    parts: Parts
    bare: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loss: Loss
    precision: Precision
    state: TrainState
    identity: dict[str, Any]
    channels: int
    began: float
    model: nn.Module = field(init=False)
    fast: Callable[..., Any] | None = None  # the compiled `model`, for batches of the full size
    average: WeightAverage | None = None
    saver: Saver | None = None
    was_compiled: bool | None = None  # in the start before this one
    compiling: str = ""  # whether the step is compiled, and why, in words
    traced: bool = False  # whether a trace was written
    last_losses: Tensor | None = None
    watched: Callable[[str], None] | None = None  # told of each part of a step, where somebody measures them
    step_delay: Path | None = None  # file with the seconds that each step waits while it exists

    def __post_init__(self) -> None:
        self.model = self.bare
        self.guard = FiniteGuard(self)
        self.parameters = [parameter for parameter in self.bare.parameters() if parameter.requires_grad]
        self.steps = self.train.steps(self.experiment.limit_batches)  # of an epoch

    @property
    def train(self) -> BatchLoader:
        return self.parts.train

    @property
    def val(self) -> BatchLoader | None:
        return self.parts.val

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes; None where the task is segmentation."""
        return self.parts.classes

    @property
    def exclusive(self) -> bool:
        """True where the network was taught to give at most one label to a pixel."""
        return self.experiment.loss in EXCLUSIVE_LOSSES

    @property
    def main_score(self) -> str:
        """The score that chooses the best epoch."""
        return self.experiment.best_by or ("dice" if self.classes is None else "accuracy")

    @property
    def best_shown(self) -> float | None:
        """The best score so far as people read it: a loss is compared as its negative."""
        best = self.state.best_score
        return -best if best is not None and self.main_score == "loss" else best

    def mark(self, part: str) -> None:
        """A part of a step begins, or of what stands between steps: progress, for those who watch for hangs."""
        self.distributed.mark(part, self.state.updates)
        if self.watched is not None:
            self.watched(part)

    def network_for(self, samples: int) -> Callable[..., Any]:
        """Network that gives the logits of so many samples: compiled code is made for the full size alone."""
        if self.fast is None:
            return self.model
        return self.fast if samples == self.full_part else self.model

    @property
    def full_part(self) -> int:
        """Samples that this rank works through at once, where a batch is full: the first part of its share."""
        rank, ranks = self.distributed.rank, self.distributed.world_size
        share = len(range(rank, self.experiment.recipe.batch_size, ranks))
        return -(-share // self.experiment.hardware.accumulate)

    def loss_now(self) -> float | None:
        """Mean loss of this rank's share of the last step. Waits for the device."""
        return None if self.last_losses is None else float(self.last_losses.mean().item())

    def seconds(self) -> float:
        """Training time of this run so far, over all its starts."""
        return time.perf_counter() - self.began

    def evaluate(self, loader: BatchLoader, alive: Callable[[], None] = lambda: None) -> Evaluation:
        """Scores of the network as it is now: rank 0's, with the running mean of its weights where there is one."""
        with self.weights_to_score():
            return self.evaluate_as_is(loader, alive)

    @contextmanager
    def weights_to_score(self) -> Iterator[None]:
        """In the block the network has the weights that are scored: see `evaluate`. All ranks call it together."""
        self._share_statistics()
        with self.average.applied() if self.average else nullcontext():
            if self.average:
                self._share_statistics()  # the mean of each rank's own
            yield

    def _share_statistics(self) -> None:
        """Batch norm's running statistics are those of each rank: let rank 0's count."""
        for buffer in self.bare.buffers():
            self.distributed.broadcast(buffer)

    def evaluate_as_is(
        self, loader: BatchLoader, alive: Callable[[], None] = lambda: None, final: bool = False, volumes: bool = False
    ) -> Evaluation:
        """Scores of the weights that are in the network; `final` ones as the settings want the test part scored."""
        return evaluate(
            self.bare, loader, self.loss, self.precision, self.distributed, channels=self.channels,
            channels_last=self.experiment.hardware.channels_last, classes=self.classes, exclusive=self.exclusive,
            limit=self.experiment.limit_batches, alive=alive, final=final, volumes=volumes,
            flips=final and self.experiment.scoring.flips,
        )  # fmt: skip

    def own_totals(self) -> dict[str, Any]:
        """Sums of this rank over the epoch under way: zeros, or what the checkpoint kept."""
        device, kept = self.distributed.device, self.state.totals
        zero = {"loss": torch.zeros((), dtype=torch.float64, device=device), "samples": 0}
        if self.classes is None:
            shape = (metrics.TRUE_LABELS, metrics.PREDICTIONS)
            zero["histogram"] = torch.zeros(shape, dtype=torch.int64, device=device)
        else:
            zero["right"] = torch.zeros((), dtype=torch.int64, device=device)
            zero["confidence"] = torch.zeros((), dtype=torch.float64, device=device)
        if len(kept) == self.distributed.world_size:
            mine = kept[self.distributed.rank]
        elif kept and self.distributed.is_main:  # another number of ranks: the sum is what matters
            mine = {key: sum(rank[key] for rank in kept) for key in kept[0]}
        else:
            return zero
        return {key: mine[key].to(device) if torch.is_tensor(mine[key]) else mine[key] for key in zero}

    def keep_statistics(self) -> list[Tensor] | None:
        """Copies of batch norm's running statistics, where a step may be skipped that spoils them."""
        if not self.experiment.recipe.skip_nonfinite:
            return None
        return [buffer.clone() for buffer in self.bare.buffers()]

    @torch.no_grad()
    def restore_statistics(self, kept: list[Tensor], broken: Tensor) -> None:
        """Put them back where the step was broken, without asking a GPU whether it was."""
        for buffer, before in zip(self.bare.buffers(), kept, strict=True):
            buffer.copy_(torch.where(broken > 0, before, buffer))

    def save_last(self, totals: dict[str, Any] | None = None) -> None:
        """Checkpoint to go on from; all ranks call it, rank 0 writes. `totals` of an epoch under way are kept."""
        self.mark("checkpoint")
        self.guard.look(totals if totals is not None else self.own_totals(), everything=True)
        if totals is not None:
            cpu = {key: value.cpu() if torch.is_tensor(value) else value for key, value in totals.items()}
            self.state.totals = self.distributed.gather(cpu)
        states = self.distributed.gather(random_state(self.distributed.device))
        self.state.seconds = self.seconds()
        if self.saver is not None:
            every = self.experiment.keep_every
            keep = every is not None and self.state.step == 0 and self.state.epoch % every == 0
            self.saver.save_last(self.state, self._contents(states), keep)

    def _contents(self, states: list[Any]) -> dict[str, Any]:
        return {
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "compiled": self.fast is not None,
            "random": states,
        }

    def save_best(self) -> None:
        """Keep the weights of the best epoch so far: those that were scored."""
        self._save_weights(self.run.best_weights)

    def save_last_weights(self) -> None:
        """Keep the weights of the last epoch, to be scored where those of the best were lost."""
        self._save_weights(self.run.last_weights)

    def _save_weights(self, path: Path) -> None:
        if self.saver is not None:
            with self.average.applied() if self.average else nullcontext():
                self.saver.save_weights(path, self.state, self.bare.state_dict(), self._about())

    def _about(self) -> dict[str, Any]:
        """Facts that somebody needs to use the weights."""
        model, (height, width) = self.experiment.model, self.parts.image_size
        return {
            "format": "hpc-tumor weights", "run": self.run.name, "model": model.name, "filters": model.filters,
            "task": self.experiment.task, "classes": self.classes or list(LABELS),
            "exclusive": self.exclusive, "image_size": [height, width],
            **({"edition": _most_common_edition(self.parts.store)} if self.classes is None else {}),
        }  # fmt: skip

    def settle(self) -> None:
        """Until all ranks know that the checkpoints are written."""
        self.mark("checkpoint")
        if self.saver is not None:
            self.saver.wait()
        self.distributed.barrier()

    def load_best(self) -> tuple[Damage, str] | None:
        """Put the weights of the best epoch into the network, and leave the running mean out of it.

        Returns the damage, and what is wrong in a sentence, where they are lost to any rank: then the network stays as
        it is, and so does the file.

        Raises, on every rank where it is so on any:
            TrainingError: the disk does not give them at this moment, so that nobody knows whether they are lost.
            DataError: they are of a run with other data or another network.
        """
        self.settle()
        lost: tuple[Damage, str] | None = None
        refused: HpcTumorError | None = None
        try:
            weights, about = load_weights(self.run.best_weights, self.identity)
        except DamagedWeights as error:
            lost = error.damage, str(error)
        except UnreadableWeights as error:
            refused = TrainingError(
                f"{error} The training is done, only its scores are missing: `hpc-tumor resume` the run once its disk"
                " is back."
            )
        except DataError as error:
            refused = error
        found = self.distributed.gather((lost, refused))
        if refused := next((error for _, error in found if error is not None), None):
            raise refused
        lost = next((lost for lost, _ in found if lost is not None), None)
        if lost is not None:
            return lost
        self.bare.load_state_dict(weights)
        # What these weights are is said by their own file: the last checkpoint may be older, or a redone epoch differ.
        best: TrainState = about["state"]
        self.state.best_epoch, self.state.best_score, self.state.best_loss = best.epoch, best.best_score, best.best_loss
        return None

    def _lay_moments_as_weights(self) -> None:
        """Fused optimizers take weights and moments to lie in the same order; a checkpoint's may lie in another."""
        for weights, values in self.optimizer.state.items():
            for name, value in values.items():
                if torch.is_tensor(value) and value.shape == weights.shape and value.stride() != weights.stride():
                    values[name] = torch.empty_like(weights, dtype=value.dtype).copy_(value)

    def resume(self) -> bool:
        """Go on from the last checkpoint that can be read, if there is one. Every rank reads what rank 0 chose."""
        found, said = _of_rank_0(self.distributed, lambda: find_last(self.run))
        if not found:
            return False
        device, ranks = self.distributed.device, self.distributed.world_size
        if said and self.distributed.is_main:
            print(f"warning: {said}", file=sys.stderr, flush=True)
            self.run.add_event("checkpoint damaged", reason=said)
        contents = load_checkpoint(self.run.last_checkpoint, torch.device("cpu"), self.identity)
        epochs = self.experiment.recipe.epochs
        place = contents["state"].epoch, contents["state"].step
        if place > (epochs, 0):
            raise DataError(
                f"{self.run.last_checkpoint} has trained {place[0]} epochs and {place[1]} steps, more than"
                f" recipe.epochs = {epochs}: set it to {place[0] + (place[1] > 0)} or more in config.json, or submit a"
                " new run."
            )
        if self.distributed.is_main:
            for note in contents["notes"]:
                print(note, file=sys.stderr, flush=True)
        self.bare.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self._lay_moments_as_weights()
        self.scaler.load_state_dict(contents["scaler"])
        if self.average is not None:
            self.average.load_state_dict(contents["average"])
        self.state = contents["state"]
        self.state.restarts += 1
        self.began = time.perf_counter() - self.state.seconds
        self.was_compiled = contents["compiled"]
        if len(contents["random"]) == ranks:
            set_random_state(contents["random"][self.distributed.rank], device)
        else:  # new draws of dropout, but not those of the first steps again
            torch.manual_seed(rank_seed(self.experiment.seed + self.state.updates, self.distributed))
        return True


def _most_common_edition(store: Store) -> str:
    """The name of the edition that most cases of a store of patients are of."""
    return Counter(edition.name for edition in store.editions).most_common(1)[0][0]


def _of_rank_0(distributed: Distributed, ask: Callable[[], Any]) -> Any:
    """Rank 0's answer, or its error, on every rank."""
    answer: Any = None
    error: HpcTumorError | None = None
    if distributed.is_main:
        try:
            answer = ask()
        except HpcTumorError as refused:
            error = refused
    answer, error = distributed.gather((answer, error))[0]
    if error is not None:
        raise error
    return answer


def rank_seed(seed: int, distributed: Distributed) -> int:
    """A seed of its own for each rank, so that their dropout differs."""
    return seed + 1_000_003 * (distributed.rank + 1)
