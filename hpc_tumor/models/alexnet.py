"""`alexnet`: five convolutions with ReLU, then four dense layers. 4,589,316 parameters."""

from __future__ import annotations

from torch import Tensor, nn

from hpc_tumor.models.cnn import SMALLEST, pooled_side
from hpc_tumor.models.layers import checks
from hpc_tumor.models.layers.fast import FirstConv2d
from hpc_tumor.models.layers.fused import Convolutions, Linear
from hpc_tumor.models.layers.initialise import he_normal


class AlexNet(nn.Module):
    """AlexNet (Krizhevsky 2012) in the geometry of `cnn`: no batch norm, no dropout.

    `(N, in_channels, image_size, image_size)` in [0, 1] → logits `(N, classes)`. The first dense layer adapts to
    `image_size`; UsageError below 69 pixels.
    """

    def __init__(self, classes: int = 4, in_channels: int = 3, image_size: int = 128) -> None:
        super().__init__()
        checks.positive(classes=classes, in_channels=in_channels)
        checks.at_least(image_size, SMALLEST, "alexnet")
        self.in_channels, self.image_size = in_channels, image_size
        self.features = Convolutions(
            FirstConv2d(in_channels, 96, 9, stride=4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(96, 256, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            Linear(256 * pooled_side(image_size) ** 2, 512),
            nn.ReLU(inplace=True),
            Linear(512, 512),
            nn.ReLU(inplace=True),
            Linear(512, 128),
            nn.ReLU(inplace=True),
            Linear(128, classes),
        )
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        checks.input_shape(x.shape, self.in_channels, self.image_size, "alexnet")
        logits: Tensor = self.classifier(self.features(x))
        return logits
