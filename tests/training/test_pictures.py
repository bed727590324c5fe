"""The pictures of a run: they show what was scored, and disturb nothing."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import new_run, train_here, train_ranks

from hpc_tumor.data.store import Store
from hpc_tumor.models import build_model
from hpc_tumor.models.vit import rollout
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training import metrics, pictures
from hpc_tumor.training.case_pictures import as_bytes, choose_cases, grey, look_at
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.evaluate import Evaluation
from hpc_tumor.training.image_pictures import choose_images
from hpc_tumor.training.pictures import write_pictures
from hpc_tumor.training.setup import set_up
from hpc_tumor.training.working_set import Setup


@pytest.fixture(autouse=True)
def _any_algorithm_after() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def read(run: RunDir) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(run.pictures, allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, json.loads(str(arrays.pop("about")))


def scored(run: RunDir, best: bool = True) -> tuple[Setup, Evaluation]:
    """A run set up again, with its best weights, and their scores; `best=False`: with those that it begins with."""
    setup = set_up(run.experiment(), run, Distributed())
    if best:
        assert setup.load_best() is None
    setup.bare.eval()
    return setup, setup.evaluate_as_is(setup.parts.test)


def rows(run: RunDir) -> dict[str, dict[str, str]]:
    return {row["case"]: row for row in csv.DictReader(run.cases.open())}


FOLD = {"fold": 1, "folds": 5}  # three of 15 patients are tested
SEGMENTATION = [
    ("attention-unet", {"recipe": {"epochs": 2, "learning_rate": 0.01, "loss": "dice-bce"}}),
    # The mean of the weights is scored; where the last epoch is the best, it is not what lies in the network then.
    ("improved-unet", {"recipe": {"epochs": 1, "learning_rate": 0.01, "ema": 0.9, "loss": "dice-ce"}}),
]


@pytest.mark.parametrize(("model", "settings"), SEGMENTATION)
def test_slices_are_shown_as_they_were_scored(
    tmp_path: Path, more_slices: Path, model: str, settings: dict[str, Any]
) -> None:
    run = new_run(tmp_path, more_slices, model, data=FOLD, **settings)
    train_here(run)
    arrays, about = read(run)
    setup, best = scored(run)
    part, names, said = setup.parts.test.part, setup.parts.test_names, rows(run)
    assert list(about["cases"]) == ["best", "median", "worst"]
    for which, case in about["cases"].items():
        row = names.index(case["case"])
        assert {key: float(said[case["case"]][key]) for key in case if "_" in key} == pytest.approx(
            {key: value for key, value in case.items() if "_" in key}
        )
        histogram = np.zeros((4, 8), np.int64)
        for position in np.flatnonzero(part.case_of == row):
            seen = look_at(setup, position)
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


def test_the_best_case_is_better_than_the_worst(tmp_path: Path, more_slices: Path) -> None:
    recipe = {"epochs": 9, "learning_rate": 0.01, "loss": "dice-ce"}
    run = new_run(tmp_path, more_slices, "improved-unet", data=FOLD, recipe=recipe)
    train_here(run)
    arrays, about = read(run)
    cases = {row["case"]: np.mean([float(row[f"dice_{label}"]) for label in metrics.LABELS]) for row in
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
    setup, best = scored(new_run(tmp_path, more_slices, "attention-unet", data=FOLD), best=False)
    write_pictures(setup, best)
    arrays, about = read(setup.run)
    median = about["cases"]["median"]
    assert about["attention"] == {"case": median["case"], "slice": median["slice"]}
    part = setup.parts.test.part
    chosen = [setup.parts.store.case_ids.index(median["case"]), median["slice"]]
    (position,) = np.flatnonzero((part.slices == chosen).all(1))
    request = part.rows.request(np.array([position]))
    part.rows.wait(request)
    with torch.inference_mode():
        _, maps = setup.bare.eval()(part.deliver(request)[0], return_attention=True)
    for number, gate in enumerate(maps, 1):
        found = arrays[f"attention_{number}"].astype(int)
        assert np.abs(found - gate[0, 0].numpy() * 255).max() <= 0.51
    assert arrays["attention_1"].max() < 250  # not stretched


def test_a_case_without_tumour_shows_what_was_predicted(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, best = scored(new_run(tmp_path, slice_store, "unet"), best=False)
    none = np.zeros_like(setup.parts.store.label_counts)
    monkeypatch.setattr(Store, "label_counts", property(lambda store: none))
    write_pictures(setup, best)
    _, about = read(setup.run)
    assert list(about["cases"]) == ["best"]  # one test case
    predicted = [(look_at(setup, position).prediction > 0).sum() for position in range(12)]
    assert max(predicted) > 0
    assert about["cases"]["best"]["slice"] == np.argmax(predicted)
    with torch.no_grad():
        for parameter in setup.bare.parameters():
            parameter.fill_(0)
    write_pictures(setup, setup.evaluate_as_is(setup.parts.test))
    arrays, about = read(setup.run)
    assert not arrays["best_prediction"].any()
    assert about["cases"]["best"]["slice"] == 6


def test_only_scored_slices_are_shown(tmp_path: Path, more_slices: Path) -> None:
    run = new_run(tmp_path, more_slices, "unet", data=FOLD, limit_batches=1, hardware={"accumulate": 8})  # 4 slices
    setup, best = scored(run, best=False)
    assert list(best.counted) == [4, 0, 0]
    write_pictures(setup, best)
    _, about = read(run)
    assert about["cases"]["best"]["case"] == setup.parts.test_names[0]
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


def test_images_are_those_that_the_network_is_surest_of(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn")
    train_here(run)
    arrays, about = read(run)
    setup, _ = scored(run)
    said = rows(run)
    wrong = sorted((row for row in said.values() if row["correct"] == "0"), key=lambda row: -float(row["confidence"]))
    assert len(wrong) > 0
    assert len(about["wrong"]) == min(12, len(wrong)) == len(arrays["wrong_images"])
    for found, row in zip(about["wrong"], wrong, strict=False):
        assert found["label"] != found["prediction"]
        assert found["confidence"] == pytest.approx(float(row["confidence"]))
    for found in (*about["wrong"], *about["samples"]):
        row = said[found["case"]]
        assert (found["label"], found["prediction"]) == (row["label"], row["prediction"])
    right = [row for row in said.values() if row["correct"] == "1"]
    surest = {row["label"]: max(float(one["confidence"]) for one in right if one["label"] == row["label"])
              for row in right}  # fmt: skip
    assert {found["label"]: found["confidence"] for found in about["samples"]} == pytest.approx(surest)
    assert len(arrays["sample_images"]) == len(surest) > 0
    part = setup.parts.test.part
    for kind, key in (("sample", "samples"), ("wrong", "wrong")):
        for image, found in zip(arrays[f"{kind}_images"], about[key], strict=True):
            request = part.rows.request(np.array([setup.parts.test_names.index(found["case"])]))
            part.rows.wait(request)
            assert np.array_equal(image, as_bytes(part.deliver(request)[0][0, 0].numpy()))
    first = setup.bare.features[0].weight.detach().numpy()
    assert arrays["filters"].dtype == np.float16
    assert np.array_equal(arrays["filters"], first.astype(np.float16))
    assert about["classes"] == setup.classes
    assert set(arrays) == {"filters", "sample_images", "wrong_images"}


def test_which_images_are_chosen() -> None:
    chances = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.8, 0], [0.05, 0.95, 0]])
    labels = np.array([0, 1, 1, 1, 2, 1])
    counted = np.array([1, 1, 1, 1, 1, 0])
    samples, wrong = choose_images(Evaluation({}, chances, counted), labels)
    assert samples.tolist() == [0, 3]  # the network is right about no image of the third class; one was not scored
    assert wrong.tolist() == [2, 4, 1]


def test_a_vit_shows_where_it_looks(tmp_path: Path, image_store: Path) -> None:
    setup, best = scored(new_run(tmp_path, image_store, "vit"), best=False)
    write_pictures(setup, best)
    arrays, about = read(setup.run)
    assert arrays["wrong_attention"].shape == (len(about["wrong"]), 8, 8)
    assert arrays["sample_attention"].shape == (len(about["samples"]), 8, 8)
    assert (arrays["wrong_attention"].max((1, 2)) == 255).all()
    assert "filters" not in arrays
    part = setup.parts.test.part
    request = part.rows.request(np.array([setup.parts.test_names.index(about["wrong"][0]["case"])]))
    part.rows.wait(request)
    with torch.inference_mode():
        _, weights = setup.bare.eval()(part.deliver(request)[0].expand(-1, 3, -1, -1), return_attention=True)
    joint = np.eye(65)
    for layer in weights:
        mixed = layer[0].numpy().astype(float).mean(0) + np.eye(65)
        joint = mixed / mixed.sum(1, keepdims=True) @ joint
    patches = joint[0, 1:].reshape(8, 8)
    assert np.abs(arrays["wrong_attention"][0] - patches / patches.max() * 255).max() <= 0.6


def test_rollout_sums_to_one_and_follows_the_residual() -> None:
    model = build_model("vit", image_size=48).eval()
    with torch.inference_mode():
        _, weights = model(torch.rand(2, 3, 48, 48), return_attention=True)
    joint = rollout(weights)
    assert joint.shape == (2, 10, 10)
    torch.testing.assert_close(joint.sum(-1), torch.ones(2, 10))
    uniform = [torch.full((1, 8, 5, 5), 1 / 5)] * 3  # each of three layers leaves half of a token where it is
    torch.testing.assert_close(rollout(uniform)[0], torch.eye(5) / 8 + torch.full((5, 5), 7 / 8 / 5))
    first, last = torch.eye(3)[[1, 1, 2]], torch.eye(3)[[2, 1, 2]]  # token 0 takes from 1 first, then from 2
    found = rollout([first.expand(1, 1, 3, 3), last.expand(1, 1, 3, 3)])[0, 0]
    torch.testing.assert_close(found, torch.tensor([0.25, 0.25, 0.5]))


@pytest.mark.parametrize("model", ["cnn", "improved-unet"])
def test_nothing_is_disturbed(tmp_path: Path, image_store: Path, slice_store: Path, model: str) -> None:
    setup, best = scored(new_run(tmp_path, image_store if model == "cnn" else slice_store, model), best=False)
    setup.bare.train()
    before = {name: tensor.clone() for name, tensor in setup.bare.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()
    write_pictures(setup, best)
    first = setup.run.pictures.read_bytes()
    write_pictures(setup, best)
    assert setup.run.pictures.read_bytes() == first
    assert all(module.training for module in setup.bare.modules())
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in setup.bare.state_dict().items())
    assert not list(setup.run.path.rglob("*.tmp"))


def test_large_images_are_thinned_out(tmp_path: Path, image_store: Path) -> None:
    setup, best = scored(new_run(tmp_path, image_store, "cnn", data={"image_size": 288}), best=False)
    write_pictures(setup, best)
    arrays, about = read(setup.run)
    assert about["image_size"] == [288, 288]
    assert about["every"] == 2
    assert arrays["wrong_images"].shape[1:] == (144, 144)
    assert arrays["filters"].shape == (96, 3, 9, 9)
    assert setup.run.pictures.stat().st_size < 3e6


def test_pictures_that_fail_end_no_run(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("no paint\nleft")

    monkeypatch.setattr(pictures, "case_pictures", broken)
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1})
    run.pictures.write_bytes(b"of an earlier end")
    assert train_here(run) == "finished"
    assert run.is_finished()
    assert not run.pictures.exists()
    (event,) = run.read_events("pictures left out")
    assert event["reason"] == "RuntimeError: no paint"
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.split(" ", 1)[1] for line in warnings] == [
        "warning: no pictures of this run for a report: RuntimeError: no paint"
    ]


def test_a_network_that_gives_no_numbers_has_pictures(tmp_path: Path, slice_store: Path) -> None:
    setup, best = scored(new_run(tmp_path, slice_store, "unet"), best=False)
    with torch.no_grad():
        next(iter(setup.bare.parameters())).fill_(torch.nan)
    write_pictures(setup, best)
    arrays, _ = read(setup.run)
    assert not arrays["best_probabilities"].any()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["attention-unet", "cnn"])
def test_ranks_leave_the_file_of_one(tmp_path: Path, image_store: Path, more_slices: Path, model: str) -> None:
    alone = new_run(tmp_path / "alone", image_store if model == "cnn" else more_slices, model)
    train_here(alone)
    shared = RunDir(tmp_path / "shared" / alone.name)
    shutil.copytree(alone.path, shared.path)
    shared.result.unlink()
    shared.pictures.unlink()
    train_ranks(shared, 2)  # only the end is left to do
    assert shared.is_finished()
    assert shared.pictures.read_bytes() == alone.pictures.read_bytes()
