"""Run directories → one comparison. Whatever stands in them: what cannot be used is named, never a crash."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_tumor.results.cases import TestCases, read_test_cases
from hpc_tumor.results.comparison import MAIN_SCORE, Comparison, RunResult, SkippedFolder, UnfinishedRun, group_runs
from hpc_tumor.results.values import integer, number, scores, section, text, word
from hpc_tumor.run_dir import RunDir, read_json, read_json_lines

SILENT_SECONDS = 15 * 60
_STATES = {
    "submitted": "submitted",
    "started": "started",
    "resumed": "started",
    "signal": "stopping",
    "requeued": "requeued",
    "stopped": "stopped",
    "failed": "failed",
    "finished": "finished without a result",
}
# What cannot change a score, or stands in the key of a group already.
_NOT_SETTINGS = {"seed", "checkpoint_minutes"}
_NOT_DATA = {"store", "split", "split_file", "fold"}
_NOT_HARDWARE = {"threads", "timeout_minutes"}


def collect_runs(
    runs: Sequence[RunDir], queue: Mapping[str, str] | None = None, now: float | None = None
) -> Comparison:
    """The comparison of `runs`, in any order, finished or not; from their files alone.

    Args:
        runs: run directories; one given twice counts once.
        queue: run name → the scheduler's state in words, where the caller knows it.
        now: seconds since 1970, to say how long a run has been silent; by default the time.
    """
    unique = {run.path.absolute().as_posix(): run for run in runs}
    now = time.time() if now is None else now
    collected = [_collect(run, (queue or {}).get(run.name), now) for run in unique.values()]
    collected.sort(key=lambda item: (item.run, item.path))
    return Comparison(
        groups=group_runs([item for item in collected if isinstance(item, RunResult)]),
        unfinished=tuple(item for item in collected if isinstance(item, UnfinishedRun)),
        skipped=tuple(item for item in collected if isinstance(item, SkippedFolder)),
    )


def _collect(run: RunDir, queued: str | None, now: float) -> RunResult | UnfinishedRun | SkippedFolder:
    try:
        if not any(path.is_file() for path in (run.result, run.config, run.status, run.job, run.events)):
            return _skipped(run, "not a run directory: it holds no config.json, status.json or result.json")
        result = _json(run.result)
        if result is None:
            return _unfinished(run, queued, now)
        wrong = _what_is_wrong(result)
        return _skipped(run, wrong) if wrong else _finished(run, result)
    except (OSError, RecursionError) as error:
        return _skipped(run, f"cannot be read: {text(getattr(error, 'strerror', None) or error)}")


def _skipped(run: RunDir, reason: str) -> SkippedFolder:
    return SkippedFolder(word(run.name), word(str(run.path)), reason)


def _json(path: Path) -> dict[str, Any] | None:
    # A pipe or a device under one of these names would be waited for without end.
    return read_json(path) if path.is_file() else None


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return read_json_lines(path) if path.is_file() else []


def _what_is_wrong(result: Mapping[str, Any]) -> str | None:
    task = result.get("task")
    if not isinstance(task, str) or task not in MAIN_SCORE:
        return f"result.json is not of this tool: its task is {text(repr(task))}, not {' or '.join(MAIN_SCORE)}"
    if text(result.get("model")) is None:
        return "result.json is not of this tool: it names no model"
    if MAIN_SCORE[task] not in section(section(result.get("best")).get("test")):
        return f"result.json is not of this tool: it has no best.test.{MAIN_SCORE[task]}"
    return None


def _finished(run: RunDir, result: Mapping[str, Any]) -> RunResult:
    config = _json(run.config) or {}
    data = section(config.get("data"))
    best, last, counts = section(result.get("best")), section(result.get("last")), section(result.get("cases"))
    best_test = scores(best.get("test"))
    task = str(result["task"])
    cases = read_test_cases(run.cases, task)
    remarks, tested = [], integer(counts.get("test"))
    if (limit := integer(config.get("limit_batches"))) is not None:
        remarks.append(f"saw at most {limit} batches per epoch and part (limit_batches)")
        tested = cases.n or tested  # fewer were scored than the part holds
    if problem := cases.disagreement(best_test, tested, MAIN_SCORE[task]):
        remarks.append(f"{problem}: no interval")
        cases = TestCases()
    leaks = result.get("split_leaks")
    return RunResult(
        run=word(run.name),
        path=word(str(run.path)),
        task=task,
        model=word(result.get("model")),
        filters=integer(section(config.get("model")).get("filters")),
        seed=integer(result.get("seed", config.get("seed"))),
        split=text(result.get("split")) or text(data.get("split")) or "unknown",
        split_leaks=leaks if isinstance(leaks, bool) else None,
        fold=integer(result.get("fold")),
        dataset=text(result.get("dataset")),
        store=text(result.get("store")) or text(data.get("store")) or "unknown store",
        fingerprint=text(result.get("fingerprint")),
        parameters=integer(result.get("parameters")),
        gpus=integer(result.get("gpus")),
        nodes=integer(result.get("nodes")),
        device=text(result.get("device")),
        precision=text(result.get("precision")),
        epochs=integer(result.get("epochs")),
        batch_size=integer(result.get("batch_size")),
        seconds=number(result.get("seconds")),
        gpu_hours=number(result.get("gpu_hours")),
        restarts=integer(result.get("restarts")),
        samples_per_second=number(result.get("samples_per_second")),
        peak_memory_gb=number(result.get("peak_memory_gb")),
        train_cases=integer(counts.get("train")),
        val_cases=integer(counts.get("val")),
        test_cases=tested,
        chosen_by=text(result.get("chosen_by")),
        best_epoch=integer(best.get("epoch")),
        best=best_test,
        last_epoch=integer(last.get("epoch")),
        last=scores(last.get("test")),
        last_train=scores(last.get("train")),
        intervals=cases.intervals_of(best_test),
        test_set=cases.identity,
        settings=_settings(config),
        remarks=tuple(remarks),
    )


def _settings(config: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in config.items() if key not in _NOT_SETTINGS}
    for name, left_out in (("data", _NOT_DATA), ("hardware", _NOT_HARDWARE)):
        kept[name] = {key: value for key, value in section(config.get(name)).items() if key not in left_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _unfinished(run: RunDir, queued: str | None, now: float) -> UnfinishedRun:
    config, status = _json(run.config) or {}, _json(run.status) or {}
    model, task = section(config.get("model")), text(config.get("task"))
    metrics = [line for line in _json_lines(run.metrics) if integer(line.get("epoch")) is not None]
    state, reason = _state(run, status, now)
    if queued is not None:
        state = text(queued) or state
    best, best_epoch = number(status.get("best")), integer(status.get("best_epoch"))
    if best is None and task in MAIN_SCORE:
        seen = [
            (score, int(line["epoch"]))
            for line in metrics
            if line.get("part") == "val" and (score := number(line.get(MAIN_SCORE[task]))) is not None
        ]
        best, best_epoch = max(seen, key=lambda pair: (pair[0], -pair[1])) if seen else (None, None)
    reached = [epoch for epoch in (integer(status.get("epoch")), *(int(line["epoch"]) for line in metrics)) if epoch]
    return UnfinishedRun(
        run=word(run.name),
        path=word(str(run.path)),
        task=task,
        model=text(model.get("name")),
        seed=integer(config.get("seed")),
        state=state,
        reason=reason,
        epoch=max(reached, default=None),
        epochs=integer(status.get("epochs", section(config.get("recipe")).get("epochs"))),
        best=best,
        best_epoch=best_epoch,
        heartbeat=number(status.get("time")),
    )


def _state(run: RunDir, status: Mapping[str, Any], now: float) -> tuple[str, str | None]:
    """State and reason from the newest of heartbeat and events."""
    events = [line for line in _json_lines(run.events) if text(line.get("event")) in _STATES]
    last = events[-1] if events else {}
    beat, heard = number(status.get("time")) or 0, number(last.get("time")) or 0
    state, said = text(status.get("state")), status
    if last and (state is None or heard >= beat):
        state, said = _STATES[str(last["event"])], last
    state = state or ("submitted" if run.job.is_file() else "not started")
    state = _STATES.get(state, state)  # a heartbeat that says finished, without a result
    reason = next((value for key in ("reason", "error", "message") if (value := text(said.get(key)))), None)
    silent = now - max(beat, heard)
    if state in ("training", "evaluating", "started", "stopping") and silent > SILENT_SECONDS:
        reason = f"silent for {_duration(silent)}"
    if run.result.exists():
        reason = "result.json cannot be read"
    return state, reason


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} h" if hours >= 2 else f"{seconds / 60:.0f} min"
