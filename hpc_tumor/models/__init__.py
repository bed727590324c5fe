"""Name the seven networks, as the command line takes them: settings in, a network of torch out.

This table is read by commands that never build a network, so torch is imported only where one is built.
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

__all__ = ["MODELS", "ModelSpec", "Task", "build_model", "count_parameters"]

Task = Literal["classification", "segmentation"]

_CLASSIFICATION = MappingProxyType({"classes": 4, "in_channels": 3, "image_size": 128})
_SEGMENTATION = MappingProxyType({"labels": 3, "in_channels": 4, "image_size": 240, "filters": 32})


@dataclass(frozen=True)
class ModelSpec:
    """A network that can be built, described without building it."""

    name: str
    """Name on the command line."""
    network: str
    """Class in the module of `hpc_tumor.models` that is named like the network."""
    task: Task
    options: Mapping[str, int]
    """Options that `build` takes, with their published values."""
    smallest: int
    """Fewest pixels per side of an input."""
    step: int
    """Divisor of an input's sides."""
    attention: bool = False
    """Whether `forward` takes `return_attention`."""

    @property
    def in_channels(self) -> int:
        """Input channels of the published network: 3 (RGB) or 4 (FLAIR, T1, T1ce, T2)."""
        return self.options["in_channels"]

    @property
    def image_size(self) -> int:
        """Pixels per side of the published network's input."""
        return self.options["image_size"]

    def check_image_size(self, size: int) -> None:
        """Raises UsageError for pixels per side that the network cannot have, as `build` would, without torch."""
        if self.step == 1:
            checks.at_least(size, self.smallest, self.name)
        else:
            checks.multiple_of(size, self.step, self.smallest, self.name)

    def build(self, **options: int | None) -> nn.Module:
        """The network with fresh weights; an option that is None counts as not given.

        Raises UsageError for an option this network does not take, or a value that it cannot have.
        """
        given = {key: value for key, value in options.items() if value is not None}
        for key in given:
            if key not in self.options:
                raise unknown(f"option of model {self.name}", key, self.options)
        module = import_module(f"{__name__}.{self.name.replace('-', '_')}")
        network: nn.Module = getattr(module, self.network)(**{**self.options, **given})
        return network


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        ModelSpec("cnn", "CNN", "classification", _CLASSIFICATION, 69, 1),
        ModelSpec("alexnet", "AlexNet", "classification", _CLASSIFICATION, 69, 1),
        ModelSpec("vgg16", "VGG16", "classification", _CLASSIFICATION, 32, 1),
        ModelSpec("vit", "ViT", "classification", _CLASSIFICATION, 16, 16, attention=True),
        ModelSpec("unet", "UNet", "segmentation", _SEGMENTATION, 32, 16),
        ModelSpec("improved-unet", "ImprovedUNet", "segmentation", _SEGMENTATION, 32, 16),
        ModelSpec("attention-unet", "AttentionUNet", "segmentation", _SEGMENTATION, 32, 16, attention=True),
    )
}


def build_model(name: str, **options: int | None) -> nn.Module:
    """The network called `name` in MODELS, with fresh weights.

    Classification takes `(N, 3, 128, 128)` in [0, 1] and gives logits `(N, classes)`; segmentation takes
    `(N, 4, H, W)` and gives logits `(N, labels, H, W)`. Raises UsageError for an unknown name or option and for a
    value that the network cannot have.
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    return MODELS[name].build(**options)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
