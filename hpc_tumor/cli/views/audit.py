"""Show an audit on a terminal: the verdicts, then the numbers behind them."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_tumor.config import SPLITS, Experiment
from hpc_tumor.data.audit import text
from hpc_tumor.data.audit.audit import Audit
from hpc_tumor.data.audit.images import ImageFacts
from hpc_tumor.data.store.store import Store
from hpc_tumor.errors import DataError, UsageError, unknown
from hpc_tumor.experiments.request import experiment_for
from hpc_tumor.settings import holds, parse_assignments
from hpc_tumor.table import Table


def selected_experiment(store: Store, kind: str | None, assignments: Sequence[str]) -> Experiment:
    """Return the experiment whose split is in use, resolved from --split, --set and defaults as for training.

    Raises UsageError for an unknown split or setting, and for settings outside `data`.
    """
    if kind and kind not in SPLITS[store.task]:
        raise unknown(f"split for {store.task}", kind, SPLITS[store.task])
    values = parse_assignments(assignments)
    if other := [section for section in values if section != "data"]:
        raise UsageError(f"--set {other[0]}…: an audit takes only settings of data, such as data.fold=0.")
    for option, name, value in (("STORE", "data.store", True), ("--split", "data.split", kind)):
        if value and holds(values, name):
            raise UsageError(f"{option} and --set {name} set the same thing: leave out one of them.")
    return experiment_for(store, [*assignments, *([f"data.split={kind}"] if kind else [])])


def verdict_lines(audit: Audit) -> list[tuple[str, str]]:
    """Return the verdicts on the split in use and on the others, with folds only if they leak."""
    lines = []
    for split in audit.splits:
        if split.in_use or split.fold is None or (split.leaks and not split.refused):
            lines.append((split.name + (" (in use)" if split.in_use else ""), text.verdict(split)))
    return lines


def summary_lines(audit: Audit) -> list[tuple[str, str]]:
    """Return the verdicts and facts as pairs of name and text."""
    return [*verdict_lines(audit), *text.fact_lines(audit)]


def audit_tables(audit: Audit) -> list[Table]:
    """Return tables of the splits and of the contents of the dataset."""
    facts = audit.facts
    tables = [text.split_table(audit.splits, brief=True)]
    if isinstance(facts, ImageFacts):
        tables += [text.pair_table(audit), text.class_table(facts), text.patient_table(audit)]
        tables += [text.conflict_table(audit), text.shortcut_table(audit)]
    else:
        tables += [text.label_table(facts), text.modality_table(facts)]
    return [table for table in tables if table.rows]


def leak_error(audit: Audit) -> DataError | None:
    """Return the error if the split in use leaks or cannot be made."""
    split = audit.in_use
    if split.refused:
        return DataError(f"the {split.name} split {text.verdict(split)}")
    if not split.leaks:
        return None
    clean = next((other for other in audit.splits if other.leakage and not other.leaks), None)
    advice = f"Train with --set data.split={clean.kind}." if clean else "Remove the duplicates, see above."
    verdict = "leaks" if split.found else "may leak"
    return DataError(f"the {split.name} split of {audit.store} {verdict}, so its scores are inflated. {advice}")
