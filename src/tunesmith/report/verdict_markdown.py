"""A verdict as Markdown, for whoever reviews the change that it judges: a pull request, a job's summary, a model card.

A reviewer has a minute: the decision in bold and why, the gain with its interval, what was checked around it, what nobody
knows, and the sha256 of the files it speaks of, folded away. Everything is a field of the record; nothing is computed here.

Texts come from recipes and models, so whatever Markdown or HTML could read as its own is escaped, and a name never breaks a
table. Row ids, prompts and answers are left out: such a page may be public.

Refused: a template language (one page, and its lines are its layout); the terminal's tables as a code block, which no phone
shows whole.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from tunesmith.formatting import percent, points, points_between
from tunesmith.rundir.records.evaluation import Verdict

_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|@~])")


def plain(text: str) -> str:
    """Other people's text in one line, with nothing in it that Markdown or HTML would read."""
    return _ACTIVE.sub(r"\\\1", " ".join(text.split()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict_markdown(verdict: Verdict, name: str, verdict_sha256: str) -> str:
    """The whole page.

    Args:
        name: of the run.
        verdict_sha256: of ``verdict.json``, which names the other files.
    """
    parts = [
        f"### {plain(name)}: **{verdict.decision}**",
        plain(verdict.reason),
        checks_table(verdict),
        arms_table(verdict),
        _listed("Not known", unknowns(verdict)),
        _listed("What would make it surer", [plain(sentence) for sentence in verdict.advice]),
        _folded(f"{len(verdict.files)} files that this speaks of (sha256)", files_table(verdict)),
        f"`verdict.json`: sha256 `{verdict_sha256}`; `tunesmith verify` holds a copy of the run against it.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def checks_table(verdict: Verdict) -> str:
    """The gain, what was asked, and each check around it."""
    return table(("", ""), [(f"**{what}**", found) for what, found in _checks(verdict)])


def _checks(verdict: Verdict) -> Iterator[tuple[str, str]]:
    c, terms = verdict.comparison, verdict.terms
    best = next((rival.way for rival in verdict.rivals if rival.name == verdict.best_prompt), verdict.best_prompt)
    prompt = next(rival.score for rival in verdict.rivals if rival.name == verdict.best_prompt)
    yield (
        f"{plain(verdict.candidate)} against the best prompt",
        f"{percent(verdict.score)} against {percent(prompt)} of {plain(best)}: **{points(c.gain)} points** "
        f"({c.level} % interval {points_between(c.low, c.high)})",
    )
    bar = "" if terms.min_score is None else f", a score of {percent(terms.min_score)}"
    yield "asked for", f"a gain of {percent(terms.min_gain)} points, certainly {terms.certainty}{bar}"
    left_out = f", {verdict.unscored} without a score" if verdict.unscored else ""
    yield "measured on", f"{verdict.n} sealed test rows{left_out}, {plain(verdict.metric)}"
    if verdict.forgetting is not None:
        yield "forgetting", f"{verdict.forgetting.verdict}: {plain(verdict.forgetting.reason)}"
    if verdict.parity is not None:
        why = f": {plain(verdict.parity.reason)}" if verdict.parity.reason else ""
        yield f"parity of {plain(verdict.parity.form)}", f"{verdict.parity.state}{why}"
    if loss := verdict.deployed_loss:
        yield (
            f"deployed against {plain(verdict.in_process)}",
            f"{points(loss.gain)} points (95 % interval {points_between(loss.low, loss.high)})",
        )
    if seeds := verdict.seeds:
        yield f"{len(seeds.runs)} seeds", f"{percent(seeds.min)} to {percent(seeds.max)} (sd {percent(seeds.sd)} points)"
    if verdict.judge is not None:
        calibration = verdict.judge.calibration
        yield "judge", f"{'calibrated' if calibration.calibrated else 'uncalibrated'}: {plain(calibration.reason)}"
    if verdict.saving is not None:
        yield "saving", plain(verdict.saving.line)


def arms_table(verdict: Verdict) -> str:
    """Score and gain of every arm, each with its interval."""
    rows: list[tuple[str, ...]] = []
    for arm in verdict.arms:
        against = arm.against
        gain = ("", "", "")
        if against is not None:
            p = f"{against.p:.3f}" if against.p >= 0.001 else "<.001"
            gain = (points(against.gain), points_between(against.low, against.high), plain(p))
        name = plain(arm.name)
        shown = f"**{name}**" if arm.name == verdict.candidate else name
        rows.append((shown, percent(arm.score), f"{percent(arm.low)} to {percent(arm.high)}", *gain))
    return table(("arm", "score", "95 %", "gain", f"{verdict.comparison.level} % of gain", "p"), rows)


def unknowns(verdict: Verdict) -> list[str]:
    """What nobody measured, and what was measured and could not be told."""
    lines: list[str] = []
    if verdict.forgetting is None:
        lines.append("what was forgotten beside the task: it was not measured")
    elif verdict.forgetting.verdict not in ("regression", "no regression"):
        lines.append(f"what was forgotten: {plain(verdict.forgetting.reason)}")
    if verdict.parity is None:
        lines.append("whether an exported file is the model that was trained: no form was held against it")
    elif verdict.parity.state == "unknown":
        lines.append(f"whether {plain(verdict.parity.form)} is the model that was trained: {plain(verdict.parity.reason)}")
    if verdict.seeds is None and verdict.form == "trained":
        lines.append("how much is the luck of one seed: one adapter was trained")
    if verdict.terms.min_score is None:
        lines.append("whether the score is good enough for the purpose: no bar was set (task.min\\_score)")
    if verdict.unscored:
        lines.append(f"the score of {verdict.unscored} rows, which are left out")
    if verdict.borderline:
        lines.append("the other side of the line: one standard error of gain would decide otherwise")
    return lines


def files_table(verdict: Verdict) -> str:
    """Every file that the verdict speaks of with its sha256; of a source outside of the run the name alone."""
    sources = [(f"(source) {PurePath(path).name}", digest) for path, digest in verdict.sources.items()]
    shown = [(plain(name), f"`{digest}`") for name, digest in (*verdict.files.items(), *sources)]
    return table(("file", "sha256"), shown) if shown else ""


def _listed(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([f"**{heading}**", "", *(f"- {line}" for line in lines)]) if lines else ""


def _folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>" if text else ""
