"""How the stages of a run stand, and where its time went, as tables."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.formatting import duration
from tunesmith.rundir.records.stages import StageRecord, Status

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


def print_times(stages: Mapping[str, StageRecord], console: Console) -> None:
    """Where the time of a finished run went: each stage's wall time, its share and its largest memory, on stdout."""
    table = Table("stage", "time", "share", "GB", box=box.SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    whole = sum(stage.seconds for stage in stages.values())
    for name, stage in stages.items():
        share = f"{100 * stage.seconds / whole:.0f} %" if whole else ""
        table.add_row(Text(name), duration(stage.seconds), share, f"{stage.peak_bytes / 1e9:.1f}")
    table.add_section()
    largest = max((stage.peak_bytes for stage in stages.values()), default=0)
    table.add_row("all", duration(whole), "", f"{largest / 1e9:.1f}")
    console.print(table)
