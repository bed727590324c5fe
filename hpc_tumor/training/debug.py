"""One process in the foreground, a few batches, and what happens in them: shapes, timings, memory."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import nn

from hpc_tumor.config import Experiment
from hpc_tumor.data.loader import epoch_order
from hpc_tumor.run_dir import RunDir
from hpc_tumor.training.checkpoint import random_state, set_random_state
from hpc_tumor.training.distributed import init_distributed
from hpc_tumor.training.evaluate import network_input
from hpc_tumor.training.loop import Outcome, train_to_end
from hpc_tumor.training.memory import peak_memory_gb
from hpc_tumor.training.setup import Setup, set_up


def debug_run(experiment: Experiment, run: RunDir) -> Outcome:
    """Look at one batch layer by layer, then train as always; all in this process, where `breakpoint()` works.

    Rank variables of a surrounding job are of no account: this is always one process, on one GPU or the CPU.
    """
    distributed = init_distributed(experiment.hardware.timeout_minutes, experiment.hardware.threads, alone=True)
    setup = set_up(experiment, run, distributed)
    _walk_through(setup)
    outcome = train_to_end(setup)
    _say(f"peak memory {peak_memory_gb(distributed.device):.2f} GB")
    return outcome


def _walk_through(setup: Setup) -> None:
    """One forward and backward pass that changes nothing, with the shapes of every layer."""
    before = random_state(setup.distributed.device)
    began = time.perf_counter()
    batch = next(setup.train.batches(epoch_order(len(setup.train.part), setup.experiment.seed, 0), limit=1))
    read = time.perf_counter()
    _say(f"batch      images {_shape(batch.images)}  targets {_shape(batch.targets)}  {_ms(read - began)} to read")
    low, high = batch.images.min().item(), batch.images.max().item()
    _say(f"           values {low:.3f} to {high:.3f}, mean {batch.images.mean().item():.3f}")
    hooks = [
        module.register_forward_hook(_show(name))
        for name, module in setup.bare.named_modules()
        if name and not list(module.children()) and not isinstance(module, nn.Identity)
    ]
    buffers = {name: value.clone() for name, value in setup.bare.named_buffers()}
    setup.bare.train()
    with setup.precision.autocast():
        logits = setup.bare(network_input(batch.images, setup.experiment.hardware.channels_last, setup.channels))
    for hook in hooks:
        hook.remove()
    loss = setup.loss(logits, batch.targets).mean()
    forward = _finish(setup)
    loss.backward()
    backward = _finish(setup)
    _say(f"logits     {_shape(logits)}  loss {loss.item():.4f}")
    times = f"forward {_ms(forward - read)}  backward {_ms(backward - forward)}"
    _say(f"{times}  memory {peak_memory_gb(logits.device):.2f} GB")
    setup.bare.zero_grad(set_to_none=True)
    set_random_state(before, setup.distributed.device)
    with torch.no_grad():
        for name, value in setup.bare.named_buffers():
            value.copy_(buffers[name])


def _show(name: str) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        weights = sum(parameter.numel() for parameter in module.parameters())
        _say(f"  {name:<32} {type(module).__name__:<18} {_shape(first):<26} {weights:>12,}")

    return hook


def _finish(setup: Setup) -> float:
    if setup.distributed.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
