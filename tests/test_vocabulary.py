"""Numbers of things, times and enumerations as one line of text."""

import pytest

from hpc_tumor.vocabulary import LABEL_NAMES, LABELS, MEMBERS, STRUCTURES, counted, hours, parse_seconds, series


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [(0, "run", "0 runs"), (1, "run", "1 run"), (2, "process", "2 processes"), (1200, "image", "1,200 images")],
)
def test_things_are_counted(count: int, noun: str, text: str) -> None:
    assert counted(count, noun) == text


@pytest.mark.parametrize(("minutes", "text"), [(0, "0:00 h"), (65, "1:05 h"), (2880, "48:00 h")])
def test_minutes_as_hours(minutes: int, text: str) -> None:
    assert hours(minutes) == text


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a or b"), (list("abc"), "a, b or c")]
)
def test_several_names_in_one_sentence(names: list[str], text: str) -> None:
    assert series(names, "or") == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("30:15", 1815), ("02:03.456", 123.456), ("02:00:00", 7200), ("1-02", 93_600),
        ("1-02:03", 93_780), ("1-02:03:04", 93_784), ("30.5", None), ("UNLIMITED", None), ("1-", None), ("", None),
    ],
)  # fmt: skip
def test_times_as_slurm_prints_and_takes_them(text: str, seconds: float | None) -> None:
    assert parse_seconds(text) == seconds


def test_scores_are_of_the_structures_that_have_a_name() -> None:
    assert tuple(MEMBERS) == STRUCTURES
    assert [MEMBERS[label] for label in LABELS] == [(value,) for value in range(1, len(LABEL_NAMES))]
