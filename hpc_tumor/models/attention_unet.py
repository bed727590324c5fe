"""`attention-unet`: the improved U-Net with a gate on each skip. 3,258,263 parameters with 32 first filters, 843,319
with 16."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hpc_tumor.models.layers.blocks import Encoder, check_input, check_settings, decoder_block, encoder_block
from hpc_tumor.models.layers.fused import upsample, upsample_add_gated


class AttentionUNet(nn.Module):
    """U-Net of inverted bottlenecks whose skips pass an attention gate (Oktay 2018) before they are added.

    `(N, in_channels, H, W)` → logits `(N, labels, H, W)`. H, W and `image_size` must be multiples of 16, at least 32,
    or UsageError is raised.
    """

    join = staticmethod(upsample_add_gated)  # of the decoder with a skip

    def __init__(self, labels: int = 3, in_channels: int = 4, image_size: int = 240, filters: int = 32) -> None:
        super().__init__()
        check_settings(labels, in_channels, filters, image_size, "attention-unet")
        self.in_channels = in_channels
        f = filters
        self.encoder = Encoder(in_channels, f, encoder_block)
        self.bottleneck = encoder_block(8 * f, 8 * f)
        self.gates = nn.ModuleList(AttentionGate(width) for width in (8 * f, 4 * f, 2 * f, f))
        self.decoder = nn.ModuleList(
            decoder_block(inner, out) for inner, out in ((8 * f, 4 * f), (4 * f, 2 * f), (2 * f, f), (f, f))
        )
        self.head = nn.Conv2d(f, labels, 1)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits; with `return_attention` also the four gate maps in (0, 1), coarse to fine.

        The maps have the sizes of their skips: `(N, 1, H/8, W/8)` … `(N, 1, H, W)`.
        """
        check_input(x.shape, self.in_channels, "attention-unet")
        x, skips = self.encoder(x)
        x = self.bottleneck(x)
        maps: list[Tensor] = []
        for gate, block, skip in zip(self.gates, self.decoder, skips, strict=True):
            attention = gate(x, skip)
            x = block(self.join(x, skip, attention))
            maps.append(attention)
        logits: Tensor = self.head(x)
        return (logits, maps) if return_attention else logits


class AttentionGate(nn.Module):
    """Gate of a skip, from 0 to 1 per pixel.

    Decoder feature `(N, width, h, w)` and skip `(N, width, 2h, 2w)` → map `(N, 1, 2h, 2w)`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.from_decoder = nn.Conv2d(width, width, 1)
        self.from_skip = nn.Conv2d(width, width, 1)  # stride 2, see forward
        self.to_map = nn.Conv2d(width, 1, 1)

    def forward(self, decoder: Tensor, skip: Tensor) -> Tensor:
        # Slicing replaces stride 2 of the 1×1 convolution: with a stride, its bfloat16 backward pass in oneDNN writes
        # beyond its buffer for fewer than 16 channels (torch 2.14 on AVX-512).
        joint = F.relu(self.from_decoder(decoder) + self.from_skip(skip[..., ::2, ::2]))
        return upsample(self.to_map(joint).sigmoid())
