"""Collect run directories into one comparison; unusable ones are reported, whatever they contain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpc_tumor.results.compare.comparison import Comparison, Group, SkippedFolder, UnfinishedRun
from hpc_tumor.results.compare.entries import make_entries
from hpc_tumor.results.compare.measures import MAIN_SCORE
from hpc_tumor.results.compare.selection import EVERYTHING, Selection
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.read.runs import find_fault, flat, read_finished
from hpc_tumor.results.read.values import integer, number, section, text, word
from hpc_tumor.run_dir import RunDir, read_json, read_json_lines


def collect_runs(
    runs: Sequence[RunDir], states: Mapping[str, tuple[str, str]] | None = None, selection: Selection = EVERYTHING
) -> Comparison:
    """Compare `runs`, in any order, finished or not.

    Args:
        runs: run directories; duplicates count once.
        states: run name → state and reason of an unfinished run, if known.
        selection: selection of runs, and grouping and order of entries.
    """
    unique = {run.path.absolute().as_posix(): run for run in runs}
    collected = [_collect(run, *(states or {}).get(run.name, ("", ""))) for run in unique.values()]
    collected.sort(key=lambda item: (item.run, item.path))
    finished = [item for item in collected if isinstance(item, RunResult)]
    unfinished = [item for item in collected if isinstance(item, UnfinishedRun)]
    selected = [run for run in finished if selection.matches(run.model, run.config)]
    return Comparison(
        groups=group_runs(selected, selection),
        unfinished=tuple(run for run in unfinished if selection.matches(run.model, run.config)),
        skipped=tuple(item for item in collected if isinstance(item, SkippedFolder)),
        left_out=len(finished) - len(selected),
    )


def group_runs(results: Sequence[RunResult], selection: Selection = EVERYTHING) -> tuple[Group, ...]:
    """Group comparable runs: same task, store, split and number of folds."""
    members: dict[tuple[object, ...], list[RunResult]] = {}
    for run in sorted(results, key=lambda run: (run.run, run.path)):
        data = run.fingerprint or run.store
        folds = None if run.fold is None else run.folds
        members.setdefault((run.task, data, run.split, run.split_leaks, folds, run.fold is None), []).append(run)
    groups = []
    for runs in members.values():
        run = runs[0]
        groups.append(Group(
            task=run.task, split=run.split, split_leaks=run.split_leaks, folds=None if run.fold is None else run.folds,
            dataset=run.dataset, store=run.store, fingerprint=run.fingerprint,
            entries=selection.order(make_entries(runs, selection.by)), by=selection.by,
        ))  # fmt: skip
    groups.sort(key=lambda group: (group.task, group.store, group.fingerprint or "", group.split, group.folds or 0))
    return tuple(groups)


def _collect(run: RunDir, state: str, reason: str) -> RunResult | UnfinishedRun | SkippedFolder:
    try:
        if not any(path.is_file() for path in (run.result, run.config, run.status, run.job, run.events)):
            return _skipped(run, "not a run directory: no config.json, status.json or result.json")
        result = read_json(run.result)
        if result is None:
            return _unfinished(run, state, reason)
        fault = find_fault(result)
        return _skipped(run, fault) if fault else read_finished(run, result)
    except (OSError, RecursionError) as error:
        return _skipped(run, f"cannot be read: {text(getattr(error, 'strerror', None) or error)}")


def _skipped(run: RunDir, reason: str) -> SkippedFolder:
    return SkippedFolder(word(run.name), word(str(run.path)), reason)


def _unfinished(run: RunDir, state: str, reason: str) -> UnfinishedRun:
    config, status = read_json(run.config) or {}, read_json(run.status) or {}
    model, task = section(config.get("model")), text(config.get("task"))
    metrics = [line for line in read_json_lines(run.metrics) if integer(line.get("epoch")) is not None]
    best, best_epoch = number(status.get("best")), integer(status.get("best_epoch"))
    best_by = text(config.get("best_by")) or MAIN_SCORE.get(task or "")
    if best is None and best_by is not None:
        sign = -1 if best_by == "loss" else 1
        seen = [
            (sign * score, -int(line["epoch"]))
            for line in metrics
            if line.get("part") == "val" and (score := number(line.get(best_by))) is not None
        ]
        best, best_epoch = (sign * max(seen)[0], -max(seen)[1]) if seen else (None, None)
    reached = [epoch for epoch in (integer(status.get("epoch")), *(int(line["epoch"]) for line in metrics)) if epoch]
    return UnfinishedRun(
        run=word(run.name),
        path=word(str(run.path)),
        task=task,
        model=text(model.get("name")),
        seed=integer(config.get("seed")),
        state=text(state),
        reason=text(reason),
        epoch=max(reached, default=None),
        epochs=integer(status.get("epochs", section(config.get("recipe")).get("epochs"))),
        best=best,
        best_by=best_by,
        best_epoch=best_epoch,
        heartbeat=number(status.get("time")),
        skipped_steps=integer(status.get("skipped_steps")),
        config=flat(config),
    )
