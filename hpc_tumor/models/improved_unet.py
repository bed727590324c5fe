"""`improved-unet`: inverted bottlenecks instead of convolutions. 3,082,739 parameters with 32 first filters, 799,075
with 16."""

from __future__ import annotations

from torch import Tensor, nn

from hpc_tumor.models.layers.blocks import Encoder, check_input, check_settings, decoder_block, encoder_block
from hpc_tumor.models.layers.fused import upsample_add


class ImprovedUNet(nn.Module):
    """U-Net of depthwise 7×7 inverted bottlenecks (Xception, MobileNetV2, ConvNeXt); skips are added.

    `(N, in_channels, H, W)` → logits `(N, labels, H, W)`. H, W and `image_size` must be multiples of 16, at least 32,
    or UsageError is raised.
    """

    join = staticmethod(upsample_add)  # of the decoder with a skip

    def __init__(self, labels: int = 3, in_channels: int = 4, image_size: int = 240, filters: int = 32) -> None:
        super().__init__()
        check_settings(labels, in_channels, filters, image_size, "improved-unet")
        self.in_channels = in_channels
        f = filters
        self.encoder = Encoder(in_channels, f, encoder_block)
        self.bottleneck = encoder_block(8 * f, 8 * f)
        self.decoder = nn.ModuleList(
            decoder_block(inner, out) for inner, out in ((8 * f, 4 * f), (4 * f, 2 * f), (2 * f, f), (f, f))
        )
        self.head = nn.Conv2d(f, labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x.shape, self.in_channels, "improved-unet")
        x, skips = self.encoder(x)
        x = self.bottleneck(x)
        for block, skip in zip(self.decoder, skips, strict=True):
            x = block(self.join(x, skip))
        logits: Tensor = self.head(x)
        return logits
