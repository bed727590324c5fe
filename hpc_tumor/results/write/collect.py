"""Run directories → one comparison. Whatever stands in them: what cannot be used is named, never a crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpc_tumor.results.compare.comparison import Comparison, Group, SkippedFolder, UnfinishedRun
from hpc_tumor.results.compare.entries import make_entries
from hpc_tumor.results.compare.measures import MAIN_SCORE
from hpc_tumor.results.compare.selection import EVERYTHING, Selection
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.read.runs import flat, read_finished, what_is_wrong
from hpc_tumor.results.read.values import integer, number, section, text, word
from hpc_tumor.run_dir import RunDir, read_json, read_json_lines


def collect_runs(
    runs: Sequence[RunDir],
    states: Mapping[str, tuple[str, str]] | None = None,
    selection: Selection = EVERYTHING,
) -> Comparison:
    """The comparison of `runs`, in any order, finished or not.

    Args:
        runs: run directories; one given twice counts once.
        states: run name → state of an unfinished run and the reason, where the caller knows them.
        selection: which runs, what makes an entry, and in which order entries stand.
    """
    unique = {run.path.absolute().as_posix(): run for run in runs}
    collected = [_collect(run, *(states or {}).get(run.name, ("", ""))) for run in unique.values()]
    collected.sort(key=lambda item: (item.run, item.path))
    finished = [item for item in collected if isinstance(item, RunResult)]
    unfinished = [item for item in collected if isinstance(item, UnfinishedRun)]
    wanted = [run for run in finished if selection.matches(run.model, run.config)]
    return Comparison(
        groups=group_runs(wanted, selection),
        unfinished=tuple(run for run in unfinished if selection.matches(run.model, run.config)),
        skipped=tuple(item for item in collected if isinstance(item, SkippedFolder)),
        left_out=len(finished) - len(wanted),
    )


def group_runs(results: Sequence[RunResult], selection: Selection = EVERYTHING) -> tuple[Group, ...]:
    """Groups of comparable runs. Another task, store, split or number of folds is another group: never mixed."""
    members: dict[tuple[object, ...], list[RunResult]] = {}
    for run in sorted(results, key=lambda run: (run.run, run.path)):
        data = run.fingerprint or run.store
        folds = None if run.fold is None else run.folds
        members.setdefault((run.task, data, run.split, run.split_leaks, folds, run.fold is None), []).append(run)
    groups = []
    for some in members.values():
        one = some[0]
        groups.append(Group(
            task=one.task, split=one.split, split_leaks=one.split_leaks, folds=None if one.fold is None else one.folds,
            dataset=one.dataset, store=one.store, fingerprint=one.fingerprint,
            entries=selection.order(make_entries(some, selection.by)), by=selection.by,
        ))  # fmt: skip
    groups.sort(key=lambda one: (one.task, one.store, one.fingerprint or "", one.split, one.folds or 0))
    return tuple(groups)


def _collect(run: RunDir, state: str, reason: str) -> RunResult | UnfinishedRun | SkippedFolder:
    try:
        if not any(path.is_file() for path in (run.result, run.config, run.status, run.job, run.events)):
            return _skipped(run, "not a run directory: it holds no config.json, status.json or result.json")
        result = read_json(run.result)
        if result is None:
            return _unfinished(run, state, reason)
        wrong = what_is_wrong(result)
        return _skipped(run, wrong) if wrong else read_finished(run, result)
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
