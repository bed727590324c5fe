"""Cases that a run knows among those that it predicts: their scores say nothing of new ones, so no mean has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.known_cases import TRAINED, VALIDATED, KnownCases, ids_of_split, read_known_cases
from hpc_tumor.data.near_duplicates import nearest
from hpc_tumor.run_dir import RunDir

CANNOT_TELL = "cannot tell"
ID, CONTENT, COPY = "id", "content", "copy"
MOST_NAMED = 3  # cases in a line


@dataclass(frozen=True)
class Match:
    """A case of the run that an input is.

    Attributes:
        part: `trained on` or `validated on`; `cannot tell` where the run did not keep its cases.
        case: its id in the run.
        by: by what it was found: `id`, `content` (the same pixels), or `copy` (nearly the same).
    """

    part: str
    case: str | None = None
    by: str | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """What a run kept of the cases that chose its weights.

    Attributes:
        cases: None where nothing can be read.
        note: a line on what cannot be told; None where all can.
    """

    cases: KnownCases | None
    note: str | None = None

    @property
    def told_by(self) -> str | None:
        """By what cases are known: `content` (and ids), `ids` alone, or None: they cannot be told."""
        if self.cases is None:
            return None
        return "ids" if self.cases.digests is None else "content"

    def find_images(
        self, ids: Sequence[str], digests: Sequence[str], thumbnails: NDArray[np.uint8]
    ) -> list[Match | None]:
        """For each image the one of the run that it is, by its path, its pixels or as a near copy; None for new ones.

        Of several the first of: trained on, before validated on; then by pixels, as a copy, by path.

        Args:
            digests: SHA-256 of decoded pixels, as in the metadata of a read image.
            thumbnails: `(n, 32, 32)` uint8.
        """
        if self.cases is None:
            return [Match(CANNOT_TELL)] * len(ids)
        found: list[list[tuple[int, str]]] = [[] for _ in ids]
        for by, values, keys in ((CONTENT, digests, self.cases.digests), (ID, ids, self.cases.ids)):
            numbers = _first(keys or ())
            for matches, value in zip(found, values, strict=True):
                if (number := numbers.get(value)) is not None:
                    matches.append((number, by))
        self._add_copies(found, thumbnails)
        return [self._best(matches) for matches in found]

    def _add_copies(self, found: list[list[tuple[int, str]]], thumbnails: NDArray[np.uint8]) -> None:
        if self.cases is None or self.cases.thumbnails is None:
            return
        split = int(self.cases.trained.sum())
        for first, among in ((0, self.cases.thumbnails[:split]), (split, self.cases.thumbnails[split:])):
            for matches, number in zip(found, nearest(thumbnails, among).tolist(), strict=True):
                if number >= 0:
                    matches.append((first + number, COPY))

    def _best(self, matches: Sequence[tuple[int, str]]) -> Match | None:
        if not matches or self.cases is None:
            return None
        trained, order = self.cases.trained, (CONTENT, COPY, ID)
        number, by = min(matches, key=lambda match: (not trained[match[0]], order.index(match[1])))
        return Match(self.cases.part(number), self.cases.ids[number], by)


def load_known(run: RunDir) -> Known:
    """What `run` kept; of runs of earlier versions, or where it is damaged, the ids of its split."""
    try:
        return Known(read_known_cases(run.known_cases))
    except FileNotFoundError:
        why = f"{run.name} keeps no {run.known_cases.name} (an earlier version made it, or the file was removed)"
    except (OSError, ValueError):
        why = f"{run.known_cases} is damaged"
    cases = ids_of_split(run.split)
    if cases is None:
        return Known(None, f"{why}, nor can {run.split.name} be read: it cannot be told which of these cases it trained"
                     " on, so these scores may be too good")  # fmt: skip
    return Known(cases, f"{why}: cases that it trained on are known by their ids alone, not copies under other names")


def columns(match: Match | None) -> dict[str, str | None]:
    """What a row says of it: `known` (trained on, validated on, cannot tell), `known_as` (its id), `known_by`."""
    return {
        "known": match.part if match else None, "known_as": match.case if match else None,
        "known_by": match.by if match else None,
    }  # fmt: skip


def is_known(row: Mapping[str, Any]) -> bool:
    """Whether the case of a row trained or validated, so that its scores count in no mean."""
    return row["known"] in (TRAINED, VALIDATED)


def known_counts(rows: Sequence[Mapping[str, Any]], told_by: str | None) -> dict[str, Any]:
    """How many rows are of cases trained on, validated on, and new; None where it cannot be told."""
    counts = Counter(row["known"] for row in rows)
    numbers = {"trained_on": counts[TRAINED], "validated_on": counts[VALIDATED], "new": counts[None]}
    return {"told_by": told_by, **(numbers if told_by else dict.fromkeys(numbers))}


def by_name_alone(rows: Sequence[Mapping[str, Any]], names: Sequence[str], noun: str) -> list[str]:
    """A line on the cases that are known by their name alone, though their content is that of no known case."""
    found = [name for row, name in zip(rows, names, strict=True) if row["known_by"] == ID]
    if not found:
        return []
    return [
        f"{named(found)}: counted as known for the name alone, the {noun} are others; if they are of other people,"
        " give them other names"
    ]


def named(cases: Sequence[str]) -> str:
    """The first of `cases`, and how many more there are."""
    more = len(cases) - MOST_NAMED
    return ", ".join(cases[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _first(keys: Sequence[str]) -> dict[str, int]:
    """The first number of each key."""
    numbers: dict[str, int] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, number)
    return numbers
