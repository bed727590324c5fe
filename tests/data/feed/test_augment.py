"""Augmentation of images on the device against torchvision's functional form with the same parameters."""

import colorsys
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from hpc_tumor.data.feed.augment import ImageParameters, augment_images, draw_image_parameters
from hpc_tumor.data.feed.warp import Motion, grid_lines, move, move_masked, sampling_grid

SHAPES = [(1, 32, 32), (1, 64, 48), (3, 47, 65), (3, 240, 136), (1, 240, 240)]
BILINEAR = TF.InterpolationMode.BILINEAR


def parameters(n: int = 1, **changes: Any) -> ImageParameters:
    """Those that change nothing, but for `changes`."""
    neutral = {"flip": False, "angle": 0.0, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    return ImageParameters(**{name: np.broadcast_to(changes.get(name, neutral[name]), n) for name in neutral})


def random_images(n: int, channels: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(height))


def one_by_one(images: torch.Tensor, drawn: ImageParameters) -> torch.Tensor:
    """Return the images augmented by torchvision with the same parameters."""
    done = []
    for i, image in enumerate(images):
        if drawn.flip[i]:
            image = TF.hflip(image)
        image = TF.rotate(image, math.degrees(drawn.angle[i]), interpolation=BILINEAR)
        image = TF.adjust_brightness(image, drawn.brightness[i])
        image = TF.adjust_contrast(image, drawn.contrast[i])
        image = TF.adjust_saturation(image, drawn.saturation[i])
        done.append(TF.adjust_hue(image, drawn.hue[i]))
    return torch.stack(done)


@pytest.mark.parametrize("shape", SHAPES)
def test_neutral_parameters_change_nothing(shape: tuple[int, int, int]) -> None:
    images = random_images(2, *shape)
    torch.testing.assert_close(augment_images(images, parameters(2)), images, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_is_exact_and_its_own_inverse(shape: tuple[int, int, int]) -> None:
    images = random_images(1, *shape)[:, :1]
    flipped = augment_images(images, parameters(flip=True))
    assert torch.equal(flipped, TF.hflip(images))
    assert torch.equal(augment_images(flipped, parameters(flip=True)), images)


@pytest.mark.parametrize("degrees", [-10.0, 4.0, 10.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_rotation_is_torchvisions(shape: tuple[int, int, int], degrees: float) -> None:
    images = random_images(1, *shape)
    ours = augment_images(images, parameters(angle=math.radians(degrees)))
    torch.testing.assert_close(ours, TF.rotate(images, degrees, interpolation=BILINEAR), atol=1e-4, rtol=0)


def test_positive_angles_turn_counter_clockwise() -> None:
    images = torch.zeros(1, 1, 65, 65)
    images[0, 0, 32, 32 + 28] = 1  # 28 pixels right of the centre: moves up by 28 sin 10° = 4.9 pixels
    turned = augment_images(images, parameters(angle=math.radians(10)))[0, 0]
    assert divmod(int(turned.argmax()), 65) == (32 - 5, 32 + 28)


@pytest.mark.parametrize(
    ("name", "amounts", "theirs"),
    [
        ("brightness", (0.8, 1.2), TF.adjust_brightness),
        ("contrast", (0.8, 1.2), TF.adjust_contrast),
        ("saturation", (0.8, 1.2), TF.adjust_saturation),
        ("hue", (-0.2, 0.13), TF.adjust_hue),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_colours_change_as_in_torchvision(
    shape: tuple[int, int, int],
    name: str,
    amounts: tuple[float, float],
    theirs: Callable[[torch.Tensor, float], torch.Tensor],
) -> None:
    images = random_images(2, *shape)
    ours = augment_images(images, parameters(2, **{name: amounts}))
    expected = torch.stack([theirs(image, amount) for image, amount in zip(images, amounts, strict=True)])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


def test_hue_of_pure_grey_and_extreme_colours() -> None:
    """Against Python's own colorsys, where channels are equal and the largest is not one alone."""
    colours = [(1, 0, 0), (1, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5)]
    images = torch.tensor(colours, dtype=torch.float32).T.reshape(1, 3, 2, 4)
    shifted = augment_images(images, parameters(hue=0.2)).reshape(3, 8).T
    for (red, green, blue), ours in zip(colours, shifted.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        assert ours == pytest.approx(colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value), abs=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawn_batch_is_torchvisions_image_by_image(shape: tuple[int, int, int]) -> None:
    images, drawn = random_images(16, *shape), draw_image_parameters(16, seed=1, epoch=2, step=3)
    torch.testing.assert_close(augment_images(images, drawn), one_by_one(images, drawn), atol=2e-4, rtol=0)


def test_grey_images_do_not_change_with_saturation_or_hue() -> None:
    """Both are skipped for grey images: on three equal channels they are the identity."""
    images = random_images(4, 1, 32, 32)
    drawn = draw_image_parameters(4, seed=0, epoch=0, step=0)
    colour = augment_images(images.expand(-1, 3, -1, -1), drawn)
    torch.testing.assert_close(colour, augment_images(images, drawn).expand(-1, 3, -1, -1), atol=2e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("world", [2, 3, 8])
def test_the_shares_of_ranks_make_up_the_batch_to_the_last_bit(shape: tuple[int, int, int], world: int) -> None:
    images, drawn = random_images(8, *shape), draw_image_parameters(8, seed=5, epoch=0, step=9)
    together = augment_images(images, drawn)
    for rank in range(world):
        assert torch.equal(augment_images(images[rank::world], drawn[rank::world]), together[rank::world])


def test_the_images_given_are_left_alone() -> None:
    images = random_images(8, 3, 32, 32)
    before = images.clone()
    augment_images(images, draw_image_parameters(8, seed=0, epoch=0, step=0))
    augment_images(images, parameters(8, brightness=0.5))
    assert torch.equal(images, before)


def test_parameters_come_from_seed_epoch_and_step_alone() -> None:
    first, again = (draw_image_parameters(64, seed=3, epoch=1, step=5) for _ in range(2))
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(again, name))
    for other in ((4, 1, 5), (3, 2, 5), (3, 1, 6)):
        assert not np.array_equal(first.angle, draw_image_parameters(64, *other).angle)


def test_parameters_fill_the_published_ranges() -> None:
    drawn = draw_image_parameters(4000, seed=3, epoch=1, step=5)
    assert drawn.flip.dtype == bool
    assert 0.46 < drawn.flip.mean() < 0.54
    ranges = {"angle": (-math.radians(10), math.radians(10)), "hue": (-0.2, 0.2)}
    ranges |= dict.fromkeys(("brightness", "contrast", "saturation"), (0.8, 1.2))
    for name, (low, high) in ranges.items():
        values, width = getattr(drawn, name), high - low
        assert low <= values.min() < low + 0.01 * width, name
        assert high - 0.01 * width < values.max() <= high, name
        assert abs(values.mean() - (low + high) / 2) < 0.03 * width, name
    table = np.array([drawn.flip, drawn.angle, drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue])
    assert np.abs(np.corrcoef(table) - np.eye(6)).max() < 0.08  # drawn independently: 5 standard errors


def test_a_share_of_the_parameters() -> None:
    drawn = draw_image_parameters(10, seed=0, epoch=0, step=0)
    assert len(drawn) == 10
    assert len(drawn[1::4]) == 3
    np.testing.assert_array_equal(drawn[1::4].hue, drawn.hue[[1, 5, 9]])
    np.testing.assert_array_equal(drawn[np.array([7, 2])].flip, drawn.flip[[7, 2]])


def test_images_that_cannot_be_augmented_are_refused() -> None:
    with pytest.raises(ValueError, match="4 channels"):
        augment_images(torch.zeros(1, 4, 8, 8), parameters())
    with pytest.raises(ValueError, match="2 images with parameters for 3"):
        augment_images(torch.zeros(2, 1, 8, 8), parameters(3))


@pytest.mark.parametrize("shape", SHAPES)
def test_gpus_move_images_as_cpus_do(shape: tuple[int, int, int]) -> None:
    images, flip = random_images(6, *shape), np.array([0, 1, 0, 1, 0, 1], dtype=bool)
    motion = Motion(~flip, flip, np.array([0, 0, 0.1, -0.1, 0, 0.2]), np.array([1, 1, 1, 1, 1.1, 0.9]))
    warped = motion[motion.warped]
    lines, theirs = ([torch.from_numpy(line) for line in grid_lines(m, *shape[1:])] for m in (motion, warped))
    ours = move_masked(images, sampling_grid(*lines), torch.from_numpy(motion.warped).view(-1, 1, 1, 1))
    assert torch.equal(ours, move(images, motion, sampling_grid(*theirs), "bilinear"))
