"""A run's network with the weights that it was scored with, ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_tumor.data.editions import DEFAULT_EDITION, EDITIONS, Edition
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.models import MODELS, build_model
from hpc_tumor.run_dir import Damage, RunDir, describe_lost_weights, read_json
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.training.checkpoints.files import DamagedWeights, load_weights
from hpc_tumor.training.recipe import choose_precision, prepare_backend
from hpc_tumor.training.scoring.cleaning import Cleaning
from hpc_tumor.training.scoring.evaluate import Forward

PRECISIONS = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "cuda")
_BATCH = {"cpu": 8, "cuda": 32}  # on CPUs, what fits the caches


@dataclass(frozen=True)
class Facts:
    """Description of a run's weights, as their file has it, and the size of slices in training.

    Attributes:
        filters: None for classifiers.
        classes: of a classifier; the labels NCR, ED, ET of a segmentation network.
        exclusive: whether it was taught to give at most one label to a pixel.
        image_size: (height, width) in pixels of the training images.
        resized: side to which slices and images were resized; None where slices kept their size.
        epoch: whose weights these are.
        weights_lost: damage to the weights of the best epoch, where the run was scored with those of its last.
        flips: whether the run was tested on the mean over flips.
        cleaning: the thresholds that its validation patients chose; None where they chose none.
        edition: whose numbers most segmentations had that it was trained on.
    """

    run: str
    model: str
    filters: int | None
    task: str
    classes: tuple[str, ...]
    exclusive: bool
    image_size: tuple[int, int]
    resized: int | None
    epoch: int
    flips: bool = False
    cleaning: Cleaning | None = None
    edition: Edition = DEFAULT_EDITION
    weights_lost: Damage | None = None

    @property
    def notes(self) -> list[str]:
        """Remarks on the weights, in sentences."""
        if self.weights_lost is None:
            return []
        return [
            f"{self.run} was {describe_lost_weights(self.weights_lost)}. Those of epoch {self.epoch}, its last, are"
            f" used here, too. To train it again: hpc-tumor rerun {self.run}"
        ]


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode on its device."""

    facts: Facts
    network: nn.Module
    device: torch.device
    forward: Forward
    flips: bool = False

    @property
    def batch_size(self) -> int:
        """Slices or images at once, where nobody asks for another number."""
        return _BATCH[self.device.type]

    def logits(self, images: Tensor) -> Tensor:
        """Logits in float32 of images as the training parts give them: `(N, 4, H, W)`, or grey `(N, 1, H, W)`."""
        logits: Tensor = self.forward(self.network, images, self.flips)
        return logits.float()


def load_trained(run: RunDir, device: str = "auto", precision: str = "auto", flips: bool | None = None) -> Trained:
    """The network of `run` with the weights of its scores; `flips`: its logits are means, None: as it was tested.

    Raises:
        UsageError: unknown or unavailable device or precision; the run has no weights, or no readable settings.
        DataError: the weights are damaged, or are not those of the network that they name.
    """
    chosen = _device(device)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    number_format = choose_precision(precision, chosen, called="--precision")
    facts, network = load_network(run)
    layout = torch.channels_last if run.experiment().hardware.channels_last else torch.contiguous_format
    network = network.to(chosen).to(memory_format=layout)
    if chosen.type == "cpu":
        torch.set_num_threads(available_cpus())
    prepare_backend(chosen, precision)
    forward = Forward(number_format, MODELS[facts.model].in_channels, layout, facts.task)
    return Trained(facts, network, chosen, forward, facts.flips if flips is None else flips)


def load_network(run: RunDir) -> tuple[Facts, nn.Module]:
    """The network of `run` with the weights of its scores, in evaluation mode on the CPU in float32, and what it is.

    Raises:
        UsageError: the run has no weights, or no readable settings.
        DataError: the weights are damaged or cannot be read, or are not those of the network that they name.
    """
    experiment = run.experiment()
    path = run.scored_weights()
    if not path.is_file():
        raise no_weights(run)
    try:
        weights, about = load_weights(path)
    except DamagedWeights as error:
        again = "train again: hpc-tumor rerun" if run.is_finished() else "go on with it: hpc-tumor resume"
        raise DataError(f"{error} Put a good copy in its place, or {again} {run.name}.") from error
    try:
        task, filters = about["task"], about["filters"] or None
        height, width = about["image_size"]
        resized = width if task == "classification" else experiment.data.image_size
        facts = Facts(
            run.name, about["model"], filters, task, tuple(about["classes"]), about["exclusive"], (height, width),
            resized, about["state"].best_epoch, experiment.scoring.flips, _cleaning(run),
            EDITIONS.get(str(about.get("edition")), DEFAULT_EDITION), run.weights_lost(),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} does not say what its weights are of: {error!r} is missing.") from error
    return facts, _network(facts, weights, path)


def _cleaning(run: RunDir) -> Cleaning | None:
    """The thresholds by which the predictions of this run were cleaned before they were scored."""
    chosen = (read_json(run.result) or {}).get("cleaning")
    try:
        return Cleaning(float(chosen["component_mm3"]), float(chosen["enhancing_mm3"])) if chosen else None
    except (KeyError, TypeError, ValueError):
        return None


def no_weights(run: RunDir) -> UsageError:
    """The error for a run that has no weights to predict with."""
    if run.is_finished():
        return UsageError(f"{run.best_weights} is gone: somebody removed it. Train again: hpc-tumor rerun.")
    return UsageError(
        f"{run.path} has no weights yet: it is unfinished, and the first are written after its first epoch."
        f" `hpc-tumor status` shows how it is doing."
    )


def _network(facts: Facts, weights: dict[str, Tensor], path: Path) -> nn.Module:
    size = max(facts.image_size)
    options: dict[str, Any] = {"image_size": size, "filters": facts.filters}
    if facts.task == "classification":
        options = {"image_size": size, "classes": len(facts.classes)}
    try:
        network = build_model(facts.model, **options)
        network.load_state_dict(weights)
    except (RuntimeError, UsageError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path} does not hold the weights of {facts.model} as this version has it: {first}") from error
    return network.eval()


def _device(asked: str) -> torch.device:
    if asked not in DEVICES:
        raise unknown("device", asked, DEVICES)
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UsageError("--device cuda: torch sees no GPU here. Leave it at auto, or ask `hpc-tumor doctor` why.")
    return torch.device("cuda" if there and asked != "cpu" else "cpu")
