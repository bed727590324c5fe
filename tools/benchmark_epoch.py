"""Epoch measurements of benchmark_training.py: the plain loop over H5 files, and `train_epoch` on the store."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from benchmark_feeding import write_h5
from benchmark_loop import experiment_for
from benchmark_networks import PlainTraining, plain_training
from benchmark_workers import Answer, Job
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hpc_tumor.config import Experiment
from hpc_tumor.data.feed.loader import epoch_order
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train_epoch
from hpc_tumor.training.parts import make_parts
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.watch.heartbeat import Heartbeat

CPU = torch.device("cpu")
WORKERS = 2  # of torch's DataLoader


def write_slices(job: Job) -> int:
    """Write the slices of a job's epoch as H5 files; return the batch size."""
    experiment = _experiment(job)
    parts = make_parts(experiment, Distributed())
    chosen = epoch_order(len(parts.train.part), experiment.seed, 0)[: job["slices"]]
    batch = experiment.recipe.batch_size
    if len(chosen) < job["slices"] or len(chosen) < batch:
        raise SystemExit(f"{len(chosen)} slices to train on, --slices {job['slices']}, batches of {batch}: too few")
    refs = parts.train.part.slices[chosen[: len(chosen) // batch * batch]]  # type: ignore[attr-defined]
    shutil.rmtree(job["h5"], ignore_errors=True)
    write_h5(Path(job["h5"]), parts.store, refs, {"compression": "gzip"})
    return batch


def epoch_worker(job: Job) -> Answer:
    """Return the seconds of an epoch, in the plain loop or in ours."""
    return _plain_worker(job) if job["kind"] == "plain" else _own_worker(job)


class SliceFiles(Dataset[tuple[Tensor, Tensor]]):
    """One H5 file per slice, read on access; each modality scaled to [0, 1]."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with h5py.File(self.files[index], "r") as file:
            image, mask = file["image"][()], file["mask"][()]
        image = image - image.min((0, 1))
        image = image / (image.max((0, 1)) + 1e-4)
        tensors = [torch.tensor(np.transpose(values, (2, 0, 1)), dtype=torch.float32) for values in (image, mask)]
        return tensors[0], tensors[1]


def _plain_worker(job: Job) -> Answer:
    experiment = _experiment(job)
    training = plain_training(experiment, CPU)
    files = SliceFiles(Path(job["h5"]))
    batches = DataLoader(files, experiment.recipe.batch_size, shuffle=True, num_workers=WORKERS)

    def answer(question: str) -> float:
        began = time.perf_counter()
        total: dict[str, float] = {}
        for images, masks in batches:
            for name, value in _plain_step(training, images, masks).items():
                total[name] = total.get(name, 0.0) + value / len(batches)
            if question == "warm up":
                break
        return time.perf_counter() - began

    return answer


def _plain_step(training: PlainTraining, images: Tensor, masks: Tensor) -> dict[str, float]:
    """Take one step and fetch each score of its batch separately."""
    logits, loss = training.step(images, masks)
    scores = {"loss": loss.item()}
    predicted = (torch.sigmoid(logits) > 0.5).float()
    for label in range(masks.shape[1]):
        guess, truth = predicted[:, label], masks[:, label]
        right, guessed, there = (guess * truth).sum(), guess.sum(), truth.sum()
        scores[f"dice {label}"] = (2 * right / (guessed + there + 1e-6)).item()
        scores[f"iou {label}"] = (right / (guessed + there - right + 1e-6)).item()
        scores[f"precision {label}"] = (right / (guessed + 1e-6)).item()
        scores[f"recall {label}"] = (right / (there + 1e-6)).item()
    return scores


def _own_worker(job: Job) -> Answer:
    experiment = _experiment(job)
    state = build_state(experiment, RunDir.create(Path(job["runs"]), experiment), Distributed())
    whole = state.experiment

    def answer(question: str) -> float:
        if question == "warm up":
            state.experiment = whole.model_copy(update={"limit_batches": 1})
        state.steps, state.progress.step = state.parts.train.steps(state.experiment.limit_batches), 0
        began = time.perf_counter()
        train_epoch(state, Heartbeat(state))
        state.experiment = whole
        return time.perf_counter() - began

    return answer


def _experiment(job: Job, **settings: Any) -> Experiment:
    experiment = experiment_for(job, **settings)
    batches = job["slices"] // experiment.recipe.batch_size
    return experiment.model_copy(update={"limit_batches": max(1, batches)})
