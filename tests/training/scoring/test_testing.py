"""The final test of a run, against scores worked out anew from its weights and its store on another way.

Of classifiers also the controls, which need no network.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import surface_distance
import torch
from safetensors.torch import load_file
from scipy import ndimage
from training_runs import (
    evaluated,
    new_run,
    of_an_earlier_version,
    result_of,
    rows_of,
    to_test_again,
    train_here,
    train_ranks,
)

from hpc_tumor.data.audit.controls import control_answers
from hpc_tumor.data.audit.images import scan_images
from hpc_tumor.data.audit.memoriser import memorise_images
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError
from hpc_tumor.models import build_model
from hpc_tumor.run_dir import RunDir
from hpc_tumor.scores import classification_scores
from hpc_tumor.system import devices
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.outputs import record
from hpc_tumor.training.scoring import evaluate as evaluation
from hpc_tumor.training.scoring import testing
from hpc_tumor.training.scoring.cases import Case
from hpc_tumor.training.scoring.cleaning import COMPONENTS, ENHANCING, Cleaning
from hpc_tumor.training.scoring.evaluate import fill_up, mean_over_flips
from hpc_tumor.training.scoring.volumes import Watch
from hpc_tumor.training.setup import build_state
from hpc_tumor.vocabulary import CONTROLS

STRUCTURES = {"NCR": [1], "ED": [2], "ET": [3], "WT": [1, 2, 3], "TC": [1, 3]}
RECIPE = {
    "epochs": 20, "batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0, "loss": "dice-bce", "schedule": "cosine",
    "warmup_epochs": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, slice_store: Path) -> RunDir:
    """A finished run that finds some of each tumour; two patients test, one validates."""
    folder = tmp_path_factory.mktemp("trained")
    names = Store.open(slice_store).case_ids
    parts = ["train", "test", "val", "train", "test"]
    (folder / "split.csv").write_text(
        "id,part\n" + "".join(f"{name},{part}\n" for name, part in zip(names, parts, strict=True))
    )
    run = new_run(
        folder,
        slice_store,
        "improved-unet",
        recipe=RECIPE,
        data={"split_file": str(folder / "split.csv"), "slices": 1.0},
    )
    assert train_here(run) == "finished"
    return run


# Segmentation, another way


def predict(run: RunDir, case: int, flips: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """True labels `(Z, Y, X)` and the predicted maps `(3, Z, Y, X)` of a case, by the weights that were kept."""
    store = Store.open(run.experiment().data.store)
    image, labels = store.read_volume(case).result()
    mean, deviation = (store.statistics[case, :, index].reshape(4, 1, 1, 1) for index in (0, 1))
    brain = image != store.background[case].reshape(4, 1, 1, 1)
    values = torch.from_numpy(np.where(brain, (image - mean) / deviation, 0).astype(np.float32)).transpose(0, 1)
    network = build_model("improved-unet", image_size=32, filters=4).eval()
    network.load_state_dict(load_file(run.best_weights))
    with torch.no_grad():
        logits = network(values)
        if flips:
            for axes in ([2], [3], [2, 3]):
                logits = logits + torch.flip(network(torch.flip(values, axes)), axes)
    return labels, (logits > 0).transpose(0, 1).numpy()


def score(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Dice, HD95 and NSD of two masks of 1 mm voxels."""
    one, two = truth.any(), predicted.any()
    if not one and not two:
        return {"dice": 1, "hd95": 0, "nsd": 1}
    if one != two:
        return {"dice": 0, "hd95": float(np.sqrt(sum(n**2 for n in truth.shape))), "nsd": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = surface_distance.compute_surface_distances(truth, predicted, (1, 1, 1))
    return {
        "dice": 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()),
        "hd95": surface_distance.compute_robust_hausdorff(found, 95),
        "nsd": surface_distance.compute_surface_dice_at_tolerance(found, 1.0),
    }


def check(run: RunDir, volumes: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """cases.csv holds the scores of these volumes, by name of the case, and result.json their means."""
    rows, scores = {row["case"]: row for row in rows_of(run)}, result_of(run)["best"]["test"]
    assert rows.keys() == volumes.keys()
    for name in STRUCTURES:
        expected = []
        for case, (labels, maps) in volumes.items():
            members = STRUCTURES[name]
            expected.append(score(np.isin(labels, members), maps[[label - 1 for label in members]].any(0)))
            for kind, value in expected[-1].items():
                assert float(rows[case][f"{kind}_{name}"]) == pytest.approx(value, rel=1e-12), (case, kind, name)
        for kind in ("dice", "hd95", "nsd"):
            assert scores[f"{kind}_{name}"] == pytest.approx(np.mean([one[kind] for one in expected]), rel=1e-12)
    for kind in ("dice", "hd95", "nsd"):
        assert scores[kind] == pytest.approx(np.mean([scores[f"{kind}_{label}"] for label in ("NCR", "ED", "ET")]))


def predictions(run: RunDir, flips: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = Store.open(run.experiment().data.store).case_ids
    return {names[case]: predict(run, case, flips) for case in (1, 4)}


@pytest.mark.slow
def test_cases_are_scored_as_whole_volumes(trained: RunDir) -> None:
    result = result_of(trained)
    check(trained, predictions(trained))
    statuses = {row[f"status_{name}"] for row in rows_of(trained) for name in STRUCTURES}
    assert "ok" in statuses  # something was found, so that there are distances to measure
    assert any(0 < float(row["hd95_WT"]) < 46 for row in rows_of(trained))
    assert result["surfaces"] == "surface-distance 0.1, NSD at 1 mm"
    assert (result["cleaning"], result["flips"]) == (None, False)
    assert "test_before_cleaning" not in result["best"]


def test_flips_are_the_mean_of_the_logits(trained: RunDir, tmp_path: Path) -> None:
    run = to_test_again(trained, tmp_path, scoring={"flips": True})
    assert train_here(run) == "finished"
    assert result_of(run)["flips"]
    check(run, predictions(run, flips=True))
    assert run.cases.read_text() != trained.cases.read_text()


def test_flips_of_maps_are_turned_back_and_those_of_classes_are_not() -> None:
    torch.manual_seed(0)
    network, images = torch.nn.Conv2d(4, 3, 3, padding=1), torch.randn(2, 4, 6, 8)
    by_hand = network(images)
    for axes in ((3,), (2,), (2, 3)):
        by_hand = by_hand + network(images.flip(axes)).flip(axes)
    torch.testing.assert_close(mean_over_flips(network, images, "segmentation"), by_hand / 4)
    classify = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 6 * 8, 4))
    mean = (classify(images) + classify(images.flip(3))) / 2
    torch.testing.assert_close(mean_over_flips(classify, images, "classification"), mean)


def cleaned(maps: np.ndarray, component: float, enhancing: float) -> np.ndarray:
    """Maps of 1 mm voxels cleaned, piece by piece."""
    maps = maps.copy()
    pieces, n = ndimage.label(maps.any(0), np.ones((3, 3, 3)))
    for piece in range(1, n + 1):
        if (pieces == piece).sum() < component:
            maps[:, pieces == piece] = False
    if maps[2].sum() < enhancing:
        maps[0] |= maps[2]
        maps[2] = False
    return maps


def mean_dice(labels: np.ndarray, maps: np.ndarray) -> float:
    return float(np.mean([score(labels == label, maps[label - 1])["dice"] for label in (1, 2, 3)]))


@pytest.mark.parametrize("forced", [None, Cleaning(700, 0), Cleaning(0, 1e6), Cleaning(400, 1e6)])
def test_cleaning_is_recorded_with_the_scores_before_it(
    trained: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: Cleaning | None
) -> None:
    """With the thresholds that are the best for the validation patient, and with some that change more."""
    run = to_test_again(trained, tmp_path, scoring={"clean": True})
    if forced is not None:
        monkeypatch.setattr(testing, "choose_cleaning", lambda *_: forced)
    assert train_here(run) == "finished"
    result, (labels, maps) = result_of(run), predict(run, 2)
    component, enhancing = result["cleaning"]["component_mm3"], result["cleaning"]["enhancing_mm3"]
    if forced is None:
        assert component == max(COMPONENTS, key=lambda mm3: mean_dice(labels, cleaned(maps, mm3, 0)))
        assert enhancing == max(ENHANCING, key=lambda mm3: mean_dice(labels, cleaned(maps, component, mm3)))
    else:
        assert (component, enhancing) == (forced.component_mm3, forced.enhancing_mm3)
        assert (run.cases.read_text() != trained.cases.read_text()) == any(
            (found != cleaned(found, component, enhancing)).any() for _, found in predictions(run).values()
        )  # what a network finds that trained so little differs between versions of torch
    check(
        run, {case: (truth, cleaned(found, component, enhancing)) for case, (truth, found) in predictions(run).items()}
    )
    plain = result_of(trained)["best"]["test"]
    assert result["best"]["test_before_cleaning"] == {
        name: value for name, value in plain.items() if not name.startswith(("hd95", "nsd"))
    }
    assert result["best"]["test"]["loss"] == plain["loss"]


@pytest.mark.slow
def test_two_ranks_score_as_one(trained: RunDir, tmp_path: Path) -> None:
    scoring = {"clean": True, "flips": True}
    alone, shared = (to_test_again(trained, tmp_path / name, scoring=scoring) for name in "ab")
    train_here(alone)
    train_ranks(shared, 2)
    assert shared.cases.read_bytes() == alone.cases.read_bytes()
    one, two = result_of(alone), result_of(shared)
    assert two["gpus"] == 2
    for key in ("best", "last", "cleaning", "surfaces"):
        assert two[key] == one[key]


@pytest.mark.slow
def test_a_stop_during_the_final_test_loses_nothing(trained: RunDir, tmp_path: Path) -> None:
    whole, broken = (to_test_again(trained, tmp_path / name, scoring={"clean": True}) for name in ("whole", "broken"))
    assert train_here(whole) == "finished"
    stops = 0
    while train_here(broken, stop_at=stops) == "stopped":
        assert not broken.is_finished()
        assert not broken.cases.exists()
        stops += 1
    assert stops >= 2
    assert broken.cases.read_bytes() == whole.cases.read_bytes()
    one, two = result_of(whole), result_of(broken)
    assert (two["best"], two["last"], two["cleaning"]) == (one["best"], one["last"], one["cleaning"])


def test_a_case_that_is_scored_in_part_has_no_distances(trained: RunDir, tmp_path: Path) -> None:
    run = to_test_again(trained, tmp_path, limit_batches=2, hardware={"accumulate": 4})  # 16 slices: of cases of 12
    of_an_earlier_version(run)
    assert train_here(run) == "finished"
    whole, part = rows_of(run)
    before = rows_of(trained)[0]
    assert (whole["slices"], part["slices"]) == ("12", "4")
    assert {name: float(value) for name, value in whole.items() if name.startswith(("hd95", "nsd", "dice"))} == {
        name: pytest.approx(float(value)) for name, value in before.items() if name.startswith(("hd95", "nsd", "dice"))
    }
    assert all(value == "" for name, value in part.items() if name.startswith(("hd95", "nsd")))
    assert not any(name.startswith(("hd95", "nsd")) for name in result_of(run)["best"]["test"])


@pytest.mark.parametrize("model", ["cnn", "unet"])
def test_samples_that_fill_up_a_batch_do_not_count(
    tmp_path: Path, slice_store: Path, image_store: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    run = new_run(tmp_path, image_store if model == "cnn" else slice_store, model)
    state = build_state(run.experiment(), run, Distributed())
    before = evaluated(state, state.parts.test, final=True)
    assert len(state.parts.test.part) < state.parts.test.batch_size
    monkeypatch.setattr(devices, "is_gpu", lambda _: True)
    assert fill_up(torch.arange(3.0).view(3, 1, 1, 1), 5).flatten().tolist() == [0, 1, 2, 2, 2]
    monkeypatch.undo()
    filled = []
    monkeypatch.setattr(
        evaluation, "fill_up", lambda images, n: filled.append(n) or torch.cat([images, images[-1:]] + [images] * 9)[:n]
    )
    after = evaluated(state, state.parts.test, final=True)
    assert filled == [32]
    assert after.counted.tolist() == before.counted.tolist()
    np.testing.assert_allclose(after.details, before.details, rtol=1e-5)
    assert after.scores == pytest.approx(before.scores)


def test_single_slices_have_no_distances(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", data={"split": "published"}, recipe={"epochs": 1})
    assert train_here(run) == "finished"
    result, rows = result_of(run), rows_of(run)
    assert len(rows) > 1
    assert all(int(row["slices"]) < 12 for row in rows)
    assert result["surfaces"] is None
    assert not any(name.startswith(("hd95", "nsd")) for name in (*result["best"]["test"], *rows[0]))


def test_resized_slices_are_measured_in_millimetres(tmp_path: Path, slice_store: Path) -> None:
    """Missed and false structures have the distance of the original volume's diagonal."""
    run = new_run(tmp_path, slice_store, "unet", data={"image_size": 64}, recipe={"epochs": 1, "learning_rate": 1e-12})
    state = build_state(run.experiment(), run, Distributed())
    cases: list[Case] = []
    evaluated(state, state.parts.test, take=cases.append)
    assert (cases[0].codes().shape, cases[0].spacing) == ((12, 64, 64), (1.0, 0.5, 0.5))
    state.network.requires_grad_(False).apply(lambda module: getattr(module, "bias", None) is not None
                                           and module.bias.fill_(-100.0))  # fmt: skip
    result = testing.score_test_part(state, Watch()).final
    assert result.surfaces is not None
    lost = result.surfaces[..., 0][result.surfaces[..., 0] > 0]
    assert len(lost)
    assert lost.tolist() == [pytest.approx(np.sqrt(12**2 + 2 * 32**2))] * len(lost)


def test_early_stop_with_a_running_mean_and_then_the_best_weights_lost(tmp_path: Path, slice_store: Path) -> None:
    recipe = {"epochs": 9, "early_stopping": 2, "learning_rate": 1e-12, "optimizer": "sgd", "ema": 0.9}
    run = new_run(tmp_path / "a", slice_store, "unet", recipe=recipe)
    train_here(run)
    result = result_of(run)
    assert result["best"]["epoch"] == result["last"]["epoch"] - 2
    assert result["best"]["test"]["hd95"] >= 0
    assert "hd95" not in result["last"]["test"]
    lost = to_test_again(run, tmp_path / "b")
    lost.best_weights.unlink()
    assert train_here(lost) == "finished"
    again = result_of(lost)
    assert again["best"]["epoch"] == again["last"]["epoch"] == result["last"]["epoch"]
    assert again["weights_lost"] == "missing"
    assert {name: again["best"]["test"][name] for name in again["last"]["test"]} == again["last"]["test"]
    assert again["last"]["test"] == result["last"]["test"]
    assert again["best"]["test"]["hd95"] == pytest.approx(result["best"]["test"]["hd95"], rel=0.2)


# Images


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory, image_store: Path) -> RunDir:
    """A finished run on the published split, which has copies of test images in training."""
    run = new_run(tmp_path_factory.mktemp("classifier"), image_store, "cnn", data={"split": "published"})
    assert train_here(run) == "finished"
    return run


def test_every_image_says_what_controls_predict(classifier: RunDir) -> None:
    store, rows = Store.open(classifier.experiment().data.store), rows_of(classifier)
    split = json.loads(classifier.split.read_text())["parts"]
    place = {path: index for index, path in enumerate(store.paths)}
    test, known = ([place[path] for part in parts for path in split[part]] for parts in (["test"], ["train", "val"]))
    groups = {int(store.group[index]) for index in known}
    scan = scan_images(store)
    for row in rows:
        index = place[row["case"]]
        assert int(row["group"]) == store.group[index]
        assert row["known"] == str(int(store.group[index] in groups))
        likeness = [float(np.corrcoef(scan.thumbnails[index], scan.thumbnails[other])[0, 1]) for other in known]
        assert row["nearest"] == store.classes[store.label[known[int(np.argmax(likeness))]]]
    answers = control_answers(store, scan, np.array(test), np.array(known))
    for name, answer in answers.items():
        expected = {store.paths[index]: store.classes[number] for index, number in zip(test, answer, strict=True)}
        assert {row["case"]: row[name] for row in rows} == expected
    assert {row["known"] for row in rows} == {"0", "1"}
    right = np.mean([row["nearest"] == row["label"] for row in rows])
    assert right == pytest.approx(memorise_images(store, scan, np.array(test), np.array(known)).score)


def test_no_copy_of_a_test_image_is_known_on_the_split_by_patient(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1}, scoring={"flips": True})
    train_here(run)
    assert {row["known"] for row in rows_of(run)} == {"0"}
    result = result_of(run)
    assert result["flips"]
    assert (result["split"], result["split_leaks"], result["split_leakage"]["units"]) == ("by-patient", False, 0)
    assert result["split_leakage"] == json.loads(run.split.read_text())["leakage"]


def test_every_score_of_classes_is_that_of_the_rows(classifier: RunDir) -> None:
    rows, classes = rows_of(classifier), Store.open(classifier.experiment().data.store).classes
    chances = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    labels = np.array([classes.index(row["label"]) for row in rows])
    result = result_of(classifier)
    scores = {**classification_scores(chances, labels, classes)}
    del scores["loss"]
    found = {name: value for name, value in result["best"]["test"].items() if name != "loss"}
    assert found == {name: pytest.approx(value) for name, value in scores.items()}
    assert {"balanced_accuracy", "mcc", "auroc", "ece", "brier", "nll"} <= found.keys()
    assert result["last"]["test"].keys() == result["best"]["test"].keys()
    assert result["surfaces"] is None


@pytest.mark.slow
def test_two_ranks_score_images_as_one(classifier: RunDir, tmp_path: Path) -> None:
    alone, shared = (to_test_again(classifier, tmp_path / name, scoring={"flips": True}) for name in "ab")
    train_here(alone)
    train_ranks(shared, 2)
    assert shared.cases.read_bytes() == alone.cases.read_bytes()
    assert result_of(shared)["best"] == result_of(alone)["best"]


def test_the_controls_need_only_the_images_of_the_parts(
    tmp_path: Path, image_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that the split left out may be damaged: at the end of a run nobody reads it."""
    run = new_run(tmp_path, image_store, "cnn")
    parts = build_state(run.experiment(), run, Distributed()).parts
    read, plain = [], parts.store.read_images
    monkeypatch.setattr(parts.store, "read_images", lambda chosen: read.extend(chosen) or plain(chosen))
    found = testing.predict_controls(parts)
    assert sorted(read) == sorted(np.concatenate([parts.split.train, parts.split.val, parts.split.test]).tolist())
    assert found.answers.keys() == CONTROLS.keys()
    assert all(len(answer) == len(parts.split.test) for answer in (*found.answers.values(), found.known))


def test_images_that_can_no_longer_be_read_spoil_no_run(
    tmp_path: Path, image_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def damaged(*_: object) -> None:
        raise DataError("the image a.jpg is missing or damaged.")

    monkeypatch.setattr(record, "predict_controls", damaged)
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1})
    assert train_here(run) == "finished"
    assert result_of(run)["best"]["test"]["accuracy"] >= 0
    assert not {"known", *CONTROLS} & set(rows_of(run)[0])
    assert "p_glioma" in rows_of(run)[0]
    assert run.read_events("controls left out")[0]["reason"] == "the image a.jpg is missing or damaged."
    assert "controls without a network left out" in capfd.readouterr().err
