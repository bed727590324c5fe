"""Keep the report and write it after every change: JSON with all values, Markdown with the tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpu_report.plan import Part, label
from hpc_tumor.system import atomic

FORMAT = 1
EVERY = 1.0  # seconds between two writes at the most, except after an item
Render = Callable[[dict[str, Any]], str]


class Report:
    """The report on disk and in memory.

    Items are `not run`, `running`, `done` or `failed`; parts `not run`, `running`, `done` (all items are) or
    `incomplete`; the report `running`, `complete`, `incomplete` or `cut short`. One that still says `running` after its
    end is of a process that was killed.
    """

    def __init__(self, folder: Path, about: dict[str, Any], render: Render) -> None:
        """`about` describes the call. Writes report.json and report.md to `folder`."""
        self.json, self.markdown = folder / "report.json", folder / "report.md"
        self._render, self._began, self._written = render, time.monotonic(), 0.0
        self.values: dict[str, Any] = {
            "format": FORMAT, "state": "running", "reason": None, "seconds": 0.0, **about, "parts": {},
        }  # fmt: skip

    def plan(self, parts: list[Part]) -> None:
        """Add parts that are going to run, so that a report that is cut short names them."""
        for part in parts:
            items = {label(item): {"state": "not run", "checks": []} for item in part.items}
            self.values["parts"][part.name] = {"title": part.title, "state": "not run", "items": items}
        self.write()

    def begin(self, part: str, item: str) -> None:
        """Note that an item runs."""
        self.values["parts"][part]["state"] = "running"
        self._item(part, item)["state"] = "running"
        self.write()

    def add(self, part: str, item: str, values: dict[str, Any]) -> None:
        """Merge measured values into an item."""
        merge(self._item(part, item), values)
        self._write_if_due()

    def add_check(self, part: str, item: str, check: dict[str, Any]) -> None:
        """Add a check to an item."""
        self._item(part, item)["checks"].append(check)
        self._write_if_due()

    def finish(self, part: str, item: str, seconds: float) -> None:
        """Note that an item is complete."""
        self._item(part, item).update(state="done", seconds=seconds)
        self.write()

    def fail(self, part: str, item: str, why: str) -> None:
        """Note that an item could not be measured, or not to its end."""
        self._item(part, item).update(state="failed", error=why)
        self.write()

    def give_up(self, part: str, why: str) -> None:
        """Note that a whole part cannot run."""
        self.values["parts"][part]["error"] = why
        for item in self.values["parts"][part]["items"]:
            self._item(part, item).update(state="failed", error=why)
        self.close(part)

    def close(self, part: str) -> None:
        """Note that no more of a part runs."""
        states = {item["state"] for item in self.values["parts"][part]["items"].values()}
        whole = "done" if states <= {"done"} else "not run" if states == {"not run"} else "incomplete"
        self.values["parts"][part]["state"] = whole
        self.write()

    def end(self, reason: str | None) -> None:
        """Write the report for the last time; `reason` says why something is missing."""
        lacks = any(missing(self.values))
        state = "cut short" if reason else "incomplete" if lacks else "complete"
        self.values.update(state=state, reason=reason)
        self.write()

    def is_done(self, part: str) -> bool:
        """Return True if every item of a part is done."""
        return part in self.values["parts"] and self.values["parts"][part]["state"] == "done"

    def items(self, part: str) -> dict[str, dict[str, Any]]:
        """Return the items of a part."""
        items: dict[str, dict[str, Any]] = self.values["parts"][part]["items"]
        return items

    def write(self) -> None:
        """Replace both files."""
        self._written = time.monotonic()
        self.values["seconds"] = round(self._written - self._began, 1)
        atomic.write_json(self.json, self.values)
        atomic.write_text(self.markdown, self._render(self.values))

    def _write_if_due(self) -> None:
        if time.monotonic() - self._written >= EVERY:
            self.write()

    def _item(self, part: str, item: str) -> dict[str, Any]:
        return self.items(part)[item]


def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    """Merge nested dictionaries in place."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def checks(values: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield part, item and check of a report."""
    for name, part in values["parts"].items():
        for item, contents in part["items"].items():
            for check in contents["checks"]:
                yield name, item, check


def missing(values: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield part, item and reason of what a report lacks."""
    for name, part in values["parts"].items():
        for item, contents in part["items"].items():
            if contents["state"] != "done":
                yield name, item, contents.get("error") or contents["state"]
