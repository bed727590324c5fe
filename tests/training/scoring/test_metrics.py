"""Scores against values worked out by hand and against the textbook formulas on the masks themselves."""

import numpy as np
import pytest
import torch

from hpc_tumor.scores import classification_scores
from hpc_tumor.training.scoring import metrics
from hpc_tumor.vocabulary import MEMBERS


def masks_of(labels: np.ndarray, structure: str) -> np.ndarray:
    return np.isin(labels, MEMBERS[structure])


@pytest.fixture
def slices() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 3, 12, 10, generator=generator)
    labels = torch.randint(0, 4, (5, 12, 10), generator=generator).to(torch.uint8)
    labels[4] = 0
    return logits, labels


def test_histogram_gives_the_scores_of_the_masks_themselves(slices: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = slices
    histogram = metrics.count_labels(logits, labels).numpy()
    predicted = (logits > 0).numpy()
    for structure, members in MEMBERS.items():
        truth = masks_of(labels.numpy(), structure)
        guess = predicted[:, [member - 1 for member in members]].any(1)
        tp, fp, fn, tn = ((truth & guess).sum((1, 2)), (~truth & guess).sum((1, 2)),
                          (truth & ~guess).sum((1, 2)), (~truth & ~guess).sum((1, 2)))  # fmt: skip
        np.testing.assert_array_equal(metrics.confusion(histogram, structure), np.stack([tp, fp, fn, tn], -1))
        both = truth.sum((1, 2)) + guess.sum((1, 2))
        np.testing.assert_allclose(
            metrics.structure_scores(metrics.confusion(histogram, structure))["dice"], 2 * tp / both
        )


def test_histogram_counts_every_pixel_once(slices: tuple[torch.Tensor, torch.Tensor]) -> None:
    histogram = metrics.count_labels(*slices)
    assert histogram.sum((1, 2)).tolist() == [120] * 5


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_histogram_counts_pixel_by_pixel(
    slices: tuple[torch.Tensor, torch.Tensor], kind: torch.dtype, layout: torch.memory_format
) -> None:
    logits, labels = slices[0].to(kind).contiguous(memory_format=layout), slices[1]
    logits[0, :, 0, 0] = torch.tensor([0.0, -0.0, 1e-30])  # on the threshold, and just above it
    expected = np.zeros((5, 4, 8), dtype=int)
    for n, row, column in np.ndindex(*labels.shape):
        bits = sum(1 << k for k in range(3) if logits[n, k, row, column] > 0)
        expected[n, labels[n, row, column], bits] += 1
    found = metrics.count_labels(logits, labels)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("shape", [(0, 4, 4), (1, 1, 1), (3, 7, 5), (2, 300, 301)])
@pytest.mark.parametrize("background", [0.0, 0.5, 1.0])
def test_comparisons_count_the_same(shape: tuple[int, ...], background: float) -> None:
    """bfloat16 itself could count to 256 only."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 32, shape, generator=generator, dtype=torch.uint8)
    codes[torch.rand(shape, generator=generator) < background] = 0
    found = metrics.count_by_comparison(codes)
    assert found.dtype == torch.int64
    assert torch.equal(found, metrics.count_codes(codes))


def test_exclusive_prediction_is_argmax_over_background_and_labels(slices: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = slices
    logits = logits.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)  # so coarse that some are equal
    predicted = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1).float().numpy().argmax(1)  # the first of equals
    expected = np.zeros((5, 4, 8), dtype=int)
    np.add.at(expected, (np.arange(5)[:, None, None], labels.numpy(), np.array([0, 1, 2, 4])[predicted]), 1)
    np.testing.assert_array_equal(metrics.count_labels(logits, labels, exclusive=True).numpy(), expected)


@pytest.mark.parametrize(
    ("logits", "both", "exclusive"),
    [
        ((2.0, 1.0, -1.0), 0b011, 0b001),
        ((1.0, 2.0, 3.0), 0b111, 0b100),
        ((2.0, 2.0, 1.0), 0b111, 0b001),
        ((-1.0, 0.5, 0.5), 0b110, 0b010),
        ((0.0, -1.0, 0.0), 0, 0),
        ((-3.0, -2.0, -1.0), 0, 0),
        ((-3.0, float("nan"), 2.0), 0b100, 0),
    ],
)
def test_exclusive_prediction_by_hand(logits: tuple[float, ...], both: int, exclusive: int) -> None:
    maps, labels = torch.tensor(logits).view(1, 3, 1, 1), torch.tensor([[[3]]], dtype=torch.uint8)
    for choice, bits in ((False, both), (True, exclusive)):
        histogram = metrics.count_labels(maps, labels, exclusive=choice)
        assert histogram[0, 3, bits] == histogram.sum() == 1


def test_no_slice_has_no_histogram() -> None:
    nothing = metrics.count_labels(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.uint8))
    assert nothing.shape == (0, 4, 8)


def test_scores_by_hand() -> None:
    scores = metrics.structure_scores(np.array([6, 2, 4, 88]))
    assert scores["dice"] == pytest.approx(12 / 18)
    assert scores["iou"] == pytest.approx(6 / 12)
    assert scores["precision"] == pytest.approx(6 / 8)
    assert scores["recall"] == pytest.approx(6 / 10)
    assert scores["fpr"] == pytest.approx(2 / 90)
    assert scores["fnr"] == pytest.approx(4 / 10)
    assert scores["accuracy"] == pytest.approx(94 / 100)


@pytest.mark.parametrize(
    ("counts", "dice", "precision", "recall", "status"),
    [
        ((0, 0, 0, 50), 1, 1, 1, "empty"),
        ((0, 3, 0, 47), 0, 0, 0, "false alarm"),
        ((0, 0, 3, 47), 0, 0, 0, "missed"),
        ((3, 0, 0, 47), 1, 1, 1, "ok"),
    ],
)
def test_empty_structures_as_brats_scores_them(
    counts: tuple[int, ...], dice: float, precision: float, recall: float, status: str
) -> None:
    scores = metrics.structure_scores(np.array(counts))
    assert (scores["dice"], scores["precision"], scores["recall"]) == (dice, precision, recall)
    assert metrics.case_status(np.array(counts)) == status


def test_mean_is_over_cases_not_over_pixels() -> None:
    large, small = np.zeros((4, 8), dtype=int), np.zeros((4, 8), dtype=int)
    large[1, 1] = 1000  # NCR found entirely
    small[1, 0] = 10  # NCR missed entirely
    scores = metrics.segmentation_scores(np.stack([large, small]))
    assert scores["dice_NCR"] == 0.5
    pooled = metrics.segmentation_scores((large + small)[None])
    assert pooled["dice_NCR"] == pytest.approx(2000 / 2010)


def test_one_row_per_case_marks_missed_structures() -> None:
    missed = np.zeros((1, 4, 8), dtype=int)
    missed[0, 3, 0] = 5
    (row,) = metrics.segmentation_rows(missed, ["a"], [155])
    assert (row["status_ET"], row["status_NCR"], row["dice_ET"]) == ("missed", "empty", 0.0)


def test_classification_scores_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    scores = classification_scores(probabilities, np.array([0, 0, 1, 2]), ["a", "b", "c"])
    assert scores["accuracy"] == 0.75
    assert scores["confidence"] == pytest.approx((0.7 + 0.5 + 0.8 + 0.6) / 4)
    assert scores["loss"] == pytest.approx(-np.log([0.7, 0.4, 0.8, 0.6]).mean())
    assert (scores["precision_a"], scores["recall_a"]) == (1.0, 0.5)
    assert (scores["precision_b"], scores["recall_b"]) == (0.5, 1.0)
    assert scores["f1_b"] == pytest.approx(2 / 3)
