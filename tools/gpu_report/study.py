"""Put the time of the whole published study together from its parts, measured or estimated: seconds by network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpu_report.plan import BY_COST
from hpc_tumor.models import MODELS
from hpc_tumor.training.watch.heartbeat import SOONEST


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
    "steps, validation and test take as long a sample as on synthetic data; one checkpoint a minute",
    "the first epoch is fed at the rate of the store (in the page cache), the others from memory",
    "a run alone on its GPU; queueing, several seeds and the comparison of the runs not counted",
))  # fmt: skip
PIECES = ("training", "validation", "test", "checkpoints", "reading", "start")
Seconds = dict[str, float | None]


@dataclass(frozen=True)
class Rates:
    """Seconds of what a run of a network consists of, measured or estimated; None: unknown.

    Attributes:
        batch, step: samples of a training step, and its seconds.
        validated, tested: of a sample.
        stall: until training goes on after a checkpoint, which is written meanwhile.
        read: of a sample from the store.
        start: until the first step is done, that included.
    """

    batch: int
    step: float
    validated: float | None = None
    tested: float | None = None
    stall: float | None = None
    read: float | None = None
    start: float | None = None


def run_seconds(name: str, rates: Rates) -> Seconds:
    """Return the seconds of each of `PIECES` of one published run; None for unknown ones."""
    sizes, epochs = SIZES[MODELS[name].task], EPOCHS[name]
    epoch = -(-sizes.train // rates.batch) * rates.step
    seconds: Seconds = {"training": epochs * epoch, **dict.fromkeys(PIECES[1:])}
    if rates.validated is not None:
        seconds["validation"] = epochs * sizes.val * rates.validated
    if rates.tested is not None:
        seconds["test"] = sizes.test * rates.tested
    if rates.stall is not None:
        seconds["checkpoints"] = (1 + epochs * epoch // SOONEST) * rates.stall
    if rates.read is not None:
        seconds["reading"] = max(0.0, sizes.train * rates.read - epoch)
    seconds["start"] = rates.start
    return seconds


def total(seconds: Seconds) -> float:
    """Return the sum of the known pieces."""
    return sum(value for value in seconds.values() if value is not None)


def study(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by network of a report, the seconds of each piece, the variant, and the pieces that were not measured."""
    return {name: found for name in BY_COST if (found := _network(name, values)) is not None}


def _network(name: str, values: dict[str, Any]) -> dict[str, Any] | None:
    steps = _items(values, "steps", "variants", "formats")
    rows = [(label, row) for label, row in steps if _measured(label, row, name)]
    if not rows:
        return None
    label, step = min(rows, key=lambda row: row[1]["step_ms"] / row[1]["batch"])
    scoring = dict(_items(values, "study")).get(name, {})
    rate = dict(_items(values, "feeding")).get(f"{MODELS[name].task} none", {}).get("images_per_second")
    machine = dict(_items(values, "machine")).get("device", {})
    start = None
    if "start_seconds" in machine:
        start = machine["start_seconds"] + step["built_seconds"] + step["first_step_seconds"]
    rates = Rates(
        step["batch"], step["step_ms"] / 1e3, _per(scoring, "val"), _per(scoring, "test"),
        scoring.get("save_stall_seconds"), rate and 1 / rate, start,
    )  # fmt: skip
    seconds = run_seconds(name, rates)
    return {
        "seconds": seconds, "total": total(seconds), "variant": label.removeprefix(f"{name} "),
        "missing": [key for key, value in seconds.items() if value is None],
    }  # fmt: skip


def _per(scoring: dict[str, Any], part: str) -> float | None:
    """Return the seconds of a sample of a part that was scored."""
    found = f"{part}_seconds" in scoring
    return scoring[f"{part}_seconds"] / scoring[f"{part}_samples"] if found else None


def _items(values: dict[str, Any], *parts: str) -> list[tuple[str, dict[str, Any]]]:
    return [pair for part in parts for pair in values["parts"].get(part, {"items": {}})["items"].items()]


def _measured(label: str, row: dict[str, Any], name: str) -> bool:
    return label.startswith(f"{name} ") and "step_ms" in row and "first_step_seconds" in row
