"""Measure, once per machine, in which number format, memory layout and number of threads a CPU is fastest.

Instructions alone do not tell: some CPUs have bfloat16 products that are slower than those in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from hpc_tumor.models import Kernels
from hpc_tumor.models.layers.blocks import inverted_bottleneck, plain_block
from hpc_tumor.models.vit import WIDTH, EncoderLayer
from hpc_tumor.system import cpu, measurements

GAIN = 1.03  # times as fast: less is noise
SECONDS = 0.8  # of measuring, after a first pass of each variant
ROUNDS = 3  # at least
Variant = tuple[str, bool]  # number format, channels-last
Key = TypeVar("Key")


def cache_kind(kernels: Kernels) -> str:
    """Return the kind under which the measurement of these kernels is kept."""
    return f"cpu-{kernels}"


def variant_name(variant: Variant) -> str:
    """Return the name under which the seconds of a variant are kept."""
    return f"{variant[0]} {'channels-last' if variant[1] else 'contiguous'}"


def seconds_by_variant(kernels: Kernels, formats: Iterable[str]) -> tuple[dict[Variant, float], str]:
    """Return the seconds of a pass in each format and layout, and `measured now` or `measured before`.

    Measured is the CPU time of one thread, the least of several interleaved passes: other processes on the same
    CPUs, a container's quota and the number of threads hardly change it.
    """
    layouts = (True,) if kernels == "attention" else (True, False)  # tokens have no layout
    variants = list(product(sorted(formats), layouts))
    facts = cpu.computing_facts()
    kept = measurements.read(cache_kind(kernels), facts) or {}
    if all(variant_name(variant) in kept for variant in variants):
        return {variant: kept[variant_name(variant)] for variant in variants}, "measured before"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        passes = {variant: _one_pass(kernels, variant, 1) for variant in variants}
        seconds = least_seconds(passes, time.thread_time)
    finally:
        torch.set_num_threads(threads)
    measurements.write(cache_kind(kernels), facts, {variant_name(variant): best for variant, best in seconds.items()})
    return seconds, "measured now"


def faster_threads(kernels: Kernels, variant: Variant, threads: int, fewer: int) -> tuple[bool, str]:
    """Return whether `fewer` threads, one per physical core, are faster than `threads`, one per CPU, and why.

    Two hardware threads of a core share its arithmetic units. Measured is the time by the clock.
    """
    kind = f"{cache_kind(kernels)}-threads"
    facts = {**cpu.computing_facts(), "variant": variant_name(variant), "threads": str(threads), "fewer": str(fewer)}
    seconds, how = measurements.read(kind, facts) or {}, "measured before"
    if not {"threads", "fewer"} <= seconds.keys():
        run, numbers = _one_pass(kernels, variant, fewer), {"threads": threads, "fewer": fewer}
        passes = {name: partial(_with_threads, number, run) for name, number in numbers.items()}
        try:
            seconds, how = least_seconds(passes, time.perf_counter), "measured now"
        finally:
            torch.set_num_threads(threads)
        measurements.write(kind, facts, seconds)
    gain = seconds["threads"] / seconds["fewer"]
    return gain >= GAIN, f"one per core: {gain:.2f} × as fast as {threads}, {how}"


def _with_threads(threads: int, run: Callable[[], None]) -> None:
    torch.set_num_threads(threads)
    run()


def least_seconds(passes: Mapping[Key, Callable[[], None]], clock: Callable[[], float]) -> dict[Key, float]:
    """Return the least seconds of each pass by `clock`, over rounds in which each runs once."""
    for run in passes.values():
        run()
    least = dict.fromkeys(passes, float("inf"))
    began, rounds = clock(), 0
    while rounds < ROUNDS or clock() - began < SECONDS:
        for key, run in passes.items():
            before = clock()
            run()
            least[key] = min(least[key], clock() - before)
        rounds += 1
    return least


def _one_pass(kernels: Kernels, variant: Variant, batch: int) -> Callable[[], None]:
    """Return a forward and backward pass through a block of these kernels, without drawing from torch's generator."""
    precision, channels_last = variant
    with torch.random.fork_rng(devices=[]):
        block, images = _block(kernels, batch)
    if images.ndim == 4:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        block, images = block.to(memory_format=layout), images.contiguous(memory_format=layout)
    images.requires_grad_()
    inputs = [images, *block.parameters()]

    def run() -> None:
        with torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                outputs = block(images)
            outputs = outputs[0] if isinstance(outputs, tuple) else outputs
            torch.autograd.grad(outputs, inputs, torch.ones_like(outputs))

    return run


def _block(kernels: Kernels, batch: int) -> tuple[nn.Module, Tensor]:
    """Return a block of a network's own layers, in evaluation mode to draw no dropout, and its input."""
    if kernels == "attention":
        return EncoderLayer().eval(), torch.randn(4 * batch, 65, WIDTH)
    if kernels == "bottlenecks":
        return nn.Sequential(*inverted_bottleneck(32, 32, 128)), torch.randn(batch, 32, 96, 96)
    return plain_block(64, 64, 64), torch.randn(batch, 64, 60, 60)
