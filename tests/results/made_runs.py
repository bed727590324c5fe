"""Synthetic run directories with the files of training."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_tumor.run_dir import RunDir
from hpc_tumor.scores import classification_scores

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
    """Write cases.csv with one row per patient from its Dice of NCR, ED, ET."""
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
    """Make a finished run; `dice` is NCR, ED, ET for each test patient, `values` replace those of result.json."""
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
    """Make a finished run; `correct` marks the test images that were classified correctly."""
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
    """Make a run without a result; `status` is its heartbeat."""
    run = RunDir(runs / name)
    run.path.mkdir(parents=True)
    run.config.write_text(json.dumps(config_of("unet" if task == "segmentation" else "cnn", task)))
    if status:
        run.status.write_text(json.dumps(status))
    return run


STRUCTURES = (*LABELS, "WT", "TC")
SEGMENTERS = {"unet": 0.78, "improved-unet": 0.82, "attention-unet": 0.825}  # with their mean Dice
CLASSIFIERS = {"cnn": 2.4, "alexnet": 1.6, "vgg16": 2.0, "vit": 1.4}  # with how far the right class stands out


def full_segmentation_run(
    runs: Path, name: str, model: str, seed: int = 0, patients: int = 74, fold: int | None = None, **values: Any
) -> RunDir:
    """Make a run with every score of every structure, also of surfaces; patients are equally hard for all networks."""
    hard = np.random.default_rng([1, fold or 0]).normal(0, 0.08, patients)
    noise = np.random.default_rng([2, fold or 0, seed, *model.encode()])
    rows: list[dict[str, Any]] = []
    for index in range(patients):
        row: dict[str, Any] = {"case": f"patient-{fold or 0}-{index:03}", "slices": 60 + index % 50}
        for structure in STRUCTURES:
            dice = float(np.clip(SEGMENTERS.get(model, 0.8) + hard[index] + noise.normal(0, 0.03), 0.01, 1))
            row |= {f"status_{structure}": "ok", f"dice_{structure}": dice, f"iou_{structure}": dice / (2 - dice)}
            row |= {f"precision_{structure}": dice, f"recall_{structure}": dice, f"fpr_{structure}": 0.001}
            row |= {f"fnr_{structure}": 1 - dice, f"accuracy_{structure}": 0.99}
            row |= {f"hd95_{structure}": 20 * (1.1 - dice), f"nsd_{structure}": min(1.0, dice + 0.05)}
        rows.append(row)
    test = {key: _mean([row[key] for row in rows]) for key in rows[0] if "_" in key and key[:6] != "status"}
    for score in ("dice", "iou", "precision", "recall", "fpr", "fnr", "accuracy", "hd95", "nsd"):
        test[score] = _mean([test[f"{score}_{label}"] for label in LABELS])
    data = {"store": "scratch/brats.zarr", "split": "by-patient", "fold": fold, "folds": 5}
    made = {
        "config": config_of(model, "segmentation", seed, data=data),
        "split": "by-patient", "fold": fold, "dataset": "BraTS 2020", "store": "scratch/brats.zarr",
        "surfaces": "surface-distance 0.1, tolerance 1 mm", "gflop_per_sample": 12.3, "skipped_steps": 0,
        "stopped_early": False,
    }  # fmt: skip
    return _full_run(runs, name, rows, test, "segmentation", model, seed, made | values)


def full_classification_run(
    runs: Path, name: str, model: str, seed: int = 0, images: int = 300, fold: int | None = None, **values: Any
) -> RunDir:
    """Make a run with the probabilities of every image, duplicate groups, patients and the controls."""
    shared, noise = np.random.default_rng([3, fold or 0]), np.random.default_rng([4, fold or 0, seed, *model.encode()])
    labels = shared.integers(0, len(CLASSES), images)
    logits = shared.normal(0, 1, (images, len(CLASSES))) + noise.normal(0, 0.5, (images, len(CLASSES)))
    logits[np.arange(images), labels] += CLASSIFIERS.get(model, 2.0)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    patients = patients_of(labels.tolist(), fold or 0)
    groups = [index // 2 if index < images // 5 else -1 for index in range(images)]
    units = units_of(groups, patients)
    rows = [
        {
            "case": f"image-{fold or 0}-{index:04}", "label": CLASSES[label], "prediction": CLASSES[row.argmax()],
            "correct": int(row.argmax() == label), "confidence": float(row.max()),
            "group": groups[index], "unit": 1000 * (fold or 0) + units[index], "patient": patients[index],
            "known": int(index % 7 == 0),
            "nearest": CLASSES[(label + (index % 9 == 0)) % 4],
            "file_facts": CLASSES[(label + (index % 3 == 0)) % 4], "intensities": CLASSES[(label + index % 2) % 4],
            **{f"p_{one}": float(chance) for one, chance in zip(CLASSES, row, strict=True)},
        }
        for index, (label, row) in enumerate(zip(labels.tolist(), chances, strict=True))
    ]  # fmt: skip
    test = classification_scores(chances, labels, CLASSES)
    data = {"store": "scratch/mri.zarr", "split": "deduplicated", "fold": fold, "folds": 5}
    made = {
        "config": config_of(model, "classification", seed, data=data),
        "fold": fold, "dataset": "Brain Tumor MRI", "store": "scratch/mri.zarr", "gflop_per_sample": 0.7,
        "class_counts": {"test": {one: int((labels == place).sum()) for place, one in enumerate(CLASSES)}},
    }  # fmt: skip
    return _full_run(runs, name, rows, test, "classification", model, seed, made | values)


def patients_of(labels: Sequence[int], fold: int) -> list[str]:
    """Name the patients: about three images of a class each, none of images without a tumour and of every tenth."""
    seen = [0] * len(CLASSES)
    names = []
    for index, label in enumerate(labels):
        seen[label] += 1
        unknown = CLASSES[label] == "notumor" or index % 10 == 9
        names.append("" if unknown else f"MR{fold}{label}{seen[label] // 3:03}")
    return names


def units_of(groups: Sequence[int], patients: Sequence[str]) -> list[int]:
    """Number the images so that those connected by a group or a patient share a number."""
    units = list(range(len(groups)))
    for names in (groups, patients):
        first: dict[Any, int] = {}
        for index, name in enumerate(names):
            if name not in ("", -1):
                old, new = units[index], units[first.setdefault(name, index)]
                units = [new if unit == old else unit for unit in units]
    return units


def without_patients(run: RunDir) -> None:
    """Make a run one of a version that did not record patients."""
    with run.cases.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    write_rows(run.cases, [{key: row[key] for key in row if key not in ("unit", "patient")} for row in rows])


def seven_models(runs: Path, seeds: Sequence[int] = (0, 1, 2), folds: Sequence[int | None] = (None,)) -> list[RunDir]:
    """Make runs of all networks, for every seed and fold."""
    made = []
    for seed in seeds:
        for fold in folds:
            end = f"{seed:03x}{fold or 0:03x}"
            for model in SEGMENTERS:
                made.append(full_segmentation_run(runs, f"20250101-120000-{model}-{end}", model, seed, fold=fold))
            for model in CLASSIFIERS:
                made.append(full_classification_run(runs, f"20250101-120000-{model}-{end}", model, seed, fold=fold))
    return made


def _full_run(
    runs: Path, name: str, rows: list[dict[str, Any]], test: dict[str, float], task: str, model: str, seed: int,
    values: dict[str, Any],
) -> RunDir:  # fmt: skip
    run = RunDir(runs / name)
    run.path.mkdir(parents=True)
    run.config.write_text(json.dumps(values.pop("config")))
    main = "dice" if task == "segmentation" else "accuracy"
    last = {"epoch": 20, "train": {main: 0.97}, "test": {**test, main: test[main] - 0.01}}
    best = {"epoch": 18, "test": test}
    run.result.write_text(
        json.dumps(_result(run, model, task, len(rows), **{"seed": seed, "best": best, "last": last} | values))
    )
    write_rows(run.cases, rows)
    return run


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def write_curves(run: RunDir, task: str, epochs: int = 6) -> None:
    """Write the metrics of a run that learns, with an incomplete last line."""
    score = "dice" if task == "segmentation" else "accuracy"
    lines = [
        json.dumps({"epoch": epoch, "part": part, "loss": 1 / epoch + gap, score: 1 - 1 / (epoch + 1) - gap}) + "\n"
        for epoch in range(1, epochs + 1)
        for part, gap in (("train", 0.0), ("val", 0.1))
    ]
    run.metrics.write_text("".join(lines) + '{"epoch": 7, "part": "tr')


def write_region_cases(run: RunDir, dice: Sequence[Sequence[float]]) -> None:
    """Write cases.csv with every score of regions and labels; the tumour of the last patient is missed."""
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
    """Write cases.csv with the probabilities of each class and the nearest image's, as older versions did."""
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
    """Write pictures.npz as training does."""
    run.figures.mkdir(exist_ok=True)
    said = {"format": "hpc-tumor pictures 1", "run": run.name, "image_size": [48, 48], "every": 1, **about}
    np.savez_compressed(run.pictures, about=np.array(json.dumps(said)), **arrays)  # type: ignore[arg-type]


def case_pictures(run: RunDir, case: str = "patient-0", side: int = 48) -> None:
    """Write the best, median and worst case, with noise as brains, and the gates of an Attention U-Net."""
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
    """Write samples, mistakes and filters of a classifier; for a ViT, attention instead of filters."""
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
