"""Terms of the field, and formatting of names, counts and times."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

MODALITIES = ("FLAIR", "T1", "T1ce", "T2")  # in the order of a store's channels
LABELS = ("NCR", "ED", "ET")  # disjoint tumour labels: the targets of networks
REGIONS = ("WT", "TC", "ET")  # nested tumour regions
STRUCTURES = (*LABELS, "WT", "TC")  # everything that is scored
# True labels (0 background, 1 NCR/NET, 2 ED, 3 ET) of each structure; regions as scored by BraTS.
MEMBERS: dict[str, tuple[int, ...]] = {
    "NCR": (1,), "ED": (2,), "ET": (3,), "WT": (1, 2, 3), "TC": (1, 3),
}  # fmt: skip
LABEL_NAMES = ("background", "NCR/NET", "ED", "ET")  # by label value in a store
TUMOUR_LABELS = len(LABEL_NAMES)  # label values below are background and tumour, used for training and scores
PREDICTIONS = 8  # of three independent binary maps, as the bits of one number: 1 NCR, 2 ED, 4 ET
CAVITY = "resection cavity"  # label value 4, in datasets that annotate it
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")  # of images, by label value in a store
# Controls of a classifier, which predict without a network: their columns in cases.csv, and their names.
CONTROLS = {"nearest": "nearest neighbour", "file_facts": "file facts", "intensities": "intensities"}
CONFIDENCE_LEVEL = 0.95  # of intervals
SIGNIFICANCE_LEVEL = 0.05  # of tests

# Control characters, line breaks, bidirectional marks (with which a name can pass for another), and surrogates, which
# represent bytes that are not UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class RunStatus(StrEnum):
    """State that a run writes to status.json; the scheduler may know better."""

    TRAINING = "training"
    EVALUATING = "evaluating"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


def is_plain(text: str) -> bool:
    """Return True if `text` can be shown and stored unchanged."""
    return _UNFIT.search(text) is None


def printable(text: str) -> str:
    r"""Escape unprintable characters: `\x1b`, `\u202e`, and `\xff` for a byte that is not UTF-8."""
    return _UNFIT.sub(_escape, text)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join the first `most` names and count the rest: `a, b, c and 4 more`."""
    rest = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {rest:,} more" if rest > 0 else "")


def series(names: Sequence[str], last: str = "and") -> str:
    """Join names as `a, b and c`, or with another `last` word."""
    return f" {last} ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def plural(count: int, noun: str) -> str:
    """Return the singular or plural of `noun`: `run`, `runs`, `processes`."""
    return noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: `1 run`, `3 runs`, `1,200 images`."""
    return f"{count:,} {plural(count, noun)}"


def duration(seconds: float | None) -> str:
    """Format seconds as `8.2 s`, `4 min` or `2 h 05 min`; "" for None."""
    if seconds is None:
        return ""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    whole, minutes = divmod(minutes, 60)
    return f"{whole} h {minutes:02d} min" if whole < 48 else f"{whole // 24} d {whole % 24} h"


def hours(minutes: int, limit: int | None = None) -> str:
    """Format minutes as `2:05 h`, with a limit as `0:41 of 2:05 h`."""
    text = f"{minutes // 60}:{minutes % 60:02d}"
    return f"{text} h" if limit is None else f"{text} of {hours(limit)}"


def slurm_time(minutes: int) -> str:
    """Format minutes as SLURM and profiles do: `02:05:00`."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def parse_seconds(text: str) -> float | None:
    """Parse a SLURM time as seconds: `30` (minutes), `30:00`, `02:03.456`, `02:00:00`, `1-02`, `1-02:03:04`."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+)(?::(\d+))?(\.\d+)?)?", text.strip())
    if match is None:
        return None
    days, first, second, third = (int(group or 0) for group in match.groups()[:4])
    if not (match[1] or match[4]):  # no hours
        days, first, second, third = 0, 0, first, second
    return ((days * 24 + first) * 60 + second) * 60 + third + float(match[5] or 0)


def harmless(value: object) -> object:
    """Escape a CSV cell with an apostrophe if a spreadsheet would run it as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
