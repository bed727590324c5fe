"""`cnn`: four convolutions with batch norm and Mish, then three dense layers. 3,001,156 parameters."""

from __future__ import annotations

from torch import Tensor, nn

from hpc_tumor.models.layers import checks
from hpc_tumor.models.layers.fast import Dropout, FirstConv2d, MishPool
from hpc_tumor.models.layers.fused import Linear

SMALLEST = 69  # pixels per side, for 1×1 after the last pooling


def pooled_side(image_size: int) -> int:
    """Return the pixels per side after the convolutions and poolings shared by `cnn` and `alexnet`: 128 → 2."""
    side = (image_size - 9) // 4 + 1
    side = side // 2 - 4
    return side // 2 // 2


class CNN(nn.Module):
    """Narrow AlexNet with batch norm (Ioffe 2015) and Mish (Misra 2019), from the course project.

    `(N, in_channels, image_size, image_size)` in [0, 1] → logits `(N, classes)`. The first dense layer adapts to
    `image_size`; UsageError below 69 pixels.
    """

    def __init__(self, classes: int = 4, in_channels: int = 3, image_size: int = 128) -> None:
        super().__init__()
        checks.positive(classes=classes, in_channels=in_channels)
        checks.at_least(image_size, SMALLEST, "cnn")
        self.in_channels, self.image_size = in_channels, image_size
        self.features = nn.Sequential(
            *_normed(FirstConv2d(in_channels, 96, 9, stride=4)),
            MishPool(),
            *_normed(nn.Conv2d(96, 256, 5)),
            MishPool(),
            *_normed(nn.Conv2d(256, 384, 3, padding=1)),
            nn.Mish(),
            *_normed(nn.Conv2d(384, 256, 3, padding=1)),
            MishPool(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            Linear(256 * pooled_side(image_size) ** 2, 512),
            nn.Mish(),
            Dropout(0.4),
            Linear(512, 128),
            nn.Mish(),
            Dropout(0.4),
            Linear(128, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        checks.input_shape(x.shape, self.in_channels, self.image_size, "cnn")
        logits: Tensor = self.classifier(self.features(x))
        return logits


def _normed(conv: nn.Conv2d) -> tuple[nn.Module, ...]:
    # The bias is redundant before batch norm, but included in the published number of parameters.
    return conv, nn.BatchNorm2d(conv.out_channels)
