"""What a record is: a frozen, keyword-only dataclass that a file of the run directory holds, strict when it is read.

Every file that outlives a process is written from a record and read back into one, so a page, a notebook, a server and the
command line name fields and not strings, and a file of another version is refused by name instead of failing somewhere
inside. A record that is a whole file has a ``version``; one that lies inside another goes by that one's.

Reading is pydantic's in strict mode: no text becomes a number, no unknown key is passed over. Writing is ours: plain JSON, keys
in the order of the fields, NaN and infinity refused (they are no JSON; a figure that was not measured is ``None``).

Refused: pydantic models (a record is made hundreds of times in loops that know their types; checking happens where bytes come
from outside); plain dictionaries, whose keys no checker knows.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError

from tunesmith.errors import RunError
from tunesmith.rundir.atomic import write_lines, write_text

Json = dict[str, JsonValue]  # an object of JSON


class Record:
    """Base of all records: how they are written, and what every one can do."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    def to_json(self) -> Json:
        """The fields as JSON-able values, nested records as objects, in the order of declaration."""
        assert dataclasses.is_dataclass(self)
        return {field.name: _json(self.__dict__[field.name]) for field in fields(self)}

    def _repr_html_(self) -> str:
        """The record as a table, for notebooks."""
        return _html(self)

    @classmethod
    def parse(cls, value: Json | bytes | str, where: str = "") -> Self:
        """The record of an object of JSON, or of its text.

        Args:
            where: what to call its origin in an error.

        Raises:
            RunError: another version, an unknown or missing field, or a value of another type.
        """
        text = value if isinstance(value, bytes | str) else json.dumps(value)
        try:
            return _adapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            raise RunError(
                f"{where or cls.__name__}: {field}: {first['msg'].lower()} (a {cls.__name__} is expected there)",
                "it is damaged or of another version of tunesmith; remove it, and the verb that writes it makes it again",
            ) from error

    @classmethod
    def read_lines(cls, path: Path) -> list[Self]:
        """The records of a file that holds one a line.

        Raises:
            RunError: not there, or a line that is no such record.
        """
        try:
            with path.open("rb") as lines:
                return [cls.parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
        except FileNotFoundError as error:
            raise RunError(f"{path}: not there", "the verb that writes it makes it again") from error

    @classmethod
    def write_lines(cls, path: Path, records: Iterable[Self]) -> None:
        """Write a file that holds one a line, whole or not at all."""
        write_lines(path, (record.to_json() for record in records))

    @classmethod
    def schema(cls) -> Json:
        """JSON schema of the file."""
        return _adapter(cls).json_schema()


@dataclass(frozen=True, kw_only=True)
class FileRecord(Record):
    """A record that is a file of its own.

    Attributes:
        version: of the file's form; another one is refused.
    """

    VERSION: ClassVar[int] = 1

    version: int = dataclasses.field(default=-1, repr=False)

    def __post_init__(self) -> None:
        if self.version == -1:
            object.__setattr__(self, "version", self.VERSION)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            RunError: the disk is full, or the place cannot be written.
        """
        write_text(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            RunError: not there, torn, or of another version.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise RunError(f"{path}: not there", "the verb that writes it makes it again") from error
        record = cls.parse(content, str(path))
        if record.version != cls.VERSION:
            raise RunError(
                f"{path}: version {record.version}, expected {cls.VERSION}",
                "it was written by another version of tunesmith; remove it, and the verb that writes it makes it again",
            )
        return record


def _html(value: Any) -> str:
    """A record or a dictionary as a table of its fields, several records as the rows of one, anything else as its text."""
    if isinstance(value, Record):
        assert dataclasses.is_dataclass(value)
        names = [field.name for field in fields(value) if field.repr]
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{_html(value.__dict__[name])}</td></tr>" for name in names)
        return f"<table>{rows}</table>"
    if isinstance(value, dict):
        named = cast("dict[object, Any]", value).items()
        return "".join(["<table>", *(f"<tr><th>{escape(str(k))}</th><td>{_html(v)}</td></tr>" for k, v in named), "</table>"])
    if isinstance(value, list | tuple):
        entries = list(cast("list[Any]", value))
        records = [entry for entry in entries if isinstance(entry, Record)]
        if records and len(records) == len(entries):
            names = list(records[0].to_json())
            head = "".join(f"<th>{escape(name)}</th>" for name in names)
            rows = ["".join(f"<td>{_html(record.__dict__[name])}</td>" for name in names) for record in records]
            return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
    return escape("" if value is None else str(cast("object", value)))


def _json(value: Any) -> JsonValue:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {str(key): _json(entry) for key, entry in cast(Json, value).items()}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in cast(tuple[Any, ...], value)]
    if isinstance(value, Path):
        return str(value)
    return value


@functools.cache
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
