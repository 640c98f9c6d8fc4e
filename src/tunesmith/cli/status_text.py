"""How the stages of a run stand, as a table."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.rundir.records.stages import Status

STYLES = {"done": "green", "never": "dim", "stale": "yellow", "broken": "bold red", "waiting": "dim"}
SHOWN = 3  # reasons a stage


def print_status(status: Status, console: Console) -> None:
    """Every stage in order: its state, why, how long it took and its largest memory, on stdout."""
    table = Table("stage", "state", "seconds", "GB", "why", box=box.SIMPLE, pad_edge=False)
    for column in table.columns[2:4]:
        column.justify = "right"
    for stage in status.stages:
        seconds = "" if stage.seconds is None else f"{stage.seconds:,.1f}"
        memory = "" if stage.peak_bytes is None else f"{stage.peak_bytes / 1e9:.1f}"
        more = [f"and {len(stage.why) - SHOWN} more"] if len(stage.why) > SHOWN else []
        why = Text("\n".join([*stage.why[:SHOWN], *more]))
        table.add_row(Text(stage.stage), Text(stage.state, STYLES[stage.state]), seconds, memory, why)
    console.print(table)
    if status.writer is not None:
        console.print(Text(f"{status.run} is being written by {status.writer}"), soft_wrap=True)
