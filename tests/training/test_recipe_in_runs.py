"""Settings of the recipe that show in a whole run: running mean, early stopping, the score that chooses, weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import evaluated, new_run, train_here

from hpc_tumor.errors import UsageError
from hpc_tumor.training import loop
from hpc_tumor.training.average import WeightAverage
from hpc_tumor.training.checkpoints.files import load_checkpoint, load_weights
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train_to_end
from hpc_tumor.training.losses import balanced_weights
from hpc_tumor.training.scoring.evaluate import Evaluation
from hpc_tumor.training.setup import build_state

CPU = torch.device("cpu")


def test_the_running_mean_by_hand() -> None:
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, decay=0.5)
    values = [1.0]  # batch norm's first weight
    for step, weight in enumerate((3.0, 4.0, 0.0), start=1):
        network.weight.data.fill_(weight)
        average.set_rate(step)
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        values.append(decay * values[-1] + (1 - decay) * weight)
        assert average.state_dict()["weight"].item() == pytest.approx(values[-1])
    assert "num_batches_tracked" not in average.state_dict()
    with average.applied():
        assert network.weight.item() == pytest.approx(values[-1])
    assert network.weight.item() == 0.0
    assert average.state_dict()["weight"].item() == pytest.approx(values[-1])


def test_the_mean_is_what_is_scored_and_kept(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "attention-unet", recipe={"ema": 0.99, "epochs": 1, "learning_rate": 1e-2})
    train_here(run)
    last = load_checkpoint(run.last_checkpoint, CPU)
    best, _ = load_weights(run.best_weights)
    assert any(not torch.equal(best[name], last["model"][name]) for name in best)
    assert all(torch.equal(best[name], mean) for name, mean in last["average"].items())
    state = build_state(run.experiment(), run, Distributed())
    state.network.load_state_dict(best)
    assert evaluated(state, state.parts.test).scores == json.loads(run.result.read_text())["last"]["test"]


def test_training_ends_where_nothing_gets_better(tmp_path: Path, slice_store: Path) -> None:
    recipe = {"epochs": 9, "early_stopping": 2, "learning_rate": 1e-12, "optimizer": "sgd"}
    run = new_run(tmp_path, slice_store, "unet", recipe=recipe)
    assert train_here(run) == "finished"
    result = json.loads(run.result.read_text())
    assert result["epochs"] == result["best"]["epoch"] + 2 < 9
    assert result["stopped_early"]
    assert run.read_events("early stop")


def test_early_stopping_needs_something_to_look_at(tmp_path: Path, slice_store: Path) -> None:
    split = tmp_path / "split.csv"
    ids = sorted(path.name for path in (slice_store / "cases").iterdir() if path.is_dir())
    split.write_text("id,part\n" + "".join(f"{name},{'test' if i == 0 else 'train'}\n" for i, name in enumerate(ids)))
    run = new_run(tmp_path, slice_store, "unet", recipe={"early_stopping": 2}, data={"split_file": str(split)})
    with pytest.raises(UsageError, match="early_stopping needs a validation part"):
        train_here(run)


@pytest.mark.parametrize(("by", "better"), [("loss", min), ("recall_WT", max)])
def test_the_best_epoch_is_chosen_by_the_score_that_was_asked_for(
    tmp_path: Path, slice_store: Path, by: str, better: object
) -> None:
    recipe = {"epochs": 4, "learning_rate": 0.3, "optimizer": "sgd"}
    run = new_run(tmp_path, slice_store, "unet", recipe=recipe, best_by=by)
    train_here(run)
    values = {line["epoch"]: line[by] for line in run.read_metrics() if line["part"] == "val"}
    result = json.loads(run.result.read_text())
    assert result["chosen_by"] == f"val {by}"
    assert values[result["best"]["epoch"]] == better(values.values())  # type: ignore[operator]
    assert result["best"]["val"] == pytest.approx(values[result["best"]["epoch"]])


def test_balanced_weights_are_those_of_the_training_part(tmp_path: Path, image_store: Path, slice_store: Path) -> None:
    images = new_run(tmp_path, image_store, "cnn", recipe={"class_weights": "balanced"})
    state = build_state(images.experiment(), images, Distributed())
    labels = state.parts.train.part.classes
    counts = torch.tensor([(labels == label).sum().item() for label in range(4)], dtype=torch.float64)
    logits = torch.zeros(4, 4)
    expected = balanced_weights(counts) * np.log(4)
    torch.testing.assert_close(state.spec.loss(logits, torch.arange(4)), expected.float())
    slices = new_run(tmp_path, slice_store, "unet", recipe={"class_weights": "balanced"})
    state = build_state(slices.experiment(), slices, Distributed())
    counts = torch.zeros(3, dtype=torch.float64)
    for batch in state.parts.train.batches(np.arange(len(state.parts.train.part))):
        counts += torch.tensor([(batch.targets == label).sum().item() for label in (1, 2, 3)])
    target = torch.ones(1, 2, 2, dtype=torch.uint8)
    # A mean over three maps of the binary cross-entropy at 0, each with its weight.
    expected = (balanced_weights(counts).float() * np.log(2)).mean()
    torch.testing.assert_close(state.spec.loss(torch.zeros(1, 3, 2, 2), target)[0], expected)


@pytest.mark.slow
def test_every_loss_trains(tmp_path: Path, image_store: Path, slice_store: Path) -> None:
    stores = {"unet": slice_store, "cnn": image_store}
    for model, losses in {"unet": ("bce", "dice-bce", "dice-ce", "focal"), "cnn": ("cross-entropy", "focal")}.items():
        for loss in losses:
            recipe = {"loss": loss, "epochs": 6, "learning_rate": 3e-3, "batch_size": 6}
            run = new_run(tmp_path, stores[model], model, recipe=recipe)
            train_here(run)
            lines = [line["loss"] for line in run.read_metrics() if line["part"] == "train"]
            assert lines[-1] < lines[0], (loss, lines)


def test_the_rate_of_each_epoch_is_the_schedules(tmp_path: Path, slice_store: Path) -> None:
    recipe = {"schedule": "cosine", "warmup_epochs": 1, "epochs": 3, "learning_rate": 1e-2}
    run = new_run(tmp_path, slice_store, "unet", recipe=recipe)
    train_here(run)
    rates = [line["learning_rate"] for line in run.read_metrics() if line["part"] == "train"]
    assert rates[0] == pytest.approx(1e-2)
    assert rates[0] > rates[1] > rates[2] > 0


def test_a_validation_that_is_no_number_is_not_the_best_for_good(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 3, "early_stopping": 2}, best_by="loss")
    state = build_state(run.experiment(), run, Distributed())
    plain, seen = loop.evaluate, []  # type: ignore[attr-defined]

    def evaluate(*arguments: Any, **options: Any) -> Evaluation:
        scored: Evaluation = plain(*arguments, **options)
        if not seen:
            seen.append(1)
            scored.scores["loss"] = float("nan")
        return scored

    monkeypatch.setattr(loop, "evaluate", evaluate)
    assert train_to_end(state) == "finished"
    assert state.progress.best_epoch > 1


def test_a_class_that_there_is_not_cannot_choose(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn", best_by="recall_gliom")
    with pytest.raises(UsageError, match="no class 'gliom' in the store, only glioma, meningioma"):
        train_here(run)
