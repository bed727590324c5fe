"""`vit`: a vision transformer of ten pre-norm layers on 16×16 patches. 21,458,436 parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_tumor.models.layers import checks
from hpc_tumor.models.layers.fast import Dropout, FirstConv2d, drop
from hpc_tumor.models.layers.fused import Linear

PATCH = 16  # pixels per side
WIDTH = 512
HEADS = 8
HIDDEN = 1024
LAYERS = 10
DROPOUT = 0.2


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy 2021) with class token, learned positions and Mish in the feed-forward part.

    `(N, in_channels, image_size, image_size)` in [0, 1] → logits `(N, classes)`. UsageError unless the sides are
    multiples of 16 pixels.
    """

    def __init__(self, classes: int = 4, in_channels: int = 3, image_size: int = 128) -> None:
        super().__init__()
        checks.positive(classes=classes, in_channels=in_channels)
        checks.multiple_of(image_size, PATCH, PATCH, "vit")
        self.in_channels, self.image_size = in_channels, image_size
        patches = (image_size // PATCH) ** 2
        # A convolution with its kernel size as stride is a linear embedding of flattened patches.
        self.embedding = FirstConv2d(in_channels, WIDTH, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, patches + 1, WIDTH), std=0.02))
        self.dropout = Dropout(DROPOUT)
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = Linear(WIDTH, classes)

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits; with `return_attention` also each layer's weights `(N, 8, T, T)`, class token first.

        T is 65 for 128×128 images; row i has the weights of all tokens in the output of token i.
        """
        checks.input_shape(x.shape, self.in_channels, self.image_size, "vit")
        patches = self.embedding(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        tokens = self.dropout(tokens + self.positions)
        weights: list[Tensor] = []
        for layer in self.layers:
            tokens, weight = layer(tokens, return_attention)
            weights.append(weight)
        logits: Tensor = self.head(self.norm(tokens[:, 0]))
        return (logits, weights) if return_attention else logits


class EncoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual: tokens `(N, T, 512)` → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = Linear(WIDTH, 3 * WIDTH)
        self.projection = Linear(WIDTH, WIDTH)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(WIDTH),
            Linear(WIDTH, HIDDEN),
            nn.Mish(),
            Dropout(DROPOUT),
            Linear(HIDDEN, WIDTH),
            Dropout(DROPOUT),
        )
        self.dropout = Dropout(DROPOUT)

    def forward(self, tokens: Tensor, return_attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return the tokens and, with `return_attention`, the attention weights before dropout, `(N, 8, T, T)`."""
        joint = self.query_key_value(self.attention_norm(tokens))
        query, key, value = joint.unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = attend(query, key, value, self.dropout.p if self.training else 0.0)
        tokens = tokens + self.dropout(self.projection(attended.transpose(1, 2).flatten(2)))
        tokens = tokens + self.feed_forward(tokens)
        if not return_attention:
            return tokens, None
        # The fused kernel does not return weights: recompute them, so that the logits do not change.
        return tokens, (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)


def attend(query: Tensor, key: Tensor, value: Tensor, rate: float) -> Tensor:
    """Scaled dot-product attention with dropout of its weights: three `(N, heads, T, width)` → the same."""
    if rate == 0 or query.device.type != "cpu" or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, key, value, dropout_p=rate)
    # With dropout torch has no fused CPU kernel: it would compute this with its slower dropout.
    weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
    return drop(weights, rate) @ value


def rollout(weights: list[Tensor]) -> Tensor:
    """Compute the attention rollout (Abnar & Zuidema 2020): the share of each input token in every output token.

    Attention weights `(N, heads, T, T)` from the first layer on → `(N, T, T)` float32 whose rows sum to 1. A layer's
    attention is the mean over heads, with half of each token passed on through the residual.
    """
    tokens = weights[0].shape[-1]
    residual = torch.eye(tokens, device=weights[0].device)
    joint = residual.expand(len(weights[0]), -1, -1)
    for layer in weights:
        mixed = (layer.float().mean(1) + residual) / 2
        joint = mixed / mixed.sum(-1, keepdim=True) @ joint  # 16-bit weights do not sum exactly to 1
    return joint
