"""Build the training state of a rank: data, network, optimizer and progress."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.samples import SlicePart
from hpc_tumor.data.splits.known_cases import save_known_cases
from hpc_tumor.data.splits.split_file import write_split
from hpc_tumor.data.splits.splits import image_notes
from hpc_tumor.errors import TrainingError, UsageError
from hpc_tumor.models import MODELS, build_model
from hpc_tumor.records import Event, read_events
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.settings import settings_by_name
from hpc_tumor.system import atomic, compilers, devices
from hpc_tumor.system.resources import gpu_mask
from hpc_tumor.training import graph
from hpc_tumor.training.average import WeightAverage
from hpc_tumor.training.batch_norm import synchronise_batch_norm
from hpc_tumor.training.checkpoints.resume import resume, steps_to_repeat
from hpc_tumor.training.checkpoints.writer import CheckpointWriter
from hpc_tumor.training.data_parallel import wrap_in_ddp
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.losses import EXCLUSIVE_LOSSES, build_loss
from hpc_tumor.training.objective import Objective
from hpc_tumor.training.parts import Parts, class_weights, make_parts
from hpc_tumor.training.recipe import DeviceNumber, Precision, build_optimizer, prepare_backend
from hpc_tumor.training.scoring.evaluate import Forward, ScoringSpec
from hpc_tumor.training.scoring.volumes import whole_cases
from hpc_tumor.training.state import TrainingState, mark
from hpc_tumor.training.step import micro_batch_size
from hpc_tumor.training.tuning import compiled
from hpc_tumor.training.tuning.formats import Formats, choose_formats, choose_threads
from hpc_tumor.vocabulary import counted


def build_state(
    experiment: Experiment, run: RunDir, distributed: Distributed, read_from: Path | None = None
) -> TrainingState:
    """Build one rank's state, and resume where the run left a checkpoint.

    Args:
        read_from: copy of the store to read instead.

    Raises:
        DataError: the store, the split or the checkpoint cannot be used.
        UsageError: the network or the precision does not fit the data or the device.
    """
    kept = _keep_compiled(experiment, distributed)  # before torch imports its compiler, as it does for determinism
    if experiment.hardware.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    prepare_backend(distributed.device, experiment.hardware.precision)
    devices.use_own_stream(distributed.device)  # before anything is on the GPU
    parts = make_parts(experiment, distributed, read_from)
    _check_validation(experiment, parts)
    experiment.check_classes(parts.classes or [])
    run.checkpoints.mkdir(exist_ok=True)  # may have been removed to start the run again
    kernels = MODELS[experiment.model.name].kernels
    before = distributed.gather(_first_start(run))[0]  # a file system may show other ranks an older state
    formats = choose_formats(experiment.hardware, kernels, distributed, before)
    threads = choose_threads(experiment.hardware, kernels, distributed, formats, before)
    state = _first_state(experiment, run, distributed, parts, formats)
    state.objective.searched_samples = 0 if experiment.hardware.deterministic else micro_batch_size(state)
    for loader in (parts.train, parts.val):
        if loader is not None:
            loader.alive = lambda: mark(state, "data")
    compiled_before = resume(state)
    if len(set(distributed.gather((state.progress.epoch, state.progress.step)))) > 1:
        raise TrainingError(
            f"the ranks see different checkpoints in {run.checkpoints}: its file system is slow to synchronise."
            " Resume the run in a minute."
        )
    more = [f"threads: {threads}" if threads else None, kept, graph.choose(state)]
    chosen = [formats.describe(), *filter(None, more), _speed_up(state, compiled_before)]
    ranks = distributed.gather(f"{socket.gethostname()}: {distributed.device_name}")
    if distributed.is_main:
        run.remove_leftovers()
        write_split(run.split, parts.split, parts.store)
        save_known_cases(run.known_cases, parts.store, parts.split)
        _announce(state, chosen, resumed=compiled_before is not None)
        # `resume` compares the settings before it submits, without reading a checkpoint.
        facts = {"ranks": ranks, "settings": state.identity["settings"]}
        atomic.write_json(run.provenance, {**(read_json(run.provenance) or {}), **facts})
    return state


def _first_state(
    experiment: Experiment, run: RunDir, distributed: Distributed, parts: Parts, formats: Formats
) -> TrainingState:
    """Return the state before the first step."""
    recipe, identity = experiment.recipe, _identity(experiment, parts, formats.precision)
    torch.manual_seed(experiment.seed)  # the same initial weights on every rank
    layout = formats.memory_format
    network = build_network(experiment, parts).to(distributed.device).to(memory_format=layout)
    if devices.is_gpu(distributed.device) and distributed.world_size > 1:
        synchronise_batch_norm(network)
    weights = class_weights(experiment, parts, distributed.device)
    spec = ScoringSpec(
        Forward(formats.precision, MODELS[experiment.model.name].in_channels, layout, experiment.task),
        build_loss(experiment.task, experiment.loss, weights=weights, focal_gamma=recipe.focal_gamma),
        classes=parts.classes, exclusive=experiment.loss in EXCLUSIVE_LOSSES, limit=experiment.limit_batches,
        flips=experiment.scoring.flips,
    )  # fmt: skip
    objective = Objective(network, spec)
    graphs = devices.has_graphs(distributed.device)
    rate = DeviceNumber(recipe.learning_rate, distributed.device) if graphs else None
    torch.manual_seed(distributed.seed_of_rank(experiment.seed))  # dropout differs between ranks
    return TrainingState(
        experiment, run, distributed, parts, identity, network, objective, wrapped=objective,
        parameters=[parameter for parameter in network.parameters() if parameter.requires_grad],
        optimizer=build_optimizer(network.parameters(), recipe, rate), scaler=formats.precision.scaler(), rate=rate,
        steps=parts.train.steps(experiment.limit_batches),
        average=_average(network, recipe.ema, graphs),
        writer=CheckpointWriter(run, identity) if distributed.is_main else None,
        step_delay=Path(delay).absolute() if (delay := os.environ.get("HPC_TUMOR_STEP_DELAY")) else None,
    )  # fmt: skip


def _average(network: nn.Module, decay: float | None, graphs: bool) -> WeightAverage | None:
    """Return the running mean of the weights if the recipe has one; with `graphs`, one that a CUDA graph can update."""
    if decay is None:
        return None
    return WeightAverage(network, decay, DeviceNumber(0.0, next(network.parameters()).device) if graphs else None)


def _check_validation(experiment: Experiment, parts: Parts) -> None:
    """Raise UsageError if early stopping or cleaning lacks the validation data it chooses by."""
    if experiment.recipe.early_stopping and parts.val is None:
        raise UsageError("recipe.early_stopping needs a validation part, but this split has none: remove the setting.")
    val = parts.val.part if parts.val is not None else None
    if experiment.scoring.clean and not (isinstance(val, SlicePart) and whole_cases(val).any()):
        raise UsageError(
            "scoring.clean chooses its thresholds on whole validation volumes, but this split has none:"
            " set it to false, or choose another split."
        )


def _first_start(run: RunDir) -> Event | None:
    """Return the event of the start that an interrupted run continues, with the formats in which it trains."""
    started = [event for event in read_events(run) if event.event == "started"]
    return started[-1] if started and run.last_checkpoint.exists() else None


def _keep_compiled(experiment: Experiment, distributed: Distributed) -> str | None:
    """Let ranks that may compile use caches that last; return a log line if there are none."""
    if not devices.is_gpu(distributed.device) and experiment.hardware.compile != "on":
        return None
    return compilers.use_lasting_caches(torch.__version__)


def _speed_up(state: TrainingState, compiled_before: bool | None) -> str:
    """Wrap the objective in DDP if there are several ranks and compile it if that pays; return the log line on it."""
    if state.distributed.world_size > 1:
        state.wrapped = wrap_in_ddp(state.objective, state.distributed)
    return f"torch.compile: {compiled.choose(state, compiled_before)}"


def build_network(experiment: Experiment, parts: Parts) -> nn.Module:
    """Build the experiment's network for the images of its data; raise UsageError if they do not fit."""
    # A network is built for one side length; an image of unequal sides must be valid with both.
    sides = sorted(set(parts.image_size))
    name, filters = experiment.model.name, experiment.model.filters
    return [build_model(name, image_size=side, filters=filters) for side in sides][-1]


def _identity(experiment: Experiment, parts: Parts, precision: Precision) -> dict[str, Any]:
    return {
        "settings": settings_by_name(experiment),
        "precision": precision.name,
        "network": experiment.model.name,
        "filters": experiment.model.filters,
        "store fingerprint": parts.store.fingerprint,
        "split": parts.split.kind,
        "images left out for their class": parts.split.excluded or None,  # in checkpoints of later versions only
        "split seed": parts.split.seed,
        "fold": experiment.data.fold,
        "seed": experiment.seed,
        "batch size": experiment.recipe.batch_size,
    }


def _announce(state: TrainingState, chosen: list[str], resumed: bool) -> None:
    """Log this start and what was `chosen` for it once, and record its event."""
    experiment, distributed, parts, progress = state.experiment, state.distributed, state.parts, state.progress
    forward, device = state.spec.forward, distributed.device_name
    threads = counted(torch.get_num_threads(), "thread")
    ranks = f"{counted(distributed.world_size, 'rank')} on {counted(distributed.nodes, 'node')}"
    lines = [
        f"{experiment.model.name}: {ranks}, {device}, {threads} each",
        *chosen[:-1],
        f"split {parts.split.kind}: {parts.describe()}",
        *(f"  {note}" for note in image_notes(parts.split)),
        *(f"{name} samples: {location}" for name, location in parts.locations.items()),
        chosen[-1],
    ]
    mask = gpu_mask(os.environ)
    if not devices.is_gpu(distributed.device) and mask and mask[1]:
        allocated = f"{mask[0]}={','.join(mask[1])}"
        lines.append(f"GPUs were allocated ({allocated}), but torch cannot use them: running on CPU")
    if distributed.world_size > 1:
        lines.append(f"global batch of {experiment.recipe.batch_size} split across the ranks")
    if (
        micro_batches := min(experiment.hardware.accumulate, -(-experiment.recipe.batch_size // distributed.world_size))
    ) > 1:
        norm = ", each normalised separately by batch norm" if _has_batch_norm(state.network) else ""
        lines.append(f"each rank's share of a batch in {micro_batches} micro-batches{norm}")
    if state.step_delay is not None:
        lines.append(f"each step waits for the seconds in {state.step_delay} while it exists (HPC_TUMOR_STEP_DELAY)")
    if parts.val is None:
        lines.append("no validation part: the last epoch counts as the best")
    if distributed.world_size > 1 and not devices.is_gpu(distributed.device) and _has_batch_norm(state.network):
        lines.append("batch norm: each rank normalises its own samples; running statistics are rank 0's")
    if resumed:
        repeated = steps_to_repeat(state.run, progress, state.steps)
        after = f", repeating at least {counted(repeated, 'step')} after its last checkpoint" if repeated else ""
        lines.append(f"resuming at epoch {progress.epoch + 1}, step {progress.step}{after}")
    print("\n".join(lines), file=sys.stderr, flush=True)
    state.run.keep_metrics(progress.epoch)
    state.run.add_event(
        "resumed" if resumed else "started", epoch=progress.epoch, step=progress.step, ranks=distributed.world_size,
        nodes=distributed.nodes, device=device, precision=forward.precision.name,
        channels_last=forward.memory_format == torch.channels_last, threads=torch.get_num_threads(),
        compiled=state.objective.compiled is not None,
    )  # fmt: skip


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
