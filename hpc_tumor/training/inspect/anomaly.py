"""Find the layer that the first value that is not finite comes from, forwards or backwards. Slow, for debugging."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpc_tumor.errors import TrainingError
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.watch.torch_errors import ANOMALY_WARNING, failed_function, is_anomaly_warning, is_nan_anomaly

_PACKAGE = Path(__file__).parents[2]
_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+), in \S+\n\s+(?P<code>[^\n]+)')


@contextmanager
def anomalies_named(state: TrainingState) -> Iterator[None]:
    """While this lasts, training ends with the first value that is not finite, and names what gave it.

    Every layer, the loss, and every step back through them is looked at; the network is not compiled, and gradients
    of float16 are not scaled up until they overflow, which is what its scaler does every day.

    Raises TrainingError: the layer, the epoch and the step.
    """
    watch = _Watch(state)
    before = state.spec, state.compiled, state.scaler
    state.spec, state.compiled = replace(state.spec, loss=watch.loss), None
    if state.scaler.is_enabled():
        state.scaler = torch.amp.GradScaler(state.distributed.device.type, init_scale=1.0, growth_interval=2**30)
    hooks = watch.attach()
    try:
        with _forward_calls() as calls, torch.autograd.set_detect_anomaly(True, check_nan=True):
            yield
    except RuntimeError as error:
        if not is_nan_anomaly(error):
            raise
        raise TrainingError(f"{_said_by_torch(error, calls)} {watch.place()}.") from error
    finally:
        state.spec, state.compiled, state.scaler = before
        for hook in hooks:
            hook.remove()


class _Watch:
    """Looks at what goes into and comes out of each layer, and at the gradients on their way back through it."""

    def __init__(self, state: TrainingState) -> None:
        self._state, self._loss = state, state.spec.loss
        self._labels = {
            module: f"{name} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
            for name, module in state.network.named_modules()
        }
        self._entered: list[set[Any]] = []  # nodes at which the layers under way were entered, the innermost last
        self._followed: set[Any] = set()

    def attach(self) -> list[Any]:
        """Begin to look at all layers and what holds them; gives the hooks, to be removed."""
        hooks: list[Any] = []
        for module in self._labels:
            hooks += [module.register_forward_pre_hook(self._before), module.register_forward_hook(self._after)]
        return hooks

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The run's loss, looked at like a layer."""
        losses, name = self._loss(logits, targets), f"the loss ({self._state.experiment.loss})"
        if _bad([losses]):
            raise TrainingError(f"{name} is not finite {self.place()}, although the network's logits are.")
        self._follow([losses], _nodes([logits]), name)
        self._followed.clear()  # or they would keep this step's memory until the next
        return losses

    def place(self) -> str:
        """Epoch and step, in words."""
        progress = self._state.progress
        if not self._state.network.training:
            return f"in the evaluation after epoch {progress.epoch}"
        return f"at epoch {progress.epoch + 1}, step {progress.step + 1}"

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module is self._state.network:
            self._entered, self._followed = [], set()
        # Taken now: a layer that works in place gives its input a new node.
        self._entered.append(_nodes(_tensors(inputs)))
        if bad := _bad(_tensors(inputs)):
            what = "the images are" if module is self._state.network else f"what reaches {self._labels[module]} is"
            after = "" if module is self._state.network else ": it was spoilt since the layer before gave finite values"
            raise TrainingError(f"{what} not finite {self.place()} ({bad}){after}.")

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        entered, label, outputs = self._entered.pop(), self._labels[module], _tensors(output)
        if bad := _bad(outputs):
            weights = list(module.parameters())
            why = f"what it was given is, up to {_largest(_tensors(inputs))}"
            why += f", and so are its weights, up to {_largest(weights)}" if weights else ""
            why = f"its weights are not finite either ({_bad(weights)})" if _bad(weights) else why
            raise TrainingError(f"the output of {label} is not finite {self.place()} ({bad}); {why}.")
        self._follow(outputs, entered, label)

    def _follow(self, outputs: Iterable[Tensor], entered: set[Any], label: str) -> None:
        """Look at every gradient that comes back through the operations of a layer, up to where it was entered."""
        waiting, seen = list(_nodes(outputs)), set(entered)
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            waiting += [further for further, _ in node.next_functions if further is not None]
            if node not in self._followed and "AccumulateGrad" not in node.name():
                self._followed.add(node)
                node.register_hook(self._look(node.name(), label))

    def _look(self, operation: str, label: str) -> Callable[..., None]:
        def hook(gradients: tuple[Tensor | None, ...], given: tuple[Tensor | None, ...]) -> None:
            if not (bad := _bad(gradients)):
                return
            if _bad(given):
                raise TrainingError(f"the gradient that reaches {label} is not finite {self.place()} ({_bad(given)}).")
            raise TrainingError(
                f"the backward pass of {label} gave a gradient that is not finite {self.place()} ({bad}), in"
                f" {operation.removeprefix('torch::autograd::')}, from one that is finite."
            )

        return hook


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list | tuple) else []


def _nodes(tensors: Iterable[Tensor]) -> set[Any]:
    return {tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None}


@torch.no_grad()
def _bad(tensors: Iterable[Tensor | None]) -> str:
    """Count the values that are not finite, in words; empty where all are."""
    there = [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()]
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in there)
    return f"{bad:,} of {sum(tensor.numel() for tensor in there):,} values" if bad else ""


@torch.no_grad()
def _largest(tensors: Iterable[Tensor]) -> str:
    return f"{max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0):.3g}"


@contextmanager
def _forward_calls() -> Iterator[list[str]]:
    """Keep what torch warns of: the stack of the forward call whose backward pass failed. Others go their way."""
    calls: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=ANOMALY_WARNING)
        usual = warnings.showwarning

        def keep(message: Any, *rest: Any, **named: Any) -> None:
            if is_anomaly_warning(message):
                calls.append(str(message))
            else:
                usual(message, *rest, **named)

        warnings.showwarning = keep
        yield calls


def _said_by_torch(error: RuntimeError, calls: list[str]) -> str:
    """The operation that gave NaN in the backward pass, and the line of this program that had called it forwards."""
    said = f"the backward pass of {failed_function(error) or 'an operation'} gave NaN"
    frames = [found for call in calls for found in _FRAME.finditer(call)]
    ours = [found for found in frames if Path(found["file"]).is_relative_to(_PACKAGE)]
    if ours:
        where = Path(ours[-1]["file"]).relative_to(_PACKAGE.parent)
        said += f", called by `{ours[-1]['code'].strip()}` ({where}:{ours[-1]['line']}),"
    return said
