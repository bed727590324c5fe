"""Augmentation of slices and labels against torchvision's functional form with the same parameters.

Properties are tested of both forms, that of CPUs and that of GPUs, on CPU tensors.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from hpc_tumor.data.feed.augment_slices import SliceParameters, augment_masked, augment_slices, draw_slice_parameters
from hpc_tumor.data.feed.masked import WINDOWS, noise_windows

SIDES = [(32, 32), (47, 65), (240, 96)]
NEUTRAL = {
    "flip_vertical": False, "flip_horizontal": False, "angle": 0.0, "zoom": 1.0, "noise": 0.0, "noise_seed": 0,
    "blur": 0.0, "brightness": 1.0, "contrast": 1.0, "gamma": 1.0,
}  # fmt: skip
Augment = Callable[[torch.Tensor, torch.Tensor, SliceParameters], tuple[torch.Tensor, torch.Tensor]]
BILINEAR, NEAREST = TF.InterpolationMode.BILINEAR, TF.InterpolationMode.NEAREST


@pytest.fixture(params=[augment_slices, augment_masked], ids=["cpu", "gpu"])
def augment(request: pytest.FixtureRequest) -> Augment:
    return request.param


def parameters(n: int = 1, **changes: Any) -> SliceParameters:
    """Those that change nothing, but for `changes`."""
    return SliceParameters(**{name: np.broadcast_to(changes.get(name, NEUTRAL[name]), n) for name in NEUTRAL})


def slices(n: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random intensities in an ellipse, 0 around it, and labels in patches of four pixels."""
    generator = torch.Generator().manual_seed(height)
    rows, columns = torch.linspace(-1.2, 1.2, height)[:, None], torch.linspace(-1.2, 1.2, width)
    images = torch.randn(n, 4, height, width, generator=generator) * (rows**2 + columns**2 < 1)
    patches = torch.randint(0, 4, (n, height // 4 + 1, width // 4 + 1), generator=generator, dtype=torch.uint8)
    labels = patches.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :height, :width].contiguous()
    return images, labels


def only(augment: Augment, images: torch.Tensor, **changes: Any) -> torch.Tensor:
    """The images with these changes; their labels must stay as they are."""
    labels = torch.ones(len(images), *images.shape[-2:], dtype=torch.uint8)
    changed, same = augment(images, labels, parameters(len(images), **changes))
    assert torch.equal(same, labels)
    return changed


def test_neutral_parameters_change_nothing(augment: Augment) -> None:
    images, labels = slices(2, 33, 40)
    same = augment(images, labels, parameters(2))
    assert torch.equal(same[0], images)
    assert torch.equal(same[1], labels)


@pytest.mark.parametrize("sides", SIDES)
def test_flips_are_exact_and_their_own_inverse(augment: Augment, sides: tuple[int, int]) -> None:
    images, labels = slices(4, *sides)
    flips = parameters(4, flip_vertical=[0, 1, 0, 1], flip_horizontal=[0, 0, 1, 1])
    moved = augment(images, labels, flips)
    for whole, part in zip((images, labels), moved, strict=True):
        expected = [whole[0], TF.vflip(whole[1]), TF.hflip(whole[2]), TF.hflip(TF.vflip(whole[3]))]
        assert torch.equal(part, torch.stack(expected))
    back = augment(*moved, flips)
    assert torch.equal(back[0], images)
    assert torch.equal(back[1], labels)


@pytest.mark.parametrize(("degrees", "zoom"), [(15.0, 1.0), (-7.0, 1.0), (0.0, 0.85), (0.0, 1.25), (-12.0, 1.1)])
@pytest.mark.parametrize("sides", SIDES)
def test_warps_are_torchvisions(augment: Augment, sides: tuple[int, int], degrees: float, zoom: float) -> None:
    images, labels = slices(2, *sides)
    changes = {"angle": math.radians(degrees), "zoom": zoom, "flip_horizontal": [False, True]}
    ours = augment(images, labels, parameters(2, **changes))
    for i, flip in enumerate((lambda x: x, TF.hflip)):
        # torchvision's `affine` counts angles clockwise.
        image = TF.affine(flip(images[i]), -degrees, [0, 0], zoom, [0.0], interpolation=BILINEAR)
        label = TF.affine(flip(labels[i : i + 1]), -degrees, [0, 0], zoom, [0.0], interpolation=NEAREST)[0]
        torch.testing.assert_close(ours[0][i], image, atol=1e-4, rtol=0)
        # Pixels that fall between two others, as those halfway along an axis do, may go to either.
        assert (ours[1][i] != label).float().mean() < 0.005


def test_labels_hold_nothing_new_and_move_with_their_image(augment: Augment) -> None:
    images, labels = slices(16, 60, 44)
    labels = labels.where(labels != 2, 1)
    drawn = draw_slice_parameters(16, seed=2, epoch=0, step=0)
    flips = {"flip_vertical": drawn.flip_vertical, "flip_horizontal": drawn.flip_horizontal}
    warps = parameters(16, angle=drawn.angle + 0.05, zoom=drawn.zoom, **flips)
    images[:, 0] = labels
    moved, moved_labels = augment(images, labels, warps)
    assert moved_labels.dtype == torch.uint8
    assert set(moved_labels.unique().tolist()) == {0, 1, 3}
    # Where interpolation finds four equal neighbours, that is the label of the nearest one.
    certain = (moved[:, 0] - moved[:, 0].round()).abs() < 1e-4
    assert certain.float().mean() > 0.5
    agree = moved[:, 0].round()[certain] == moved_labels[certain]
    assert agree.float().mean() > 0.995


def test_blur_is_torchvisions(augment: Augment) -> None:
    images = slices(2, 40, 33)[0]
    images[images == 0] = 0.3  # no background: torchvision knows none
    blurred = only(augment, images, blur=[0.5, 1.0])
    for image, ours, sigma in zip(images, blurred, (0.5, 1.0), strict=True):
        torch.testing.assert_close(ours, TF.gaussian_blur(image, [7, 7], [sigma, sigma]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("amounts", [(0.75, 1.0), (1.25, 0.8)])
def test_brightness_and_contrast_are_torchvisions(augment: Augment, amounts: tuple[float, float]) -> None:
    images = slices(2, 40, 33)[0].clamp(-2, 2) * 0.05 + 0.5  # no background, and nothing for torchvision to clamp
    for name, theirs in (("brightness", TF.adjust_brightness), ("contrast", TF.adjust_contrast)):
        ours = only(augment, images, **{name: amounts})
        for i in range(2):
            for channel in range(4):
                expected = theirs(images[i, channel : channel + 1], amounts[i])[0]
                torch.testing.assert_close(ours[i, channel], expected, atol=1e-5, rtol=0)


def test_brightness_comes_before_contrast(augment: Augment) -> None:
    """By hand: pixels 1 and 3 in the brain, times 1.2, then half as far again from their mean of 2.4."""
    images = torch.zeros(1, 4, 32, 32)
    images[0, 0, 5, 5], images[0, 0, 6, 6] = 1, 3
    ours = only(augment, images, brightness=1.2, contrast=1.5)
    assert ours[0, 0, [5, 6, 7], [5, 6, 7]].tolist() == pytest.approx([2.4 - 1.8, 2.4 + 1.8, 0])


def test_gamma_is_torchvisions_between_the_extremes(augment: Augment) -> None:
    images = slices(2, 40, 33)[0]
    ours = only(augment, images, gamma=[0.7, 1.5])
    for i, exponent in enumerate((0.7, 1.5)):
        for channel in range(4):
            image = images[i, channel : channel + 1]
            low, high = image.min(), image.max()
            expected = TF.adjust_gamma((image - low) / (high - low), exponent) * (high - low) + low
            expected[image == 0] = 0
            torch.testing.assert_close(ours[i, channel : channel + 1], expected, atol=1e-5, rtol=0)


def test_noise_has_its_strength_and_comes_from_its_seed(augment: Augment) -> None:
    images = slices(3, 240, 240)[0]
    noise = only(augment, images, noise=[0.1, 0.02, 0.1], noise_seed=[1, 2, 1]) - images
    inside = images != 0
    for i, sigma in enumerate((0.1, 0.02, 0.1)):
        drawn = noise[i][inside[i]]
        assert drawn.std().item() == pytest.approx(sigma, rel=0.02)
        assert abs(drawn.mean().item()) < 0.02 * sigma
    torch.testing.assert_close(noise[0] * inside[2] * inside[0], noise[2] * inside[0] * inside[2], atol=1e-6, rtol=0)
    first, second = (noise[0, channel][inside[0, 0]] for channel in (0, 1))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.03  # each modality has its own


@pytest.mark.parametrize(
    "changes",
    [{"noise": 0.1}, {"blur": 1.0}, {"contrast": 1.25, "brightness": 0.8}, {"gamma": 0.7}],
    ids=lambda changes: "-".join(changes),
)
def test_background_stays_background(augment: Augment, changes: dict[str, float]) -> None:
    images = slices(2, 60, 44)[0] + 0.7 * (slices(2, 60, 44)[0] != 0)
    images[1] = 0  # a slice beside the head
    changed = only(augment, images, **changes)
    assert torch.equal(changed == 0, images == 0)
    assert not torch.equal(changed, images)


def test_all_changes_at_once_leave_the_background_of_the_warped_slice(augment: Augment) -> None:
    images, labels = slices(12, 60, 44)
    drawn = draw_slice_parameters(12, seed=0, epoch=3, step=1)
    warps = {name: getattr(drawn, name) for name in ("flip_vertical", "flip_horizontal", "angle", "zoom")}
    everything = parameters(12, **warps, noise=0.1, blur=0.9, brightness=1.2, contrast=0.8, gamma=1.4)
    moved, changed = (augment(images, labels, p) for p in (parameters(12, **warps), everything))
    assert torch.equal(changed[0] == 0, moved[0] == 0)
    assert torch.equal(changed[1], moved[1])
    assert changed[0].isfinite().all()


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("world", [2, 3, 24])
def test_the_shares_of_ranks_make_up_the_batch_to_the_last_bit(sides: tuple[int, int], world: int) -> None:
    images, labels = slices(24, *sides)
    drawn = draw_slice_parameters(24, seed=5, epoch=0, step=5)
    assert min(len(set(values)) for name, values in vars(drawn).items() if "flip" not in name) > 2  # all are at work
    together = augment_slices(images, labels, drawn)
    for rank in range(world):
        share = slice(rank, None, world)
        alone = augment_slices(images[share], labels[share], drawn[share])
        assert torch.equal(alone[0], together[0][share])
        assert torch.equal(alone[1], together[1][share])


def test_what_is_given_is_left_alone(augment: Augment) -> None:
    images, labels = slices(24, 32, 40)
    before = images.clone(), labels.clone()
    augment(images, labels, draw_slice_parameters(24, seed=5, epoch=0, step=9))
    only(augment, images, noise=0.1, gamma=0.8)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_parameters_come_from_seed_epoch_and_step_alone() -> None:
    first, again, fewer = (draw_slice_parameters(n, seed=3, epoch=1, step=5) for n in (64, 64, 40))
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(again, name))
        np.testing.assert_array_equal(values[:40], getattr(fewer, name))  # and from the place in the batch
    assert len(set(first.noise_seed.tolist())) == 64
    for other in ((4, 1, 5), (3, 2, 5), (3, 1, 6)):
        drawn = draw_slice_parameters(64, *other)
        assert not np.array_equal(first.angle, drawn.angle)
        assert not set(first.noise_seed.tolist()) & set(drawn.noise_seed.tolist())


def test_changes_are_as_frequent_and_as_strong_as_said() -> None:
    n = 8000
    drawn = draw_slice_parameters(n, seed=3, epoch=1, step=5)
    ranges = {
        "angle": (0.3, -math.radians(15), math.radians(15)), "zoom": (0.3, 0.85, 1.25), "noise": (0.15, 0, 0.1),
        "blur": (0.15, 0.5, 1.0), "brightness": (0.15, 0.75, 1.25), "contrast": (0.15, 0.75, 1.25),
        "gamma": (0.15, 0.7, 1.5),
    }  # fmt: skip
    for name, (chance, low, high) in ranges.items():
        values = getattr(drawn, name)
        changed = values[values != NEUTRAL[name]]
        margin = 0.02 * (high - low)
        assert len(changed) / n == pytest.approx(chance, abs=0.02), name
        assert low <= changed.min() < low + margin, name
        assert high - margin < changed.max() <= high, name
        if NEUTRAL[name] == 1:  # as often below 1 as above
            assert (changed > 1).mean() == pytest.approx(0.5, abs=0.06), name
    for flip in (drawn.flip_vertical, drawn.flip_horizontal):
        assert flip.mean() == pytest.approx(0.5, abs=0.03)
    table = np.array([getattr(drawn, name) != NEUTRAL[name] for name in NEUTRAL if name != "noise_seed"])
    assert np.abs(np.corrcoef(table) - np.eye(9)).max() < 0.06  # each drawn apart from the others: 5 standard errors


def test_more_slices_than_parameters_are_refused(augment: Augment) -> None:
    images, labels = slices(3, 32, 32)
    with pytest.raises(ValueError, match="3 images with parameters for 1"):
        augment(images, labels, parameters(1))


@pytest.mark.parametrize("sides", SIDES)
def test_gpus_get_what_cpus_get(sides: tuple[int, int]) -> None:
    """But for noise, which they draw in another way: to six digits, and slices that nothing changes to the last bit."""
    images, labels = slices(24, *sides)
    drawn = draw_slice_parameters(24, seed=5, epoch=0, step=5)
    drawn = replace(drawn, noise=np.zeros(24))
    ours, theirs = (augment(images, labels, drawn) for augment in (augment_masked, augment_slices))
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[0], theirs[0], atol=5e-6, rtol=1e-6)
    assert torch.equal(ours[0] == 0, theirs[0] == 0)
    same = (drawn.blur == 0) & (drawn.brightness == 1) & (drawn.contrast == 1) & (drawn.gamma == 1)
    assert 0 < same.sum() < (same | drawn.warped).sum() < 24
    assert torch.equal(ours[0][same], theirs[0][same])


@pytest.mark.parametrize("world", [2, 3, 24])
def test_on_gpus_the_draws_do_not_depend_on_the_ranks(world: int) -> None:
    images, labels = slices(24, 47, 65)
    drawn = draw_slice_parameters(24, seed=5, epoch=0, step=5)
    assert (drawn.noise != 0).sum() > 2
    together = augment_masked(images, labels, drawn)
    for rank in range(world):
        share = slice(rank, None, world)
        alone = augment_masked(images[share], labels[share], drawn[share])
        torch.testing.assert_close(alone[0], together[0][share], atol=1e-6, rtol=1e-6)
        assert torch.equal(alone[1], together[1][share])


def test_noise_of_gpus_comes_before_the_blur_and_stays_in_the_brain() -> None:
    images = slices(2, 60, 44)[0]
    noisy = only(augment_masked, images, noise=0.1, noise_seed=[3, 4])
    both = only(augment_masked, images, noise=0.1, noise_seed=[3, 4], blur=0.8)
    torch.testing.assert_close(both, only(augment_slices, noisy, blur=0.8), atol=1e-6, rtol=0)


def test_windows_of_noise_are_normal_and_their_own() -> None:
    windows = noise_windows(4, 32, 32, torch.device("cpu"))
    assert len(windows) == WINDOWS
    assert windows is noise_windows(4, 32, 32, torch.device("cpu"))
    chosen = windows[np.random.default_rng(0).integers(0, WINDOWS, 64)]
    assert chosen.mean().item() == pytest.approx(0, abs=0.01)
    assert chosen.std().item() == pytest.approx(1, abs=0.01)
    assert chosen.abs().max().item() > 4
    assert (torch.corrcoef(chosen) - torch.eye(64)).abs().max().item() < 0.09  # 5 standard errors
