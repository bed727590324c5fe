"""Initial weights for networks whose signal torch's defaults shrink too much."""

from __future__ import annotations

from torch import nn


def he_normal(model: nn.Module) -> None:
    """Initialise the weights of all convolutions and dense layers as He (2015) for ReLU, with zero biases.

    torch's default shrinks the signal to about 0.6 per layer with ReLU. Without batch norm the logits hardly
    depend on the image: their standard deviation over images is 1e-7 in a fresh `vgg16`, against 0.2 with these
    weights, and the loss stays at chance level for the first epochs.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
