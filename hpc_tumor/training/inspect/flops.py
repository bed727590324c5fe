"""How much a network computes for one sample."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


def forward_gflop(network: nn.Module, channels: int, image_size: tuple[int, int]) -> float | None:
    """10⁹ floating-point operations of one forward pass of one `(1, channels, *image_size)` sample, in evaluation.

    A multiply-add counts as two. Counted are convolutions, matrix products and attention, as they are defined: of all
    input channels, and whatever shortcut computes them. Norms, activations and resizing are not. Nothing is computed
    and nothing of the network changes. None where the network cannot be counted.
    """
    was_training = network.training
    network.eval()
    try:
        # Weights and images that have shapes alone.
        weights = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in (*network.named_parameters(), *network.named_buffers())
        }
        sample = torch.empty(1, channels, *image_size, device="meta")
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            functional_call(network, weights, (sample,))
        return float(counter.get_total_flops()) / 1e9
    except Exception:  # of whatever kind: a number for a table is worth no run
        return None
    finally:
        network.train(was_training)
