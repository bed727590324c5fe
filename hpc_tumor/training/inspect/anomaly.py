"""Find the layer that first gives a value that is not finite, forward or backward. Slow, for debugging."""

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
def detect_anomalies(state: TrainingState) -> Iterator[None]:
    """Check every layer, the loss and every gradient for values that are not finite within the block.

    The network is not compiled, and float16 gradients are not scaled up to overflow, as the scaler usually does.

    Raises TrainingError at the first such value, naming layer, epoch and step.
    """
    watch = _Watch(state)
    objective, scaler = state.objective, state.scaler
    spec, compiled = objective.spec, objective.compiled
    objective.spec, objective.compiled = replace(spec, loss=watch.loss), None
    if state.scaler.is_enabled():
        state.scaler = torch.amp.GradScaler(state.distributed.device.type, init_scale=1.0, growth_interval=2**30)
    hooks = watch.attach()
    try:
        with _forward_calls() as calls, torch.autograd.set_detect_anomaly(True, check_nan=True):
            yield
    except RuntimeError as error:
        if not is_nan_anomaly(error):
            raise
        raise TrainingError(f"{_describe(error, calls)} {watch.position()}.") from error
    finally:
        objective.spec, objective.compiled, state.scaler = spec, compiled, scaler
        for hook in hooks:
            hook.remove()


class _Watch:
    """Checks the inputs and outputs of each layer, and the gradients of its operations."""

    def __init__(self, state: TrainingState) -> None:
        self._state, self._loss = state, state.spec.loss
        self._labels = {
            module: f"{name} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
            for name, module in state.network.named_modules()
        }
        self._entered: list[set[Any]] = []  # input nodes of the layers being run, the innermost last
        self._followed: set[Any] = set()

    def attach(self) -> list[Any]:
        """Register hooks on all modules and return them for removal."""
        hooks: list[Any] = []
        for module in self._labels:
            hooks += [module.register_forward_pre_hook(self._before), module.register_forward_hook(self._after)]
        return hooks

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the run's loss, checked like a layer."""
        losses, name = self._loss(logits, targets), f"the loss ({self._state.experiment.loss})"
        if _bad([losses]):
            raise TrainingError(f"{name} is not finite {self.position()}, although the network's logits are.")
        self._follow([losses], _nodes([logits]), name)
        self._followed.clear()  # frees this step's memory
        return losses

    def position(self) -> str:
        """Describe the current epoch and step."""
        progress = self._state.progress
        if not self._state.network.training:
            return f"in the evaluation after epoch {progress.epoch}"
        return f"at epoch {progress.epoch + 1}, step {progress.step + 1}"

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module is self._state.network:
            self._entered, self._followed = [], set()
        # Taken before the layer runs: an in-place layer gives its input a new node.
        self._entered.append(_nodes(_tensors(inputs)))
        if bad := _bad(_tensors(inputs)):
            subject, reason = (
                f"the input of {self._labels[module]} is",
                ", although the layer before gave finite values",
            )
            if module is self._state.network:
                subject, reason = "the images are", ""
            raise TrainingError(f"{subject} not finite {self.position()} ({bad}){reason}.")

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        entered, label, outputs = self._entered.pop(), self._labels[module], _tensors(output)
        if bad := _bad(outputs):
            weights = list(module.parameters())
            reason = f"its input is, up to {_largest(_tensors(inputs))}"
            reason += f", and so are its weights, up to {_largest(weights)}" if weights else ""
            reason = f"its weights are not finite either ({_bad(weights)})" if _bad(weights) else reason
            raise TrainingError(f"the output of {label} is not finite {self.position()} ({bad}); {reason}.")
        self._follow(outputs, entered, label)

    def _follow(self, outputs: Iterable[Tensor], entered: set[Any], label: str) -> None:
        """Register hooks on the gradients of all operations of a layer, back to its inputs."""
        waiting, seen = list(_nodes(outputs)), set(entered)
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            waiting += [further for further, _ in node.next_functions if further is not None]
            if node not in self._followed and "AccumulateGrad" not in node.name():
                self._followed.add(node)
                node.register_hook(self._gradient_hook(node.name(), label))

    def _gradient_hook(self, operation: str, label: str) -> Callable[..., None]:
        def hook(gradients: tuple[Tensor | None, ...], incoming: tuple[Tensor | None, ...]) -> None:
            if not (bad := _bad(gradients)):
                return
            if _bad(incoming):
                raise TrainingError(
                    f"the gradient that reaches {label} is not finite {self.position()} ({_bad(incoming)})."
                )
            raise TrainingError(
                f"the backward pass of {label} gave a gradient that is not finite {self.position()} ({bad}), in"
                f" {operation.removeprefix('torch::autograd::')}, from a finite one."
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
    """Describe the number of values that are not finite; empty if all are finite."""
    floats = [tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()]
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in floats)
    return f"{bad:,} of {sum(tensor.numel() for tensor in floats):,} values" if bad else ""


@torch.no_grad()
def _largest(tensors: Iterable[Tensor]) -> str:
    return f"{max((float(tensor.abs().max()) for tensor in tensors if tensor.numel()), default=0.0):.3g}"


@contextmanager
def _forward_calls() -> Iterator[list[str]]:
    """Collect torch's warnings with the stack of the forward call whose backward pass failed; show all others."""
    calls: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=ANOMALY_WARNING)
        show_warning = warnings.showwarning

        def collect(message: Any, *rest: Any, **named: Any) -> None:
            if is_anomaly_warning(message):
                calls.append(str(message))
            else:
                show_warning(message, *rest, **named)

        warnings.showwarning = collect
        yield calls


def _describe(error: RuntimeError, calls: list[str]) -> str:
    """Name the operation that gave NaN in the backward pass, and the line of this package that called it forward."""
    message = f"the backward pass of {failed_function(error) or 'an operation'} gave NaN"
    frames = [match for call in calls for match in _FRAME.finditer(call)]
    own = [match for match in frames if Path(match["file"]).is_relative_to(_PACKAGE)]
    if own:
        file = Path(own[-1]["file"]).relative_to(_PACKAGE.parent)
        message += f", called by `{own[-1]['code'].strip()}` ({file}:{own[-1]['line']}),"
    return message
