"""TensorBoard, by tensorboardX: event files in the run directory (``tensorboard/``), which ``tensorboard --logdir runs`` finds.

The one store that can take steps back: a file that begins with a session mark makes the viewer forget every point at and
above the mark's step (``purge_step``), whatever file they stand in. So a training that went back, or was begun anew, is shown
as it is. Texts and the scores of arms stand at the last step, and are written again only where they changed.

The event files are read back by the protocol classes that tensorboardX brings. A file's name has the second in which it was
opened, so each has a number as well: two within a second would be one file, and the first one's points lost.

Source: tensorboard/backend/event_processing/event_accumulator.py (what is purged), tensorboardX/record_writer.py (framing).
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.tracking.trackers.facts import Facts
from tunesmith.tracking.trackers.steps import LOSS, STEP, Point
from tunesmith.tracking.trackers.tracker import ErrorTypes, library

FOLDER = "tensorboard"
TEXT = "/text_summary"  # what the writer adds to the tag of a text
_UNFIT = re.compile(r"[^\w./-]")  # in a tag; the writer puts an underscore there, and so do we, to find it again
_LENGTH = struct.Struct("<Q")
_CRC = 4


class TensorBoard:
    """The event files of one run."""

    forgets = True
    errors: ErrorTypes = ()

    def __init__(self, facts: Facts):
        self._events = library("tensorboardX.proto.event_pb2", "tensorboard")
        self._open = library("tensorboardX", "tensorboard").SummaryWriter
        self._folder = facts.directory / FOLDER
        self._scalars: dict[str, dict[int, float]] = {}
        self._texts: dict[str, str] = {}
        self._writer: Any = None
        self._files = 0
        self._read()
        self.place = str(self._folder)
        self.look = f"tensorboard --logdir {self._folder}"

    def held(self) -> Mapping[int, float]:
        """The loss of every step in the files, as a viewer would show it."""
        return self._scalars.get(LOSS, {})

    def log(self, points: Sequence[Point]) -> None:
        """Append steps, and flush them to the file."""
        for point in points:
            for tag, value in point.values.items():
                if tag != STEP:
                    self._add_scalar(tag, value, point.step, point.at)
        if self._writer is not None:
            self._writer.flush()

    def forget_from(self, step: int) -> None:
        """Begin a file whose mark makes a viewer forget what stands at and above a step."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self._begin(step)
        self._purge(step)

    def summarise(self, facts: Facts, page: Path | None) -> None:
        """Write texts, and figures of the whole run at its last step, where they are not there."""
        step = facts.last_step
        for name, value in facts.numbers.items():
            tag = _UNFIT.sub("_", name)
            known = self._scalars.get(tag, {})
            if not known or not _same(known[max(known)], value):
                self._add_scalar(tag, value, step)
        words = {"recipe": f"```\n{facts.recipe}```", **facts.words, "tags": _lines(facts.tags)}
        for tag, text in words.items():
            if self._texts.get(f"{tag}{TEXT}") != text:
                self._write().add_text(tag, text, step)
                self._texts[f"{tag}{TEXT}"] = text

    def close(self, facts: Facts) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> Any:
        if self._writer is None:
            self._writer = self._begin(None)
        return self._writer

    def _begin(self, purge_step: int | None) -> Any:
        self._files += 1
        return self._open(str(self._folder), purge_step=purge_step, filename_suffix=f".{self._files:04}")

    def _add_scalar(self, tag: str, value: float, step: int, at: float | None = None) -> None:
        self._write().add_scalar(tag, value, step, walltime=at)
        self._scalars.setdefault(tag, {})[step] = value

    def _purge(self, step: int) -> None:
        for tag, values in self._scalars.items():
            self._scalars[tag] = {known: value for known, value in values.items() if known < step}

    def _read(self) -> None:
        files = sorted(self._folder.glob("events.out.tfevents.*"))
        self._files = len(files)
        for file in files:
            for event in self._events_of(file):
                if event.HasField("session_log"):
                    self._purge(event.step)
                for value in event.summary.value:
                    if value.HasField("simple_value"):
                        self._scalars.setdefault(value.tag, {})[event.step] = value.simple_value
                    elif value.tag.endswith(TEXT):
                        self._texts[value.tag] = value.tensor.string_val[0].decode("utf-8", "replace")

    def _events_of(self, file: Path) -> Iterator[Any]:
        """The records of a file; one that a kill cut short is left out, as the viewer does."""
        content, place = file.read_bytes(), 0
        while place + _LENGTH.size + _CRC <= len(content):
            (length,) = _LENGTH.unpack_from(content, place)
            place += _LENGTH.size + _CRC
            if place + length + _CRC > len(content):
                return
            yield self._events.Event.FromString(content[place : place + length])
            place += length + _CRC


def _same(stored: float, value: float) -> bool:
    """Whether a file's number, which has 32 bits, is this one."""
    return abs(stored - value) <= 1e-6 * max(1e-30, abs(value))


def _lines(tags: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in tags.items())
