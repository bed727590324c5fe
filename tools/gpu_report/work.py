"""Experiments and running training states for the parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from benchmark_networks import now

from gpu_report.job import Job
from gpu_report.plan import GRAPH
from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.loader import ReadShare, epoch_order
from hpc_tumor.models import MODELS
from hpc_tumor.run_dir import RunDir
from hpc_tumor.settings import merge, resolve
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.graph import take_step
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import epoch_totals
from hpc_tumor.training.watch.guard import check_steps

NO_REQUESTS = (False, False)
# Of a trial, for the U-Nets and for the classifiers, which need larger images.
_QUICK: dict[str, dict[str, Any]] = {
    "segmentation": {"model": {"filters": 4}, "data": {"image_size": 32}, "recipe": {"batch_size": 4}},
    "classification": {"recipe": {"batch_size": 4}},
}


def experiment_of(network: str, job: Job, *layers: dict[str, Any]) -> Experiment:
    """Return the published experiment with the settings of `layers`, which are nested by section, on top."""
    task = MODELS[network].task
    given: dict[str, Any] = {
        "model": {"name": network}, "data": {"store": str(job.store(task)), "keep": kept(job)},
        "recipe": {"epochs": 1000}, "hardware": {"compile": "off", "graph": "off"},
    }  # fmt: skip
    given = merge(given, _QUICK[task] if job.quick else {}, *layers)
    experiment: Experiment = resolve(given, {}, "gpu_report", lambda setting: "--set")
    return experiment


def variants_of(device: torch.device) -> dict[str, dict[str, Any]]:
    """Return settings by name: where samples are kept, and that steps are one graph where a device replays them."""
    places = ("gpu", "host", "none") if device.type != "cpu" else ("host", "none")
    variants: dict[str, dict[str, Any]] = {f"keep={place}": {"data": {"keep": place}} for place in places}
    return {**variants, GRAPH: graph_settings(device)} if devices.has_graphs(device) else variants


def graph_settings(device: torch.device) -> dict[str, Any]:
    """Return the settings of steps that are one graph, where a device replays them; else none."""
    return {"hardware": {"graph": "on"}} if devices.has_graphs(device) else {}


def kept(job: Job) -> str:
    """Return where samples are kept after their first pass: as near as possible."""
    return "host" if job.device == "cpu" else "gpu"


class Running:
    """A run in training, fed as in an epoch, endlessly."""

    def __init__(self, experiment: Experiment, job: Job, distributed: Distributed | None = None) -> None:
        job.runs.mkdir(parents=True, exist_ok=True)
        distributed = distributed or Distributed(device=torch.device(job.device))
        self.device = distributed.device
        began = time.perf_counter()
        self.state = build_state(experiment, RunDir.create(Path(job.runs), experiment), distributed)
        self.built = now(self.device) - began  # seconds
        self.state.network.train()
        self.totals = epoch_totals(self.state)
        self.batch = 0  # samples of a step
        self._shares = self._forever()

    def step(self) -> None:
        """Take one step as `train_epoch` does."""
        share = next(self._shares)
        self.batch = share.total
        take_step(self.state, share, self.totals, NO_REQUESTS)
        check_steps(self.state, self.totals)

    def losses(self) -> torch.Tensor:
        """Return the losses of the samples of the last step. Waits for it."""
        check_steps(self.state, self.totals, everything=True)
        assert self.state.last_losses is not None
        return self.state.last_losses.float().cpu()

    def _forever(self) -> Iterator[ReadShare]:
        loader = self.state.parts.train
        loader.part.rows.fill(lambda: None)
        whole = max(1, len(loader.part) // loader.batch_size)  # without a last, smaller batch
        epoch = 0
        while True:
            yield from loader.shares(epoch_order(len(loader.part), self.state.experiment.seed, epoch), limit=whole)
            epoch += 1
