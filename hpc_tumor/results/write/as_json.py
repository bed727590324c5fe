"""Write the comparison as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpc_tumor import __version__
from hpc_tumor.results.compare.comparison import Comparison, Group
from hpc_tumor.results.compare.conclusions import conclusions, verdict
from hpc_tumor.results.compare.disagreement import DecidingCase
from hpc_tumor.results.compare.entries import Entry
from hpc_tumor.results.compare.published import PUBLISHED
from hpc_tumor.results.compare.statistics import RESAMPLES
from hpc_tumor.results.read.run_result import RunResult
from hpc_tumor.results.tables.notes import group_notes
from hpc_tumor.results.tables.rows import control_rows
from hpc_tumor.vocabulary import CONFIDENCE_LEVEL, CONTROLS

SCHEMA = 3


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return everything but single cases, with scores as fractions or mm.

    A group has entries (with statistics of every score and the names of their runs), runs, paired tests and ranks;
    tests and ranks refer to entries by name. `disagreement`: the entry with the highest main score and the first by
    ranks, null if they are the same; `controls`: every classifier against each control without a network.
    """
    return {
        "schema": SCHEMA,
        "made_by": f"hpc-tumor {__version__}",
        "interval": {
            "level": CONFIDENCE_LEVEL,
            "method": "percentile bootstrap over the units of a group",
            "resamples": RESAMPLES,
        },
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
        "units": group.units,
        "notes": [*group_notes(group), *conclusions(group)],
        "entries": [_entry(entry) for entry in group.entries],
        "runs": [_run(run) for run in group.runs],
        "tests": [{**vars(test), "first": names[test.first], "second": names[test.second]} for test in group.tests],
        "ranking": ranking and {"entries": names, "by": group.ranked_by, **vars(ranking)},
        "disagreement": _disagreement(group),
        "controls": _controls(group),
    }


def _disagreement(group: Group) -> dict[str, Any] | None:
    disagreement = group.disagreement
    if disagreement is None:
        return None
    names = group.compared[disagreement.by_score].name, group.compared[disagreement.by_rank].name
    return {
        "best_by_score": names[0],
        "best_by_ranks": names[1],
        "score": group.main,
        "means": dict(zip(names, disagreement.means, strict=True)),
        "mean_ranks": dict(zip(names, disagreement.mean_ranks, strict=True)),
        "score_cases": _deciding(disagreement.score_cases, names),
        "rank_cases": _deciding(disagreement.rank_cases, names[::-1]),
        "ranks_better_in": list(disagreement.ranks_better_in),
        "n": disagreement.n,
    }


def _deciding(cases: Sequence[DecidingCase] | None, names: tuple[str, ...]) -> list[dict[str, Any]] | None:
    if cases is None:
        return None
    return [
        {"case": case.case, "values": dict(zip(names, case.values, strict=True)), "faults": dict(case.faults)}
        for case in cases
    ]


def _controls(group: Group) -> list[dict[str, Any]] | None:
    if group.task != "classification":
        return None
    rows = dict(zip(group.controls, control_rows(group), strict=True))
    return [
        {
            "control": control,
            "name": name,
            "statistics": {score: vars(value) for score, value in rows[control].statistics.items()}
            if control in rows
            else {},
            "tests": [
                {"entry": entry, "verdict": verdict(test), **vars(test)}
                for entry, test in group.control_tests.get(control, {}).items()
            ],
            "not_compared": [
                entry.name for entry in group.entries if entry.name not in group.control_tests.get(control, {})
            ],
        }
        for control, name in CONTROLS.items()
    ]


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
        "statistics": {name: vars(statistic) for name, statistic in entry.statistics.items()},
        "by_patient": entry.cases.by_patient or entry.task == "segmentation",
        "status": {name: dict(entry.counted(name)) for name in entry.cases.status},
    }


def _run(run: RunResult) -> dict[str, Any]:
    return {name: value for name, value in vars(run).items() if name not in ("cases", "place")}
