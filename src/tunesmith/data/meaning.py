"""What rows mean that are read to be written or rendered, and not to be looked at: the part of a check that costs little.

Duplicates, classes and secrets take five times as long as reading does and are ``check``'s. Whether rows teach something else
than their author meant is searched for here, in bytes, by every verb that hands them on: nobody else looks before training.
"""

from tunesmith.data.finding import recorded
from tunesmith.data.misread import Misread
from tunesmith.data.normalize import as_binary
from tunesmith.data.places import Places
from tunesmith.data.task_columns import task_finding
from tunesmith.rundir.records.check import Reading
from tunesmith.rundir.records.quality import CheckFinding
from tunesmith.rundir.rows import Row


class Meaning:
    """Collects over a stream: ``add`` each batch, then ``findings``.

    Args:
        reasoning_is_text: as of ``Misread``.
    """

    def __init__(self, *, reasoning_is_text: bool = False):
        self._misread = Misread(reasoning_is_text=reasoning_is_text)
        self._places = Places()
        self._rows = 0

    def add(self, rows: list[Row]) -> None:
        """Look at the next rows, at least one."""
        self._places.add(rows)
        self._misread.add(rows, as_binary([message["content"] for row in rows for message in row.messages]), self._rows)
        self._rows += len(rows)

    def findings(self, reading: Reading) -> tuple[CheckFinding, ...]:
        """What was found, with the places of the rows that show it.

        Args:
            reading: how the rows were read.
        """
        found = [*self._misread.findings(self._rows), *task_finding(reading)]
        places = self._places.find({example.row for finding in found for example in finding.examples})
        return tuple(recorded(finding, places) for finding in found)
