"""Running mean of the weights, scored instead of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.recipe import DeviceNumber


class WeightAverage:
    """Exponential moving average of a network's weights and running statistics (Polyak & Juditsky 1992).

    The decay grows to its value as `(1 + n) / (10 + n)` after n steps, so that the first, random
    weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float, rate: DeviceNumber | None = None) -> None:
        """`rate` is a number that a CUDA graph reads."""
        self.decay = decay
        self._rate = 0.0
        self._static = rate
        self._tensors = _floats(network)
        self._means = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    def set_rate(self, steps: int) -> None:
        """Set the weight of the next weights in the mean, those after `steps` steps of training."""
        self._rate = 1 - min(self.decay, (1 + steps) / (10 + steps))
        if self._static is not None:
            self._static.set(self._rate)

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights to the mean; `set_rate` first."""
        means, weights = list(self._means.values()), list(self._tensors.values())
        if self._static is None:
            torch._foreach_lerp_(means, weights, self._rate)
            return
        steps = torch._foreach_sub(weights, means)  # lerp takes a tensor as its weight only for one at a time
        torch._foreach_mul_(steps, self._static.tensor)
        torch._foreach_add_(means, steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the network's weights by their means within the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the means by name of weight."""
        return dict(self._means)

    def load_state_dict(self, means: dict[str, Tensor]) -> None:
        """Restore saved means."""
        for name, mean in self._means.items():
            mean.copy_(means[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._tensors.items():
            weights = tensor.detach().clone()
            tensor.copy_(self._means[name])
            self._means[name].copy_(weights)


def _floats(network: nn.Module) -> dict[str, Tensor]:
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


@contextmanager
def scoring_weights(network: nn.Module, average: WeightAverage | None, distributed: Distributed) -> Iterator[None]:
    """Give the network the weights to score within the block: their running mean if there is one.

    Every rank gets rank 0's batch norm statistics. All ranks call this together.
    """
    _share_statistics(network, distributed)
    with average.applied() if average else nullcontext():
        if average:
            _share_statistics(network, distributed)  # the means of the statistics differ by rank, too
        yield


def _share_statistics(network: nn.Module, distributed: Distributed) -> None:
    for buffer in network.buffers():
        distributed.broadcast(buffer)
