"""Typed records of a run's JSON files. Reading never raises.

An invalid value is replaced by its default, and `faults` describes it in one line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hpc_tumor.errors import Cause
from hpc_tumor.run_dir import RunDir, UnreadableFileError, load
from hpc_tumor.validation import plain_message
from hpc_tumor.vocabulary import printable

_LONGEST = 1_000  # characters of a text
_LONGEST_VALUE = 40  # characters of an invalid value in a message
LARGEST = 1e15  # maximum of times and counts


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
        """Read the record in `path`; None if there is no such file."""
        try:
            values = load(path)
        except UnreadableFileError as error:
            return cls(faults=(f"{path.name} {error}",))
        return None if values is None else cls.from_values(values, path.name)

    @classmethod
    def from_values(cls, values: dict[str, Any], name: str) -> Self:
        """Build a record from the `values` in the file `name`."""
        values = {key: value for key, value in values.items() if key != "faults"}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            invalid = {str(item["loc"][0]): _explain(name, item) for item in error.errors(include_url=False)}
            valid = {key: value for key, value in values.items() if key not in invalid}
            return cls.model_validate({**valid, "faults": tuple(invalid.values())})


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
    """Drop a cause that only another version knows; the reason describes it."""
    return None if isinstance(value, str) and value not in set(Cause) else value


class Failure(Record):
    """First failure of one start of a run: logs/failure.START.json."""

    rank: Count | None = None
    reason: Text = "no reason was given"
    retry: bool = False  # another start may succeed
    expected: bool = False  # the reason needs no traceback
    cause: Annotated[Cause | None, BeforeValidator(_known_cause)] = None


class Event(Record):
    """One line of events.jsonl."""

    event: Text = ""
    time: Seconds | None = None
    reason: Text | None = None
    because: Text | None = None  # of a requeue: "warned" or "failed"
    attempt: Count | None = None
    of: Count | None = None
    at: tuple[Count, Count] = (0, 0)  # epoch and step of the last checkpoint before a requeue
    epoch: Count = 0
    step: Count = 0
    start: Count | None = None
    precision: Text | None = None
    channels_last: bool | None = None
    threads: Count | None = None  # of rank 0


def read_events(run: RunDir) -> list[Event]:
    """Return all events of a run in order."""
    return [Event.from_values(line, run.events.name) for line in run.read_events()]


def section(value: object) -> dict[str, Any]:
    """Return `value` if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _explain(name: str, item: Any) -> str:
    location, value = ".".join(str(key) for key in item["loc"]), repr(item["input"])
    shown = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]} …"
    message = plain_message(item)
    return printable(f"{name}: {location} = {shown}: {message[:1].lower()}{message[1:]}")
