"""Predictions cleaned of what is too small: by hand, and who chooses the thresholds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from made_volumes import cases_of, codes_of
from torch import nn
from training_runs import new_run, spawn

from hpc_tumor.errors import UsageError
from hpc_tumor.settings import merge, resolve
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.scoring.cases import Case, count_candidates
from hpc_tumor.training.scoring.cleaning import COMPONENTS, ENHANCING, Cleaning, histogram
from hpc_tumor.training.scoring.surfaces import case_surfaces
from hpc_tumor.training.scoring.testing import choose_cleaning, score_test_part
from hpc_tumor.training.scoring.volumes import Watch
from hpc_tumor.training.setup import build_state
from hpc_tumor.vocabulary import MEMBERS

NCR, ED, ET = 1, 2, 3
SHAPE = (12, 24, 24)


def volume(*boxes: tuple[int, tuple[int, int, int], tuple[int, int, int]]) -> np.ndarray:
    """Labels of boxes: label, first corner, size."""
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for label, start, size in boxes:
        labels[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = label
    return labels


TUMOUR = ((ED, (2, 2, 2), (8, 8, 8)), (NCR, (4, 4, 4), (4, 4, 4)))  # 512 voxels, 64 of them NCR


# By hand


def test_pieces_below_a_threshold_go() -> None:
    truth = volume(*TUMOUR)
    predicted = volume(*TUMOUR, (ET, (2, 20, 20), (1, 1, 3)), (NCR, (8, 20, 2), (1, 2, 2)))  # of 3 and of 4 voxels
    codes = codes_of(truth, predicted)
    np.testing.assert_array_equal(Cleaning(3)(codes, 1), codes)
    without = codes_of(truth, volume(*TUMOUR, (NCR, (8, 20, 2), (1, 2, 2))))
    np.testing.assert_array_equal(Cleaning(4)(codes, 1), without)
    np.testing.assert_array_equal(Cleaning(30)(codes, 1), codes_of(truth, truth))
    np.testing.assert_array_equal(Cleaning(513)(codes, 1) % 8, 0)
    np.testing.assert_array_equal(Cleaning(513)(codes, 1) // 8, truth)  # the truth is never touched


def test_thresholds_are_of_millimetres() -> None:
    codes = codes_of(volume(), volume((ED, (3, 3, 3), (1, 2, 5))))  # 10 voxels
    for voxel_mm3, kept in ((1, False), (2.9, False), (3, True), (8, True)):
        assert (Cleaning(30)(codes, voxel_mm3) % 8).any() == kept, voxel_mm3


def test_what_touches_at_a_corner_is_one_piece() -> None:
    codes = codes_of(volume(), volume((ED, (3, 3, 3), (2, 2, 2)), (ET, (5, 5, 5), (2, 2, 2))))
    np.testing.assert_array_equal(Cleaning(16)(codes, 1), codes)
    apart = codes_of(volume(), volume((ED, (3, 3, 3), (2, 2, 2)), (ET, (6, 5, 5), (2, 2, 2))))
    assert not (Cleaning(16)(apart, 1) % 8).any()


def test_little_enhancing_tumour_becomes_necrosis() -> None:
    truth = volume(*TUMOUR, (ET, (3, 3, 3), (2, 2, 2)))
    codes = codes_of(truth, truth)
    np.testing.assert_array_equal(Cleaning(0, 8)(codes, 1), codes)
    expected = np.where(truth == ET, NCR, truth)
    np.testing.assert_array_equal(Cleaning(0, 8.5)(codes, 1), codes_of(truth, expected))
    both = codes | np.uint8(ED)  # a network without a softmax may say ED, too: it stays said
    assert ((Cleaning(0, 9)(both, 1)[truth == ET] % 8) == 1 + ED).all()


def test_an_empty_prediction_stays_as_it_is() -> None:
    codes = codes_of(volume(*TUMOUR), volume())
    np.testing.assert_array_equal(Cleaning(1000, 1000)(codes, 1), codes)


# Who chooses


def with_specks() -> list[np.ndarray]:
    """Predicted right, but for pieces of 40 voxels in the one and of 60 in the other."""
    truth = volume(*TUMOUR, (ET, (4, 4, 4), (4, 4, 2)))
    specks = (volume((ET, (1, 14, 14), (1, 5, 8))), volume((NCR, (1, 14, 12), (1, 6, 10))))
    return [codes_of(truth, np.where(speck > 0, speck, truth)) for speck in specks]


def chosen_for(cases: Sequence[Case], rows: int, distributed: Distributed = Distributed()) -> Cleaning:
    """Return the cleaning that is chosen for a part of so many cases, of which these are a rank's whole ones."""
    counts = np.zeros((rows, len(COMPONENTS), len(ENHANCING), 4, 8), np.int64)
    for row, of_case in map(count_candidates, cases):
        counts[row] = of_case
    distributed.sum(torch.from_numpy(counts))
    return choose_cleaning(counts)


def test_each_candidate_is_counted_as_in_the_whole_volume() -> None:
    for case, codes in zip(cases_of(with_specks()), with_specks(), strict=True):
        _, counts = count_candidates(case)
        for index, number in np.ndindex(len(COMPONENTS), len(ENHANCING)):
            cleaned = Cleaning(COMPONENTS[index], ENHANCING[number])(codes, 1)
            np.testing.assert_array_equal(counts[index, number], histogram(cleaned))


def test_the_smallest_threshold_that_helps_is_chosen() -> None:
    chosen = chosen_for(cases_of(with_specks()), 2)
    assert chosen == Cleaning(100, 0)  # 300 would do no better, 1000 worse
    assert chosen_for(cases_of(with_specks(), spacing=(4.0, 1.0, 1.0)), 2) == Cleaning(300, 0)


def test_enhancing_tumour_that_is_not_there_is_called_necrosis() -> None:
    truth = volume(*TUMOUR)
    made_up = volume(*TUMOUR, (ET, (4, 4, 4), (4, 4, 2)))  # 32 voxels in the middle
    chosen = chosen_for(cases_of([codes_of(truth, made_up)]), 1)
    assert chosen == Cleaning(0, 100)
    there = volume(*TUMOUR, (ET, (2, 2, 2), (8, 8, 2)))  # 128 voxels that are there, too: 100 keeps them
    chosen = chosen_for(cases_of([codes_of(truth, made_up), codes_of(there, there)]), 2)
    assert chosen == Cleaning(0, 100)


@pytest.mark.parametrize("spoilt", ["nothing", "everything", "small and right"])
def test_where_nothing_helps_nothing_is_cleaned(spoilt: str) -> None:
    truth = volume(*TUMOUR)
    if spoilt == "nothing":
        codes = codes_of(truth, volume())
    elif spoilt == "everything":
        codes = codes_of(truth, volume((ED, (0, 0, 0), SHAPE)))
    else:
        truth = volume((ET, (3, 3, 3), (1, 2, 4)), (ED, (8, 8, 8), (1, 3, 3)))
        codes = codes_of(truth, truth)
    assert chosen_for(cases_of([codes]), 1) == Cleaning(0, 0)


def test_a_volume_with_neither_truth_nor_prediction_counts_as_right() -> None:
    nothing = codes_of(volume(), volume())
    assert chosen_for(cases_of([nothing]), 1) == Cleaning(0, 0)
    assert chosen_for(cases_of([*with_specks(), nothing]), 3) == Cleaning(100, 0)
    speck = codes_of(volume(), volume((ET, (1, 14, 14), (1, 5, 8))))  # 40 voxels where there is no tumour
    assert chosen_for(cases_of([nothing, speck]), 2) == Cleaning(100, 0)
    np.testing.assert_array_equal(Cleaning(100, 100)(nothing, 1), nothing)
    assert histogram(nothing)[0, 0] == nothing.size == histogram(nothing).sum()
    np.testing.assert_array_equal(case_surfaces(nothing, (1, 1, 1)), [[0, 1]] * len(MEMBERS))


def test_without_a_whole_volume_nothing_is_chosen() -> None:
    cases = cases_of(with_specks(), without=(0, 15))
    assert not cases
    assert chosen_for(cases, 2) == Cleaning(0, 0)


def test_a_case_that_is_not_whole_has_no_say() -> None:
    helped, hurt = with_specks()[0], codes_of(*[volume((ET, (3, 3, 3), (1, 2, 4)))] * 2)
    codes = [helped, hurt, hurt, hurt]
    assert chosen_for(cases_of(codes), 4).component_mm3 == 0
    assert chosen_for(cases_of(codes, without=(12, 24, 36)), 4).component_mm3 == 100


def test_trying_in_the_box_around_the_tumour_counts_the_same() -> None:
    """The choice is the best of all by scores of the whole, cleaned volumes."""
    from hpc_tumor.training.scoring.metrics import segmentation_scores

    draw = np.random.default_rng(0)
    codes = []
    for _ in range(3):
        truth = volume(*TUMOUR)
        predicted = np.where(draw.random(SHAPE) < 0.01, draw.integers(1, 4, SHAPE), truth)
        codes.append(codes_of(truth, predicted))
    chosen = chosen_for(cases_of(codes), 3)

    def dice(cleaning: Cleaning) -> float:
        return segmentation_scores(np.stack([histogram(cleaning(one, 1)) for one in codes]))["dice"]

    component = max(COMPONENTS, key=lambda mm3: dice(Cleaning(mm3)))
    assert chosen == max((Cleaning(component, mm3) for mm3 in ENHANCING), key=dice)
    assert chosen.component_mm3 > 0


def _choose_and_write(distributed: Distributed, folder: Path) -> None:
    cases = cases_of([*with_specks(), *with_specks(), with_specks()[0]], distributed, chunk=7)
    chosen = chosen_for(cases, 5, distributed)
    (folder / f"{distributed.rank}.json").write_text(json.dumps([chosen.component_mm3, chosen.enhancing_mm3]))


@pytest.mark.slow
def test_two_ranks_choose_as_one(tmp_path: Path) -> None:
    spawn(_choose_and_write, 2, tmp_path)
    _choose_and_write(Distributed(), tmp_path / "..")
    alone = json.loads((tmp_path / ".." / "0.json").read_text())
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [alone, alone]
    assert alone == [100, 0]


class Bright(nn.Module):
    """Takes for ED what is bright in the first modality, and a column of four pixels in a corner of every slice."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.where(_shown(images), 1.0, -1.0) * sign for sign in (0, 1, 0)], 1)


def _shown(images: torch.Tensor) -> torch.Tensor:
    shown = images[:, 0] > 1.5
    shown[:, :2, :2] = True
    return shown


def test_the_test_part_has_no_say(tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other labels in the test part its scores change, but not the thresholds; in validation they do."""
    run = new_run(tmp_path, slice_store, "unet", scoring={"clean": True})
    state = build_state(run.experiment(), run, Distributed())
    state.network = Bright()
    before = score_test_part(state, Watch())
    assert before.cleaning is not None
    assert before.cleaning.component_mm3 == 100  # 48 voxels of the column, in 12 slices

    def change(part: object) -> None:
        deliver = part.deliver  # type: ignore[attr-defined]

        def changed(request: object) -> tuple[torch.Tensor, torch.Tensor]:
            images, targets = deliver(request)
            return images, torch.where(_shown(images), 2, 0).to(targets.dtype)  # all that is predicted is right

        monkeypatch.setattr(part, "deliver", changed)

    change(state.parts.test.part)
    after = score_test_part(state, Watch())
    assert after.cleaning == before.cleaning
    assert after.plain.scores["dice_ED"] == 1 > before.plain.scores["dice_ED"]
    assert after.final.scores["dice_ED"] < 1  # so that other thresholds would have been better here
    assert state.parts.val is not None
    change(state.parts.val.part)
    assert score_test_part(state, Watch()).cleaning == Cleaning(0, 0)


def test_cleaning_needs_whole_validation_volumes(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", scoring={"clean": True}, data={"split": "published"})
    with pytest.raises(UsageError, match="whole validation volumes"):
        build_state(run.experiment(), run, Distributed())
    store = {"data": {"store": str(slice_store)}, "scoring": {"clean": True}}
    for settings in ({"model": {"name": "cnn"}}, {"model": {"name": "unet"}, "data": {"val_fraction": 0}}):
        with pytest.raises(UsageError, match=r"scoring\.clean = True needs segmentation with validation patients"):
            resolve(merge(store, settings))
