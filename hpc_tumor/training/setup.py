"""Everything one run trains with, put together once: data, network, optimizer, and where it stands."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from hpc_tumor import atomic
from hpc_tumor.config import Experiment
from hpc_tumor.data.loader import BatchLoader
from hpc_tumor.data.split_file import write_split
from hpc_tumor.errors import TrainingError
from hpc_tumor.models import MODELS, build_model
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.training import metrics
from hpc_tumor.training.checkpoint import (
    TrainState,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.evaluate import Evaluation, evaluate
from hpc_tumor.training.parts import Parts, make_parts
from hpc_tumor.training.recipe import (
    LOSSES,
    Loss,
    Precision,
    build_optimizer,
    build_schedule,
    choose_precision,
)


@dataclass
class Setup:
    """One rank's working set. `bare` is the network itself, `model` what the training step calls (DDP around it)."""

    experiment: Experiment
    run: RunDir
    distributed: Distributed
    parts: Parts
    bare: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    scaler: torch.amp.GradScaler
    loss: Loss
    precision: Precision
    state: TrainState
    identity: dict[str, Any]
    channels: int
    began: float

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
    def main_score(self) -> str:
        """The score that chooses the best epoch."""
        return "dice" if self.classes is None else "accuracy"

    def seconds(self) -> float:
        """Training time of this run so far, over all its starts."""
        return time.perf_counter() - self.began

    def evaluate(self, loader: BatchLoader, alive: Callable[[], None] = lambda: None) -> Evaluation:
        """Scores of the network as it is now: rank 0's, on every rank."""
        for buffer in self.bare.buffers():  # DDP brings rank 0's running means to the others only when a step begins
            self.distributed.broadcast(buffer)
        return evaluate(
            self.bare, loader, self.loss, self.precision, self.distributed, channels=self.channels,
            channels_last=self.experiment.hardware.channels_last, classes=self.classes,
            limit=self.experiment.limit_batches, alive=alive,
        )  # fmt: skip

    def own_totals(self) -> dict[str, Any]:
        """What this rank has added up of the epoch under way: zeros, or what the checkpoint kept."""
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

    def save_last(self, totals: dict[str, Any] | None = None) -> None:
        """Checkpoint to go on from; all ranks call it, rank 0 writes. `totals` of an epoch under way are kept."""
        if totals is not None:
            cpu = {key: value.cpu() if torch.is_tensor(value) else value for key, value in totals.items()}
            self.state.totals = self.distributed.gather(cpu)
        states = self.distributed.gather(random_state(self.distributed.device))
        self.state.seconds = self.seconds()
        if self.distributed.is_main:
            save_checkpoint(
                self.run.last_checkpoint, self.state, self.identity, model=self.bare.state_dict(),
                optimizer=self.optimizer.state_dict(), schedule=self.schedule.state_dict(),
                scaler=self.scaler.state_dict(), random=states,
            )  # fmt: skip
            self.run.add_event("checkpoint", epoch=self.state.epoch, step=self.state.step)
        self.distributed.barrier()

    def save_best(self) -> None:
        """Keep the weights of the best epoch so far."""
        if self.distributed.is_main:
            save_checkpoint(self.run.best_checkpoint, self.state, self.identity, model=self.bare.state_dict())

    def load_best(self) -> None:
        """Put the weights of the best epoch into the network."""
        self.distributed.barrier()
        contents = load_checkpoint(self.run.best_checkpoint, self.distributed.device, self.identity)
        self.bare.load_state_dict(contents["model"])
        # What these weights are is said by their own file: the last checkpoint may be older, or a redone epoch differ.
        best: TrainState = contents["state"]
        self.state.best_epoch, self.state.best_score, self.state.best_loss = best.epoch, best.best_score, best.best_loss

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one."""
        if not self.run.last_checkpoint.exists():
            return False
        device = self.distributed.device
        contents = load_checkpoint(self.run.last_checkpoint, torch.device("cpu"), self.identity)
        self.bare.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.schedule.load_state_dict(contents["schedule"])
        self.scaler.load_state_dict(contents["scaler"])
        self.state = contents["state"]
        self.state.restarts += 1
        self.began = time.perf_counter() - self.state.seconds
        if len(contents["random"]) == self.distributed.world_size:
            set_random_state(contents["random"][self.distributed.rank], device)
        return True


def set_up(experiment: Experiment, run: RunDir, distributed: Distributed) -> Setup:
    """Build one rank's working set, and resume where the run left a checkpoint.

    Raises:
        DataError: the store, the split or the checkpoint cannot be used.
        UsageError: the network or the precision does not fit the data or the device.
    """
    _prepare_backend(experiment, distributed)
    parts = make_parts(experiment, distributed)
    precision = choose_precision(experiment.hardware.precision, distributed.device)
    torch.manual_seed(experiment.seed)  # the same initial weights on every rank
    bare = build_network(experiment, parts).to(distributed.device)
    if experiment.hardware.channels_last:
        bare = bare.to(memory_format=torch.channels_last)
    if distributed.device.type == "cuda" and distributed.world_size > 1:
        bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)
    optimizer = build_optimizer(bare.parameters(), experiment.recipe)
    torch.manual_seed(experiment.seed + 1_000_003 * (distributed.rank + 1))  # dropout of its own on every rank
    setup = Setup(
        experiment, run, distributed, parts, bare, bare, optimizer, build_schedule(optimizer, experiment.recipe),
        precision.scaler(), LOSSES[experiment.loss], precision, TrainState(), _identity(experiment, parts, precision),
        MODELS[experiment.model.name].in_channels, time.perf_counter(),
    )  # fmt: skip
    resumed = setup.resume()
    if len(set(distributed.gather((setup.state.epoch, setup.state.step)))) > 1:
        raise TrainingError(
            f"the ranks do not see the same checkpoint in {run.checkpoints}: its file system is slow to agree."
            " Resume the run in a minute."
        )
    places = distributed.gather(f"{socket.gethostname()}: {_name(distributed)}")
    if distributed.world_size > 1:
        setup.model = _data_parallel(bare, distributed)
    if distributed.is_main:
        run.remove_leftovers()
        write_split(run.split, parts.split, parts.store)
        _announce(setup, resumed)
        atomic.write_json(run.provenance, {**(read_json(run.provenance) or {}), "ranks": places})
    return setup


def build_network(experiment: Experiment, parts: Parts) -> nn.Module:
    """The experiment's network for the images of its data. UsageError where they do not fit."""
    # A network is built for one side; a picture of unequal sides must fit with both.
    sides = sorted(set(parts.image_size))
    name, filters = experiment.model.name, experiment.model.filters
    return [build_model(name, image_size=side, filters=filters) for side in sides][-1]


def _prepare_backend(experiment: Experiment, distributed: Distributed) -> None:
    if experiment.hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if distributed.device.type == "cuda":
        torch.backends.cudnn.benchmark = not experiment.hardware.deterministic
        exact = experiment.hardware.precision == "float32"  # asked for, so not in TensorFloat-32
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact


def _data_parallel(bare: nn.Module, distributed: Distributed) -> nn.Module:
    devices = [distributed.device] if distributed.device.type == "cuda" else None
    return DistributedDataParallel(bare, device_ids=devices, gradient_as_bucket_view=True)


def _identity(experiment: Experiment, parts: Parts, precision: Precision) -> dict[str, Any]:
    return {
        "precision": precision.name,
        "network": experiment.model.name,
        "filters": experiment.model.filters,
        "store fingerprint": parts.store.fingerprint,
        "split": parts.split.kind,
        "split seed": parts.split.seed,
        "fold": experiment.data.fold,
        "seed": experiment.seed,
        "batch size": experiment.recipe.batch_size,
    }


def _announce(setup: Setup, resumed: bool) -> None:
    """Say once, in the log, what was chosen; and record the start."""
    experiment, distributed, parts = setup.experiment, setup.distributed, setup.parts
    place = _name(distributed)
    threads = _plural(torch.get_num_threads(), "thread")
    ranks = f"{_plural(distributed.world_size, 'rank')} on {_plural(distributed.nodes, 'node')}"
    layout = "channels-last" if experiment.hardware.channels_last else "contiguous"
    lines = [
        f"{experiment.model.name}: {ranks}, {place}, {threads} each",
        f"precision {setup.precision.name}, {setup.precision.reason}; memory layout {layout}",
        f"split {parts.split.kind}: {parts.describe()}",
        *(f"{name} samples: {where}" for name, where in parts.kept.items()),
    ]
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if distributed.device.type == "cpu" and given and given != "-1":
        lines.append(f"GPUs were given (CUDA_VISIBLE_DEVICES={given}), but torch cannot use them: this is the CPU")
    if distributed.world_size > 1:
        lines.append(f"global batch of {experiment.recipe.batch_size} divided among the ranks")
    if setup.val is None:
        lines.append("no validation part: the last epoch counts as the best")
    if distributed.world_size > 1 and distributed.device.type == "cpu" and _has_batch_norm(setup.bare):
        lines.append("batch norm: each rank normalises by its own samples; the running means are rank 0's")
    state = setup.state
    if resumed:
        lines.append(f"going on at epoch {state.epoch + 1}, step {state.step}")
    print("\n".join(lines), file=sys.stderr, flush=True)
    setup.run.keep_metrics(state.epoch)
    setup.run.add_event(
        "resumed" if resumed else "started", epoch=state.epoch, step=state.step, ranks=distributed.world_size,
        nodes=distributed.nodes, device=place, precision=setup.precision.name,
    )  # fmt: skip


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _name(distributed: Distributed) -> str:
    """What this rank computes on."""
    return "CPU" if distributed.device.type == "cpu" else torch.cuda.get_device_name(distributed.device)


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
