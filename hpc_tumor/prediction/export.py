"""Export a run's network as an ONNX file, verified against torch."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpc_tumor import __version__
from hpc_tumor.data.raw.brain_mri import IMAGE_SIZE
from hpc_tumor.errors import HpcTumorError, UsageError
from hpc_tumor.models import MODELS
from hpc_tumor.prediction.trained import Facts, load_network
from hpc_tumor.run_dir import RunDir
from hpc_tumor.system import atomic
from hpc_tumor.system.atomic import folder_to_write
from hpc_tumor.vocabulary import MODALITIES

TOLERANCE = 1e-4  # of the logits, relative to the largest of them where that is above 1
OLDEST_TORCH = "2.8"  # older versions fix the batch size of some networks and cannot export others
_CHECKED = (1, 3)  # samples per batch, other than in tracing
INPUT, OUTPUT = "images", "logits"


@dataclass(frozen=True)
class Export:
    """Description of a written ONNX file.

    Attributes:
        shape: (channels, height, width) of its input, for any number of images.
        difference: largest difference of a logit from torch's; None if onnxruntime is not installed.
    """

    file: Path
    facts: Facts
    shape: tuple[int, int, int]
    bytes: int
    difference: float | None


def export_onnx(run: RunDir, file: Path, overwrite: bool = False) -> Export:
    """Write the network of `run`, with the weights that were scored, in float32 to the ONNX file `file`.

    Input `images` `(N, C, H, W)`, output `logits`: `(N, classes)` or `(N, 3, H, W)`. The file's metadata describes
    them and the preparation of images.

    Raises:
        UsageError: the run has no weights; `file` exists or cannot be written; onnx is not installed.
        HpcTumorError: onnxruntime and torch compute different logits. Nothing is written.
    """
    _check(file, overwrite)
    facts, network = load_network(run)
    height, width = facts.image_size
    shape = (MODELS[facts.model].in_channels, height, width)
    with folder_to_write(file.parent, "the network"):
        data = _as_onnx(network, shape, metadata(facts))
        difference = _difference(data, network, shape)
        atomic.write_bytes(file, data)
    return Export(file, facts, shape, len(data), difference)


def metadata(facts: Facts) -> dict[str, str]:
    """Return the facts needed to use the network: names and meaning of its outputs, preparation of its input."""
    about: dict[str, Any] = {
        "format": "hpc-tumor network", "version": __version__, "run": facts.run, "epoch": facts.epoch,
        "model": facts.model, "task": facts.task, "classes": list(facts.classes),
        "image_size": list(facts.image_size),
    }  # fmt: skip
    if facts.task == "classification":
        about["input"] = (
            f"grey images cropped to the head, resized to {IMAGE_SIZE} x {IMAGE_SIZE} pixels (bilinear, antialiased),"
            f" then to {facts.resized} x {facts.resized} (means over areas), from 0 to 1, the same in all channels"
        )
        about["output"] = "logits of the classes: their softmax gives probabilities"
    else:
        about["channels"] = list(MODALITIES)
        about["exclusive"] = facts.exclusive
        about["input"] = (
            "axial slices in the axes LPS, each modality z-scored by mean and standard deviation over the brain of its"
            " patient (voxels where any modality differs from its background), background 0"
        )
        if facts.resized is not None:
            about["input"] += f"; resized to {facts.resized} x {facts.resized} pixels (means over areas)"
        about["output"] = (
            "logits of the labels beside a background whose logit is 0: their softmax gives probabilities"
            if facts.exclusive
            else "a logit for each label by itself: its sigmoid gives the probability; predicted where above 0"
        )
    # Steps outside the network that its scores include, but the file does not.
    about["tested_over_flips"] = facts.flips
    if facts.weights_lost is not None:
        about["weights_lost"] = facts.weights_lost
    about["tested_cleaned"] = None if facts.cleaning is None else asdict(facts.cleaning)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


def _check(file: Path, overwrite: bool) -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UsageError(f"export needs {' and '.join(missing)}: pip install 'hpc-tumor[onnx]'")
    if torch.__version__ < OLDEST_TORCH:
        raise UsageError(
            f"export needs torch {OLDEST_TORCH} or newer, not {torch.__version__}: export the run where that is"
            " installed; only its run directory is needed."
        )
    if file.suffix != ".onnx":
        raise UsageError(f"--output {file} must end in .onnx.")
    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists: choose another file, or replace it with --overwrite.")


def _as_onnx(network: nn.Module, shape: tuple[int, int, int], about: dict[str, str]) -> bytes:
    """Convert the network to ONNX with a dynamic number of images."""
    import onnx

    example = torch.zeros(2, *shape)  # with one image, torch would fix the number
    loggers = logging.getLogger("torch.onnx"), logging.getLogger("onnxscript"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within torch and onnxscript
            program = torch.onnx.export(
                network, (example,), dynamo=True, verbose=False, optimize=True, input_names=[INPUT],
                output_names=[OUTPUT], dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            )  # fmt: skip
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, about)
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return data


@torch.inference_mode()
def _difference(data: bytes, network: nn.Module, shape: tuple[int, int, int]) -> float | None:
    """Return the largest difference between onnxruntime's and torch's logits; HpcTumorError beyond the tolerance."""
    if find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for count in _CHECKED:
        images = torch.randn(count, *shape, generator=generator)
        expected: Tensor = network(images)
        (logits,) = session.run([OUTPUT], {INPUT: images.numpy()})
        difference = float(np.abs(logits - expected.numpy()).max())
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= allowed:  # also for NaN
            raise HpcTumorError(
                f"the logits of onnxruntime differ from torch's by up to {difference:.2g}, more than {allowed:.2g}."
                " Nothing was written. Try other versions of torch, onnxscript and onnxruntime."
            )
        largest = max(largest, difference)
    return largest
