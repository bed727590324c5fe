"""Put the time of the whole published study together from the measured parts. In: a report. Out: seconds by network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu_report.plan import BY_COST
from hpc_tumor.models import MODELS


@dataclass(frozen=True)
class Sizes:
    """Samples of a part of the study, and cases of its test part."""

    train: int
    val: int
    test: int
    test_cases: int


# BraTS 2020 split by patient: 299, 33 and 37 patients, 77 slices of each to train on and 155 to score. Brain Tumor MRI
# without duplicates.
SIZES = {
    "segmentation": Sizes(299 * 77, 33 * 155, 37 * 155, 37),
    "classification": Sizes(5_000, 560, 1_311, 1_311),
}
EPOCHS = {name: 20 if spec.task == "segmentation" else 50 for name, spec in MODELS.items()}
ASSUMED = "; ".join((
    "the public datasets, 23,023 slices (U-Nets, 20 epochs) or 5,000 images (50 epochs) to train on",
    "steps, validation and test take as long a sample as on synthetic data; each epoch writes one checkpoint",
    "the first epoch is fed at the rate of the store (in the page cache), the others from memory",
    "a run alone on its GPU; queueing, several seeds and the comparison of the runs not counted",
))  # fmt: skip
PIECES = ("training", "validation", "test", "checkpoints", "reading", "start")


def study(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by network, the seconds of each piece, the variant, and the pieces that were not measured."""
    return {name: found for name in BY_COST if (found := _network(name, values)) is not None}


def _network(name: str, values: dict[str, Any]) -> dict[str, Any] | None:
    steps = _items(values, "steps", "variants", "formats")
    rows = [(label, row) for label, row in steps if _measured(label, row, name)]
    if not rows:
        return None
    label, step = min(rows, key=lambda row: row[1]["step_ms"] / row[1]["batch"])
    task = MODELS[name].task
    sizes, epochs = SIZES[task], EPOCHS[name]
    training = epochs * -(-sizes.train // step["batch"]) * step["step_ms"] / 1e3
    scoring = dict(_items(values, "study")).get(name, {})
    seconds: dict[str, float | None] = {"training": training, **dict.fromkeys(PIECES[1:])}
    if "val_seconds" in scoring:
        seconds["validation"] = epochs * sizes.val * scoring["val_seconds"] / scoring["val_samples"]
    if "test_seconds" in scoring:
        seconds["test"] = sizes.test * scoring["test_seconds"] / scoring["test_samples"]
    if "save_seconds" in scoring:
        stall, rest = scoring["save_stall_seconds"], scoring["save_seconds"] - training / epochs
        seconds["checkpoints"] = epochs * max(stall, rest)  # the next one waits for the one before
    rate = dict(_items(values, "feeding")).get(f"{task} none", {}).get("images_per_second")
    if rate is not None:
        seconds["reading"] = max(0.0, sizes.train / rate - training / epochs)
    machine = dict(_items(values, "machine")).get("device", {})
    if "start_seconds" in machine:
        seconds["start"] = machine["start_seconds"] + step["built_seconds"] + step["first_step_seconds"]
    return {
        "seconds": seconds, "total": sum(value for value in seconds.values() if value is not None),
        "variant": label.removeprefix(f"{name} "), "missing": [key for key, value in seconds.items() if value is None],
    }  # fmt: skip


def _items(values: dict[str, Any], *parts: str) -> list[tuple[str, dict[str, Any]]]:
    return [pair for part in parts for pair in values["parts"].get(part, {"items": {}})["items"].items()]


def _measured(label: str, row: dict[str, Any], name: str) -> bool:
    return label.startswith(f"{name} ") and "step_ms" in row and "first_step_seconds" in row
