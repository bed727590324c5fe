"""Find inputs that a run trained or validated on, whose scores are excluded from means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpc_tumor.data.raw.brain_mri import PARTS
from hpc_tumor.data.raw.patient_names import patient_of
from hpc_tumor.data.splits.known_cases import TRAINED, VALIDATED, KnownCases, ids_of_split, read_known_cases
from hpc_tumor.data.splits.near_duplicates import HEAD_THRESHOLD, THRESHOLD, nearest
from hpc_tumor.data.splits.sketch import THRESHOLD as SAME_SCANS
from hpc_tumor.data.splits.sketch import likeness
from hpc_tumor.run_dir import RunDir
from hpc_tumor.vocabulary import listed

CANNOT_TELL = "cannot tell"
CONTENT, COPY, ID, PATIENT = "content", "copy", "id", "patient"
_ORDER = (CONTENT, COPY, ID, PATIENT)
COLUMNS = ("known", "known_as", "known_by")


@dataclass(frozen=True)
class Match:
    """Match of an input with a case of the run.

    Attributes:
        part: `trained on` or `validated on`; `cannot tell` if the run did not record its cases.
        case: its id in the run.
        by: kind of match: `content` (identical pixels or scans), `copy` (nearly identical), `id`, or `patient` (the
            same patient at another time or in another edition, by its name or the folder of its sessions; of images,
            another slice of a known patient).
    """

    part: str
    case: str | None = None
    by: str | None = None


@dataclass(frozen=True, eq=False)
class CaseMatcher:
    """Record of the cases that a run trained and validated on.

    Attributes:
        cases: None if there is no readable record.
        note: limits of the record, as a sentence; None without any.
    """

    cases: KnownCases | None
    note: str | None = None

    @property
    def told_by(self) -> str | None:
        """Key by which cases are recognised: `content` (and ids), `ids` only, or None."""
        if self.cases is None:
            return None
        return "ids" if self.cases.digests is None else "content"

    def find_images(
        self,
        ids: Sequence[str],
        digests: Sequence[str],
        thumbnails: NDArray[np.uint8],
        heads: NDArray[np.uint8],
        patients: Sequence[str],
        paths: Sequence[str] = (),
    ) -> list[Match | None]:
        """Match each image with one of the run by pixels, as a near copy, by path, or by patient; None for new ones.

        Among several matches, prefers trained on to validated on, then pixels to copies to paths to patients.

        Args:
            digests: SHA-256 of decoded pixels, as in the metadata of a read image.
            thumbnails, heads: `(n, 32, 32)` uint8, of the whole images and of their heads.
            patients: "" if unknown.
            paths: absolute paths, whose ends are compared if the run recorded only ids.
        """
        if self.cases is None:
            return [Match(CANNOT_TELL)] * len(ids)
        matches_of: list[list[tuple[int, str]]] = [[] for _ in ids]
        cases = self.cases
        keyed = (CONTENT, digests, cases.digests), (ID, ids, cases.ids), (PATIENT, patients, cases.patients)
        for by, values, keys in keyed:
            numbers = _first(() if keys is None else keys.tolist())  # trained ones precede validated ones
            for matches, value in zip(matches_of, values, strict=True):
                if value and (number := numbers.get(value)) is not None:
                    matches.append((number, by))
        if self.cases.digests is None:
            for matches, path in zip(matches_of, paths, strict=bool(paths)):
                matches += [(number, ID) for number in self._with_path(PurePosixPath(path).parts)]
        views = (thumbnails, cases.thumbnails, THRESHOLD), (heads, cases.heads, HEAD_THRESHOLD)
        for own, theirs, least in views:
            if theirs is None:
                continue
            for part in (cases.trained, ~cases.trained):
                rows = np.flatnonzero(part)
                for matches, row in zip(matches_of, nearest(own, theirs[part], least), strict=True):
                    if row >= 0:
                        matches.append((int(rows[row]), COPY))
        return [self._best(matches) for matches in matches_of]

    def _with_path(self, parts: Sequence[str]) -> list[int]:
        """Return the numbers of the images whose ids share the last folder and name of a path.

        The source folder of training may be above or below that of the prediction. Images in different published
        parts (Training, Testing) are different.
        """
        numbers = []
        for number, own in self._by_end.get(tuple(parts[-2:]), ()):
            elsewhere = len(parts) > 2 and len(own) > 2 and parts[-3].lower() != own[-3].lower()
            if not (elsewhere and parts[-3].lower() in PARTS):
                numbers.append(number)
        return numbers

    @cached_property
    def _by_end(self) -> dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]]:
        """Number and path parts of each id, by its last two parts."""
        assert self.cases is not None
        ends: dict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = {}
        for number, case in enumerate(self.cases.ids.tolist()):
            parts = PurePosixPath(case).parts
            ends.setdefault(parts[-2:], []).append((number, parts))
        return ends

    def find_patient(self, name: str, digest: str, sketch: NDArray[np.int8], folder: str = "") -> Match | None:
        """Match a patient with a case of the run by its scans, as a near copy, or by its name; None for a new one.

        Args:
            digest: SHA-256 of the scans, from `BrainStatistics`.
            sketch: `(4, 16, 16, 16)`, see `data.sketch`.
            folder: name of the patient whose folder holds the session, if any.
        """
        if self.cases is None:
            return Match(CANNOT_TELL)
        cases, matches = self.cases, []
        if cases.digests is not None:
            matches += [(number, CONTENT) for number in np.flatnonzero(cases.digests == digest).tolist()]
        if cases.sketches is not None and len(cases.sketches):
            values = likeness(sketch, cases.sketches)
            alike = np.flatnonzero(values >= SAME_SCANS)
            matches += [(number, COPY) for number in alike[np.argsort(-values[alike], kind="stable")].tolist()]
        own = {patient_of(text) for text in (name, folder) if text}
        for number, case, patient in self._names:
            if name.casefold() == case:
                matches.append((number, ID))
            elif patient in own:
                matches.append((number, PATIENT))
        return self._best(matches)

    @cached_property
    def _names(self) -> list[tuple[int, str, str]]:
        """Number, lower-case name and patient of each case, including its names in other editions."""
        assert self.cases is not None
        names = list(enumerate(self.cases.ids.tolist()))
        if self.cases.other_ids is not None and self.cases.other_of is not None:
            names += zip(self.cases.other_of.tolist(), self.cases.other_ids.tolist(), strict=True)
        return [(number, case.casefold(), patient_of(case)) for number, case in names]

    def _best(self, matches: Sequence[tuple[int, str]]) -> Match | None:
        """Choose trained on before validated on, then by `_ORDER`."""
        if not matches or self.cases is None:
            return None
        trained = self.cases.trained
        number, by = min(matches, key=lambda match: (not trained[match[0]], _ORDER.index(match[1])))
        return Match(self.cases.part(number), str(self.cases.ids[number]), by)


def load_matcher(run: RunDir) -> CaseMatcher:
    """Load the record of `run`, or the ids of its split if the record is missing or damaged."""
    try:
        known = read_known_cases(run.known_cases)
        if known.can_tell_copies:
            return CaseMatcher(known)
        reason = f"{run.name} trained on too many cases to record near copies"
        return CaseMatcher(
            known, f"{reason}: cases that it trained on are recognised only by name and identical content"
        )
    except FileNotFoundError:
        reason = f"{run.name} has no {run.known_cases.name} (from an earlier version, or the file was removed)"
    except OSError as error:
        reason = f"{run.known_cases} cannot be read ({error.strerror or error})"
    except ValueError:
        reason = f"{run.known_cases} is damaged"
    cases = ids_of_split(run.split)
    if cases is None:
        return CaseMatcher(None, f"{reason}, and {run.split.name} cannot be read: cases that the run trained on are not"
                     " recognised, so scores may be too good")  # fmt: skip
    return CaseMatcher(
        cases, f"{reason}: cases that it trained on are recognised only by id, not as copies with other names"
    )


def match_columns(match: Match | None) -> dict[str, str | None]:
    """Return the columns of a match: `known` (trained on, validated on, cannot tell), `known_as`, `known_by`."""
    values = (match.part, match.case, match.by) if match else (None, None, None)
    return dict(zip(COLUMNS, values, strict=True))


def is_known(row: Mapping[str, Any]) -> bool:
    """Return True if the run trained or validated on the case of a row, which excludes its scores from means."""
    return row["known"] in (TRAINED, VALIDATED)


def count_known(rows: Sequence[Mapping[str, Any]], told_by: str | None) -> dict[str, Any]:
    """Count the rows of cases trained on, validated on, and new; None if the run cannot tell."""
    counts = Counter(row["known"] for row in rows)
    numbers = {"trained_on": counts[TRAINED], "validated_on": counts[VALIDATED], "new": counts[None]}
    return {"told_by": told_by, **(numbers if told_by else dict.fromkeys(numbers))}


def name_match_notes(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], noun: str, by: Collection[str] = (ID, PATIENT)
) -> list[str]:
    """Return a note on cases that match only by name, not by content."""
    matched = [name for row, name in zip(rows, names, strict=True) if row["known_by"] in by]
    if not matched:
        return []
    return [
        f"{listed(matched)}: counted as known by name only, although the {noun} differ; rename them if they are other"
        " patients"
    ]


def _first(keys: Sequence[str]) -> dict[str, int]:
    """Map each key to its first index."""
    numbers: dict[str, int] = {}
    for number, key in enumerate(keys):
        numbers.setdefault(key, number)
    return numbers
