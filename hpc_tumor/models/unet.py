"""`unet`: the plain U-Net. 5,496,451 parameters with 32 first filters, 1,375,043 with 16."""

from __future__ import annotations

from torch import Tensor, nn

from hpc_tumor.models.layers.blocks import Encoder, check_input, check_settings, plain_block
from hpc_tumor.models.layers.fused import upsample_cat
from hpc_tumor.models.layers.initialise import he_normal


class UNet(nn.Module):
    """U-Net (Ronneberger 2015) with padded convolutions and bilinear upsampling; skips are concatenated.

    `(N, in_channels, H, W)` → logits `(N, labels, H, W)`. H, W and `image_size` must be multiples of 16, at least 32,
    or UsageError is raised.
    """

    join = staticmethod(upsample_cat)  # of the decoder with a skip

    def __init__(self, labels: int = 3, in_channels: int = 4, image_size: int = 240, filters: int = 32) -> None:
        super().__init__()
        check_settings(labels, in_channels, filters, image_size, "unet")
        self.in_channels = in_channels
        f = filters
        self.encoder = Encoder(in_channels, f, lambda inner, out: plain_block(inner, out, out))
        self.bottleneck = plain_block(8 * f, 16 * f, 8 * f)
        self.decoder = nn.ModuleList(
            plain_block(inner, inner // 2, out)
            for inner, out in ((16 * f, 4 * f), (8 * f, 2 * f), (4 * f, f), (2 * f, f))
        )
        self.head = nn.Conv2d(f, labels, 1)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x.shape, self.in_channels, "unet")
        x, skips = self.encoder(x)
        x = self.bottleneck(x)
        for block, skip in zip(self.decoder, skips, strict=True):
            x = block(self.join(x, skip))
        logits: Tensor = self.head(x)
        return logits
