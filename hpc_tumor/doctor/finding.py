"""Findings of doctor: ok, warning or error with a remedy, grouped in sections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]
ON_CLUSTER = ("slurm", "job")  # sections on the cluster


@dataclass(frozen=True)
class Finding:
    """One line of the report, with a remedy for warnings and errors."""

    level: Level
    text: str
    way_out: str = ""


def ok(text: str) -> Finding:
    """Return the finding of a passed check."""
    return Finding("ok", text)


def warning(text: str, way_out: str) -> Finding:
    """Return the finding of a possible problem, or of a check that could not be done."""
    return Finding("warning", text, way_out)


def error(text: str, way_out: str) -> Finding:
    """Return the finding of a problem that makes runs fail."""
    return Finding("error", text, way_out)


@dataclass(frozen=True)
class Section:
    """The findings on one subject; `key` names it in JSON."""

    key: str
    title: str
    findings: list[Finding] = field(default_factory=list)


def exit_code(sections: Iterable[Section]) -> int:
    """Return 0 without errors, 4 for errors of the cluster, else 1."""
    wrong = {section.key for section in sections for finding in section.findings if finding.level == "error"}
    return (4 if wrong & set(ON_CLUSTER) else 1) if wrong else 0


def as_json(sections: Iterable[Section]) -> dict[str, Any]:
    """Return all findings as JSON types."""
    sections = list(sections)
    shown = [
        {
            "section": section.key,
            "title": section.title,
            "findings": [{**asdict(finding), "way_out": finding.way_out or None} for finding in section.findings],
        }
        for section in sections
    ]
    return {"exit_code": exit_code(sections), "sections": shown}
