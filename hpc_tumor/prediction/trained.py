"""Load a run's network with its scored weights for prediction."""

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
from hpc_tumor.system import compilers, devices
from hpc_tumor.system.resources import available_cpus
from hpc_tumor.training.checkpoints.files import DamagedWeights, load_weights
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.recipe import prepare_backend
from hpc_tumor.training.scoring.cleaning import Cleaning
from hpc_tumor.training.scoring.evaluate import Forward
from hpc_tumor.training.tuning.formats import choose_formats

PRECISIONS = ("auto", "bfloat16", "float16", "float32")
DEVICES = ("auto", "cpu", "gpu")
_BATCH_ON_CPU, _BATCH_ON_GPU = 8, 32  # on CPUs, limited by the caches


@dataclass(frozen=True)
class Facts:
    """Description of a run's weights from their file, and of its training and testing.

    Attributes:
        filters: None for classifiers.
        classes: of a classifier; the labels NCR, ED, ET of a segmentation network.
        exclusive: whether it was trained to predict at most one label per pixel.
        image_size: (height, width) in pixels of the training images.
        resized: side to which slices and images were resized; None if slices kept their size.
        epoch: epoch of the weights.
        weights_lost: damage to the weights of the best epoch, if the run was scored with those of its last.
        flips: whether the run was tested on the mean over flips.
        cleaning: thresholds chosen on the validation part, if any.
        edition: edition of most segmentations of the training data.
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
        """Notes on the weights."""
        if self.weights_lost is None:
            return []
        return [
            f"{self.run} was {describe_lost_weights(self.weights_lost)}. Predictions also use those of epoch"
            f" {self.epoch}, its last. To train it again: hpc-tumor rerun {self.run}"
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
        """Default number of slices or images at once."""
        return _BATCH_ON_GPU if devices.is_gpu(self.device) else _BATCH_ON_CPU

    def logits(self, images: Tensor) -> Tensor:
        """Return float32 logits of images as in training: `(N, 4, H, W)`, or grey `(N, 1, H, W)`."""
        logits: Tensor = self.forward(self.network, images, self.flips)
        return logits.float()


def load_trained(run: RunDir, device: str = "auto", precision: str = "auto", flips: bool | None = None) -> Trained:
    """Load the network of `run` with its scored weights; `flips`: average logits over flips, None: as tested.

    Raises:
        UsageError: unknown or unavailable device or precision; the run has no weights, or no readable settings.
        DataError: the weights are damaged, or do not fit the network that they name.
    """
    torch_device = _device(device)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    hardware = run.experiment().hardware.model_copy(update={"precision": precision})
    facts, network = load_network(run)
    kernels, alone = MODELS[facts.model].kernels, Distributed(device=torch_device)
    formats = choose_formats(hardware, kernels, alone, called="--precision")
    network = network.to(torch_device).to(memory_format=formats.memory_format)
    if devices.is_gpu(torch_device):
        compilers.use_lasting_caches(torch.__version__)  # for this package's own kernels
    else:
        torch.set_num_threads(available_cpus())
    prepare_backend(torch_device, precision)
    forward = Forward(formats.precision, MODELS[facts.model].in_channels, formats.memory_format, facts.task)
    return Trained(facts, network, torch_device, forward, facts.flips if flips is None else flips)


def load_network(run: RunDir) -> tuple[Facts, nn.Module]:
    """Load the network of `run` with its scored weights, in evaluation mode on the CPU in float32, and its facts.

    Raises:
        UsageError: the run has no weights, or no readable settings.
        DataError: the weights are damaged or unreadable, or do not fit the network that they name.
    """
    experiment = run.experiment()
    path = run.scored_weights()
    if not path.is_file():
        raise missing_weights_error(run)
    try:
        weights, about = load_weights(path)
    except DamagedWeights as error:
        command = "train again: hpc-tumor rerun" if run.is_finished() else "continue it: hpc-tumor resume"
        raise DataError(f"{error} Replace it with an intact copy, or {command} {run.name}.") from error
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
        raise DataError(f"{path} does not describe its weights: {error!r} is missing.") from error
    return facts, _network(facts, weights, path)


def _cleaning(run: RunDir) -> Cleaning | None:
    """Return the thresholds by which the run's predictions were cleaned before scoring."""
    thresholds = (read_json(run.result) or {}).get("cleaning")
    try:
        return Cleaning(float(thresholds["component_mm3"]), float(thresholds["enhancing_mm3"])) if thresholds else None
    except (KeyError, TypeError, ValueError):
        return None


def missing_weights_error(run: RunDir) -> UsageError:
    """Return the error for a run without weights to predict with."""
    if run.is_finished():
        return UsageError(f"{run.best_weights} is missing: it was removed. Train again: hpc-tumor rerun.")
    return UsageError(
        f"{run.path} has no weights yet: the first are written after its first epoch."
        " `hpc-tumor status` shows its progress."
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
        raise DataError(f"{path} does not fit {facts.model} of this version: {first}") from error
    return network.eval()


def _device(name: str) -> torch.device:
    asks_for_gpu = name == "gpu" or name in devices.GPU_TYPES  # torch's names mean any GPU as well
    if name not in DEVICES and not asks_for_gpu:
        raise unknown("device", name, DEVICES)
    gpu = None if name == "cpu" else devices.find_gpu()
    if gpu is None and asks_for_gpu:
        raise UsageError(f"--device {name}: torch finds no GPU. Use auto, or run `hpc-tumor doctor` for the reason.")
    if gpu is not None:
        try:
            devices.check_code(gpu)
        except UsageError as error:
            raise UsageError(f"{error} --device cpu predicts without it.") from None
    return gpu or devices.CPU
