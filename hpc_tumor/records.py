"""JSON files of a run as typed records. Whoever wrote them, reading ends in values and named faults, never in an error.

A value of a wrong type is dropped, its default stands in its place, and `faults` says so in one line each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hpc_tumor.errors import Cause
from hpc_tumor.run_dir import RunDir, UnreadableFileError, load
from hpc_tumor.validation import own_words
from hpc_tumor.vocabulary import printable

_LONGEST = 1_000  # characters of a text
_LONGEST_VALUE = 40  # characters of a wrong value in a message
LARGEST = 1e15  # that a time or a count may be


def _one_line(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]} …"


Text = Annotated[str, AfterValidator(_one_line)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]  # a loss that diverges is huge
Seconds = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
Count = Annotated[int, Field(ge=0, le=int(LARGEST))]


class Record(BaseModel):
    """Base of all records: frozen, unknown keys ignored, every field with a default."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True)

    faults: tuple[str, ...] = Field((), exclude=True)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what `path` holds, None where it is absent."""
        try:
            values = load(path)
        except UnreadableFileError as error:
            return cls(faults=(f"{path.name} {error}",))
        return None if values is None else cls.from_values(values, path.name)

    @classmethod
    def from_values(cls, values: dict[str, Any], name: str) -> Self:
        """Return `values`, which the file `name` holds, as a record."""
        values = {key: value for key, value in values.items() if key != "faults"}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = {str(item["loc"][0]): _explain(name, item) for item in error.errors(include_url=False)}
            kept = {key: value for key, value in values.items() if key not in wrong}
            return cls.model_validate({**kept, "faults": tuple(wrong.values())})


class Status(Record):
    """Heartbeat of a run: status.json."""

    time: Seconds | None = None  # since 1970, by the clock of the node
    state: Text | None = None
    epoch: Count | None = None
    epochs: Count | None = None
    step: Count | None = None
    steps: Count | None = None
    loss: Number | None = None
    rate: Number | None = None
    eta_s: Seconds | None = None
    best: Number | None = None
    best_epoch: Count | None = None
    restarts: Count | None = None
    skipped_steps: Count | None = None


def _known_cause(value: object) -> object:
    """Leave out the name of a cause that only another version knows: its sentence stands beside it."""
    return None if isinstance(value, str) and value not in set(Cause) else value


class Failure(Record):
    """First failure of one start of a run: logs/failure.<start>.json."""

    rank: Count | None = None
    reason: Text = "no reason was given"
    retry: bool = False  # whether another start may not meet it again
    expected: bool = False  # whether the reason explains itself, without a traceback
    cause: Annotated[Cause | None, BeforeValidator(_known_cause)] = None


class Event(Record):
    """One line of events.jsonl."""

    event: Text = ""
    time: Seconds | None = None
    reason: Text | None = None
    because: Text | None = None  # a requeue: "warned" or "failed"
    attempt: Count | None = None
    of: Count | None = None
    at: tuple[Count, Count] = (0, 0)  # epoch and step of the last checkpoint before a requeue
    epoch: Count = 0
    step: Count = 0
    start: Count | None = None
    precision: Text | None = None


def read_events(run: RunDir) -> list[Event]:
    """All events of a run in order."""
    return [Event.from_values(line, run.events.name) for line in run.read_events()]


def section(value: object) -> dict[str, Any]:
    """Return `value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _explain(name: str, item: Any) -> str:
    where, value = ".".join(str(key) for key in item["loc"]), repr(item["input"])
    shown = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]} …"
    message = own_words(item)
    return printable(f"{name}: {where} = {shown}: {message[:1].lower()}{message[1:]}")
