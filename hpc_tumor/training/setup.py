"""A run made ready: data, network, optimizer, put together once, and where it stands."""

from __future__ import annotations

import inspect
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.splits.known_cases import keep_known_cases
from hpc_tumor.data.splits.split_file import write_split
from hpc_tumor.errors import TrainingError, UsageError
from hpc_tumor.models import MODELS, build_model
from hpc_tumor.records import read_events
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.settings import settings_by_name
from hpc_tumor.system import atomic
from hpc_tumor.training import compiled
from hpc_tumor.training.announce import announce, name_of
from hpc_tumor.training.average import WeightAverage
from hpc_tumor.training.checkpoints.files import TrainState
from hpc_tumor.training.checkpoints.saving import Saver
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.losses import build_loss
from hpc_tumor.training.parts import Parts, class_weights, make_parts
from hpc_tumor.training.recipe import Precision, build_optimizer, choose_precision
from hpc_tumor.training.scoring.volumes import whole_cases
from hpc_tumor.training.watch.memory import keep_freed_memory
from hpc_tumor.training.working_set import Setup, rank_seed


def set_up(experiment: Experiment, run: RunDir, distributed: Distributed, read_from: Path | None = None) -> Setup:
    """Build one rank's working set, and resume where the run left a checkpoint.

    Args:
        read_from: a copy of the store, to be read in its place.

    Raises:
        DataError: the store, the split or the checkpoint cannot be used.
        UsageError: the network or the precision does not fit the data or the device.
    """
    _prepare_backend(experiment, distributed)
    parts = make_parts(experiment, distributed, read_from)
    _check_validation(experiment, parts)
    experiment.check_classes(parts.classes or [])
    run.checkpoints.mkdir(exist_ok=True)  # somebody may have removed it to start again
    precision = choose_precision(experiment.hardware.precision, distributed.device, _precision_before(run))
    torch.manual_seed(experiment.seed)  # the same initial weights on every rank
    bare = build_network(experiment, parts).to(distributed.device)
    if experiment.hardware.channels_last:
        bare = bare.to(memory_format=torch.channels_last)
    if distributed.device.type == "cuda" and distributed.world_size > 1:
        bare = nn.SyncBatchNorm.convert_sync_batchnorm(bare)
    recipe, identity = experiment.recipe, _identity(experiment, parts, precision)
    weights = class_weights(experiment, parts, distributed.device)
    loss = build_loss(experiment.task, experiment.loss, weights=weights, focal_gamma=recipe.focal_gamma)
    torch.manual_seed(rank_seed(experiment.seed, distributed))  # dropout of its own on every rank
    setup = Setup(
        experiment, run, distributed, parts, bare, build_optimizer(bare.parameters(), recipe), precision.scaler(),
        loss, precision, TrainState(), identity, MODELS[experiment.model.name].in_channels, time.perf_counter(),
        average=WeightAverage(bare, recipe.ema) if recipe.ema else None,
        saver=Saver(run, identity) if distributed.is_main else None,
        step_delay=Path(delay).absolute() if (delay := os.environ.get("HPC_TUMOR_STEP_DELAY")) else None,
    )  # fmt: skip
    for loader in (parts.train, parts.val):
        if loader is not None:
            loader.alive = lambda: setup.mark("data")
    resumed = setup.resume()
    if len(set(distributed.gather((setup.state.epoch, setup.state.step)))) > 1:
        raise TrainingError(
            f"the ranks do not see the same checkpoint in {run.checkpoints}: its file system is slow to agree."
            " Resume the run in a minute."
        )
    _speed_up(setup)
    places = distributed.gather(f"{socket.gethostname()}: {name_of(distributed)}")
    if distributed.is_main:
        run.remove_leftovers()
        write_split(run.split, parts.split, parts.store)
        keep_known_cases(run.known_cases, parts.store, parts.split)
        announce(setup, resumed)
        # `resume` compares the settings before it submits, without reading a checkpoint.
        more = {"ranks": places, "settings": identity["settings"]}
        atomic.write_json(run.provenance, {**(read_json(run.provenance) or {}), **more})
    return setup


def _check_validation(experiment: Experiment, parts: Parts) -> None:
    """Raises UsageError where something is to be chosen by a validation part that cannot tell."""
    if experiment.recipe.early_stopping and parts.val is None:
        raise UsageError("recipe.early_stopping needs a validation part, and this split has none: leave it out.")
    val = parts.val.part if parts.val is not None else None
    if experiment.scoring.clean and not (isinstance(val, SlicePart) and whole_cases(val).any()):
        raise UsageError(
            "scoring.clean chooses its thresholds on whole validation volumes, and this split has none:"
            " set it to false, or choose another split."
        )


def _precision_before(run: RunDir) -> str | None:
    """The number format in which this run has trained so far."""
    started = [event for event in read_events(run) if event.event == "started"]
    return started[-1].precision if started and run.last_checkpoint.exists() else None


def _speed_up(setup: Setup) -> None:
    """DDP around the network where there are ranks, and compiled code where that pays."""
    faster, why = compiled.choose(setup)
    if setup.distributed.world_size > 1:
        setup.model = _data_parallel(setup.bare, setup.distributed)
    if faster:
        setup.fast = compiled.compile_network(setup.model)
    setup.compiling = f"torch.compile: {'on' if faster else 'off'}, {why}"


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
    if distributed.device.type == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = not experiment.hardware.deterministic
        exact = experiment.hardware.precision == "float32"  # asked for, so not in TensorFloat-32
        torch.set_float32_matmul_precision("highest" if exact else "high")
        torch.backends.cudnn.allow_tf32 = not exact


def _data_parallel(bare: nn.Module, distributed: Distributed) -> nn.Module:
    devices = [distributed.device] if distributed.device.type == "cuda" else None
    # Running statistics are brought together when they are scored, not in each step. Torch has renamed the setting.
    names = inspect.signature(DistributedDataParallel.__init__).parameters
    settings = {"forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers": False}
    network = DistributedDataParallel(bare, device_ids=devices, gradient_as_bucket_view=True, **settings)  # type: ignore[arg-type]
    _settle_buckets(network, distributed.device)
    return network


def _settle_buckets(network: DistributedDataParallel, device: torch.device) -> None:
    """Make DDP choose its buckets before the first step, for bits that do not depend on starts. All ranks call this.

    DDP reduces its first backward pass in one bucket and regroups the gradients before its second forward pass, in the
    order in which they became ready. A ring all-reduce adds up the ranks' numbers in an order that depends on where in
    its bucket a gradient lies, and NCCL chooses its algorithm by the bucket's size. So with more than two ranks, the
    first step of each start rounded otherwise than the same step of a run that went on.

    A backward pass ahead of the first step settles this. It is not the network's but that of a sum of all weights: it
    draws no random numbers and touches no running statistics. Gradients become ready from the last parameter to the
    first, nearly as in the network, so buckets still travel while a backward pass goes on. The network's own order
    would depend on the first batch: an incomplete one is not computed by compiled code.
    """
    bare = network.module
    bare.forward = lambda _: torch.stack(
        [weights.sum() for weights in bare.parameters() if weights.requires_grad]
    ).sum()
    try:
        network(torch.zeros((), device=device)).backward()
    finally:
        del bare.forward  # uncovers that of the class
    network.zero_grad(set_to_none=True)


def _identity(experiment: Experiment, parts: Parts, precision: Precision) -> dict[str, Any]:
    return {
        "settings": settings_by_name(experiment),
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
