"""Interruptions, ranks and parts of a batch change nothing: weights, moments and metrics to the last bit, or as close
as the order of additions allows."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_runs import (
    new_run,
    of_an_earlier_version,
    scored,
    scores,
    spawn,
    train_all,
    train_here,
    train_ranks,
    train_until_killed,
    weights,
)  # fmt: skip

from hpc_tumor.models import MODELS
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.setup import build_state

STEPS = 3
EPOCHS = 2
LOOKS = EPOCHS * (STEPS + 1) + 1  # at the stop signal: one a step, one an epoch, one between the scores
SIDES = {"cnn": 72, "alexnet": 72, "vgg16": 32, "vit": 32}
LARGE = ("vgg16", "vit")  # whose gradients three processes are long in adding up
ROUNDS = [pytest.param(ranks, seed, marks=pytest.mark.campaign) for seed in range(1, 7) for ranks in (3, 4, 8)]
KILLED = ("cnn", "vit", "attention-unet", "improved-unet", "alexnet", "unet")  # by seed; eight of vgg16 need 20 GB
STOPS = st.lists(st.integers(0, LOOKS - 1), min_size=1, max_size=4)


def small_run(folder: Path, stores: tuple[Path, Path], model: str, **recipe: Any) -> RunDir:
    """Two epochs of three steps, with augmentation, dropout where the network has it, and a running mean."""
    images, slices = stores
    store = images if MODELS[model].task == "classification" else slices
    recipe = {"epochs": EPOCHS, "batch_size": 4, "augment": True, "ema": 0.9, **recipe}
    data = {"store": str(store), "image_size": SIDES.get(model)}
    return new_run(folder, store, model, recipe=recipe, data=data, limit_batches=STEPS)


def same(first: RunDir, second: RunDir) -> bool:
    ours, theirs = weights(first), weights(second)
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    return equal and scores(first) == scores(second) and first.cases.read_text() == second.cases.read_text()


def to_the_end(run: RunDir, stops: Sequence[int]) -> None:
    """Train with these interruptions; one may come where the run has already ended."""
    for looks in stops:
        if not run.is_finished():
            train_here(run, stop_at=looks)
    if not run.is_finished():
        assert train_here(run) == "finished"


@pytest.fixture(scope="session")
def stores(image_store: Path, slice_store: Path) -> tuple[Path, Path]:
    return image_store, slice_store


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory: pytest.TempPathFactory, stores: tuple[Path, Path]) -> dict[str, RunDir]:
    """Runs that nothing interrupted, one for each network that is asked for."""
    folder = tmp_path_factory.mktemp("whole")

    class Runs(dict[str, RunDir]):
        def __missing__(self, model: str) -> RunDir:
            self[model] = small_run(folder, stores, model)
            train_here(self[model])
            return self[model]

    return Runs()


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=st.sampled_from(["cnn", "attention-unet"]), stops=STOPS)
def test_any_interruptions_end_with_the_same_bits(
    tmp_path: Path, stores: tuple[Path, Path], whole_runs: dict[str, RunDir], model: str, stops: list[int]
) -> None:
    broken = small_run(tmp_path, stores, model)
    to_the_end(broken, stops)
    assert same(whole_runs[model], broken)


@pytest.mark.slow
@pytest.mark.parametrize("model", list(MODELS))
def test_every_network_ends_with_the_same_bits(
    tmp_path: Path, stores: tuple[Path, Path], whole_runs: dict[str, RunDir], model: str
) -> None:
    broken = small_run(tmp_path, stores, model)
    to_the_end(broken, [Random(model).randrange(1, LOOKS - 1), 1])
    assert same(whole_runs[model], broken)


@pytest.mark.slow
@pytest.mark.parametrize(
    "models",
    [
        pytest.param([name for name in MODELS if name not in LARGE], id="small"),
        pytest.param(LARGE, id="large", marks=pytest.mark.campaign),
    ],
)
def test_three_ranks_of_every_network_end_with_the_same_bits(
    tmp_path: Path, stores: tuple[Path, Path], models: Sequence[str]
) -> None:
    """Three, because the order of adding up two numbers does not show in their sum."""
    runs = [[small_run(tmp_path / name, stores, model) for model in models] for name in ("whole", "broken")]
    draw = Random(7)
    work = [(run, [None]) for run in runs[0]]
    work += [(run, [draw.randrange(1, 2 * STEPS - 2), 1, None]) for run in runs[1]]
    train_all(work, 3)
    for whole, broken in zip(*runs, strict=True):
        assert json.loads(broken.result.read_text())["restarts"] == 2
        assert same(whole, broken), whole.name


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "seed"), [(4, 0), *ROUNDS])
def test_ranks_that_are_killed_end_with_the_same_bits(
    tmp_path: Path, stores: tuple[Path, Path], ranks: int, seed: int
) -> None:
    """Twice a rank is killed, at any step and any moment of writing; then the run is stopped once."""
    draw, model = Random(seed), KILLED[seed % len(KILLED)]
    whole, broken = (small_run(tmp_path / name, stores, model) for name in ("whole", "broken"))
    settings = json.loads(broken.config.read_text())
    broken.config.write_text(json.dumps({**settings, "checkpoint_minutes": 1e-6}))
    for _ in range(2):
        train_until_killed(broken, ranks, victim=draw.randrange(ranks), looks=draw.randrange(1, STEPS + 1))
    train_all([(whole, [None]), (broken, [1, None])], ranks)
    assert same(whole, broken)


def _reduce_three_times(distributed: Distributed, paths: Sequence[Path]) -> None:
    for path in paths:
        run = RunDir(path)
        state = build_state(run.experiment(), run, distributed)
        batch = next(state.parts.train.batches(np.arange(len(state.parts.train.part)), limit=1))
        passes = []
        for _ in range(3):
            torch.manual_seed(distributed.rank)  # of dropout
            state.optimizer.zero_grad(set_to_none=True)
            losses, _ = state.wrapped(batch.images, batch.targets)
            losses.mean().backward()
            passes.append([weights.grad.clone() for weights in state.parameters if weights.grad is not None])
        first, *later = passes
        for gradients in later:
            assert all(map(torch.equal, first, gradients)), path.name


@pytest.mark.slow
def test_the_first_step_of_a_start_adds_up_gradients_as_all_others(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    """With three ranks the order of additions shows where in its bucket a gradient lies."""
    spawn(_reduce_three_times, 3, [small_run(tmp_path, stores, model).path for model in ("cnn", "attention-unet")])


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param("alexnet", marks=pytest.mark.campaign), "unet"])
def test_any_number_of_ranks_trains_the_same(tmp_path: Path, stores: tuple[Path, Path], model: str) -> None:
    """Neither has batch norm or dropout: only the order of additions differs.

    A batch of 7 leaves unequal shares to 2 and 4 ranks, and the last batch leaves some of them none. Adam would blow
    differences up where a gradient is next to nothing, so it is plain gradient descent.
    """
    recipe = {"batch_size": 7, "optimizer": "sgd", "learning_rate": 1e-2, "ema": None}
    runs = {ranks: small_run(tmp_path / str(ranks), stores, model, **recipe) for ranks in (1, 2, 4)}
    for run in runs.values():
        settings = json.loads(run.config.read_text())
        run.config.write_text(json.dumps({**settings, "limit_batches": None}))
    train_here(runs[1])
    for ranks in (2, 4):
        train_ranks(runs[ranks], ranks)
        for one, more in zip(scores(runs[1]), scores(runs[ranks]), strict=True):
            assert more["loss"] == pytest.approx(one["loss"], rel=1e-5)
        for name, value in weights(runs[1]).items():
            torch.testing.assert_close(weights(runs[ranks])[name], value, rtol=1e-3, atol=1e-5)


def _score(distributed: Distributed, path: Path, to: Path) -> None:
    run = RunDir(path)
    state = build_state(run.experiment(), run, distributed)
    found = scored(state, state.parts.test)
    if distributed.is_main:
        np.savez(to, details=found.details, counted=found.counted, **found.scores)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "attention-unet"])
def test_scores_are_the_same_to_the_last_digit_on_any_number_of_ranks(
    tmp_path: Path, stores: tuple[Path, Path], model: str
) -> None:
    run = small_run(tmp_path, stores, model)
    train_here(run)
    settings = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**settings, "limit_batches": None}))
    of_an_earlier_version(run)
    for ranks in (1, 3):
        spawn(_score, ranks, run.path, tmp_path / f"{ranks}.npz")
    one, three = (np.load(tmp_path / f"{ranks}.npz") for ranks in (1, 3))
    assert set(one) == set(three)
    for name in one:
        np.testing.assert_array_equal(one[name], three[name], err_msg=name)
    assert (one["counted"] == (1 if model == "cnn" else 12)).all()


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3, 8])
def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path, stores: tuple[Path, Path], parts: int) -> None:
    """The classic U-Net has no batch norm: the gradients of the parts are those of the whole."""
    recipe = {"batch_size": 7, "optimizer": "sgd", "learning_rate": 1e-2}
    whole, divided = (small_run(tmp_path / name, stores, "unet", **recipe) for name in ("whole", "divided"))
    settings = json.loads(divided.config.read_text())
    settings["hardware"]["accumulate"] = parts
    divided.config.write_text(json.dumps(settings))
    train_here(whole)
    train_here(divided)
    for one, other in zip(scores(whole), scores(divided), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(divided)[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_parts_of_unequal_shares_on_two_ranks(tmp_path: Path, stores: tuple[Path, Path]) -> None:
    """A batch of 5 in four parts on two ranks: one of them has a part without a sample."""
    recipe = {"batch_size": 5, "optimizer": "sgd", "learning_rate": 1e-2}
    whole, divided = (small_run(tmp_path / name, stores, "unet", **recipe) for name in ("whole", "divided"))
    settings = json.loads(divided.config.read_text())
    settings["hardware"]["accumulate"] = 4
    divided.config.write_text(json.dumps(settings))
    train_here(whole)
    train_ranks(divided, 2)
    for one, other in zip(scores(whole), scores(divided), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_another_number_of_ranks_goes_on_at_the_same_sample(
    tmp_path: Path, stores: tuple[Path, Path], before: int, after: int
) -> None:
    recipe = {"batch_size": 5, "optimizer": "sgd", "learning_rate": 1e-2}
    whole, moved = (small_run(tmp_path / name, stores, "unet", **recipe) for name in ("whole", "moved"))
    train_here(whole)
    train_ranks(moved, before, stop_at=1)
    assert moved.read_events("checkpoint")[-1]["step"] == 2
    train_ranks(moved, after)
    assert moved.read_events("resumed")[-1]["step"] == 2
    for one, other in zip(scores(whole), scores(moved), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


@pytest.mark.slow
def test_every_rank_scores_the_same_running_mean(tmp_path: Path, slice_store: Path) -> None:
    """Each rank has running statistics of its own, and a mean of them. Here both ranks have something to score."""
    recipe = {"epochs": 2, "batch_size": 4, "ema": 0.9}
    data = {"store": str(slice_store), "val_fraction": 0.5}
    runs = [
        new_run(tmp_path / name, slice_store, "attention-unet", recipe=recipe, data=data, hardware={"accumulate": 4})
        for name in ("whole", "broken")
    ]
    train_all([(runs[0], [None]), (runs[1], [1, None])], 2)
    assert same(*runs)
    state = build_state(runs[0].experiment(), runs[0], Distributed())
    assert state.parts.val is not None
    assert len(state.parts.val.part) > 2 * state.parts.val.batch_size
    alone = scored(state, state.parts.val).scores
    last = [line for line in runs[0].read_metrics() if line["part"] == "val"][-1]
    assert {key: last[key] for key in alone} == alone
