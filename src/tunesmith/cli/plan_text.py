"""What ``plan`` says on the terminal, from its records."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.formatting import gb
from tunesmith.rundir.records.plan import DiskPlan, PlanReport, TechniqueTable
from tunesmith.tracking import visible


def print_plan(report: PlanReport, console: Console) -> None:
    """The terms of the peak, the plan, its time and price, and what was passed over."""
    table = Table(f"at the peak, {_pass(report.where)}", "GB", "share", box=box.SIMPLE, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, nbytes in report.terms.items():
        if nbytes >= 0.0005e9:
            table.add_row(Text(name), f"{nbytes / 1e9:.3f}", f"{100 * nbytes / report.peak_bytes:.0f} %")
    table.add_section()
    table.add_row("tensors", f"{report.peak_bytes / 1e9:.3f}", "100 %")
    table.add_row("lost to the allocator", f"{(report.reserved_bytes - report.peak_bytes) / 1e9:.3f}", "")
    table.add_row("the process's own", f"{report.place.context_bytes / 1e9:.3f}", "")
    console.print(table)
    for line in plan_lines(report):
        console.print(Text(visible(line)), soft_wrap=True)


def plan_lines(report: PlanReport) -> list[str]:
    """Whether it fits, how, how fast, and what does not."""
    place = report.place
    against = f"{gb(report.needs_bytes)} of the {gb(place.budget_bytes)} of {place.name}"
    lines = [
        f"{'fits' if report.fits else 'does not fit'}: {against}, {report.tokens:,} tokens a micro-batch, base {report.base}"
    ]
    words = ", ".join(f"{key} {_value(value)}" for key, value in report.plan.items())
    lines.append(f"{'plan' if report.fits else 'the least that it takes'}: {words}")
    if report.extra_bytes:
        lines.append(f"base_budget: {gb(report.extra_bytes)} of it are bits of the base beyond NF4")
    if report.spare_bytes:
        lines.append(f"spare: {gb(report.spare_bytes)}, which base_budget: auto would give to the layers that matter most")
    if report.rounds:
        lines.append("this rounds what other plans keep exact (8 bits of head or moments); none of those fits")
    if report.seconds is not None and report.tokens_per_second is not None:
        whence = "measured here" if place.rates_measured else "from the table of cards"
        speed = f"{1000 * report.seconds:,.0f} ms a micro-batch, {report.tokens_per_second:,.0f} tokens/s"
        lines.append(f"predicted: {speed} (rates {whence})")
    if report.dollars_per_million_tokens is not None:
        price = f"{report.dollars_per_million_tokens:.3f} USD a million tokens of training"
        lines.append(f"rent: {price} at {place.dollars_per_hour:.2f} an hour: {place.price_source}")
    for other in report.passed_over[:3]:
        words = ", ".join(f"{key} {_value(value)}" for key, value in other.plan.items())
        over = f"{gb(other.needs_bytes)}, {gb(other.needs_bytes - place.budget_bytes)} too much"
        faster = ""
        if other.seconds is not None and report.seconds is not None and report.fits:
            faster = f"; would be {report.seconds / other.seconds:.2f} times as fast"
        lines.append(f"does not fit: {words}: {over}{faster}")
    if not place.context_measured and place.device == "gpu":
        lines.append(f"{gb(place.context_bytes)} for the process on the card is assumed; it is measured where a card is")
    return [*lines, *disk_lines(report.disk)]


def disk_lines(disk: DiskPlan) -> list[str]:
    """What lies beside all runs and what in this one, and whether there is room."""
    lines: list[str] = []
    parts = [f"{name} {gb(nbytes)}{' (there)' if name in disk.there else ''}" for name, nbytes in disk.cached.items()]
    missing = disk.missing_bytes
    line = f"disk, once for all runs: {', '.join(parts)}"
    if missing:
        line += f"; {gb(disk.cached_free)} are free in {disk.cached_in}{_short(missing, disk.cached_free)}"
    lines.append(line)
    parts = [f"{name} {gb(nbytes)}" for name, nbytes in disk.run.items()]
    room = f"{gb(disk.run_free)} are free{_short(disk.run_bytes, disk.run_free)}"
    lines.append(f"disk, in {disk.run_in}: {gb(disk.run_bytes)} at a time ({', '.join(parts)}); {room}")
    if disk.not_counted:
        lines.append(f"disk: not counted: {disk.not_counted}")
    return lines


def _short(needed: int, free: int) -> str:
    return f", {gb(needed - free)} too little" if needed > free else ""


def print_table(table: TechniqueTable, console: Console) -> None:
    """Model size by technique, GB of tensors; and milliseconds of a micro-batch on each card."""
    names = list(table.rows[0].bytes_by_technique)
    cards = list(table.rows[0].on_cards)
    shown = Table("model", *names, "published QLoRA", *cards, box=box.SIMPLE, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in table.rows:
        figures = [f"{nbytes / 1e9:.1f}" for nbytes in row.bytes_by_technique.values()]
        times = ["-" if seconds is None else f"{1000 * seconds:,.0f} ms" for seconds in row.on_cards.values()]
        shown.add_row(row.size, *figures, f"{row.published_bytes / 1e9:.0f}", *times)
    console.print(shown)
    console.print(
        Text(f"GB of tensors at the peak of a step of one micro-batch of {table.tokens:,} tokens, adapters of rank 16")
    )


def _pass(where: str) -> str:
    return {"forward": "in the forward pass", "backward": "in the backward pass", "update": "in the update"}[where]


def _value(value: str | int | tuple[int, ...]) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return f"layers {min(value, default=0)} to {max(value, default=0)}"
