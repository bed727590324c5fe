"""A loss or a gradient that is not finite: nothing changes, the place is named, the batch is kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import new_run, scores, spawn, train_here, weights

from hpc_tumor.config import Recipe
from hpc_tumor.errors import TrainingError
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.loop import train_to_end
from hpc_tumor.training.recipe import build_optimizer
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.watch.guard import total_norm


def spoiling(state: TrainingState, steps: list[int], spoil: Callable[[torch.Tensor], torch.Tensor]) -> TrainingState:
    """`state` whose loss is spoilt in these steps, counted over all epochs."""
    plain = state.spec.loss

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        values = plain(logits, targets)
        training = logits.requires_grad
        return spoil(values) if training and state.progress.updates in steps else values

    state.objective.spec = replace(state.spec, loss=loss)
    return state


def infinite_first(values: torch.Tensor) -> torch.Tensor:
    return values * torch.tensor([float("inf")] + [1.0] * (len(values) - 1))


def finite_loss_with_broken_gradient(values: torch.Tensor) -> torch.Tensor:
    # The square root's slope at 0 is infinite; its value is 0.
    return values + torch.sqrt(values - values.detach()).nan_to_num()


def prepared(run: RunDir) -> TrainingState:
    return build_state(run.experiment(), run, Distributed())


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (infinite_first, "the loss is no longer finite"),
        (finite_loss_with_broken_gradient, "the gradients are no longer"),
    ],
)
def test_the_step_and_the_cases_are_named_and_the_batch_is_kept(
    tmp_path: Path, slice_store: Path, spoil: Callable[..., Any], what: str
) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    state = prepared(run)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    with pytest.raises(TrainingError, match=rf"{what}.* at epoch 1, step 1 \(BraTS\S+ slice \d+") as caught:
        train_to_end(spoiling(state, [0], spoil))
    assert all(torch.equal(value, before[name]) for name, value in state.network.state_dict().items())
    kept = torch.load(run.broken_batch(1, 1, 0), weights_only=True)
    assert kept["images"].shape == (8, 4, 32, 32)
    assert kept["cases"][0] in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in kept["model"].items())
    assert str(run.checkpoints) in str(caught.value)
    assert not run.is_finished()


@pytest.mark.slow
def test_as_many_steps_are_skipped_as_the_recipe_allows(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "cnn", recipe={"skip_nonfinite": 2})
    state = spoiling(prepared(run), [1, 3], infinite_first)
    assert train_to_end(state) == "finished"
    assert json.loads(run.result.read_text())["skipped_steps"] == 2
    skipped = run.read_events("skipped")
    assert [(event["epoch"], event["step"]) for event in skipped] == [(1, 2), (1, 4)]
    assert all(value.isfinite().all() for value in weights(run).values())
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in scores(run))


def test_one_more_is_not_skipped(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"skip_nonfinite": 1})
    with pytest.raises(TrainingError, match="at epoch 1, step 3, after 1 skipped"):
        train_to_end(spoiling(prepared(run), [0, 2], infinite_first))


def test_a_skipped_step_leaves_no_trace(tmp_path: Path, image_store: Path) -> None:
    """Weights, moments, running statistics and the optimizer's count of steps stay as they were."""
    run = new_run(tmp_path, image_store, "cnn", recipe={"skip_nonfinite": 99, "epochs": 1, "batch_size": 64})
    state = prepared(run)
    before = {name: value.clone() for name, value in state.network.state_dict().items()}
    train_to_end(spoiling(state, [0], lambda values: values * float("nan")))
    assert all(torch.equal(value, before[name]) for name, value in state.network.state_dict().items())
    for moments in state.optimizer.state.values():
        assert moments["step"] == 0
        assert not moments["exp_avg"].any()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimizer_looks_at_the_flag(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer([weight], Recipe(optimizer=name, learning_rate=0.1))
    weight.grad = torch.tensor([1.0, float("nan"), 1.0])
    optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(1.0)
    optimizer.step()
    assert weight.tolist() == [1, 1, 1]
    weight.grad = torch.ones(3)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert (weight < 1).all()


def test_the_norm_is_of_all_gradients_together() -> None:
    first, second = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert total_norm([first, second, torch.nn.Parameter(torch.zeros(1))]) == 5
    second.grad[0] = float("inf")
    assert not total_norm([first, second]).isfinite()


def _spoil_on_rank_1(distributed: Distributed, path: Path) -> None:
    run = RunDir(path)
    state = build_state(run.experiment(), run, distributed)
    if distributed.rank == 1:
        state = spoiling(state, [1], infinite_first)
    try:
        train_to_end(state)
    except TrainingError as error:
        (run.path / f"said-{distributed.rank}").write_text(f"{state.progress.step} {error}")


@pytest.mark.slow
def test_all_ranks_stop_in_the_same_step_with_the_same_words(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet")
    spawn(_spoil_on_rank_1, 2, run.path)
    said = [(run.path / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("2 the loss is no longer finite at epoch 1, step 2 (")
    culprit = torch.load(run.broken_batch(1, 2, 1), weights_only=True)["cases"][0]
    assert culprit in said[0]
    assert len(torch.load(run.broken_batch(1, 2, 0), weights_only=True)["cases"]) == 4


def test_clipping_scales_all_gradients_to_the_norm(tmp_path: Path, slice_store: Path) -> None:
    recipe = {"optimizer": "sgd", "learning_rate": 1.0, "epochs": 1, "batch_size": 64, "weight_decay": 0}
    moved = {}
    for limit in (None, 1e-3):
        run = new_run(tmp_path, slice_store, "unet", recipe={**recipe, "clip_gradients": limit})
        state = prepared(run)
        before = [parameter.detach().clone() for parameter in state.parameters]
        train_to_end(state)
        steps = [after.detach() - old for after, old in zip(state.parameters, before, strict=True)]
        moved[limit] = torch.cat([step.flatten() for step in steps])
    # One step of Nesterov's momentum moves by 1.9 times the gradient.
    assert moved[1e-3].norm().item() == pytest.approx(1.9e-3, rel=1e-2)
    direction = torch.nn.functional.cosine_similarity(moved[None], moved[1e-3], dim=0)
    assert direction.item() == pytest.approx(1, abs=1e-3)


def test_a_run_that_diverges_by_itself_is_stopped(tmp_path: Path, image_store: Path) -> None:
    run = new_run(tmp_path, image_store, "alexnet", recipe={"optimizer": "sgd", "learning_rate": 10.0, "epochs": 20})
    with pytest.raises(TrainingError, match=r"no longer finite at epoch \d+, step \d+"):
        train_here(run)
    (kept,) = run.checkpoints.glob("nonfinite-*")
    assert all(value.isfinite().all() for value in torch.load(kept, weights_only=True)["model"].values())


def test_float16_that_always_overflows_is_noticed(tmp_path: Path, slice_store: Path) -> None:
    """Its scaler skips steps in silence, and halves its scale each time."""
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 20})
    state = prepared(run)
    state.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(TrainingError, match="gradients are no longer finite at epoch 6, step 3"):  # after 17 halvings
        train_to_end(spoiling(state, list(range(99)), finite_loss_with_broken_gradient))


def test_float16_that_overflows_at_first_goes_on(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 2, "clip_gradients": 1.0})
    state = prepared(run)
    state.scaler = torch.amp.GradScaler("cpu")
    before = state.parameters[0].detach().clone()
    assert train_to_end(spoiling(state, [0, 1], finite_loss_with_broken_gradient)) == "finished"
    assert not torch.equal(before, state.parameters[0])


def test_a_full_disk_does_not_hide_what_broke(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    run = new_run(tmp_path, slice_store, "unet")
    state = spoiling(prepared(run), [0], infinite_first)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match=r"at epoch 1, step 1 .*could not be saved: the disk is full"):
        train_to_end(state)


def test_an_epoch_of_skipped_steps_has_no_loss(tmp_path: Path, slice_store: Path) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"skip_nonfinite": 99, "epochs": 2})
    assert train_to_end(spoiling(prepared(run), [0, 1, 2], infinite_first)) == "finished"
    lines = [line for line in run.read_metrics() if line["part"] == "train"]
    assert lines[0]["loss"] is lines[0]["dice"] is None
    assert lines[1]["loss"] > 0
