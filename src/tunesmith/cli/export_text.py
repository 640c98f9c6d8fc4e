"""What export, parity and sweep say on the terminal, from their records."""

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from tunesmith.rundir.records.export import ExportPlan
from tunesmith.rundir.records.parity import CheckState, FormState, Parity, Sweep
from tunesmith.tracking import visible

MARKS: dict[CheckState, Text] = {
    "pass": Text("ok", "green"),
    "fail": Text("FAIL", "bold red"),
    "unknown": Text("?", "yellow"),
    "shown": Text(""),
}
STYLES: dict[FormState, str] = {"deployable": "", "unknown": "yellow", "not deployable": "bold red"}


def print_parity(result: Parity, console: Console) -> None:
    """Forms and checks, then why a form is not deployable and where it first says something else."""
    table = Table("form", "template", "ids", "mean KL", "greedy", "adapter", "metric", "", box=box.SIMPLE, pad_edge=False)
    for form in result.forms:
        marks = {name: MARKS[check.state] for name, check in form.checks.items()}
        mean, greedy = "", ""
        if form.figures is not None:
            mean = "" if form.figures.kl_mean is None else f"{form.figures.kl_mean:.1e} "
            greedy = f"{100 * form.figures.agreement_or_tie:.1f} %"
        columns = {name: marks.get(name, Text("-")) for name in ("template", "token ids", "distribution", "adapter", "metric")}
        table.add_row(
            Text(form.form),
            columns["template"],
            columns["token ids"],
            Text(mean) + columns["distribution"],
            greedy,
            columns["adapter"],
            columns["metric"],
            Text(form.state, STYLES[form.state]),
        )
    console.print(table)
    for line in parity_lines(result):
        console.print(Text(visible(line)), soft_wrap=True)


def parity_lines(result: Parity) -> list[str]:
    """What stands below the table: failed and undecided checks, first divergences, what was left out."""
    lines: list[str] = []
    for form in result.forms:
        name, divergence = form.form, form.divergence
        unsettled = {check: entry for check, entry in form.checks.items() if entry.state in ("fail", "unknown")}
        lines += [f"{name}: {check}: {entry.summary}" for check, entry in unsettled.items()]
        if divergence is not None:
            lag = f"{'a tie, ' if divergence.tie else ''}{divergence.lag:.2g} nats"
            nexts = f"the trained model says {divergence.reference!r}, the form {divergence.form!r}"
            lines.append(f"{name}: first divergence ({lag}): prompt {divergence.prompt}: after {divergence.so_far!r} {nexts}")
        if form.control_tokens:
            parsed = ", ".join(form.control_tokens)
            lines.append(f"{name}: its engine parses control tokens in user text, which training takes as text: {parsed}")
    lines += [f"left out: prompt {prompt}: {reason}" for prompt, reason in result.left_out.items()]
    if result.metric.reason is not None:
        lines.append(f"metric not compared: {result.metric.reason}")
    if result.state == "unknown":
        lines.append(
            "unknown: a form that differs by design is deployable where the metric shows that it does the task as well; "
            "here the deployed arm on the test part decides: tunesmith verdict RUN"
        )
    measured = f"{len(result.prompts)} prompts, {result.positions} positions, reference in {result.arithmetic}"
    return [*lines, f"{measured}; the adapter moves it {result.adapter_kl:.2g} nats from its base"]


def plan_lines(plan: ExportPlan) -> list[str]:
    """Every step with its size, then the total, what is temporary, and the room on the disk."""
    lines: list[str] = []
    for step in plan.steps:
        note = f"  and {decimal(step.scratch_bytes)} meanwhile" if step.scratch_bytes else ""
        note = f"  until {step.until} is there" if step.until else note
        lines.append(f"{step.kind:<12}  {step.target:<36}  {decimal(step.bytes, precision=2):>9}{note}")
    sizes = (plan.bytes, plan.peak_bytes, plan.peak_bytes - plan.bytes)
    size, at_most, temporary = (decimal(count, precision=2) for count in sizes)
    lines.append(f"total {size}, at most {at_most} at a time, of which {temporary} temporary")
    lines.append(f"free on the disk: {decimal(plan.free_bytes, precision=2)}; the old export stays until the end")
    return lines


def sweep_lines(result: Sweep) -> list[str]:
    """The types, largest file first, and the one to take."""
    width = max(len(entry.type) for entry in result.types)
    lines = [f"{'type':<{width}} {'MB':>8} {'bits':>6} {'score':>7}  against the tuned model"]
    for entry in result.types:
        size, bits, score = entry.bytes / 1e6, entry.bits_per_weight, 100 * entry.task.score
        lines.append(f"{entry.type:<{width}} {size:>8.1f} {bits:>6.2f} {score:>7.1f}  {entry.summary}")
    return [*lines, f"recommended: {result.recommended or 'none of them'}: {result.reason}"]
