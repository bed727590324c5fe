"""Cases that a run knows among those that it predicts: their scores say nothing of new ones, so no mean has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.raw.brain_mri import PARTS
from hpc_tumor.data.raw.patient_names import patient_of
from hpc_tumor.data.splits.known_cases import TRAINED, VALIDATED, KnownCases, ids_of_split, read_known_cases
from hpc_tumor.data.splits.near_duplicates import nearest
from hpc_tumor.data.splits.sketch import THRESHOLD, likeness
from hpc_tumor.run_dir import RunDir
from hpc_tumor.vocabulary import listed

CANNOT_TELL = "cannot tell"
CONTENT, COPY, ID, PATIENT = "content", "copy", "id", "patient"
_ORDER = (CONTENT, COPY, ID, PATIENT)
COLUMNS = ("known", "known_as", "known_by")


@dataclass(frozen=True)
class Match:
    """A case of the run that an input is.

    Attributes:
        part: `trained on` or `validated on`; `cannot tell` where the run did not keep its cases.
        case: its id in the run.
        by: by what it was found: `content` (the same pixels or scans), `copy` (nearly the same), `id`, or `patient`
            (by its name, or the folder of its sessions, the same patient at another time or in another edition).
    """

    part: str
    case: str | None = None
    by: str | None = None


@dataclass(frozen=True, eq=False)
class Known:
    """Record that a run kept of the cases that chose its weights.

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
        self, ids: Sequence[str], digests: Sequence[str], thumbnails: NDArray[np.uint8], places: Sequence[str] = ()
    ) -> list[Match | None]:
        """For each image the one of the run that it is, by its path, its pixels or as a near copy; None for new ones.

        Of several the first of: trained on, before validated on; then by pixels, as a copy, by path.

        Args:
            digests: SHA-256 of decoded pixels, as in the metadata of a read image.
            thumbnails: `(n, 32, 32)` uint8.
            places: absolute paths, by whose ends images are known where the run kept nothing but ids.
        """
        if self.cases is None:
            return [Match(CANNOT_TELL)] * len(ids)
        found: list[list[tuple[int, str]]] = [[] for _ in ids]
        for by, values, keys in ((CONTENT, digests, self.cases.digests), (ID, ids, self.cases.ids)):
            numbers = _first(() if keys is None else keys.tolist())
            for matches, value in zip(found, values, strict=True):
                if (number := numbers.get(value)) is not None:
                    matches.append((number, by))
        if self.cases.digests is None:
            for matches, place in zip(found, places, strict=bool(places)):
                matches += [(number, ID) for number in self._at(PurePosixPath(place).parts)]
        if self.cases.thumbnails is not None:
            for part in (self.cases.trained, ~self.cases.trained):
                numbers_of = np.flatnonzero(part)
                for matches, place in zip(found, nearest(thumbnails, self.cases.thumbnails[part]), strict=True):
                    if place >= 0:
                        matches.append((int(numbers_of[place]), COPY))
        return [self._best(matches) for matches in found]

    def _at(self, parts: Sequence[str]) -> list[int]:
        """Numbers of the images whose ids end a path of these parts, or share its folder and name.

        The source that was trained from may have stood above or below the one that is predicted. A path in the other
        published part (Training, Testing) than that of the id is another image.
        """
        numbers = []
        for number, own in self._by_end.get(tuple(parts[-2:]), ()):
            elsewhere = len(parts) > 2 and len(own) > 2 and parts[-3].lower() != own[-3].lower()
            if not (elsewhere and parts[-3].lower() in PARTS):
                numbers.append(number)
        return numbers

    @cached_property
    def _by_end(self) -> dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
        """The number and the parts of each id, by its last two parts."""
        assert self.cases is not None
        ends: dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = {}
        for number, case in enumerate(self.cases.ids.tolist()):
            parts = PurePosixPath(case).parts
            ends.setdefault(parts[-2:], []).append((number, parts))
        return ends

    def find_patient(self, name: str, digest: str, sketch: NDArray[np.int8], folder: str = "") -> Match | None:
        """The case of the run that a patient is, by its scans, as a copy of them, or by its name; None for a new one.

        Args:
            digest: SHA-256 of the scans, of `BrainStatistics`.
            sketch: `(4, 16, 16, 16)`, see `data.sketch`.
            folder: name of the patient whose folder holds the session; empty where none does.
        """
        if self.cases is None:
            return Match(CANNOT_TELL)
        cases, found = self.cases, []
        if cases.digests is not None:
            found += [(number, CONTENT) for number in np.flatnonzero(cases.digests == digest).tolist()]
        if cases.sketches is not None and len(cases.sketches):
            values = likeness(sketch, cases.sketches)
            alike = np.flatnonzero(values >= THRESHOLD)
            found += [(number, COPY) for number in alike[np.argsort(-values[alike], kind="stable")].tolist()]
        own = {patient_of(one) for one in (name, folder) if one}
        for number, case, patient in self._names:
            if name.casefold() == case:
                found.append((number, ID))
            elif patient in own:
                found.append((number, PATIENT))
        return self._best(found)

    @cached_property
    def _names(self) -> list[tuple[int, str, str]]:
        """The names of each patient, own and of other editions: its number, the name in lower case, its patient."""
        assert self.cases is not None
        names = list(enumerate(self.cases.ids.tolist()))
        if self.cases.other_ids is not None and self.cases.other_of is not None:
            names += zip(self.cases.other_of.tolist(), self.cases.other_ids.tolist(), strict=True)
        return [(number, case.casefold(), patient_of(case)) for number, case in names]

    def _best(self, matches: Sequence[tuple[int, str]]) -> Match | None:
        """The first of: trained on, before validated on; then in the order of `_ORDER`."""
        if not matches or self.cases is None:
            return None
        trained = self.cases.trained
        number, by = min(matches, key=lambda match: (not trained[match[0]], _ORDER.index(match[1])))
        return Match(self.cases.part(number), str(self.cases.ids[number]), by)


def load_known(run: RunDir) -> Known:
    """Load the record of `run`; of runs of earlier versions, or where it is damaged, the ids of its split."""
    try:
        known = read_known_cases(run.known_cases)
        if known.can_tell_copies:
            return Known(known)
        why = f"{run.name} trained on too many cases to keep what tells copies of them"
        return Known(known, f"{why}: those that it trained on are known by name and by equal content alone")
    except FileNotFoundError:
        why = f"{run.name} keeps no {run.known_cases.name} (an earlier version made it, or the file was removed)"
    except OSError as error:
        why = f"{run.known_cases} cannot be read ({error.strerror or error})"
    except ValueError:
        why = f"{run.known_cases} is damaged"
    cases = ids_of_split(run.split)
    if cases is None:
        return Known(None, f"{why}, nor can {run.split.name} be read: it cannot be told which of these cases it trained"
                     " on, so these scores may be too good")  # fmt: skip
    return Known(cases, f"{why}: cases that it trained on are known by their ids alone, not copies under other names")


def columns(match: Match | None) -> dict[str, str | None]:
    """Columns of a row on its match: `known` (trained on, validated on, cannot tell), `known_as`, `known_by`."""
    values = (match.part, match.case, match.by) if match else (None, None, None)
    return dict(zip(COLUMNS, values, strict=True))


def is_known(row: Mapping[str, Any]) -> bool:
    """Return True where the case of a row trained or validated, so that its scores count in no mean."""
    return row["known"] in (TRAINED, VALIDATED)


def known_counts(rows: Sequence[Mapping[str, Any]], told_by: str | None) -> dict[str, Any]:
    """Count the rows of cases trained on, validated on, and new; None where it cannot be told."""
    counts = Counter(row["known"] for row in rows)
    numbers = {"trained_on": counts[TRAINED], "validated_on": counts[VALIDATED], "new": counts[None]}
    return {"told_by": told_by, **(numbers if told_by else dict.fromkeys(numbers))}


def by_name_alone(rows: Sequence[Mapping[str, Any]], names: Sequence[str], noun: str) -> list[str]:
    """A line on the cases that are known by their name alone, though their content is that of no known case."""
    found = [name for row, name in zip(rows, names, strict=True) if row["known_by"] in (ID, PATIENT)]
    if not found:
        return []
    return [
        f"{listed(found)}: counted as known for the name alone, the {noun} are others; if they are of other people,"
        " give them other names"
    ]


def _first(keys: Sequence[str]) -> dict[str, int]:
    """The first number of each key."""
    numbers: dict[str, int] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, number)
    return numbers
