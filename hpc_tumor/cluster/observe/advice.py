"""Recommend what to request for the next run, as exact options with reasons, from what similar runs used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.efficiency import Efficiency
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.vocabulary import hours, slurm_time

MARGIN = 1.25  # request as a multiple of the usage
_SPARE = 0.8  # advise less below this share of the request
_TIGHT = 0.9  # advise more above this share
_MAX_WAIT = 0.05  # acceptable share of training time spent waiting for data
_BUSY = 0.5  # share of busy CPUs below which a task waiting for data is limited by the file system
_IDLE = 0.5  # share of time in which a GPU should be busy
_FULL = 0.9  # share of a GPU's memory
_MIN_MEMORY, _MIN_MINUTES = 2, 10  # for Python with torch, and for a slow start


@dataclass(frozen=True)
class Advice:
    """Recommended request; None: as before. GB per node, minutes of all starts together, CPUs per task."""

    memory: int | None = None
    minutes: int | None = None
    cpus: int | None = None
    words: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """Command-line options: `--memory 12 --time 00:45:00 --cpus 4`."""
        options = [f"--memory {self.memory}"] if self.memory else []
        options += [f"--time {slurm_time(self.minutes)}"] if self.minutes else []
        return " ".join([*options, *([f"--cpus {self.cpus}"] if self.cpus else [])])

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and the options as JSON types."""
        return {**asdict(self), "options": self.options}


@dataclass(frozen=True)
class Kind:
    """Runs of one network, shape and cluster, with the advice for the next one."""

    runs: tuple[Efficiency, ...]
    advice: Advice

    @property
    def first(self) -> Efficiency:
        """The first run, for the values they share."""
        return self.runs[0]

    def most(self, name: str) -> float | None:
        """Return the largest value of a field over the runs that have it."""
        known = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return max(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Return the shared values, the runs' names and the advice as JSON types."""
        common = {name: getattr(self.first, name) for name in ("model", "filters", "cluster", "shape", "gpus")}
        return {**common, "runs": [run.name for run in self.runs], **self.advice.as_dict()}


def group_by_kind(runs: Sequence[Efficiency]) -> list[Kind]:
    """Group runs by network, cluster, shape and whether they share GPUs, in order of first appearance."""
    kinds: dict[tuple[object, ...], list[Efficiency]] = {}
    for run in runs:
        kinds.setdefault((run.model, run.filters, run.cluster, run.shape, run.share < 1), []).append(run)
    return [Kind(tuple(alike), advise(alike)) for alike in kinds.values()]


def advise(runs: Sequence[Efficiency]) -> Advice:
    """Return the request for runs of one kind: the largest usage plus a quarter."""
    if any(run.share < 1 for run in runs):
        return Advice(words=(_of_shared(runs),))
    # Failed runs, and those that have just started, do not show the usage of a whole run.
    usable = [run for run in runs if run.time is not None and (run.state is State.FINISHED or run.left is not None)]
    words: list[str] = []
    memory = _memory(runs, usable, words)
    minutes = _minutes(usable, words)
    cpus = _cpus(usable, words)
    _gpus(runs, usable, words)
    if not usable and not words:
        words.append("no run has trained long enough for advice")
    elif not words and not (memory or minutes or cpus):
        words.append("the request fits the usage: no change needed")
    return Advice(memory, minutes, cpus, tuple(words))


def _of_shared(runs: Sequence[Efficiency]) -> str:
    """Return advice for runs that shared GPUs: what they used does not tell what one needs for itself."""
    if any(run.gpu_out_of_memory for run in runs):
        accumulate = f"--accumulate {2 * max(run.accumulate for run in runs)}"
        return f"out of its share of the GPU's memory: submit it without --share-gpu, or with {accumulate}"
    return "it shared its GPU, CPUs and memory with other runs: no advice for a job of its own"


def _memory(runs: Sequence[Efficiency], usable: Sequence[Efficiency], words: list[str]) -> int | None:
    asked, most = runs[0].asked_memory, runs[0].node_memory
    used = max((run.memory or 0.0 for run in usable), default=0.0)
    if any(run.out_of_memory for run in runs):
        advised = _round_memory(max(2 * (asked or 0), MARGIN * used))
        if most is not None and advised > most:
            words.append(
                f"out of main memory, and a node has only {most:g} GB: use --accumulate, a smaller --set batch_size or"
                " --set keep=none"
            )
            return int(most) if asked is None or int(most) > asked else None
        words.append(f"out of main memory with {asked:g} GB: request twice as much" if asked else "out of main memory")
        return advised or None
    if not used:
        return None
    # Samples are kept in memory only if they fit into half of what is free: keep room for that.
    advised = _round_memory(
        max(MARGIN * used, max(MARGIN * ((run.memory or 0) - run.kept) + 2 * run.kept for run in usable))
    )
    advised = min(advised, int(most)) if most else advised
    if asked is None or advised < _SPARE * asked:
        return advised
    if used > _TIGHT * asked and advised > asked:
        words.append(f"{used / asked:.0%} of the memory was used: request slightly more")
        return advised
    return None


def _minutes(usable: Sequence[Efficiency], words: list[str]) -> int | None:
    if not usable:
        return None
    slowest = max(usable, key=_total_time)
    need, asked, limit = _total_time(slowest), slowest.asked_whole, slowest.asked_time
    advised = _round_minutes(MARGIN * need / 60)
    if stopped := [run for run in usable if run.limited]:
        words.append(f"{stopped[0].name} was stopped by its time limit of {hours(int(limit or 0) // 60)}")
    if slowest.state is not State.FINISHED:
        words.append(f"at its current rate, {slowest.name} takes {hours(int(need) // 60)} in total")
    if asked is None or 60 * advised < _SPARE * asked:
        return advised
    if limit and need > limit:
        start = hours(int(limit) // 60)
        words.append(f"longer than one start of {start}: above the cluster's limit, it is requeued automatically")
    if need > asked:
        return advised
    if need > _TIGHT * asked:
        words.append(f"{need / asked:.0%} of the time was used: request slightly more")
        return advised
    return None


def _total_time(run: Efficiency) -> float:
    return (run.time or 0.0) + (run.left or 0.0)


def _cpus(usable: Sequence[Efficiency], words: list[str]) -> int | None:
    known = [run for run in usable if run.cpus is not None and run.asked_cpus]
    if not known:
        return None
    used, asked = max(run.cpus or 0.0 for run in known), known[0].asked_cpus or 1
    wait = max(run.data_wait or 0.0 for run in known)
    most = known[0].node_cpus
    if wait > _MAX_WAIT:
        more = min(2 * asked, most or 2 * asked) if used > _BUSY * asked else asked
        remedy = "request more CPUs" if more > asked else "set `node_disk` in the profile"
        words.append(
            f"training waited {wait:.0%} of its time for data: {remedy}, or enough --memory to keep the samples"
            " in memory"
        )
        return more if more > asked else None
    least = 2 if known[0].gpu else 1  # one reads while the other feeds the GPU
    fewer = max(least, math.ceil(MARGIN * used))
    return fewer if fewer <= asked / 2 else None


def _gpus(runs: Sequence[Efficiency], usable: Sequence[Efficiency], words: list[str]) -> None:
    full = [run.gpu_memory / run.asked_gpu_memory for run in usable if run.gpu_memory and run.asked_gpu_memory]
    busy = [run.gpu_busy for run in usable if run.gpu_busy is not None]
    accumulate = f"--accumulate {2 * max(run.accumulate for run in runs)}"
    if any(run.gpu_out_of_memory for run in runs):
        words.append(f"out of GPU memory: {accumulate} splits the same batch into smaller micro-batches")
    elif full and max(full) > _FULL:
        words.append(f"GPU memory was {max(full):.0%} full: {accumulate} needs less for the same batch")
    if busy and max(busy) < _IDLE and max(run.data_wait or 0.0 for run in usable) <= _MAX_WAIT:
        ways = [f"--gpus {runs[0].gpus // 2}"] if runs[0].gpus > 1 else []
        ways += ["a larger --set batch_size (which changes the training)"] if not full or max(full) < _IDLE else []
        way = f": {' or '.join(ways)} uses them better" if ways else ""
        words.append(f"GPUs were busy {max(busy):.0%} of the time{way}")


def _round_memory(gb: float) -> int:
    """Round up to whole GB, large values in larger steps."""
    step = next(step for top, step in ((16, 1), (32, 2), (128, 4), (math.inf, 16)) if gb <= top)
    return max(_MIN_MEMORY, math.ceil(gb / step) * step)


def _round_minutes(minutes: float) -> int:
    step = next(step for top, step in ((60, 5), (240, 15), (720, 30), (math.inf, 60)) if minutes <= top)
    return max(_MIN_MINUTES, math.ceil(minutes / step) * step)


def on_cluster(kind: Kind) -> bool:
    """Return True if the runs were on a SLURM cluster rather than on this machine."""
    return kind.first.cluster not in ("", LOCAL)
