"""The comparison for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hpc_tumor import __version__
from hpc_tumor.results.comparison import Comparison, Group
from hpc_tumor.results.entries import Entry
from hpc_tumor.results.notes import conclusions, group_notes
from hpc_tumor.results.published import PUBLISHED
from hpc_tumor.results.run_result import RunResult
from hpc_tumor.results.statistics import LEVEL, RESAMPLES

SCHEMA = 2


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything but single cases, scores as fractions or mm.

    A group has entries (with statistics of every score and the names of their runs), runs, paired tests and ranks;
    tests and ranks name entries.
    """
    return {
        "schema": SCHEMA,
        "made_by": f"hpc-tumor {__version__}",
        "interval": {"level": LEVEL, "method": "percentile bootstrap over test cases", "resamples": RESAMPLES},
        "groups": [_group(group) for group in comparison.groups],
        "left_out": comparison.left_out,
        "unfinished": [asdict(run) for run in comparison.unfinished],
        "skipped": [asdict(item) for item in comparison.skipped],
        "published": [asdict(result) for result in PUBLISHED.values()],
    }


def _group(group: Group) -> dict[str, Any]:
    ranking, names = group.ranking, [entry.name for entry in group.compared]
    return {
        "title": group.title,
        "task": group.task,
        "split": group.split,
        "split_leaks": group.split_leaks,
        "folds": group.folds,
        "dataset": group.dataset,
        "store": group.store,
        "fingerprint": group.fingerprint,
        "by": list(group.by),
        "main_score": group.main,
        "notes": [*group_notes(group), *conclusions(group)],
        "entries": [_entry(entry) for entry in group.entries],
        "runs": [_run(run) for run in group.runs],
        "tests": [{**vars(test), "first": names[test.first], "second": names[test.second]} for test in group.tests],
        "ranking": ranking and {"entries": names, "by": group.ranked_by, **vars(ranking)},
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.model,
        "runs": [run.run for run in entry.runs],
        "weights_lost": [run.run for run in entry.lost],
        "repeated": [run.run for run in entry.repeated],
        "seeds": list(entry.seeds),
        "folds": list(entry.folds),
        "sd_over": entry.sd_over,
        "pooled": list(entry.pooled),
        "problem": entry.cases.problem,
        "statistics": {name: vars(found) for name, found in entry.statistics.items()},
        "status": {name: dict(entry.counted(name)) for name in entry.cases.status},
    }


def _run(run: RunResult) -> dict[str, Any]:
    return {name: value for name, value in vars(run).items() if name not in ("cases", "place")}
