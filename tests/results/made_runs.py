"""Run directories made by hand, as training leaves them behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpc_tumor.run_dir import RunDir

LABELS = ("NCR", "ED", "ET")


def config_of(model: str, task: str, seed: int = 0, **sections: Any) -> dict[str, Any]:
    return {
        "model": {"name": model, "filters": None},
        "data": {"store": "scratch/a.zarr", "split": None},
        "recipe": {"epochs": 20, "batch_size": 32},
        "hardware": {"gpus": 4, "threads": None},
        "seed": seed,
        "task": task,
        "limit_batches": None,
        **sections,
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def dice_rows(dice: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """One row per patient, from its Dice of NCR, ED, ET."""
    rows = []
    for index, values in enumerate(dice):
        row: dict[str, Any] = {"case": f"patient-{index}", "slices": 77}
        for label, value in zip(LABELS, values, strict=True):
            row |= {f"status_{label}": "ok", f"dice_{label}": value}
        rows.append(row)
    return rows


def _result(run: RunDir, model: str, task: str, tested: int, **values: Any) -> dict[str, Any]:
    return {
        "run": run.name,
        "model": model,
        "task": task,
        "seed": 0,
        "split": "by-patient" if task == "segmentation" else "deduplicated",
        "split_leaks": False,
        "fold": None,
        "store": "scratch/a.zarr",
        "fingerprint": "0123456789abcdef",
        "parameters": 5_496_451,
        "gpus": 4,
        "nodes": 2,
        "device": "NVIDIA A100",
        "precision": "bfloat16",
        "epochs": 20,
        "batch_size": 32,
        "seconds": 754.0,
        "gpu_hours": 0.84,
        "restarts": 1,
        "samples_per_second": 410.0,
        "peak_memory_gb": 11.5,
        "cases": {"train": 300, "val": 32, "test": tested},
        "chosen_by": "val dice" if task == "segmentation" else "val accuracy",
        **values,
    }


def segmentation_run(
    runs: Path, name: str, dice: Sequence[Sequence[float]], model: str = "unet", seed: int = 0, **values: Any
) -> RunDir:
    """A finished run; `dice` holds Dice of NCR, ED, ET for each test patient, `values` replace those of result.json."""
    run = RunDir(runs / name)
    run.path.mkdir(parents=True)
    config = values.pop("config", config_of(model, "segmentation", seed))
    run.config.write_text(json.dumps(config))
    means = [sum(values) / len(values) for values in zip(*dice, strict=True)]
    test = {"dice": sum(means) / 3, **{f"dice_{label}": mean for label, mean in zip(LABELS, means, strict=True)}}
    best = {"epoch": 18, "test": {**test, "iou": 0.7, "precision": 0.8, "recall": 0.75, "dice_WT": 0.9}}
    last = {"epoch": 20, "train": {"dice": 0.95}, "test": {**test, "dice": test["dice"] - 0.01}}
    result = _result(run, model, "segmentation", len(dice), seed=seed, best=best, last=last, **values)
    run.result.write_text(json.dumps(result))
    write_rows(run.cases, dice_rows(dice))
    return run


def classification_run(
    runs: Path,
    name: str,
    correct: Sequence[bool],
    groups: Sequence[str] | None = None,
    model: str = "cnn",
    **values: Any,
) -> RunDir:
    """A finished run; `correct` says which test images were right."""
    run = RunDir(runs / name)
    run.path.mkdir(parents=True)
    run.config.write_text(json.dumps(values.pop("config", config_of(model, "classification"))))
    accuracy = sum(correct) / len(correct)
    test = {"loss": 0.1, "accuracy": accuracy, "confidence": 0.9, "precision_glioma": 0.8}
    last = {"epoch": 50, "train": {"accuracy": 0.999}, "test": {"accuracy": accuracy - 0.01}}
    best = {"epoch": 40, "test": test}
    result = _result(run, model, "classification", len(correct), best=best, last=last, **values)
    run.result.write_text(json.dumps(result))
    groups = groups or [""] * len(correct)
    write_rows(
        run.cases,
        [
            {"case": f"image-{index}", "correct": int(right), "confidence": 0.9, "group": group}
            for index, (right, group) in enumerate(zip(correct, groups, strict=True))
        ],
    )
    return run


def unfinished_run(runs: Path, name: str, task: str = "segmentation", **status: Any) -> RunDir:
    """A run without a result; `status` is its heartbeat."""
    run = RunDir(runs / name)
    run.path.mkdir(parents=True)
    run.config.write_text(json.dumps(config_of("unet" if task == "segmentation" else "cnn", task)))
    if status:
        run.status.write_text(json.dumps(status))
    return run
