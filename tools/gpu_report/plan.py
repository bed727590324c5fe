"""List the parts of the report in order of importance, and the items that each measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpc_tumor.models import MODELS

Item = dict[str, str]

# The variants of a training step: a new one is one line here. Settings of the experiment, by section.
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {"hardware": {"compile": "off"}},
    "graph": {"hardware": {"graph": "on"}},
    "compiled": {"hardware": {"compile": "on"}},
    "compiled graph": {"hardware": {"compile": "on", "graph": "on"}},
}
EACH = "a GPU each"  # of several ranks
GRAPH = "CUDA graph"  # of a step
# Most of the study's time first.
BY_COST = ("improved-unet", "attention-unet", "unet", "vit", "vgg16", "cnn", "alexnet")


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        module: name of the module whose `measure(item, job, tell)` runs in a child process.
        seconds: limit of each item.
        needs: parts without which it cannot run.
    """

    name: str
    title: str
    module: str
    items: tuple[Item, ...]
    seconds: float
    needs: tuple[str, ...] = ("machine", "data")


def first_parts() -> list[Part]:
    """Return the parts that the others need."""
    return [
        Part("machine", "The machine", "gpu_report.machine", ({"what": "device"},), 60, needs=()),
        Part("data", "Synthetic data", "gpu_report.data", ({"what": "stores"},), 180, needs=()),
    ]


def other_parts(
    names: list[str], formats: list[str], device: str, gpus: int, quick: bool, graphs: bool = False
) -> list[Part]:
    """Return all further parts: of these networks and number formats (the fastest first), on this kind of device.

    `graphs`: it replays steps as CUDA graphs.
    """
    names = sorted(names, key=BY_COST.index)
    first, *others = formats
    every = tuple({"network": name} for name in names)
    variants = [name for name in VARIANTS if name != "eager" and (graphs or "graph" not in VARIANTS[name]["hardware"])]
    compiled = names[-1:] if quick else names  # compiling takes up to a minute
    asserted: list[Item] = [{"planted": "faults"}, *every, {"memory": "runs out"}]
    if device == "cpu":  # no queue to wait for, and no limit of memory to reach
        asserted = asserted[1:-1]
    return [
        Part("assertions", "Training waits for nothing", "gpu_report.assertions", tuple(asserted), 40),
        Part("steps", "Training steps", "gpu_report.steps", _steps(names, [first], ["eager"]), 40),
        Part("numbers", "Losses and gradients against the CPU", "gpu_report.numbers", every, 60, ("machine",)),
        Part("resume", "Interrupted and not interrupted", "gpu_report.resume", ({"store": "uint16"}, *every), 40),
        Part("study", "Scoring and saving", "gpu_report.scoring", every, 40),
        Part("feeding", "Feeding", "gpu_report.feeding", _feeding(names, device), 30),
        Part("ranks", "Several ranks", "gpu_report.ranks", _ranks(device, gpus, graphs), 60),
        Part("compiling", "Compiling", "gpu_report.compiling", ({"networks": " ".join(compiled)},), 240),
        Part("variants", "Other variants of the step", "gpu_report.steps", _steps(compiled, [first], variants), 60),
        Part("graph", "A CUDA graph against eager", "gpu_report.graph", every, 40),
        Part("formats", "Other number formats", "gpu_report.steps", _steps(names, others, ["eager"]), 40),
    ]  # fmt: skip


def label(item: Item) -> str:
    """Return the name of an item within its part."""
    return " ".join(item.values())


def _steps(names: list[str], formats: list[str], variants: list[str]) -> tuple[Item, ...]:
    return tuple(
        {"network": name, "format": kind, "variant": variant}
        for kind in formats
        for variant in variants
        for name in names
    )


def _feeding(names: list[str], device: str) -> tuple[Item, ...]:
    tasks = sorted({MODELS[name].task for name in names}, reverse=True)
    kept = ("gpu", "host", "none") if device != "cpu" else ("host", "none")
    return tuple({"task": task, "keep": keep} for task in tasks for keep in kept)


def _ranks(device: str, gpus: int, graphs: bool) -> tuple[Item, ...]:
    if device == "cpu":
        return ({"ranks": "2", "on": "the CPU"},)
    each = {"ranks": str(gpus), "on": EACH}
    return (each, *[{**each, "steps": GRAPH}] * graphs, {"ranks": "2", "on": "one GPU"})
