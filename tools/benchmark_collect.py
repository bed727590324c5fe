#!/usr/bin/env python3
"""Measure how long `hpc-tumor collect` takes for many runs, on the terminal and into files.

    python tools/benchmark_collect.py --runs 1000 --json collect.json

Makes run directories as training leaves them after 50 epochs: alternately a segmentation of 74 patients with every
score of every structure, and a classification of 1,311 images with their probabilities; also incomplete runs and
folders that are not runs. `--profile FILE` writes a cProfile of collecting and writing.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_machine import describe_machine

from hpc_tumor.results.write.collect import collect_runs
from hpc_tumor.results.write.files import write_results
from hpc_tumor.run_dir import find_runs
from hpc_tumor.scores import classification_scores

EPOCHS, PATIENTS, IMAGES, SEEDS = 50, 74, 1311, 5
LABELS = ("NCR", "ED", "ET")
STRUCTURES = (*LABELS, "WT", "TC")
OF_STRUCTURES = ("dice", "iou", "precision", "recall", "fpr", "fnr", "accuracy", "hd95", "nsd")
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")
SEGMENTERS, CLASSIFIERS = ("unet", "improved-unet", "attention-unet"), ("cnn", "alexnet", "vgg16", "vit")


def segmentation(generator: np.random.Generator) -> tuple[str, dict[str, float]]:
    """Return cases.csv and the scores of a segmentation."""
    names = [f"{score}_{part}" for part in STRUCTURES for score in OF_STRUCTURES]
    values = generator.beta(8, 2, (PATIENTS, len(names)))
    head = ["case", "slices", *(f"status_{part}" for part in STRUCTURES), *names]
    status = ["ok"] * len(STRUCTURES)
    lines = [[f"BraTS20_Training_{row:03}", "77", *status, *map(repr, values[row].tolist())] for row in range(PATIENTS)]
    means = dict(zip(names, values.mean(0).tolist(), strict=True))
    whole = {score: float(np.mean([means[f"{score}_{label}"] for label in LABELS])) for score in OF_STRUCTURES}
    return "".join(",".join(line) + "\n" for line in [head, *lines]), whole | means


def classification(generator: np.random.Generator) -> tuple[str, dict[str, float]]:
    """Return cases.csv and the scores of a classification."""
    labels = np.arange(IMAGES) % len(CLASSES)
    logits = generator.normal(0, 1, (IMAGES, len(CLASSES))) + 3 * np.eye(len(CLASSES))[labels]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    head = ["case", "label", "prediction", "correct", "confidence", "group", "known", "nearest"]
    lines = [[*head, *(f"p_{name}" for name in CLASSES)]]
    for row, (label, said) in enumerate(zip(labels.tolist(), chances.argmax(1).tolist(), strict=True)):
        copies = str(row // 2) if row < 400 else "-1"
        lines.append([
            f"Testing/{CLASSES[label]}/Te-{row:04}.jpg", CLASSES[label], CLASSES[said], str(int(said == label)),
            repr(float(chances[row].max())), copies, str(int(row % 6 == 0)), CLASSES[label],
            *map(repr, chances[row].tolist()),
        ])  # fmt: skip
    return "".join(",".join(line) + "\n" for line in lines), classification_scores(chances, labels, CLASSES)


def make_runs(folder: Path, count: int) -> None:
    """Write run directories; after every 50, one incomplete run and one folder that is not a run."""
    generator = np.random.default_rng(0)
    written = {"segmentation": [segmentation(generator) for _ in range(20)]}
    written["classification"] = [classification(generator) for _ in range(20)]
    for number in range(count):
        task = ("segmentation", "classification")[number % 2]
        models = SEGMENTERS if task == "segmentation" else CLASSIFIERS
        turn, seed = divmod(number // 2, SEEDS)
        model, rate = models[turn % len(models)], 1e-4 * (1 + turn // len(models))
        run = folder / f"20260101-{number // 3600:02}{number // 60 % 60:02}{number % 60:02}-{model}-{number:06x}"
        cases, scores = written[task][number // 2 % 20]
        make_run(run, task, model, seed, rate, cases, scores)
        if number % 50 == 0:
            (run / "result.json").unlink()
        if number % 50 == 25:
            (run / "result.json").write_text('{"run": "half wri')
            (run / "metrics.jsonl").write_text('{"epoch": 1, "par')
        if number % 50 == 49:
            other = folder / f"20260101-999999-other-{number:06x}"
            other.mkdir()
            (other / "notes.txt").write_text("something else")


def make_run(run: Path, task: str, model: str, seed: int, rate: float, cases: str, scores: dict[str, float]) -> None:
    """Write one finished run."""
    run.mkdir(parents=True)
    main = "dice" if task == "segmentation" else "accuracy"
    data = {"store": f"{task}.zarr", "split": None, "fold": None, "folds": 5}
    recipe = {"epochs": EPOCHS, "batch_size": 32, "learning_rate": rate, "loss": None}
    config = {"model": {"name": model, "filters": None}, "data": data, "recipe": recipe, "seed": seed, "task": task}
    result: dict[str, Any] = {
        "run": run.name, "model": model, "task": task, "dataset": "made up", "seed": seed, "split": "by-patient",
        "split_leaks": False, "fold": None, "store": f"{task}.zarr", "fingerprint": "0123456789abcdef",
        "parameters": 5_496_451, "gflop_per_sample": 12.0, "gpus": 4, "nodes": 1, "device": "GPU", "epochs": EPOCHS,
        "precision": "bfloat16", "batch_size": 32, "seconds": 754.0, "gpu_hours": 0.84, "restarts": 0,
        "samples_per_second": 410.0, "peak_memory_gb": 11.5, "chosen_by": f"val {main}", "stopped_early": False,
        "cases": {"train": 300, "val": 32, "test": PATIENTS if main == "dice" else IMAGES},
        "best": {"epoch": 40, "test": scores}, "last": {"epoch": EPOCHS, "train": {main: 0.9}, "test": scores},
    }  # fmt: skip
    lines = [{"epoch": epoch, "part": part, **scores} for epoch in range(1, EPOCHS + 1) for part in ("train", "val")]
    events = [{"time": 2.0 + epoch, "event": "checkpoint", "epoch": epoch, "step": 0} for epoch in range(EPOCHS)]
    (run / "config.json").write_text(json.dumps(config))
    (run / "status.json").write_text(json.dumps({"time": 60.0, "state": "finished", "epoch": EPOCHS}))
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "cases.csv").write_text(cases)
    (run / "result.json").write_text(json.dumps(result))


def seconds_of(*command: str) -> tuple[float, float]:
    """Return wall time and CPU time of a command that must succeed; they differ if other work shares the machine."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - start, used


def measure(folder: Path, profile: Path | None) -> dict[str, float]:
    """Return seconds of the command without and with files, and of collecting and writing within one process."""
    runs = folder / "runs"
    output = str(folder / "out")
    found: dict[str, float] = {}
    found["collect"], found["CPU of it"] = min(seconds_of("hpc_tumor", "collect", str(runs)) for _ in range(2))
    with_files = seconds_of("hpc_tumor", "collect", str(runs), "--output", output)
    found["collect --output"], found["CPU of that"] = with_files
    with cProfile.Profile() if profile else contextlib.nullcontext() as kept:
        start = time.perf_counter()
        comparison = collect_runs(find_runs(runs))
        found["collect_runs"] = time.perf_counter() - start
        write_results(comparison, folder / "again", runs)
        found["write_results"] = time.perf_counter() - start - found["collect_runs"]
    if profile and kept:
        kept.dump_stats(profile)
    found["entries"] = sum(len(group.entries) for group in comparison.groups)
    found["unfinished"], found["skipped"] = len(comparison.unfinished), len(comparison.skipped)
    found["MB of files"] = sum(path.stat().st_size for path in Path(output).rglob("*")) / 1e6
    return {name: round(value, 2) for name, value in found.items()}


def unit(name: str) -> str:
    """Return the unit of a figure."""
    return "" if name in ("entries", "unfinished", "skipped", "MB of files") else " s"


def main() -> None:
    """Make the runs, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="number of runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file to write the results to")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="file to write a cProfile to")
    arguments = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        make_runs(Path(folder) / "runs", arguments.runs)
        found = measure(Path(folder), arguments.profile)
    for name, value in found.items():
        print(f"{name:<18}{value:>10,.2f}{unit(name)}")
    if arguments.json:
        record = {"machine": describe_machine(), "runs": arguments.runs, "epochs": EPOCHS, **found}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
