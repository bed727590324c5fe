"""Debugging: what is shown is true, looking changes nothing, and what is wrong is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_runs import new_run, scores, train_here, weights

from hpc_tumor.errors import TrainingError
from hpc_tumor.run_dir import RunDir, read_json
from hpc_tumor.training.distributed import Distributed
from hpc_tumor.training.inspect import network as inspect_network
from hpc_tumor.training.inspect import step_times
from hpc_tumor.training.inspect.anomaly import detect_anomalies
from hpc_tumor.training.inspect.debug import debug_run
from hpc_tumor.training.inspect.network import inspect_batch, number, statistics
from hpc_tumor.training.inspect.overfit import Check, is_learned, overfit
from hpc_tumor.training.inspect.step_times import PHASES, StepTimes
from hpc_tumor.training.setup import build_state
from hpc_tumor.training.state import TrainingState, epoch_totals
from hpc_tumor.training.step import train_step
from hpc_tumor.training.watch.guard import check_steps

Captured = pytest.CaptureFixture[str]


def state_of(runs: Path, store: Path, model: str, **overrides: Any) -> TrainingState:
    run = new_run(runs, store, model, **overrides)
    return build_state(run.experiment(), run, Distributed())


def one_step(state: TrainingState) -> None:
    state.network.train()
    totals = epoch_totals(state)
    train_step(state, state.parts.first_batch(state.experiment.seed), totals, (False, False))
    check_steps(state, totals, everything=True)


def same(first: RunDir, second: RunDir) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# -- one batch --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_debugging_trains_to_the_same_bits_as_any_run(tmp_path: Path, image_store: Path, capfd: Captured) -> None:
    """`cnn` has dropout and batch norm: a look that used random numbers or running statistics up would show."""
    plain, looked, hunted = (new_run(tmp_path, image_store, "cnn") for _ in range(3))
    train_here(plain)
    assert debug_run(looked.experiment(), looked) == "finished"
    assert debug_run(hunted.experiment(), hunted, anomaly=True) == "finished"
    assert same(plain, looked)
    assert same(plain, hunted)
    assert scores(plain) == scores(looked)
    shown = capfd.readouterr().err
    assert all(f"\n{part} " in shown for part in (*PHASES, "step"))
    assert all(len(line) <= 100 for line in shown.splitlines() if "samples:" not in line), shown


def test_every_layer_is_shown_in_the_order_in_which_it_runs(tmp_path: Path, slice_store: Path, capfd: Captured) -> None:
    state = state_of(tmp_path, slice_store, "attention-unet")
    ran: list[str] = []
    leaves = {name: module for name, module in state.network.named_modules() if not list(module.children())}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name) if name not in ran else None)
        for name, module in leaves.items()
    ]
    inspect_batch(state)
    for hook in hooks:
        hook.remove()
    lines = capfd.readouterr().err.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("layer") and "output" in line)
    table = [line.split() for line in lines[start + 1 : lines.index("", start)]]
    assert [row[0] for row in table] == ran
    assert len(ran) == len(leaves)
    head = table[-1]
    assert head[:4] == ["head", "Conv2d", "8×3×32×32", "f32"]
    assert int(head[4]) == sum(value.numel() for value in state.network.head.parameters())  # type: ignore[union-attr]


def test_only_the_part_that_fits_is_looked_at(tmp_path: Path, slice_store: Path, capfd: Captured) -> None:
    state = state_of(tmp_path, slice_store, "unet", hardware={"accumulate": 3})
    inspect_batch(state)
    shown = capfd.readouterr().err
    assert "images 8×4×32×32" in shown
    assert "logits     3×3×32×32" in shown


def test_a_layer_that_fails_is_the_one_after_the_last_row(
    tmp_path: Path, slice_store: Path, capfd: Captured
) -> None:  # fmt: skip
    state = state_of(tmp_path, slice_store, "unet")
    state.network.decoder[0][0] = nn.Conv2d(7, 16, 3)  # type: ignore[index]
    with pytest.raises(RuntimeError, match="channels"):
        inspect_batch(state)
    assert capfd.readouterr().err.splitlines()[-1].startswith("bottleneck.3 ")
    with pytest.raises(RuntimeError, match="channels"):
        state.network(torch.zeros(1, 4, 32, 32))
    assert capfd.readouterr().err == ""  # no layer is shown any more


def test_layers_that_cannot_learn_are_flagged(tmp_path: Path, slice_store: Path, capfd: Captured) -> None:
    state = state_of(tmp_path, slice_store, "unet")
    with torch.no_grad():
        state.network.head.weight.zero_()  # type: ignore[union-attr, operator]
    state.network.forgotten = nn.Linear(2, 2)
    state.network.bottleneck[0].bias.requires_grad_(False)  # type: ignore[index]
    inspect_batch(state)
    shown = capfd.readouterr().err
    lines = [line for line in shown.splitlines() if "<-" in line]
    flags = {line.split()[0]: line.partition("<- ")[2] for line in lines}
    assert flags["forgotten"] == "no gradient: weight, bias"
    assert flags["encoder.blocks.0.0"] == "zero gradient: weight, bias"
    assert flags["bottleneck.0"] == "zero gradient: weight; frozen: bias"
    assert "head" not in flags
    assert "19 of 20 layers flagged" in shown


def test_gradients_that_are_not_finite_are_flagged(tmp_path: Path, slice_store: Path, capfd: Captured) -> None:
    state = state_of(tmp_path, slice_store, "unet")
    state.network.head.bias.register_hook(lambda gradient: gradient / 0)  # type: ignore[union-attr, operator]
    inspect_batch(state)
    assert "<- 3 of 3 not finite: bias" in capfd.readouterr().err


def test_ratios_are_of_the_gradient_that_a_step_would_have(tmp_path: Path, slice_store: Path, capfd: Captured) -> None:
    state = state_of(tmp_path, slice_store, "unet")
    inspect_batch(state)
    shown = capfd.readouterr().err.splitlines()
    one_step_gradient(state)
    head = list(state.network.head.parameters())  # type: ignore[union-attr]
    gradient = torch.cat([value.grad.flatten() for value in head if value.grad is not None]).norm()
    size = torch.cat([value.detach().flatten() for value in head]).norm()
    row = next(line.split() for line in reversed(shown) if line.startswith("head "))
    assert row == ["head", number(float(size)), number(float(gradient)), number(float(gradient / size))]


def one_step_gradient(state: TrainingState) -> None:
    batch = state.parts.first_batch(state.experiment.seed)
    state.spec.loss(state.network(batch.images), batch.targets).mean().backward()


def test_statistics_are_those_of_the_finite_values() -> None:
    values = torch.randn(5, 3, 700, 900, generator=torch.Generator().manual_seed(1)) * 3 + 2
    values[:, 0, ::2] = 0
    values[1, 1, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan])
    found, finite = statistics(values), values[values.isfinite()].double()
    assert found.bad == 4
    assert found.mean == pytest.approx(float(finite.mean()))
    assert found.std == pytest.approx(float(finite.std(correction=0)))
    assert found.zeros == pytest.approx(float((values == 0).double().mean()))
    assert statistics(torch.tensor(3.0)).mean == 3


def test_what_the_forward_pass_keeps_is_counted_once() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    kept = inspect_network.KeptMemory(network)
    with kept.counting():
        network(torch.ones(5, 4))
    # The first layer keeps its input; the activation its output, and the last layer the same memory again.
    assert kept.bytes == 4 * (5 * 4 + 5 * 8)


def test_a_batch_that_does_not_fit_says_what_to_change(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(state: TrainingState) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr("hpc_tumor.training.inspect.debug.inspect_batch", fail)
    run = new_run(tmp_path, slice_store, "unet")
    with pytest.raises(TrainingError, match=r"out of memory .* --accumulate 2"):
        debug_run(run.experiment(), run)


# -- times ------------------------------------------------------------------------------------------------------------


def test_times_of_the_parts_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 0.0}
    monkeypatch.setattr(step_times.time, "perf_counter", lambda: clock["now"])
    times = StepTimes(torch.device("cpu"))

    def part(name: str, seconds: float) -> None:
        times(name)
        clock["now"] += seconds

    for factor in (10, 1, 3):
        for name in ("data", "augment", "forward", "backward", "update", "agree", "update", "metrics"):
            part(name, factor * 0.001)
        part("checkpoint", 100)  # is no part of a step
    part("data", 50)  # of an epoch that is at its end
    part("evaluate", 50)
    times("data")
    assert len(times.steps) == 3
    rows = {line.split()[0]: line.split()[1:] for line in times.table()}
    assert "mean of 2 after the first" in times.table()[0]
    assert rows["update"] == ["4.0", "25.0%", "20.0"]
    assert rows["data"] == ["2.0", "12.5%", "10.0"]
    assert rows["step"] == ["16.0", "100.0%", "80.0"]


# -- one batch over and over ------------------------------------------------------------------------------------------


def test_a_batch_that_is_learned_leaves_no_result(tmp_path: Path, image_store: Path, capfd: Captured) -> None:
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1, "augment": False})
    assert debug_run(run.experiment(), run, overfit_steps=100) == "learned"
    shown = capfd.readouterr().err
    assert "verdict    learned one batch in" in shown
    assert not run.result.exists()
    assert not list(run.checkpoints.iterdir())
    assert not run.read_metrics()
    assert (read_json(run.status) or {})["state"] == "stopped"
    assert run.read_events()[-1]["reason"] in shown


def test_a_batch_that_is_not_learned_says_what_to_look_at(tmp_path: Path, image_store: Path, capfd: Captured) -> None:
    run = new_run(tmp_path, image_store, "cnn", recipe={"epochs": 1, "augment": False, "learning_rate": 1e-9})
    with pytest.raises(TrainingError, match=r"not learned in 3 steps.*recipe\.learning_rate \(1e-09\)"):
        debug_run(run.experiment(), run, overfit_steps=3)
    assert capfd.readouterr().err.count("  step ") == 3
    assert not run.result.exists()
    assert not list(run.checkpoints.iterdir())


def test_all_steps_are_made_with_one_batch(
    tmp_path: Path, slice_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    run = new_run(tmp_path, slice_store, "unet", recipe={"epochs": 1, "learning_rate": 1e-9})
    seen: list[tuple[Any, int]] = []

    def step(state: TrainingState, batch: Any, totals: dict[str, Any], wishes: Any) -> Any:
        seen.append((tuple(batch.positions), batch.images.data_ptr()))
        return train_step(state, batch, totals, wishes)

    monkeypatch.setattr("hpc_tumor.training.inspect.overfit.train_step", step)
    with pytest.raises(TrainingError, match=r"\(NCR \d\.\d\d, ED \d\.\d\d, ET \d\.\d\d\)"):
        debug_run(run.experiment(), run, overfit_steps=45)  # more than the epoch has
    assert len(seen) == 45
    assert len(set(seen)) == 1


def test_a_loss_that_falls_is_not_enough_where_most_is_background() -> None:
    fallen = Check(loss=0.05, score=0.3)
    assert not is_learned("segmentation", 1.0, fallen)
    assert is_learned("classification", 1.0, fallen)
    assert is_learned("segmentation", 1.0, Check(loss=0.05, score=0.85))
    assert not is_learned("classification", 1.0, Check(loss=0.5, score=0.85))


@pytest.mark.parametrize(("model", "store"), [("cnn", "image_store"), ("unet", "slice_store")])
def test_a_batch_whose_steps_are_all_skipped_is_not_learned(
    tmp_path: Path, request: pytest.FixtureRequest, model: str, store: str
) -> None:
    recipe = {"skip_nonfinite": 9, "augment": False}
    state = state_of(tmp_path, request.getfixturevalue(store), model, recipe=recipe)
    with torch.no_grad():
        for weights in state.parameters:
            weights.fill_(torch.nan)
    with pytest.raises(TrainingError, match="not learned in 3 steps"):
        overfit(state, 3)
    assert state.progress.skipped == 3
    assert state.writer is not None
    state.writer.close()


# -- what is not finite -----------------------------------------------------------------------------------------------


class Overflow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 3e38 * 3e38


class Root(nn.Module):
    """Finite forwards; its slope at 0 is infinite, and a factor of 0 makes NaN of that."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x).sqrt() * self.factor


class Between(nn.Module):
    """A layer, and operations of no layer after it."""

    def __init__(self, layer: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.after = [after]  # hidden, so that it has no name of its own

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.after[0](self.layer(x))
        return result


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda net: net.bottleneck[2].weight[0, 0, 0].fill_(torch.inf),
         r"output of bottleneck\.2 \(Conv2d\) is not finite at epoch 1, step 1 .* its weights are not finite either"),
        (lambda net: setattr(net, "bottleneck", nn.Sequential(net.bottleneck, Overflow())),
         r"output of bottleneck\.1 \(Overflow\) .*; its input is, up to \d"),
        (lambda net: setattr(net, "head", Between(net.head, Overflow())),
         r"output of head \(Between\) is not finite"),
        (lambda net: setattr(net, "bottleneck", nn.Sequential(Between(net.bottleneck, Overflow()), nn.ReLU())),
         r"output of bottleneck\.0 \(Between\) is not finite"),
        (lambda net: setattr(net, "head", nn.Sequential(net.head, Root(1.0))),
         r"backward pass of head\.1 \(Root\) gave .* at epoch 1, step 1 .*SqrtBackward0"),
        (lambda net: setattr(net, "head", nn.Sequential(net.head, Root(0.0))),
         r"backward pass of head\.1 \(Root\) gave .*SqrtBackward0"),
        (lambda net: setattr(net, "bottleneck", Between(net.bottleneck, Root(0.0))),
         r"backward pass of bottleneck \(Between\) gave"),
    ],
)  # fmt: skip
def test_the_layer_that_gives_what_is_not_finite_is_named(
    tmp_path: Path, slice_store: Path, spoil: Any, message: str
) -> None:
    state = state_of(tmp_path, slice_store, "unet")
    with torch.no_grad():
        spoil(state.network)
    with pytest.raises(TrainingError, match=message), detect_anomalies(state):
        one_step(state)


def test_a_loss_that_is_not_finite_is_named_itself(tmp_path: Path, slice_store: Path) -> None:
    state = state_of(tmp_path, slice_store, "unet")
    usual = state.spec.loss
    for spoilt, message in (
        (lambda logits, labels: usual(logits, labels) / 0, r"the loss \(bce\) is not finite at epoch 1, step 1"),
        (lambda logits, labels: Root(0.0)(usual(logits, labels)), r"the backward pass of the loss \(bce\) gave"),
    ):
        state.objective.spec = replace(state.spec, loss=spoilt)
        with pytest.raises(TrainingError, match=message), detect_anomalies(state):
            one_step(state)
        assert state.spec.loss is spoilt


def test_what_belongs_to_no_layer_is_named_by_torch(tmp_path: Path, slice_store: Path) -> None:
    state = state_of(tmp_path, slice_store, "unet")
    with pytest.raises(TrainingError, match=r"^the backward pass of SqrtBackward0 gave NaN"), detect_anomalies(state):
        Root(0.0)(torch.ones(3, requires_grad=True)).sum().backward()
    with pytest.raises(RuntimeError, match="inconsistent"), detect_anomalies(state):
        torch.dot(torch.ones(2), torch.ones(3))  # other errors stay what they are
    assert not torch.is_anomaly_enabled()
    hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in state.network.modules()]  # noqa: SLF001
    assert not any(map(any, hooks))


def test_images_and_inputs_that_are_not_finite_are_named(tmp_path: Path, slice_store: Path) -> None:
    state = state_of(tmp_path, slice_store, "unet")
    state.network.eval()
    images = state.parts.first_batch(state.experiment.seed).images.clone()
    images[0, 0, 0, 0] = torch.inf
    place = "in the evaluation after epoch 0"
    with pytest.raises(TrainingError, match=f"the images are not finite {place}"), detect_anomalies(state):
        state.network(images)
    _, second, *_ = [module for module in state.network.modules() if not list(module.children())]
    second.register_forward_pre_hook(lambda _, inputs: (inputs[0] * torch.inf,))
    with pytest.raises(TrainingError, match="although the layer before gave finite values"), detect_anomalies(state):
        state.network(torch.ones_like(images))


def test_a_run_that_diverges_names_the_layer(tmp_path: Path, image_store: Path, capfd: Captured) -> None:
    recipe = {"optimizer": "sgd", "learning_rate": 10.0, "epochs": 20}
    run = new_run(tmp_path, image_store, "alexnet", recipe=recipe)
    with pytest.raises(TrainingError, match=r"(features|classifier)\.\d+ \(\w+\).* at epoch \d+, step \d+"):
        debug_run(run.experiment(), run, anomaly=True)
    assert not run.is_finished()
