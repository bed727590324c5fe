"""Findings of doctor: a line that is ok, a warning or an error, with the way out; and groups of such lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["ok", "warning", "error"]
ON_CLUSTER = ("slurm", "job")  # sections whose errors are the cluster's


@dataclass(frozen=True)
class Finding:
    """One line: how it is, and where it is not well, what to do."""

    level: Level
    text: str
    way_out: str = ""


def ok(text: str) -> Finding:
    """Something that is as it should be."""
    return Finding("ok", text)


def warning(text: str, way_out: str) -> Finding:
    """Something that may go wrong, or that could not be looked at."""
    return Finding("warning", text, way_out)


def error(text: str, way_out: str) -> Finding:
    """Something that will make runs fail."""
    return Finding("error", text, way_out)


@dataclass(frozen=True)
class Section:
    """The findings of one subject; `key` is its name for machines."""

    key: str
    title: str
    findings: list[Finding] = field(default_factory=list)


def exit_code(sections: Iterable[Section]) -> int:
    """0 where nothing is an error, 4 where the cluster is in error, else 1."""
    wrong = {section.key for section in sections for finding in section.findings if finding.level == "error"}
    return (4 if wrong & set(ON_CLUSTER) else 1) if wrong else 0


def as_json(sections: Iterable[Section]) -> dict[str, Any]:
    """All findings, for machines."""
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
