"""Measure how fast samples come from the store to the device, normalised, as the training step takes them."""

from __future__ import annotations

import torch
from benchmark_networks import now

from gpu_report.job import Job, Tell
from gpu_report.plan import BY_COST
from gpu_report.work import experiment_of
from hpc_tumor.data.feed.loader import epoch_order
from hpc_tumor.models import MODELS
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.parts import make_parts

SECONDS = 2.0


def measure(item: dict[str, str], job: Job, tell: Tell) -> None:
    """Measure passes over the training part with samples kept in one place."""
    network = next(name for name in BY_COST if MODELS[name].task == item["task"])
    # All cases but the test part, since threads read ahead only within a pass.
    settings = {"data": {"keep": item["keep"], "val_fraction": 0.0}}
    experiment, device = experiment_of(network, job, settings), torch.device(job.device)
    loader = make_parts(experiment, Distributed(device=device)).train
    passes, seconds, first = 0, 0.0, 0.0
    while not passes or (seconds < SECONDS and not job.quick):
        began = now(device)
        for batch in loader.batches(epoch_order(len(loader.part), 0, passes)):
            last = batch.images
        taken = now(device) - began
        if not first:
            first = taken  # fills the memory where samples are kept
            continue
        passes, seconds = passes + 1, seconds + taken
    tell(images_per_second=passes * len(loader.part) / seconds, first_pass=len(loader.part) / first)
    spread = float(last.std())
    tell.check("images have a spread", 0.01 < spread < 100, value=spread)
