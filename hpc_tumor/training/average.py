"""A running mean of the weights, scored in the place of the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from hpc_tumor.training.distributed import Distributed


class WeightAverage:
    """Exponential moving average of a network's weights and running statistics (Polyak & Juditsky 1992).

    The decay begins low and grows to its value, as `(1 + n) / (10 + n)` after n steps, so that the first, random
    weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._tensors = _floats(network)
        self._means = {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights as they are after `steps` steps of training."""
        rate = 1 - min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(list(self._means.values()), list(self._tensors.values()), rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network with the means in the place of its weights, for as long as the block lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """The means, by the names of the weights."""
        return dict(self._means)

    def load_state_dict(self, means: dict[str, Tensor]) -> None:
        """Go on from means that were saved."""
        for name, mean in self._means.items():
            mean.copy_(means[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, tensor in self._tensors.items():
            kept = tensor.detach().clone()
            tensor.copy_(self._means[name])
            self._means[name].copy_(kept)


def _floats(network: nn.Module) -> dict[str, Tensor]:
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


@contextmanager
def weights_to_score(network: nn.Module, average: WeightAverage | None, distributed: Distributed) -> Iterator[None]:
    """In the block the network has the weights that are scored: their running mean where there is one.

    Batch norm's running statistics are those of each rank: rank 0's count. All ranks call this together.
    """
    _share_statistics(network, distributed)
    with average.applied() if average else nullcontext():
        if average:
            _share_statistics(network, distributed)  # the mean of each rank's own
        yield


def _share_statistics(network: nn.Module, distributed: Distributed) -> None:
    for buffer in network.buffers():
        distributed.broadcast(buffer)
