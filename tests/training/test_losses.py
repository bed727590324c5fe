"""Losses by hand, against torch's and torchvision's own, and by what must hold of any of them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from hpc_tumor import config
from hpc_tumor.training import losses

CHOICES = [(task, name) for task, names in config.LOSSES.items() for name in names]
SEGMENTATION = config.LOSSES["segmentation"]


def made(task: str, name: str, weights: Tensor | None = None, gamma: float = 2.0) -> losses.Loss:
    return losses.build_loss(task, name, weights=weights, focal_gamma=gamma)


def sample(task: str, n: int = 5, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    if task == "classification":
        return 3 * torch.randn(n, 4, generator=generator).to(kind), torch.arange(n) % 4
    logits = 3 * torch.randn(n, 3, 6, 8, generator=generator)
    labels = torch.randint(0, 4, (n, 6, 8), generator=generator).to(torch.uint8)
    labels[0] = 0
    return logits.to(kind).contiguous(memory_format=torch.channels_last), labels


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels.long(), 4)[..., 1:].movedim(-1, 1).float()


def pixel(*logits: float) -> Tensor:
    return torch.tensor(logits).view(1, 3, 1, 1)


def labelled(label: int) -> Tensor:
    return torch.full((1, 1, 1), label, dtype=torch.uint8)


# By hand


def test_bce_by_hand() -> None:
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1)) + math.log(2)) / 3
    assert losses.bce(pixel(2, 1, 0), labelled(1)).tolist() == pytest.approx([expected])


def test_dice_by_hand() -> None:
    probabilities = torch.tensor([0.5, 1.0, 0.0, 0.5]).view(1, 1, 2, 2)
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    # overlap 1.5; squares 0.25 + 1 + 0.25 = 1.5, and two true pixels
    assert losses.dice_losses(probabilities, truth).tolist() == [[pytest.approx(1 - (3 + 1) / (1.5 + 2 + 1))]]


def test_dice_bce_by_hand() -> None:
    p = 0.75
    logits = pixel(math.log(p / (1 - p)), -1e4, -1e4)
    dice = 1 - (2 * p + 1) / (p * p + 1 + 1)
    assert losses.dice_bce(logits, labelled(1)).tolist() == pytest.approx([(dice - math.log(p)) / 3], rel=1e-5)


def test_dice_ce_by_hand() -> None:
    logits = pixel(math.log(2), math.log(4), math.log(1))  # with the background's 1: eighths of 1, 2, 4, 1
    dice = [1 - 1 / (1 / 16 + 1), 1 - (2 * 0.5 + 1) / (1 / 4 + 2), 1 - 1 / (1 / 64 + 1)]
    expected = math.log(2) + sum(dice) / 3
    assert losses.dice_ce(logits, labelled(2)).tolist() == pytest.approx([expected], rel=1e-5)
    weights = torch.tensor([1.0, 3.0, 4.0])
    expected = 3 * math.log(2) + (dice[0] + 3 * dice[1] + 4 * dice[2]) / 8
    assert losses.dice_ce(logits, labelled(2), weights).tolist() == pytest.approx([expected], rel=1e-5)
    expected = math.log(8) + (2 / 3 * (1 - 1 / (1 / 16 + 1)) + 1 / 3 * (1 - 1 / (1 / 4 + 1)))  # background counts 1
    found = losses.dice_ce(logits, labelled(0), torch.tensor([2.0, 1.0, 1e-9]))
    assert found.tolist() == pytest.approx([expected], rel=1e-5)


def test_focal_losses_by_hand() -> None:
    logits = torch.tensor([[math.log(6), math.log(3), 0.0]])
    expected = 0.7**2 * -math.log(0.3)
    assert losses.focal_of_classes(logits, torch.tensor([1]), 2).tolist() == pytest.approx([expected])
    odds = math.log(0.8 / 0.2)
    found = losses.focal_of_labels(pixel(odds, odds, -odds), labelled(1), 3)
    right, wrong = 0.2**3 * -math.log(0.8), 0.8**3 * -math.log(0.2)
    assert found.tolist() == pytest.approx([(2 * right + wrong) / 3], rel=1e-5)


def test_weights_of_labels_multiply_their_maps() -> None:
    logits, labels = sample("segmentation")
    weights = torch.tensor([0.5, 2.0, 7.0])
    for name in ("bce", "dice-bce", "focal"):
        alone = [made("segmentation", name, torch.eye(3)[label])(logits, labels) for label in range(3)]
        together = sum(weight * of_label for weight, of_label in zip(weights, alone, strict=True))
        torch.testing.assert_close(made("segmentation", name, weights)(logits, labels), together)


# Against torch's own


def test_cross_entropy_is_torchs() -> None:
    logits, classes = sample("classification")
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0])
    for chosen in (None, weights):
        expected = F.cross_entropy(logits, classes, chosen, reduction="none")
        torch.testing.assert_close(losses.cross_entropy(logits, classes, chosen), expected)


def test_bce_is_torchs() -> None:
    logits, labels = sample("segmentation")
    expected = F.binary_cross_entropy_with_logits(logits, one_hot(labels), reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(losses.bce(logits, labels), expected)


def test_softplus_and_its_slope_are_torchs() -> None:
    x = torch.tensor([-1e4, -30.0, -5.0, -0.1, 0.0, 0.1, 5.0, 30.0, 1e4], requires_grad=True)
    torch.testing.assert_close(losses.softplus(x), F.softplus(x), rtol=1e-6, atol=1e-7)
    mine, theirs = (torch.autograd.grad(made_of(x).sum(), x)[0] for made_of in (losses.softplus, F.softplus))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_of_labels_is_torchvisions(gamma: float) -> None:
    logits, labels = sample("segmentation")
    expected = sigmoid_focal_loss(logits, one_hot(labels), alpha=-1, gamma=gamma).mean((1, 2, 3))
    torch.testing.assert_close(losses.focal_of_labels(logits, labels, gamma), expected)


def test_cross_entropy_of_dice_ce_is_torchs_with_a_background_of_0() -> None:
    logits, labels = sample("segmentation")
    weights = torch.tensor([0.5, 1.0, 2.0])
    four = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
    dice = losses.dice_losses(four.softmax(1)[:, 1:], one_hot(labels))
    expected = F.cross_entropy(four, labels.long(), reduction="none").mean((1, 2)) + dice.mean(1)
    torch.testing.assert_close(losses.dice_ce(logits, labels), expected)
    of_four = torch.cat([torch.ones(1), weights])
    expected = F.cross_entropy(four, labels.long(), of_four, reduction="none").mean((1, 2)) + dice @ (weights / 3.5)
    torch.testing.assert_close(losses.dice_ce(logits, labels, weights), expected)


# What must hold of any of them


@pytest.mark.parametrize(("task", "name"), CHOICES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_slopes_are_those_of_the_loss(task: str, name: str, weighted: bool, gamma: float) -> None:
    logits, truth = sample(task, n=2, kind=torch.float64)
    if task == "segmentation":
        logits, truth = logits[:, :, :3, :2], truth[:, :3, :2]
    weights = torch.linspace(0.5, 2, config.OUTPUTS[task], dtype=torch.float64) if weighted else None
    loss = made(task, name, weights, gamma)
    assert torch.autograd.gradcheck(lambda x: loss(x, truth), logits.detach().requires_grad_())


@pytest.mark.parametrize(("task", "name"), CHOICES)
def test_loss_of_a_sample_is_the_same_alone_and_in_a_batch(task: str, name: str) -> None:
    logits, truth = sample(task)
    loss = made(task, name, torch.linspace(0.5, 2, config.OUTPUTS[task]))
    together = loss(logits, truth)
    assert together.shape == (5,)
    alone = torch.cat([loss(logits[n : n + 1], truth[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("task", "name"), CHOICES)
def test_weights_of_1_change_nothing(task: str, name: str) -> None:
    logits, truth = sample(task)
    ones = torch.ones(config.OUTPUTS[task])
    torch.testing.assert_close(made(task, name, ones)(logits, truth), made(task, name)(logits, truth))


@pytest.mark.parametrize(("task", "plain"), [("classification", "cross-entropy"), ("segmentation", "bce")])
def test_focal_loss_without_focus_is_the_plain_one(task: str, plain: str) -> None:
    logits, truth = sample(task)
    weights = torch.linspace(0.5, 2, config.OUTPUTS[task])
    assert torch.equal(made(task, "focal", weights, gamma=0)(logits, truth), made(task, plain, weights)(logits, truth))


@pytest.mark.parametrize(("task", "name"), CHOICES)
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_losses_are_float32_whatever_the_logits_are(task: str, name: str, kind: torch.dtype) -> None:
    logits, truth = sample(task, kind=kind)
    found = made(task, name)(logits.requires_grad_(), truth)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, made(task, name)(logits.float(), truth))
    assert torch.autograd.grad(found.sum(), logits)[0].dtype == kind


@pytest.mark.parametrize(("task", "name"), CHOICES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 10.0])
def test_huge_logits_have_finite_losses_and_slopes(task: str, name: str, kind: torch.dtype, gamma: float) -> None:
    logits, truth = sample(task)
    logits = (1e4 * logits.sign()).to(kind)
    logits[-1] = 0
    logits.requires_grad_()
    found = made(task, name, torch.ones(config.OUTPUTS[task]), gamma)(logits, truth)
    assert found.isfinite().all()
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_perfect_prediction_costs_nothing(name: str) -> None:
    _, labels = sample("segmentation")
    logits = 40 * one_hot(labels) - 20
    assert made("segmentation", name)(logits, labels).tolist() == pytest.approx([0] * 5, abs=1e-5)


@pytest.mark.parametrize("name", SEGMENTATION)
def test_empty_slice_with_confident_background_costs_nothing(name: str) -> None:
    labels = torch.zeros(1, 240, 240, dtype=torch.uint8)
    logits = torch.full((1, 3, 240, 240), -10.0, requires_grad=True)  # a probability of 4.5e-5 everywhere
    found = made("segmentation", name)(logits, labels)
    assert 0 <= found.item() < 3e-4
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("name", SEGMENTATION)
def test_a_worse_prediction_costs_more(name: str) -> None:
    _, labels = sample("segmentation")
    right = 2 * one_hot(labels) - 1
    found = [made("segmentation", name)(certainty * right, labels).sum().item() for certainty in (-2, -1, 0, 1, 2)]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 5


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(KeyError, match="bce"):
        made("classification", "bce")


# Balanced weights


def test_balanced_weights_by_hand() -> None:
    weights = losses.balanced_weights(torch.tensor([100, 200, 0, 400]))
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([12 / 7, 6 / 7, 1, 3 / 7])  # 4 : 2 : 1, of mean 1


def test_balanced_weights_even_out_the_classes() -> None:
    counts = torch.tensor([3, 1_000_000_007, 12, 999])
    shares = counts * losses.balanced_weights(counts).double()
    torch.testing.assert_close(shares, shares.mean().expand(4), rtol=1e-6, atol=0)
    assert losses.balanced_weights(counts).mean().item() == pytest.approx(1)


def test_balanced_weights_of_nothing_are_1() -> None:
    assert losses.balanced_weights(torch.zeros(3, dtype=torch.int64)).tolist() == [1, 1, 1]
