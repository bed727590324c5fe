"""Numbers of things, times and enumerations as one line of text."""

import pytest

from hpc_tumor.vocabulary import counted, hours, series


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
