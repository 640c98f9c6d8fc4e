"""Write data of any format as ``messages`` JSONL."""

from pathlib import Path

from tunesmith.data.convert import convert as write
from tunesmith.data.read import AS_FOUND, Reader, ReadOptions
from tunesmith.rundir.records.check import Conversion
from tunesmith.tracking import progress


def convert(source: str | Path, target: Path, options: ReadOptions | None = None, rejected: Path | None = None) -> Conversion:
    """Write data of any format as ``messages`` JSONL."""
    total = Reader(source, options or AS_FOUND).total_bytes
    with progress("converting", total) as bar:
        return write(source, target, options or AS_FOUND, rejected, bar.advance)
