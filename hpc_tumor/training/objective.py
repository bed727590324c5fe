"""Forward pass, loss and counts of one micro-batch, as one function of tensors that can be compiled."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from hpc_tumor.system import devices
from hpc_tumor.training.scoring import metrics
from hpc_tumor.training.scoring.evaluate import ScoringSpec

# Losses `(N,)`, and what the samples add to the sums of an epoch: see `state.epoch_totals`.
Computed = tuple[Tensor, dict[str, Tensor]]


class Objective(nn.Module):
    """Function that a training step differentiates: images `(N, C, H, W)` and their targets → losses `(N,)` and counts.

    DDP wraps this module and not the network, so that its own code, which cannot be compiled, stays outside of what is
    compiled. Its parameters are those of the network; no checkpoint contains it.

    Attributes:
        network: the bare network.
        spec: how the network computes and is scored; training uses the same loss and number format.
        searched_samples: micro-batch size for whose convolutions the fastest kernels are searched, in its first step.
            A search times up to ten kernels for each convolution and direction; other sizes are too rare for one.
        compiled: `compute` compiled, for micro-batches of `compiled_samples`; None without torch.compile.
    """

    def __init__(self, network: nn.Module, spec: ScoringSpec) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        self.searched_samples = 0
        self.compiled: Callable[[Tensor, Tensor], Computed] | None = None
        self.compiled_samples = 0

    def forward(self, images: Tensor, targets: Tensor) -> Computed:
        devices.search_kernels(len(images) == self.searched_samples)
        if self.compiled is not None and len(images) == self.compiled_samples:
            return self.compiled(images, targets)
        return self.compute(images, targets)

    def compute(self, images: Tensor, targets: Tensor) -> Computed:
        """Return losses and counts, not compiled."""
        logits = self.spec.forward(self.network, images)
        return self.spec.loss(logits, targets), self._count(logits.detach(), targets)

    def _count(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if self.spec.classes is None:
            return {"histogram": metrics.count_labels(logits, targets, exclusive=self.spec.exclusive).sum(0)}
        probabilities = logits.float().softmax(1)
        right = (probabilities.argmax(1) == targets).sum()
        return {"right": right, "confidence": probabilities.max(1).values.double().sum()}
