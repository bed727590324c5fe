"""Registry of the seven networks by their names on the command line.

Commands that never build a network read it, so torch is imported only to build one. Imported by cli/,
cluster/, experiments/, prediction/, results/, settings and training/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from hpc_tumor.errors import unknown
from hpc_tumor.models.layers import checks

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "Kernels", "ModelSpec", "Task", "build_model", "count_parameters"]

Task = Literal["classification", "segmentation"]
Kernels = Literal["convolutions", "bottlenecks", "attention"]

_CLASSIFICATION = MappingProxyType({"classes": 4, "in_channels": 3, "image_size": 128})
_SEGMENTATION = MappingProxyType({"labels": 3, "in_channels": 4, "image_size": 240, "filters": 32})


@dataclass(frozen=True)
class ModelSpec:
    """Description of a network, without building it."""

    name: str
    """Name on the command line."""
    network: str
    """Class in the module of `hpc_tumor.models` named after the network."""
    task: Task
    options: Mapping[str, int]
    """Options of `build`, with their published values."""
    smallest: int
    """Minimum pixels per side of an input."""
    step: int
    """Divisor of an input's sides."""
    kernels: Kernels
    """Layers that most of its time goes to; they decide which number format is the fastest on a CPU."""
    parameters: int
    """Trainable parameters of the published network."""
    pixel_bytes: int
    """Bytes that a float32 step keeps for the backward pass, per pixel of the published input."""
    attention: bool = False
    """`forward` accepts `return_attention`."""

    @property
    def in_channels(self) -> int:
        """Input channels of the published network: 3 (RGB) or 4 (FLAIR, T1, T1ce, T2)."""
        return self.options["in_channels"]

    @property
    def image_size(self) -> int:
        """Pixels per side of the published network's input."""
        return self.options["image_size"]

    def check_image_size(self, size: int) -> None:
        """Raise UsageError for an unsupported number of pixels per side, like `build`, but without torch."""
        if self.step == 1:
            checks.at_least(size, self.smallest, self.name)
        else:
            checks.multiple_of(size, self.step, self.smallest, self.name)

    def build(self, **options: int | None) -> nn.Module:
        """Build the network with fresh weights; None leaves an option at its published value.

        Raises UsageError for an unknown option or an unsupported value.
        """
        overrides = {key: value for key, value in options.items() if value is not None}
        for key in overrides:
            if key not in self.options:
                raise unknown(f"option of model {self.name}", key, self.options)
        module = import_module(f"{__name__}.{self.name.replace('-', '_')}")
        network: nn.Module = getattr(module, self.network)(**{**self.options, **overrides})
        return network


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("cnn", "CNN", "classification", _CLASSIFICATION, 69, 1, "convolutions", 3_001_156, 109),
        ModelSpec("alexnet", "AlexNet", "classification", _CLASSIFICATION, 69, 1, "convolutions", 4_589_316, 68),
        ModelSpec("vgg16", "VGG16", "classification", _CLASSIFICATION, 32, 1, "convolutions", 65_070_916, 1_464),
        ModelSpec(
            "vit", "ViT", "classification", _CLASSIFICATION, 16, 16, "attention", 21_458_436, 1_658, attention=True
        ),
        ModelSpec("unet", "UNet", "segmentation", _SEGMENTATION, 32, 16, "convolutions", 5_496_451, 1_592),
        ModelSpec(
            "improved-unet", "ImprovedUNet", "segmentation", _SEGMENTATION, 32, 16, "bottlenecks", 3_082_739, 6_369
        ),
        ModelSpec(
            "attention-unet",
            "AttentionUNet",
            "segmentation",
            _SEGMENTATION,
            32,
            16,
            "bottlenecks",
            3_258_263,
            6_495,
            attention=True,
        ),
    )
}


def build_model(name: str, **options: int | None) -> nn.Module:
    """Build the network called `name` in MODELS, with fresh weights.

    Classifiers map `(N, 3, 128, 128)` in [0, 1] to logits `(N, classes)`, segmentation networks `(N, 4, H, W)` to
    logits `(N, labels, H, W)`. Raises UsageError for an unknown name or option, or an unsupported value.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name].build(**options)


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
