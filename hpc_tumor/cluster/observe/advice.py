"""Advise what to ask for next time: from what runs of one kind asked for and used, exact options, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpc_tumor.cluster.describe.profiles import LOCAL
from hpc_tumor.cluster.observe.efficiency import Efficiency
from hpc_tumor.cluster.observe.states import State
from hpc_tumor.vocabulary import hours, slurm_time

MARGIN = 1.25  # asked for beyond what was used
_SPARE = 0.8  # share of what was asked for, under which less is worth asking for
_TIGHT = 0.9  # and above which more is
_WAITS = 0.05  # share of its time that training may wait for data
_BUSY = 0.5  # share of its CPUs under which a task that waits for data waits for the file system
_IDLE = 0.5  # share of its time in which a GPU should be busy
_FULL = 0.9  # share of a GPU's memory
_LEAST_MEMORY, _LEAST_MINUTES = 2, 10  # Python and torch, and a slow start, take as much


@dataclass(frozen=True)
class Advice:
    """Request to make next time; None: as before. `limit` is the time of all starts together."""

    memory: int | None = None
    minutes: int | None = None
    cpus: int | None = None
    words: tuple[str, ...] = ()

    @property
    def options(self) -> str:
        """As they are typed: `--memory 12 --time 00:45:00 --cpus 4`."""
        options = [f"--memory {self.memory}"] if self.memory else []
        options += [f"--time {slurm_time(self.minutes)}"] if self.minutes else []
        return " ".join([*options, *([f"--cpus {self.cpus}"] if self.cpus else [])])

    def as_dict(self) -> dict[str, Any]:
        """All fields, and the options, as JSON types."""
        return {**asdict(self), "options": self.options}


@dataclass(frozen=True)
class Kind:
    """Runs of one network of one shape on one cluster, and what to ask for next time."""

    runs: tuple[Efficiency, ...]
    advice: Advice

    @property
    def first(self) -> Efficiency:
        """Any of them, for what they have in common."""
        return self.runs[0]

    def most(self, name: str) -> float | None:
        """The largest value of a field over the runs that know it."""
        known = [value for run in self.runs if (value := getattr(run, name)) is not None]
        return max(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Values as JSON: what the runs have in common, their names, and the advice."""
        common = {name: getattr(self.first, name) for name in ("model", "filters", "cluster", "shape", "gpus")}
        return {**common, "runs": [run.name for run in self.runs], **self.advice.as_dict()}


def kinds_of(runs: Sequence[Efficiency]) -> list[Kind]:
    """The runs by network, cluster and shape, in the order in which each came first."""
    kinds: dict[tuple[object, ...], list[Efficiency]] = {}
    for run in runs:
        kinds.setdefault((run.model, run.filters, run.cluster, run.shape), []).append(run)
    return [Kind(tuple(alike), advise(alike)) for alike in kinds.values()]


def advise(runs: Sequence[Efficiency]) -> Advice:
    """Work out what runs of one kind should ask for: enough for the one that used most, with a quarter to spare."""
    # What failed, or has just begun, does not tell what the whole takes.
    telling = [run for run in runs if run.time is not None and (run.state is State.FINISHED or run.left is not None)]
    words: list[str] = []
    memory = _memory(runs, telling, words)
    minutes = _minutes(telling, words)
    cpus = _cpus(telling, words)
    _gpus(runs, telling, words)
    if not telling and not words:
        words.append("no run has trained long enough to tell")
    elif not words and not (memory or minutes or cpus):
        words.append("what was asked for fits: leave it")
    return Advice(memory, minutes, cpus, tuple(words))


def _memory(runs: Sequence[Efficiency], telling: Sequence[Efficiency], words: list[str]) -> int | None:
    asked, most = runs[0].asked_memory, runs[0].node_memory
    used = max((run.memory or 0.0 for run in telling), default=0.0)
    if any(run.out_of_memory for run in runs):
        advised = _round_memory(max(2 * (asked or 0), MARGIN * used))
        if most is not None and advised > most:
            words.append(
                f"main memory ran out, and a node has {most:g} GB in all: --accumulate or a smaller --set batch_size"
                " needs less, and so does --set keep=none"
            )
            return int(most) if asked is None or int(most) > asked else None
        words.append(f"main memory ran out with {asked:g} GB: twice as much" if asked else "main memory ran out")
        return advised or None
    if not used:
        return None
    # Samples are kept where they take at most half of what is free: they are to have that again.
    advised = _round_memory(
        max(MARGIN * used, max(MARGIN * ((run.memory or 0) - run.kept) + 2 * run.kept for run in telling))
    )
    advised = min(advised, int(most)) if most else advised
    if asked is None or advised < _SPARE * asked:
        return advised
    if used > _TIGHT * asked and advised > asked:
        words.append(f"{used / asked:.0%} of the memory was used: a little more is safer")
        return advised
    return None


def _minutes(telling: Sequence[Efficiency], words: list[str]) -> int | None:
    if not telling:
        return None
    slowest = max(telling, key=_whole)
    need, asked, limit = _whole(slowest), slowest.asked_whole, slowest.asked_time
    advised = _round_minutes(MARGIN * need / 60)
    if stopped := [run for run in telling if run.limited]:
        words.append(f"{stopped[0].name} was stopped by its time limit of {hours(int(limit or 0) // 60)}")
    if slowest.state is not State.FINISHED:
        words.append(f"by its pace, {slowest.name} takes {hours(int(need) // 60)} in all")
    if asked is None or 60 * advised < _SPARE * asked:
        return advised
    if limit and need > limit:
        start = hours(int(limit) // 60)
        words.append(f"longer than one start of {start}: where no more is allowed, it goes on in others by itself")
    if need > asked:
        return advised
    if need > _TIGHT * asked:
        words.append(f"{need / asked:.0%} of the time was used: a little more is safer")
        return advised
    return None


def _whole(run: Efficiency) -> float:
    return (run.time or 0.0) + (run.left or 0.0)


def _cpus(telling: Sequence[Efficiency], words: list[str]) -> int | None:
    known = [run for run in telling if run.cpus is not None and run.asked_cpus]
    if not known:
        return None
    used, given = max(run.cpus or 0.0 for run in known), known[0].asked_cpus or 1
    waits = max(run.data_wait or 0.0 for run in known)
    most = known[0].node_cpus
    if waits > _WAITS:
        more = min(2 * given, most or 2 * given) if used > _BUSY * given else given
        way = "more CPUs read faster; " if more > given else "a `node_disk` in the profile is read faster; "
        words.append(
            f"training waited {waits:.0%} of its time for data: {way}samples that stay in memory, where --memory is"
            " enough, are read once"
        )
        return more if more > given else None
    least = 2 if known[0].gpu else 1  # one that reads while the other feeds the GPU
    fewer = max(least, math.ceil(MARGIN * used))
    return fewer if fewer <= given / 2 else None


def _gpus(runs: Sequence[Efficiency], telling: Sequence[Efficiency], words: list[str]) -> None:
    full = [run.gpu_memory / run.asked_gpu_memory for run in telling if run.gpu_memory and run.asked_gpu_memory]
    busy = [run.gpu_busy for run in telling if run.gpu_busy is not None]
    way = f"--accumulate {2 * max(run.accumulate for run in runs)}"
    if any(run.gpu_out_of_memory for run in runs):
        words.append(f"the GPU's memory ran out: {way} works through the same batch in smaller micro-batches")
    elif full and max(full) > _FULL:
        words.append(f"the GPU's memory was {max(full):.0%} full: {way} needs less, for the same batch")
    if busy and max(busy) < _IDLE and max(run.data_wait or 0.0 for run in telling) <= _WAITS:
        ways = [f"--gpus {runs[0].gpus // 2}"] if runs[0].gpus > 1 else []
        ways += ["a larger --set batch_size, which is another training"] if not full or max(full) < _IDLE else []
        way = f": {' or '.join(ways)} makes more of them" if ways else ""
        words.append(f"GPUs were busy {max(busy):.0%} of the time{way}")


def _round_memory(gb: float) -> int:
    """GB as one asks for them: whole ones, of much in larger steps."""
    step = next(step for top, step in ((16, 1), (32, 2), (128, 4), (math.inf, 16)) if gb <= top)
    return max(_LEAST_MEMORY, math.ceil(gb / step) * step)


def _round_minutes(minutes: float) -> int:
    step = next(step for top, step in ((60, 5), (240, 15), (720, 30), (math.inf, 60)) if minutes <= top)
    return max(_LEAST_MINUTES, math.ceil(minutes / step) * step)


def on_cluster(kind: Kind) -> bool:
    """Return True if these runs were on a cluster, which is asked; else the options are for one of such machines."""
    return kind.first.cluster not in ("", LOCAL)
