"""Checks shared by the networks: options at construction, shapes in `forward`."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_tumor.errors import UsageError


def positive(**settings: int) -> None:
    """Raise UsageError unless every setting is a positive integer."""
    for name, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} = {value!r} is not allowed: choose a positive integer.")


def at_least(image_size: int, smallest: int, network: str) -> None:
    """Raise UsageError for an image that pooling would reduce to nothing."""
    positive(image_size=image_size)
    if image_size < smallest:
        raise UsageError(
            f"image_size = {image_size} is too small for {network}: choose {smallest} or more pixels per side."
        )


def multiple_of(image_size: int, step: int, smallest: int, network: str) -> None:
    """Raise UsageError unless the side is a multiple of `step` and at least `smallest` pixels."""
    positive(image_size=image_size)
    if image_size % step or image_size < smallest:
        below, above = image_size // step * step, (image_size // step + 1) * step
        nearest = f"{below} or {above}" if below >= smallest else f"{smallest}"
        raise UsageError(
            f"image_size = {image_size} does not fit {network}, which needs a multiple of {step} pixels,"
            f" at least {smallest}: choose {nearest}."
        )


def input_shape(shape: Sequence[int], channels: int, side: int | None, network: str) -> None:
    """Raise UsageError unless `shape` is `(N, channels, H, W)`, with H = W = `side` unless that is None."""
    size = ("H", "W") if side is None else (side, side)
    if len(shape) != 4 or shape[1] != channels or (side is not None and tuple(shape[2:]) != size):
        raise UsageError(
            f"{network} got an input of shape {tuple(shape)} instead of (N, {channels}, {size[0]}, {size[1]}):"
            " build it with other in_channels or image_size, or resize the images."
        )
