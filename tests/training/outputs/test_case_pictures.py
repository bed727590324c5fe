"""Slices of the best, median and worst case: shown as they were scored."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import build_state_again, evaluated, new_run, read_cases, read_pictures, train_here

from hpc_tumor.data.store.store import Store
from hpc_tumor.training.outputs.case_pictures import as_bytes, choose_cases, grey, predict_slice
from hpc_tumor.training.outputs.pictures import make_pictures
from hpc_tumor.training.scoring.evaluate import Evaluation
from hpc_tumor.vocabulary import LABELS

FOLD = {"fold": 1, "folds": 5}  # three of 15 patients are tested
SEGMENTATION = [
    ("attention-unet", {"recipe": {"epochs": 2, "learning_rate": 0.01, "loss": "dice-bce"}}),
    # The mean of the weights is scored; where the last epoch is the best, it is not what lies in the network then.
    ("improved-unet", {"recipe": {"epochs": 1, "learning_rate": 0.01, "ema": 0.9, "loss": "dice-ce"}}),
    # Scored over flips: so is what is shown.
    ("unet", {"recipe": {"epochs": 1, "learning_rate": 0.01, "loss": "dice-bce"}, "scoring": {"flips": True}}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "settings"), SEGMENTATION)
def test_slices_are_shown_as_they_were_scored(
    tmp_path: Path, more_slices: Path, model: str, settings: dict[str, Any]
) -> None:
    run = new_run(tmp_path, more_slices, model, data=FOLD, **settings)
    train_here(run)
    arrays, about = read_pictures(run)
    state, best = build_state_again(run)
    part, names, said = state.parts.test.part, state.parts.test_names, read_cases(run)
    assert list(about["cases"]) == ["best", "median", "worst"]
    for which, case in about["cases"].items():
        row = names.index(case["case"])
        assert {key: float(said[case["case"]][key]) for key in case if "_" in key} == pytest.approx(
            {key: value for key, value in case.items() if "_" in key}
        )
        histogram = np.zeros((4, 8), np.int64)
        for position in np.flatnonzero(part.case_of == row):
            seen = predict_slice(state, position)
            codes = seen.truth.astype(np.int64) * 8 + seen.prediction
            histogram += np.bincount(codes.ravel(), minlength=32).reshape(4, 8)
            if part.slices[position, 1] == case["slice"]:
                assert np.array_equal(arrays[f"{which}_truth"], seen.truth)
                assert np.array_equal(arrays[f"{which}_prediction"], seen.prediction)
                assert np.array_equal(arrays[f"{which}_probabilities"], as_bytes(seen.probabilities))
                assert np.array_equal(arrays[f"{which}_images"][2], grey(seen.images[2]))
        assert np.array_equal(histogram, best.details[row])
    assert {name: array.dtype for name, array in arrays.items()} == dict.fromkeys(arrays, np.dtype(np.uint8))
    shapes = {"images": (4, 32, 32), "truth": (32, 32), "prediction": (32, 32), "probabilities": (3, 32, 32)}
    expected = {f"{which}_{kind}": shape for which in about["cases"] for kind, shape in shapes.items()}
    if model == "attention-unet":
        expected |= {f"attention_{number}": (2 * 2**number,) * 2 for number in (1, 2, 3, 4)}
    assert {name: array.shape for name, array in arrays.items()} == expected


@pytest.mark.slow
def test_the_best_case_is_better_than_the_worst(tmp_path: Path, more_slices: Path) -> None:
    recipe = {"epochs": 9, "learning_rate": 0.01, "loss": "dice-ce"}
    run = new_run(tmp_path, more_slices, "improved-unet", data=FOLD, recipe=recipe)
    train_here(run)
    arrays, about = read_pictures(run)
    cases = {row["case"]: np.mean([float(row[f"dice_{label}"]) for label in LABELS]) for row in
             csv.DictReader(run.cases.open())}  # fmt: skip
    dice = {which: case["dice"] for which, case in about["cases"].items()}
    assert dice["best"] >= dice["median"] >= dice["worst"]
    assert list(dice.values()) == pytest.approx(sorted(cases.values(), reverse=True))
    assert dice["best"] > dice["worst"]
    store = Store.open(more_slices)
    for which, case in about["cases"].items():
        tumour = store.label_counts[store.case_ids.index(case["case"]), :, 1:].sum(1)
        assert tumour[case["slice"]] == tumour.max() == (arrays[f"{which}_truth"] > 0).sum() > 0
        assert cases[case["case"]] == pytest.approx(case["dice"])
        assert arrays[f"{which}_images"].max() == 255
        assert arrays[f"{which}_prediction"].any()
        assert set(np.unique(arrays[f"{which}_prediction"])) <= {0, 1, 2, 4}  # labels exclude each other
        chances = arrays[f"{which}_probabilities"].astype(int)
        background = 255 - chances.sum(0)
        for bit, chance in enumerate(chances):
            others = np.max([background, *np.delete(chances, bit, 0)], 0)
            predicted = arrays[f"{which}_prediction"] == 1 << bit
            assert (chance[predicted] >= others[predicted] - 3).all()  # all are rounded
            assert (chance[~predicted] <= others[~predicted] + 3).all()
    assert about["format"] == "hpc-tumor pictures 1"
    assert (about["run"], about["model"], about["image_size"]) == (run.name, "improved-unet", [32, 32])
    assert about["labels"] == ["NCR", "ED", "ET"]


def test_gates_are_those_of_the_median_case(tmp_path: Path, more_slices: Path) -> None:
    state, best = build_state_again(new_run(tmp_path, more_slices, "attention-unet", data=FOLD), best=False)
    make_pictures(state, best)()
    arrays, about = read_pictures(state.run)
    median = about["cases"]["median"]
    assert about["attention"] == {"case": median["case"], "slice": median["slice"]}
    part = state.parts.test.part
    chosen = [state.parts.store.case_ids.index(median["case"]), median["slice"]]
    (position,) = np.flatnonzero((part.slices == chosen).all(1))
    request = part.rows.request(np.array([position]))
    request.wait()
    with torch.inference_mode():
        _, maps = state.network.eval()(part.deliver(request)[0], return_attention=True)
    for number, gate in enumerate(maps, 1):
        found = arrays[f"attention_{number}"].astype(int)
        assert np.abs(found - gate[0, 0].numpy() * 255).max() <= 0.51
    assert arrays["attention_1"].max() < 250  # not stretched


def test_a_case_without_tumour_shows_what_was_predicted(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, best = build_state_again(new_run(tmp_path, slice_store, "unet"), best=False)
    none = np.zeros_like(state.parts.store.label_counts)
    monkeypatch.setattr(Store, "label_counts", property(lambda store: none))
    make_pictures(state, best)()
    _, about = read_pictures(state.run)
    assert list(about["cases"]) == ["best"]  # one test case
    predicted = [(predict_slice(state, position).prediction > 0).sum() for position in range(12)]
    assert max(predicted) > 0
    assert about["cases"]["best"]["slice"] == np.argmax(predicted)
    with torch.no_grad():
        for parameter in state.network.parameters():
            parameter.fill_(0)
    make_pictures(state, evaluated(state, state.parts.test))()
    arrays, about = read_pictures(state.run)
    assert not arrays["best_prediction"].any()
    assert about["cases"]["best"]["slice"] == 6


def test_only_scored_slices_are_shown(tmp_path: Path, more_slices: Path) -> None:
    run = new_run(tmp_path, more_slices, "unet", data=FOLD, limit_batches=1, hardware={"accumulate": 8})  # 4 slices
    state, best = build_state_again(run, best=False)
    assert list(best.counted) == [4, 0, 0]
    make_pictures(state, best)()
    _, about = read_pictures(run)
    assert about["cases"]["best"]["case"] == state.parts.test_names[0]
    assert about["cases"]["best"]["slice"] < 4


def test_which_cases_are_chosen() -> None:
    def case(right: int) -> np.ndarray:
        counts = np.zeros((4, 8), np.int64)
        counts[[1, 2, 3], [1, 2, 4]], counts[[1, 2, 3], 0] = right, 10 - right
        return counts

    details = np.stack([case(right) for right in (5, 9, 0, 9, 7, 1)])
    counted = np.array([3, 3, 0, 3, 3, 3])
    names = list("abcdef")
    chosen = choose_cases(Evaluation({}, details, counted), names)
    assert {which: names[row] for which, (row, _) in chosen.items()} == {"best": "b", "median": "e", "worst": "f"}
    assert chosen["median"][1]["dice"] == pytest.approx(14 / 17)
    two = choose_cases(Evaluation({}, details[:2], counted[:2]), names[:2])
    assert {which: row for which, (row, _) in two.items()} == {"best": 1, "worst": 0}
    assert choose_cases(Evaluation({}, details, np.zeros(6, int)), names) == {}


def test_grey_stretches_the_brain_and_keeps_the_background_black() -> None:
    image = np.zeros((10, 25), np.float32)
    image[:8] = np.linspace(-3, 5, 200).reshape(8, 25)
    image[0, 0] = 1000  # one pixel does not darken all the others
    shown = grey(image)
    assert shown[0, 0] == 255
    assert not shown[8:].any()
    low, high = np.percentile(image[:8], [1, 99.5])
    assert shown[4, 3] == round(float((image[4, 3] - low) / (high - low)) * 255)
    assert not grey(np.zeros((4, 4))).any()
