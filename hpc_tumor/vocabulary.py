"""Words of the field, each named once; and names of files, numbers of things and times as one line of text.

Names come from others, and end in messages, in JSON and on terminals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MODALITIES = ("FLAIR", "T1", "T1ce", "T2")  # in the order of a store's channels
LABELS = ("NCR", "ED", "ET")  # of a tumour, disjoint: what networks learn
REGIONS = ("WT", "TC", "ET")  # of a tumour, each within the one before
STRUCTURES = (*LABELS, "WT", "TC")  # whatever scores are of
LABEL_NAMES = ("background", "NCR/NET", "ED", "ET")  # by their values in a store
TUMOUR_LABELS = len(LABEL_NAMES)  # values below are background and tumour: what networks learn and scores count
CAVITY = "resection cavity"  # value 4, in stores of an edition that labels it
CLASSES = ("glioma", "meningioma", "notumor", "pituitary")  # of images, by their values in a store
CONFIDENCE_LEVEL = 0.95  # of intervals
SIGNIFICANCE_LEVEL = 0.05  # of tests

# Control characters (a terminal obeys them), line ends, marks that turn the direction of writing (a name would read as
# another), and the surrogates that stand for bytes which are not UTF-8.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def is_plain(text: str) -> bool:
    """Return True if `text` can be shown and stored as it is."""
    return _UNFIT.search(text) is None


def printable(text: str) -> str:
    r"""`text` with what is not plain as escapes: `\x1b`, `\u202e`, and `\xff` for a byte that is not UTF-8."""
    return _UNFIT.sub(_escape, text)


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names as one line, and how many more there are."""
    rest = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {rest:,} more" if rest > 0 else "")


def series(names: Sequence[str], last: str = "and") -> str:
    """`a, b and c`, or with another `last` word."""
    return f" {last} ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def plural(count: int, noun: str) -> str:
    """`run`, `runs`, `processes`: the noun for so many."""
    return noun if count == 1 else noun + ("es" if noun.endswith("s") else "s")


def counted(count: int, noun: str) -> str:
    """`1 run`, `3 runs`, `1,200 images`."""
    return f"{count:,} {plural(count, noun)}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `8.2 s`, `4 min`, `2 h 05 min`; nothing for None."""
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
    """Minutes as `2:05 h`; with the limit that is set to them, as `0:41 of 2:05 h`."""
    text = f"{minutes // 60}:{minutes % 60:02d}"
    return f"{text} h" if limit is None else f"{text} of {hours(limit)}"


def slurm_time(minutes: int) -> str:
    """Minutes as SLURM and profiles write them: `02:05:00`."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def parse_seconds(text: str) -> float | None:
    """Times of SLURM's → seconds: `30` (minutes), `30:00`, `02:03.456`, `02:00:00`, `1-02`, `1-02:03:04`; else None."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+)(?::(\d+))?(\.\d+)?)?", text.strip())
    if match is None:
        return None
    days, first, second, third = (int(group or 0) for group in match.groups()[:4])
    if not (match[1] or match[4]):  # no hours
        days, first, second, third = 0, 0, first, second
    return ((days * 24 + first) * 60 + second) * 60 + third + float(match[5] or 0)


def harmless(value: object) -> object:
    """`value` as a cell of CSV: an apostrophe keeps a spreadsheet from running a text that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
