"""Read one finished run from its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, get_type_hints

from hpc_tumor.earlier import with_earlier_defaults
from hpc_tumor.results.compare.measures import MAIN_SCORE
from hpc_tumor.results.read.case_file import read_test_cases
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.results.read.run_result import NOT_SETTINGS, RunResult, Scores
from hpc_tumor.results.read.values import flag, integer, number, plain, scores, section, text, word
from hpc_tumor.run_dir import RunDir, read_json

# Reader of each plain field of result.json, by type.
_READERS = {int | None: integer, float | None: number, str | None: text, bool | None: flag}
_OF_RESULT = {name: _READERS[kind] for name, kind in get_type_hints(RunResult).items() if kind in _READERS}
_LATER = ("scoring.flips", "scoring.clean")  # settings that earlier versions did not have
_ABSENT = {"data.conflicts": None, "data.test_source": None}  # likewise


_LEAKS = ("copies", "same_patient", "val_copies", "val_same_patient")  # counts of `split_leakage`


def find_fault(result: Mapping[str, Any]) -> str | None:
    """Return why `result` is not of a run of this tool, or None."""
    task = result.get("task")
    if not isinstance(task, str) or task not in MAIN_SCORE:
        return f"result.json is not from hpc-tumor: task is {text(repr(task))}, not {' or '.join(MAIN_SCORE)}"
    if text(result.get("model")) is None:
        return "result.json is not from hpc-tumor: no model"
    if MAIN_SCORE[task] not in section(section(result.get("best")).get("test")):
        return f"result.json is not from hpc-tumor: no best.test.{MAIN_SCORE[task]}"
    return None


def read_finished(run: RunDir, result: Mapping[str, Any]) -> RunResult:
    """Read the run whose result.json is `result`."""
    config = read_json(run.config) or {}
    settings = flat(config)
    data, counts = section(config.get("data")), section(result.get("cases"))
    leakage = section(result.get("split_leakage"))
    best, last = section(result.get("best")), section(result.get("last"))
    task, lost, scored = str(result["task"]), run.weights_lost(), scores(best.get("test"))
    cases, tested, remarks = _tested(run, task, scored, result, config)
    values: dict[str, Any] = {name: read(result.get(name)) for name, read in _OF_RESULT.items()}
    return RunResult(**values | {
        "run": word(run.name), "path": word(str(run.path)), "place": run.path,
        "task": task, "model": word(result.get("model")),
        "filters": integer(section(config.get("model")).get("filters")),
        "seed": integer(result.get("seed", config.get("seed"))), "folds": integer(data.get("folds")),
        "split": text(result.get("split")) or text(data.get("split")) or "unknown",
        "split_leakage": text(leakage.get("summary")),
        "leak_found": any(integer(leakage.get(name)) for name in _LEAKS) if leakage else None,
        "store": text(result.get("store")) or text(data.get("store")) or "unknown store",
        "train_cases": integer(counts.get("train")), "val_cases": integer(counts.get("val")), "test_cases": tested,
        "chosen_by": "last epoch" if lost else text(result.get("chosen_by")), "weights_lost": lost,
        "best_epoch": None if lost else integer(best.get("epoch")), "best": scored,
        "last_epoch": integer(last.get("epoch")), "last": scores(last.get("test")),
        "last_train": scores(last.get("train")), "cleaning": scores(result.get("cleaning")) or None,
        "settings": _digest(settings), "config": settings, "class_counts": _class_counts(result.get("class_counts")),
        "cases": cases, "remarks": remarks,
    })  # fmt: skip


def _tested(
    run: RunDir, task: str, best: Scores, result: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[TestCases, int | None, tuple[str, ...]]:
    """Return the test cases if they match the scores, their number, and remarks."""
    cases, tested = read_test_cases(run.cases, task), integer(section(result.get("cases")).get("test"))
    remarks = []
    if (limit := integer(config.get("limit_batches"))) is not None:
        remarks.append(f"used at most {limit} batches per epoch and split part (limit_batches)")
        tested = cases.n or tested  # not all test cases were scored
    if result.get("share") is not None:
        remarks.append("shared its GPU with other runs: times and rates are slower than alone, GPU-hours are its share")
    if problem := cases.mismatch(best, tested, MAIN_SCORE[task]):
        remarks.append(f"{problem}; no interval")
        cases = TestCases(problem=problem)
    return cases, tested, tuple(remarks)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name; those that earlier versions did not have get their former behaviour."""
    settings: dict[str, Any] = {**dict.fromkeys(_LATER, False), **_ABSENT} if config else {}
    for key, value in with_earlier_defaults(config).items():
        inner = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {key: value}
        settings |= {word(name): plain(item) for name, item in inner.items()}
    return settings


def _digest(settings: Mapping[str, Any]) -> str:
    relevant = {name: value for name, value in settings.items() if name not in NOT_SETTINGS}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, default=repr).encode()).hexdigest()[:12]


def _class_counts(value: object) -> dict[str, dict[str, int]] | None:
    counts = {
        word(part): {
            word(name): count for name, cell in section(classes).items() if (count := integer(cell)) is not None
        }
        for part, classes in section(value).items()
    }
    return counts or None
