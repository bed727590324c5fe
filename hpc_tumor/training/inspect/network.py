"""Show one batch's forward and backward pass layer by layer, without a step, in 100 columns."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpc_tumor.data.feed.loader import Batch
from hpc_tumor.training.checkpoints.files import random_state, set_random_state
from hpc_tumor.training.state import TrainingState
from hpc_tumor.training.watch.memory import peak_memory_gb
from hpc_tumor.vocabulary import LABELS, printable

WIDTH = 100  # columns
_NAME, _KIND, _CHUNK = 24, 15, 2**22  # columns of layer names and types; values reduced at once
_INDENT = " " * 11
_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}


def inspect_batch(state: TrainingState) -> None:
    """Show the first batch, each layer's output, the loss, each layer's gradient, and memory, without changing the run.

    Rows appear as their layers are run, so that a failing layer is the one after the last row.
    """
    began = time.perf_counter()
    batch = state.parts.first_batch(state.experiment.seed)
    _show_batch(state, batch, time.perf_counter() - began)
    micro_batches = min(state.experiment.hardware.accumulate, len(batch.images))
    images, targets = (values.tensor_split(micro_batches)[0] for values in (batch.images, batch.targets))
    if micro_batches > 1:
        show(f"{_INDENT}below: the first of {micro_batches} micro-batches")
    with _unchanged(state):
        saved = KeptMemory(state.network)
        with _layers_shown(state.network), saved.counting():
            logits = state.spec.forward(state.network, images)
        losses = state.spec.loss(logits, targets)
        of = statistics(logits.detach())
        show(f"\nlogits     {shape(logits)}, mean {number(of.mean)}, std {number(of.std)}, {of.bad} not finite")
        show(f"loss       {number(losses.mean().item())}, from {number(losses.min().item())} to "
             f"{number(losses.max().item())} over the samples")  # fmt: skip
        scale = state.scaler.get_scale()  # for float16, in which small gradients would vanish
        (losses.mean() * scale).backward()
        _show_gradients(state.network, scale)
        weights = sum(value.numel() * value.element_size() for value in state.network.parameters())
        peak = peak_memory_gb(logits.device)
        show(f"\nmemory     weights {_megabytes(weights)}, kept by the forward pass for the backward pass"
             f" {_megabytes(saved.bytes)}, peak {peak:.2f} GB")  # fmt: skip


def show(text: str) -> None:
    """Print to standard error, like the log of a run in the foreground."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Statistics:
    """Statistics of a tensor: mean and standard deviation of the finite values, share of zeros, count of others."""

    mean: float
    std: float
    zeros: float
    bad: int


@torch.no_grad()
def statistics(values: Tensor) -> Statistics:
    """Compute the statistics of `values` in pieces, to save memory. Waits for the device once."""
    sums = torch.zeros(4, dtype=torch.float64, device=values.device)
    rows = values.detach().flatten(1) if values.ndim > 1 else values.detach().reshape(1, -1)
    for chunk in rows.split(max(1, _CHUNK // max(1, rows.shape[1]))):
        finite = chunk.isfinite()
        good = torch.where(finite, chunk, 0).double()
        sums += torch.stack([good.sum(), good.square().sum(), (chunk == 0).sum().double(), (~finite).sum().double()])
    total, squares, zeros, bad = sums.tolist()
    count = max(1, values.numel() - int(bad))
    mean = total / count
    return Statistics(mean, math.sqrt(max(0.0, squares / count - mean**2)), zeros / max(1, values.numel()), int(bad))


def number(value: float) -> str:
    """Format a number with three digits in at most eight characters."""
    text = f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e+")


def shape(tensor: Tensor) -> str:
    """Describe shape and type, as `32×4×240×240 bf16`."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{'×'.join(str(side) for side in tensor.shape) or 'one'} {_SHORT.get(kind, kind)}"


def _show_batch(state: TrainingState, batch: Batch, seconds: float) -> None:
    of, low, high = statistics(batch.images), batch.images.min().item(), batch.images.max().item()
    show(f"\nbatch      images {shape(batch.images)}, targets {shape(batch.targets)}; {1000 * seconds:.0f} ms to read")
    spread = f"{number(low)} to {number(high)}, mean {number(of.mean)}, std {number(of.std)}"
    show(f"{_INDENT}values {spread}, {of.zeros:.0%} zeros, {of.bad} not finite")
    names = ["background", *LABELS] if state.spec.classes is None else state.spec.classes
    counts = torch.bincount(batch.targets.flatten().long(), minlength=len(names)).tolist()
    if state.spec.classes is None:
        shares = [f"{name} {count / batch.targets.numel():.2%}" for name, count in zip(names, counts, strict=False)]
    else:
        shares = [f"{name} {count}" for name, count in zip(names, counts, strict=False)]
    show(_cut(f"{_INDENT}targets: {', '.join(shares)}"))
    cases = ", ".join(printable(state.parts.train.part.name(int(position))) for position in batch.positions)
    show(_cut(f"{_INDENT}of {cases}"))


@contextmanager
def _layers_shown(network: nn.Module) -> Iterator[None]:
    """Show a table row for each layer that the network runs within the block."""
    layers = [(name, module) for name, module in network.named_modules() if name and not list(module.children())]
    layers = [(name, module) for name, module in layers if not isinstance(module, nn.Identity)]
    widths = (
        min(_NAME, max((len(name) for name, _ in layers), default=5)),
        min(_KIND, max((len(type(module).__name__) for _, module in layers), default=4)),
    )
    titles = f"{'layer':<{widths[0]}} {'type':<{widths[1]}} {'output':<20}"
    show(f"\n{titles} {'params':>6} {'mean':>8} {'std':>7} {'zeros':>5} {'nan/inf':>7}")
    network.train()
    hooks = [module.register_forward_hook(_row(name, widths)) for name, module in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _row(name: str, widths: tuple[int, int]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        of = statistics(first)
        weights = _short(sum(parameter.numel() for parameter in module.parameters()))
        layer = f"{_fit(name, widths[0])} {_fit(type(module).__name__, widths[1])} {shape(first):<20}"
        show(f"{layer} {weights:>6} {number(of.mean):>8} {number(of.std):>7} {of.zeros:>5.0%} {of.bad:>7}")

    return hook


def _show_gradients(network: nn.Module, scale: float) -> None:
    """Show the norms of each layer's weights and gradient, and flag missing, zero and not finite gradients."""
    rows = [
        (name or "(network)", *_gradient(list(module.named_parameters(recurse=False)), scale))
        for name, module in network.named_modules()
        if list(module.parameters(recurse=False))
    ]
    width = min(_NAME, max(len(row[0]) for row in rows))
    show(f"\n{'layer':<{width}} {'|weights|':>9} {'|gradient|':>10} {'ratio':>8}")
    for name, weights, gradient, flag in rows:
        ratio = number(gradient / weights) if weights else "–"
        line = f"{_fit(name, width)} {number(weights):>9} {number(gradient):>10} {ratio:>8}"
        show(f"{line}  <- {flag}" if flag else line)
    flagged = [name for name, _, _, flag in rows if flag]
    if flagged:
        show(_cut(f"gradients  {len(flagged)} of {len(rows)} layers flagged: {', '.join(flagged)}"))
    else:
        show(f"gradients  finite and not zero in all {len(rows)} layers")


@torch.no_grad()
def _gradient(parameters: list[tuple[str, nn.Parameter]], scale: float) -> tuple[float, float, str]:
    """Return the norms of a layer's weights and gradient, and the flag of a faulty gradient."""
    faults: dict[str, list[str]] = {}
    weights = gradients = 0.0
    for name, parameter in parameters:
        weights += parameter.double().square().sum().item()
        if not parameter.requires_grad or parameter.grad is None:
            faults.setdefault("no gradient" if parameter.requires_grad else "frozen", []).append(name)
            continue
        size = (parameter.grad.double() / scale).square().sum().item()
        gradients += size
        if not math.isfinite(size):
            bad = int((~parameter.grad.isfinite()).sum())
            faults.setdefault(f"{bad:,} of {parameter.numel():,} not finite", []).append(name)
        elif size == 0:
            faults.setdefault("zero gradient", []).append(name)
    flag = "; ".join(f"{fault}: {', '.join(names)}" for fault, names in faults.items())
    return math.sqrt(weights), math.sqrt(gradients), flag


@contextmanager
def _unchanged(state: TrainingState) -> Iterator[None]:
    """Restore gradients, running statistics and random generators after the block."""
    device = state.distributed.device
    random, buffers = random_state(device), [buffer.clone() for buffer in state.network.buffers()]
    try:
        yield
    finally:
        state.network.zero_grad(set_to_none=True)
        set_random_state(random, device)
        with torch.no_grad():
            for buffer, before in zip(state.network.buffers(), buffers, strict=True):
                buffer.copy_(before)


class KeptMemory:
    """Counts the memory that a forward pass keeps for the backward pass, besides the weights."""

    def __init__(self, network: nn.Module) -> None:
        self._seen = {value.untyped_storage().data_ptr() for value in network.parameters()}
        self.bytes = 0

    def counting(self) -> Any:
        """Return the context in which to run the forward pass."""
        return torch.autograd.graph.saved_tensors_hooks(self._count, lambda saved: saved)

    def _count(self, saved: Tensor) -> Tensor:
        memory = saved.untyped_storage()
        if memory.data_ptr() not in self._seen:  # several layers may keep the same tensor
            self._seen.add(memory.data_ptr())
            self.bytes += memory.nbytes()
        return saved


def _short(count: int) -> str:
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return str(count) if count else ""


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _fit(text: str, width: int) -> str:
    """Pad `text` to `width` columns, or keep the end of a longer one."""
    return f"{text:<{width}}" if len(text) <= width else f"…{text[len(text) - width + 1 :]}"


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 2]} …"
