"""Run directories made by hand, as training leaves them behind."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_tumor.run_dir import RunDir

LABELS = ("NCR", "ED", "ET")
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")


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


def write_curves(run: RunDir, task: str, epochs: int = 6) -> None:
    """Metrics of a run that learns, with a torn line at the end."""
    score = "dice" if task == "segmentation" else "accuracy"
    lines = [
        json.dumps({"epoch": epoch, "part": part, "loss": 1 / epoch + gap, score: 1 - 1 / (epoch + 1) - gap}) + "\n"
        for epoch in range(1, epochs + 1)
        for part, gap in (("train", 0.0), ("val", 0.1))
    ]
    run.metrics.write_text("".join(lines) + '{"epoch": 7, "part": "tr')


def write_region_cases(run: RunDir, dice: Sequence[Sequence[float]]) -> None:
    """cases.csv with every score of regions and labels; the last patient is missed."""
    rows = dice_rows(dice)
    for place, row in enumerate(rows):
        for region in ("WT", "TC", *LABELS):
            lost = place == len(rows) - 1
            value = row.get(f"dice_{region}", 0.9 - 0.1 * place / len(rows))
            row |= {f"status_{region}": "missed" if lost else "ok", f"dice_{region}": value, f"iou_{region}": value / 2}
            row |= {f"{score}_{region}": value for score in ("precision", "recall", "nsd")}
            row[f"hd95_{region}"] = 373.13 if lost else 2.0 + place
    write_rows(run.cases, rows)


def write_image_cases(run: RunDir, correct: Sequence[bool], classes: Sequence[str] = CLASSES) -> None:
    """cases.csv with the probabilities of each class, and what the nearest image would have said."""
    rows = []
    for place, right in enumerate(correct):
        label = classes[place % len(classes)]
        said = label if right else classes[(place + 1) % len(classes)]
        sure = 0.6 + 0.39 * (place % 7) / 7
        row = {"case": f"image-{place}", "label": label, "prediction": said, "correct": int(right)}
        row |= {"confidence": sure, "group": "", "known": place % 2, "nearest": classes[0]}
        row |= {f"p_{name}": sure if name == said else (1 - sure) / (len(classes) - 1) for name in classes}
        rows.append(row)
    write_rows(run.cases, rows)


def write_pictures(run: RunDir, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """pictures.npz as training leaves it."""
    run.figures.mkdir(exist_ok=True)
    said = {"format": "hpc-tumor pictures 1", "run": run.name, "image_size": [48, 48], "every": 1, **about}
    np.savez_compressed(run.pictures, about=np.array(json.dumps(said)), **arrays)  # type: ignore[arg-type]


def case_pictures(run: RunDir, case: str = "patient-0", side: int = 48) -> None:
    """Best, median and worst case with noise for a brain, and the gates of an Attention U-Net."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    said: dict[str, Any] = {"cases": {}}
    for place, which in enumerate(("best", "median", "worst")):
        truth = np.zeros((side, side), np.uint8)
        truth[side // 4 : side // 2, side // 4 : side // 2] = 2
        truth[side // 3 : side // 2, side // 3 : side // 2] = 1 + 2 * (place % 2)
        images = rng.integers(1, 255, (4, side, side), np.uint8)
        images[:, :5] = 0
        prediction = np.roll(np.array([0, 1, 2, 4], np.uint8)[truth], place, 0)
        arrays |= {f"{which}_images": images, f"{which}_truth": truth, f"{which}_prediction": prediction}
        arrays[f"{which}_probabilities"] = np.stack([(prediction & bit > 0) * np.uint8(200) for bit in (1, 2, 4)])
        dice = {f"dice_{label}": 0.8 for label in LABELS}
        said["cases"][which] = {"case": case, "slice": 70 + place, "dice": 0.8, **dice}
    said["attention"] = {"case": case, "slice": 71}
    arrays |= {f"attention_{gate}": rng.integers(0, 255, (3 * 2**gate,) * 2, np.uint8) for gate in range(1, 5)}
    write_pictures(run, said, arrays)


def image_pictures(run: RunDir, classes: Sequence[str] = CLASSES, attention: bool = False, side: int = 48) -> None:
    """Samples, mistakes and filters of a classifier; of a ViT attention instead of filters."""
    rng = np.random.default_rng(1)
    arrays = {
        "sample_images": rng.integers(0, 255, (len(classes), side, side), np.uint8),
        "wrong_images": rng.integers(0, 255, (5, side, side), np.uint8),
    }
    if attention:
        arrays |= {
            f"{name}_attention": rng.integers(0, 255, (n, 3, 3), np.uint8)
            for name, n in (("sample", len(classes)), ("wrong", 5))
        }
    else:
        arrays["filters"] = rng.normal(size=(20, 3, 5, 5)).astype(np.float16)
    said = [
        {"case": f"image-{place}", "label": name, "prediction": name, "confidence": 0.9}
        for place, name in enumerate(classes)
    ]
    wrong = [
        {"case": f"image-{place}", "label": classes[0], "prediction": classes[1], "confidence": 0.8}
        for place in range(5)
    ]
    write_pictures(run, {"classes": list(classes), "samples": said, "wrong": wrong}, arrays)
