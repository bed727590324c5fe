"""`vgg16`: thirteen 3×3 convolutions in five groups, then three dense layers. 65,070,916 parameters."""

from __future__ import annotations

from torch import Tensor, nn

from hpc_tumor.models.layers import checks
from hpc_tumor.models.layers.fast import Dropout, FirstConv2d
from hpc_tumor.models.layers.fused import Convolutions, Linear
from hpc_tumor.models.layers.initialise import he_normal

GROUPS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
SMALLEST = 2 ** len(GROUPS)  # pixels per side, for 1×1 after the last pooling


class VGG16(nn.Module):
    """Configuration D of Simonyan & Zisserman (2015), with dense layers for 128×128 images.

    `(N, in_channels, image_size, image_size)` in [0, 1] → logits `(N, classes)`. The first dense layer adapts to
    `image_size`; UsageError below 32 pixels.
    """

    def __init__(self, classes: int = 4, in_channels: int = 3, image_size: int = 128) -> None:
        super().__init__()
        checks.positive(classes=classes, in_channels=in_channels)
        checks.at_least(image_size, SMALLEST, "vgg16")
        self.in_channels, self.image_size = in_channels, image_size
        layers: list[nn.Module] = []
        width = in_channels
        for out, convolutions in GROUPS:
            for _ in range(convolutions):
                kind = nn.Conv2d if layers else FirstConv2d
                layers += [kind(width, out, 3, padding=1), nn.ReLU(inplace=True)]
                width = out
            layers.append(nn.MaxPool2d(2))
        self.features = Convolutions(*layers)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            Linear(width * (image_size // SMALLEST) ** 2, 4096),
            nn.ReLU(inplace=True),
            Dropout(0.5),
            Linear(4096, 4096),
            nn.ReLU(inplace=True),
            Dropout(0.5),
            Linear(4096, classes),
        )
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        checks.input_shape(x.shape, self.in_channels, self.image_size, "vgg16")
        logits: Tensor = self.classifier(self.features(x))
        return logits
