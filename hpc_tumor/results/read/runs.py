"""One finished run from its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hpc_tumor.results.compare.measures import MAIN_SCORE
from hpc_tumor.results.read.case_file import read_test_cases
from hpc_tumor.results.read.cases import TestCases
from hpc_tumor.results.read.run_result import NOT_SETTINGS, RunResult, Scores
from hpc_tumor.results.read.values import integer, number, plain, scores, section, text, word
from hpc_tumor.run_dir import Damage, RunDir, read_json

_LATER = ("scoring.flips", "scoring.clean")


def what_is_wrong(result: Mapping[str, Any]) -> str | None:
    """Why `result` cannot be that of a run of this tool; None where it can."""
    task = result.get("task")
    if not isinstance(task, str) or task not in MAIN_SCORE:
        return f"result.json is not of this tool: its task is {text(repr(task))}, not {' or '.join(MAIN_SCORE)}"
    if text(result.get("model")) is None:
        return "result.json is not of this tool: it names no model"
    if MAIN_SCORE[task] not in section(section(result.get("best")).get("test")):
        return f"result.json is not of this tool: it has no best.test.{MAIN_SCORE[task]}"
    return None


def read_finished(run: RunDir, result: Mapping[str, Any]) -> RunResult:
    """The run whose result.json is `result`."""
    config = read_json(run.config) or {}
    settings = flat(config)
    data = section(config.get("data"))
    task, best = str(result["task"]), scores(section(result.get("best")).get("test"))
    cases, tested, remarks = _tested(run, task, best, result, config)
    leaks = result.get("split_leaks")
    return RunResult(
        run=word(run.name),
        path=word(str(run.path)),
        place=run.path,
        task=task,
        model=word(result.get("model")),
        filters=integer(section(config.get("model")).get("filters")),
        seed=integer(result.get("seed", config.get("seed"))),
        split=text(result.get("split")) or text(data.get("split")) or "unknown",
        split_leaks=leaks if isinstance(leaks, bool) else None,
        split_seed=integer(result.get("split_seed")),
        fold=integer(result.get("fold")),
        folds=integer(data.get("folds")),
        dataset=text(result.get("dataset")),
        store=text(result.get("store")) or text(data.get("store")) or "unknown store",
        fingerprint=text(result.get("fingerprint")),
        test_cases=tested,
        best=best,
        settings=_digest(settings),
        config=settings,
        class_counts=_class_counts(result.get("class_counts")),
        cases=cases,
        remarks=remarks,
        **_cost(result),
        **_training(result, run.weights_lost()),
    )


def _tested(
    run: RunDir, task: str, best: Scores, result: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[TestCases, int | None, tuple[str, ...]]:
    """The test cases where they are those of the scores, how many there are, and what is to be known of them."""
    cases, tested = read_test_cases(run.cases, task), integer(section(result.get("cases")).get("test"))
    remarks = []
    if (limit := integer(config.get("limit_batches"))) is not None:
        remarks.append(f"saw at most {limit} batches per epoch and part (limit_batches)")
        tested = cases.n or tested  # fewer were scored than the part holds
    if problem := cases.disagreement(best, tested, MAIN_SCORE[task]):
        remarks.append(f"{problem}: no interval")
        cases = TestCases(problem=problem)
    return cases, tested, tuple(remarks)


def _cost(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the run took, and on what."""
    whole = ("parameters", "gpus", "nodes", "epochs", "batch_size", "restarts")
    numbers = ("gflop_per_sample", "seconds", "gpu_hours", "samples_per_second", "peak_memory_gb")
    return {
        **{name: integer(result.get(name)) for name in whole},
        **{name: number(result.get(name)) for name in numbers},
        **{name: text(result.get(name)) for name in ("device", "precision")},
    }


def _training(result: Mapping[str, Any], lost: Damage | None) -> dict[str, Any]:
    """How training went, and how its weights were chosen and tested."""
    best, last, counts = section(result.get("best")), section(result.get("last")), section(result.get("cases"))
    stopped, flips = result.get("stopped_early"), result.get("flips")
    return {
        "train_cases": integer(counts.get("train")),
        "val_cases": integer(counts.get("val")),
        "chosen_by": "last epoch" if lost else text(result.get("chosen_by")),
        "best_epoch": None if lost else integer(best.get("epoch")),
        "weights_lost": lost,
        "last_epoch": integer(last.get("epoch")),
        "last": scores(last.get("test")),
        "last_train": scores(last.get("train")),
        "stopped_early": stopped if isinstance(stopped, bool) else None,
        "skipped_steps": integer(result.get("skipped_steps")),
        "surfaces": text(result.get("surfaces")),
        "cleaning": scores(result.get("cleaning")) or None,
        "flips": flips if isinstance(flips, bool) else None,
    }


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name; those that runs of earlier versions did not have yet are as they were then."""
    found: dict[str, Any] = dict.fromkeys(_LATER, False) if config else {}
    for key, value in config.items():
        inner = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        found |= {word(name): plain(one) for name, one in inner.items()}
    return found


def _digest(settings: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in settings.items() if name not in NOT_SETTINGS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=repr).encode()).hexdigest()[:12]


def _class_counts(value: object) -> dict[str, dict[str, int]] | None:
    """Images of each class in each part."""
    counts = {
        word(part): {word(name): count for name, one in section(classes).items() if (count := integer(one)) is not None}
        for part, classes in section(value).items()
    }
    return counts or None
