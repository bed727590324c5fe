"""Losses: one value per sample, so that the mean over a global batch does not depend on its division among ranks.

All are computed in float32 (float64 for float64 logits), whatever the network's number format, and are finite, with
finite gradients, for finite logits. They index no pixels, so all run on GPUs in deterministic mode.
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

EXCLUSIVE_LOSSES = ("dice-ce",)  # train a network to predict at most one label per pixel

# Added to numerator and denominator of Dice, so that an absent label that is not predicted has a Dice of 1.
SMOOTHING = 1.0


def build_loss(task: str, name: str, *, weights: Tensor | None, focal_gamma: float) -> Loss:
    """Return the named loss of a task: a function of logits and truth to one value per sample, `(N,)`.

    Args:
        task: classification or segmentation.
        name: cross-entropy or focal; bce, dice-bce, dice-ce or focal.
        weights: of the classes `(C,)`, or of the labels NCR/NET, ED and ET `(3,)`, on the device of the logits.
        focal_gamma: focus of the focal loss; 0 makes it the cross-entropy, or `bce`.

    Raises:
        KeyError: the task has no such loss; the settings already refuse it.
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
    """Return float32 weights inversely proportional to the `counts` `(C,)` of classes or labels.

    Their mean over those present is 1; absent ones get 1.
    """
    present = counts > 0
    weights = torch.ones(counts.shape, dtype=torch.float64, device=counts.device)
    inverse = counts[present].double().reciprocal()
    weights[present] = inverse / inverse.mean()
    return weights.float()


def cross_entropy(logits: Tensor, classes: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of each image: logits `(N, C)` and true classes `(N,)` → `(N,)`, in float32.

    With `weights` `(C,)`, each image's loss is multiplied by the weight of its true class. Unlike torch's mean, it is
    not divided by the weights in the batch, so it does not depend on the other images.
    """
    losses = F.cross_entropy(_at_least_float32(logits), classes, reduction="none")
    return losses if weights is None else losses * weights[classes]


def focal_of_classes(logits: Tensor, classes: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Focal loss of each image (Lin 2017, for many classes): cross-entropy times `(1 - p) ** gamma`.

    `p` is the probability of the true class. Shapes and `weights` as for `cross_entropy`.
    """
    losses = F.cross_entropy(_at_least_float32(logits), classes, reduction="none")
    # Keeps the slope of the power finite at 0 for gamma below 1; far below any rounding error.
    missing = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
    focused = missing**gamma * losses
    return focused if weights is None else focused * weights[classes]


def bce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each slice: mean over its pixels and three independent maps.

    Args:
        logits: `(N, 3, H, W)`.
        labels: `(N, H, W)` uint8: 0 background, 1 NCR/NET, 2 ED, 3 ET.
        weights: `(3,)` factors of the labels' maps; the mean is not divided by them.

    Returns:
        `(N,)` float32.
    """
    maps = _planes(logits)
    return _mean(_surprise(maps, _truth(maps, labels)).mean((2, 3)), weights)


def dice_bce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss of each slice plus its `bce`: mean of their sum over the three independent maps.

    Arguments and result as for `bce`. Each map's sum of the two is multiplied by its weight.
    """
    maps = _planes(logits)
    truth = _truth(maps, labels)
    return _mean(dice_losses(maps.sigmoid(), truth) + _surprise(maps, truth).mean((2, 3)), weights)


def dice_ce(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Soft Dice loss of each slice plus its cross-entropy, with mutually exclusive labels.

    Softmax over background and the three labels, with the background's logit fixed at 0: a pixel's label is that of
    the largest logit, or none if all are below 0. Sum of the cross-entropy, a mean over pixels, and the Dice loss, a
    mean over the three labels, as in nnU-Net (Isensee 2021).

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
    """Focal loss of each slice (Lin 2017): `bce` with each pixel of each map multiplied by `(1 - p) ** gamma`.

    `p` is the predicted probability of the truth, label or not. Other arguments and result as for `bce`.
    """
    maps = _planes(logits)
    against = maps * (1 - 2 * _truth(maps, labels))
    surprise = softplus(against)
    # The logarithm of 1 - p = sigmoid(against); a power would have an infinite slope at 0 for gamma below 1.
    logarithm = against - surprise
    return _mean(((gamma * logarithm).exp() * surprise).mean((2, 3)), weights)


def dice_losses(probabilities: Tensor, truth: Tensor) -> Tensor:
    """One minus soft Dice of each map, with squares in the denominator (Milletari 2016).

    Dice is `(2 Σ p t + 1) / (Σ p² + Σ t + 1)`, summed over the pixels. Due to the squares, low probabilities in a large
    background hardly count, and a label that is absent and not predicted costs nothing.

    `probabilities` and `truth`, 0 or 1 of the same type, are `(N, C, H, W)`, the result `(N, C)`.
    """
    overlap = (probabilities * truth).sum((2, 3))
    size = probabilities.square().sum((2, 3)) + truth.sum((2, 3))
    return 1 - (2 * overlap + SMOOTHING) / (size + SMOOTHING)


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, elementwise, without overflow: the cross-entropy of a logit `-x` where the truth is 1.

    Exact to float32's rounding of 1 (6e-8), like torch's softmax cross-entropy. torch's softplus is also exact for tiny
    results, but its `log1p` takes many times as long on CPUs.
    """
    result: Tensor = _Softplus.apply(x)
    return result


class _Softplus(torch.autograd.Function):
    """Softplus with its known slope, sigmoid(x); autograd through abs and clamp would be wrong at 0."""

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
    """Return the weighted terms `(N, 3)` averaged over the maps."""
    return terms.mean(1) if weights is None else (terms * weights).mean(1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _planes(logits: Tensor) -> Tensor:
    """Convert to float32 or wider with contiguous maps, so that labels are compared with whole rows."""
    kind = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(kind, memory_format=torch.contiguous_format)


def _truth(maps: Tensor, labels: Tensor) -> Tensor:
    """One-hot maps of `(N, H, W)` labels without the background: `(N, 3, H, W)`, of the maps' type."""
    values = torch.arange(1, maps.shape[1] + 1, dtype=labels.dtype, device=labels.device).view(1, -1, 1, 1)
    # `out` writes the maps' type directly: one pass instead of two.
    return torch.eq(labels.unsqueeze(1), values, out=torch.empty_like(maps))
