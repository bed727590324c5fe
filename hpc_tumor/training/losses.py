"""Losses: one value per sample, so that a mean over the global batch does not depend on how ranks divide it.

All are computed in float32 (float64 for float64 logits), whatever the number format of the network, and are finite,
with finite gradients, for finite logits. None needs random access into an image, so all run on GPUs in deterministic
mode.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Loss = Callable[[Tensor, Tensor], Tensor]

EXCLUSIVE_LOSSES = ("dice-ce",)  # which teach a network to give at most one label to a pixel

# Pixels added above and below the bar of Dice, so that an empty label that nothing predicts has a Dice of 1.
SMOOTHING = 1.0


def build_loss(task: str, name: str, *, weights: Tensor | None, focal_gamma: float) -> Loss:
    """The loss of a task by its name, as a function of logits and truth that gives one value per sample, `(N,)`.

    Args:
        task: classification or segmentation.
        name: cross-entropy or focal; bce, dice-bce, dice-ce or focal.
        weights: of the classes `(C,)`, or of the labels NCR/NET, ED and ET `(3,)`, on the device of the logits.
        focal_gamma: focus of the focal loss; 0 makes it the cross-entropy, or `bce`.

    Raises:
        KeyError: the task has no such loss; settings refuse that before.
    """
    losses: dict[str, dict[str, Loss]] = {
        "classification": {
            "cross-entropy": partial(cross_entropy, weights=weights),
            "focal": partial(focal_of_classes, gamma=focal_gamma, weights=weights),
        },
        "segmentation": {
            "bce": partial(bce, weights=weights),
            "dice-bce": partial(dice_bce, weights=weights),
            "dice-ce": partial(dice_ce, weights=weights),
            "focal": partial(focal_of_labels, gamma=focal_gamma, weights=weights),
        },
    }
    return losses[task][name]


def balanced_weights(counts: Tensor) -> Tensor:
    """Weights in inverse proportion to how often each class or label occurs, with mean 1 over those that occur.

    Args:
        counts: `(C,)` samples of each class, or pixels of each label.

    Returns:
        `(C,)` float32; 1 for a class that never occurs.
    """
    present = counts > 0
    weights = torch.ones(counts.shape, dtype=torch.float64, device=counts.device)
    inverse = counts[present].double().reciprocal()
    weights[present] = inverse / inverse.mean()
    return weights.float()


def cross_entropy(logits: Tensor, classes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each image: logits `(N, C)` and true classes `(N,)` → `(N,)`, in float32.

    With `weights` `(C,)`, each image's loss times the weight of its true class. It is not divided by the weights in
    the batch, unlike torch's mean: what an image counts does not depend on which others it came with.
    """
    losses = F.cross_entropy(_at_least_float32(logits), classes, reduction="none")
    return losses if weights is None else losses * weights[classes]


def focal_of_classes(logits: Tensor, classes: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Focal loss of each image (Lin 2017, for many classes): cross-entropy times `(1 - p) ** gamma`.

    `p` is the probability of the true class. Shapes and `weights` as for `cross_entropy`.
    """
    losses = F.cross_entropy(_at_least_float32(logits), classes, reduction="none")
    # Far below any rounding error, and keeps the power's slope finite at 0, where gamma is below 1.
    missing = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
    focused = missing**gamma * losses
    return focused if weights is None else focused * weights[classes]


def bce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each slice, a mean over its pixels and its three independent maps.

    Args:
        logits: `(N, 3, H, W)`.
        labels: `(N, H, W)` uint8: 0 background, 1 NCR/NET, 2 ED, 3 ET.
        weights: `(3,)`, by which each label's map is multiplied; the mean is not divided by them.

    Returns:
        `(N,)` float32.
    """
    maps = _planes(logits)
    return _mean(_surprise(maps, _truth(maps, labels)).mean((2, 3)), weights)


def dice_bce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss of each slice plus its `bce`: the mean of both over the three independent maps.

    Arguments and result as for `bce`. Each map's sum of the two is multiplied by its weight.
    """
    maps = _planes(logits)
    truth = _truth(maps, labels)
    return _mean(dice_losses(maps.sigmoid(), truth) + _surprise(maps, truth).mean((2, 3)), weights)


def dice_ce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss of each slice plus its cross-entropy, where the labels exclude each other.

    A softmax over background and the three labels, with the background's logit fixed at 0: a pixel's label is that
    with the largest logit, or none where all are below 0. Cross-entropy is the mean over the pixels; the Dice loss
    is the mean over the three labels. Both as nnU-Net adds them (Isensee 2021).

    Arguments and result as for `bce`. With `weights`, each pixel's cross-entropy is multiplied by the weight of its
    true label, the background's being 1, and the Dice loss is a weighted mean.
    """
    maps = _planes(logits)
    truth = _truth(maps, labels)
    total = torch.logsumexp(F.pad(maps, (0, 0, 0, 0, 1, 0)), 1)
    surprise = total - (maps * truth).sum(1)
    dice = dice_losses((maps - total.unsqueeze(1)).exp(), truth)
    if weights is None:
        return surprise.mean((1, 2)) + dice.mean(1)
    of_pixels = 1 + (truth * (weights - 1).view(1, -1, 1, 1)).sum(1)
    return (surprise * of_pixels).mean((1, 2)) + (dice * weights).sum(1) / weights.sum()


def focal_of_labels(logits: Tensor, labels: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Focal loss of each slice (Lin 2017): `bce` with every pixel of every map times `(1 - p) ** gamma`.

    `p` is the probability of what is true there, label or not. Other arguments and result as for `bce`.
    """
    maps = _planes(logits)
    against = maps * (1 - 2 * _truth(maps, labels))
    surprise = softplus(against)
    # The logarithm of 1 - p = sigmoid(against); a power would have an infinite slope at 0, where gamma is below 1.
    logarithm = against - surprise
    return _mean(((gamma * logarithm).exp() * surprise).mean((2, 3)), weights)


def dice_losses(probabilities: Tensor, truth: Tensor) -> Tensor:
    """One minus soft Dice of each map, with squares below the bar (Milletari 2016).

    Dice is `(2 Σ p t + 1) / (Σ p² + Σ t + 1)`, sums over the pixels. Thanks to the squares, the faint probabilities
    of a large background hardly count, and a label that is absent and not predicted costs nothing.

    Args:
        probabilities: `(N, C, H, W)`.
        truth: `(N, C, H, W)`, 0 or 1, of the same type.

    Returns:
        `(N, C)`.
    """
    overlap = (probabilities * truth).sum((2, 3))
    size = probabilities.square().sum((2, 3)) + truth.sum((2, 3))
    return 1 - (2 * overlap + SMOOTHING) / (size + SMOOTHING)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, elementwise, without overflow: the cross-entropy of a logit `-x` where the truth is 1.

    Exact to float32's rounding of 1 (6e-8), as torch's softmax cross-entropy is. torch's own softplus is exact also
    where the result is tiny, but its `log1p` takes many times as long on CPUs.
    """
    result: Tensor = _Softplus.apply(x)
    return result


class _Softplus(torch.autograd.Function):
    """Its slope is known, sigmoid(x); that of the parts it is made of is wrong at 0, where both have a corner."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().sigmoid_().log_().neg_().add_(x.clamp_min(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.sigmoid().mul_(gradient)


def _surprise(maps: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of every pixel of every map, `(N, 3, H, W)`."""
    return softplus(maps * (1 - 2 * truth))


def _mean(terms: Tensor, weights: Tensor | None) -> Tensor:
    """Mean over the maps of their terms `(N, 3)`, each times its weight."""
    return terms.mean(1) if weights is None else (terms * weights).mean(1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _planes(logits: Tensor) -> Tensor:
    """Each map in one piece, whatever the network's memory layout, so that a label is compared with whole rows."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(kind, memory_format=torch.contiguous_format)


def _truth(maps: Tensor, labels: Tensor) -> Tensor:
    """1 where a pixel has the label of the map, else 0: `(N, H, W)` labels → `(N, 3, H, W)`, of the maps' type."""
    wanted = torch.arange(1, maps.shape[1] + 1, dtype=labels.dtype, device=labels.device).view(1, -1, 1, 1)
    # Written as numbers at once: one pass instead of two.
    return torch.eq(labels.unsqueeze(1), wanted, out=torch.empty_like(maps))
