"""What the page of a run shows, part by part: each part is gathered from records and events, and filled in alone.

The page and its renewal are one code: a browser that hears of an event fetches the parts that depend on it, whole, so nothing
is ever added twice and a page that was reloaded shows what a page that stayed open shows. Which events a part depends on stands
in its template (``data-on``).

A file of another version of tunesmith, or a damaged one, spoils its own part alone, which says so.
"""

import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from tunesmith.errors import TunesmithError
from tunesmith.formatting import duration, gb
from tunesmith.pipeline import stage as stages
from tunesmith.pipeline.table import table_of
from tunesmith.rundir.lock import writer_of
from tunesmith.rundir.records import FileRecord
from tunesmith.rundir.records.check import DataReport
from tunesmith.rundir.records.evaluation import Verdict
from tunesmith.rundir.records.stages import StageRecord, Status
from tunesmith.rundir.records.training import Training
from tunesmith.web import pages
from tunesmith.web.arms import arm_lines
from tunesmith.web.curves import curves_of
from tunesmith.web.life import Feed, Life, Standing, standing

PARTS = ("now", "verdict", "arms", "training", "stages", "warnings", "data")

F = TypeVar("F", bound=FileRecord)


@dataclass(frozen=True, kw_only=True)
class StageLine:
    """A stage as the page lists it.

    Attributes:
        state: a word.
        time: that it took, or takes so far; empty where it was not made.
        memory: its largest.
        why: it is not done, or what it failed of.
    """

    name: str
    state: str
    time: str = ""
    memory: str = ""
    why: str = ""


class RunPage:
    """The page of one run.

    Args:
        name: it is shown under.
        feed: its events.
        has_chat: whether there is a page to ask its model.
    """

    def __init__(self, name: str, feed: Feed, has_chat: bool = False):
        self.name, self.feed, self.run, self.has_chat = name, feed, feed.run, has_chat
        self._status: tuple[object, Status] | None = None
        self._lock = threading.Lock()

    def whole(self) -> str:
        """The page."""
        with self.feed.look() as (life, position):
            parts = {part: self._part(part, life) for part in PARTS}
            word = self._standing(life)
        return pages.fill("run.html.j2", name=self.name, parts=parts, position=position, word=word, has_chat=self.has_chat)

    def parts(self, names: list[str]) -> str:
        """Some parts, one after another; names that are none are passed over."""
        with self.feed.look() as (life, _):
            return "\n".join(self._part(name, life) for name in PARTS if name in names)

    def _part(self, part: str, life: Life) -> str:
        gather: Mapping[str, Callable[[Life], dict[str, object]]] = {
            "now": self._now,
            "verdict": self._verdict,
            "arms": self._arms,
            "training": self._training,
            "stages": self._stages,
            "warnings": self._warnings,
            "data": self._data,
        }
        try:
            return pages.fill(f"part_{part}.html.j2", name=self.name, **gather[part](life))
        except (TunesmithError, OSError) as error:
            return pages.fill("part_broken.html.j2", part=part, error=str(error))

    def _standing(self, life: Life) -> Standing:
        return standing(life, writer_of(self.run.path), self.run.verdict_file.exists())

    def _now(self, life: Life) -> dict[str, object]:
        writer = writer_of(self.run.path)
        word = standing(life, writer, self.run.verdict_file.exists())
        process = life.process if writer is not None and f"process {life.process} " in writer else None
        verdict = self._read(Verdict, self.run.verdict_file)
        last, steps = life.last_stage, life.steps
        return {
            "word": word,
            "last": last,
            "seconds": None if last is None else datetime.now(UTC).timestamp() - last.began,
            "bars": list(life.bars.values()) if word in ("running", "killed") else [],
            "step": steps.steps[-1] if len(steps.steps) else None,
            "decision": None if verdict is None else verdict.decision,
            "stale": self._stale() if word == "done" else "",
            "writer": writer,
            "process": life.process,
            "memory": None if process is None else resident(process),
            "resume": shlex.join(["tunesmith", "run", str(self.run.path)]),
            "stop": None if process is None else f"kill -INT {process}",
            "damage": life.damage,
            "seen": when(life.last_at) if life.last_at else "",
        }

    def _verdict(self, life: Life) -> dict[str, object]:
        verdict = self._read(Verdict, self.run.verdict_file)
        return {
            "verdict": verdict,
            "is_outdated": verdict is not None and _is_older(life),
            "has_report": self.run.report_file.exists(),
        }

    def _arms(self, life: Life) -> dict[str, object]:
        verdict = self._read(Verdict, self.run.verdict_file)
        if verdict is not None and _is_older(life):
            verdict = None
        metric = self.run.recipe().task.metric
        return {"verdict": verdict, "lines": arm_lines(self.run, life, verdict), "metric": metric}

    def _training(self, life: Life) -> dict[str, object]:
        training = self._read(Training, self.run.training_file)
        return {"training": training, "curves": curves_of(life.steps, training)}

    def _warnings(self, life: Life) -> dict[str, object]:
        lines = [(when(datetime.fromisoformat(line.at).timestamp()), line.stage, line.message) for line in life.warnings]
        return {"lines": lines[::-1], "count": life.warned}

    def _data(self, life: Life) -> dict[str, object]:
        report = self._read(DataReport, self.run.data_report_file)
        findings = [] if report is None else report.check.quality.findings
        order = ("wrong", "suspect", "note")
        return {"report": report, "findings": sorted(findings, key=lambda finding: order.index(finding.severity))}

    def _stages(self, life: Life) -> dict[str, object]:
        recipe, records, word = self.run.recipe(), self.run.stages(), self._standing(life)
        states = {} if word == "running" else {state.stage: state for state in self._settled().stages}
        lines: list[StageLine] = []
        for name in [stage.name for stage in table_of(recipe).stages]:
            known, made = records.get(name), life.stages.get(name)
            facts = {"time": "", "memory": ""} if known is None else _facts(known)
            if made is not None and made.outcome != "done":
                state = made.outcome if word == "running" or made.outcome != "running" else "killed"
                end = made.ended or (datetime.now(UTC).timestamp() if state == "running" else life.last_at)
                lines.append(StageLine(name=name, state=state, time=duration(max(0.0, end - made.began)), why=made.error))
            elif name in states and states[name].state != "done":
                why = stages.reason(states[name]) if known is not None else ""
                lines.append(StageLine(name=name, state="to come" if known is None else states[name].state, **facts, why=why))
            else:
                lines.append(StageLine(name=name, state="to come" if known is None else "done", **facts))
        return {"lines": lines, "total": duration(sum(record.seconds for record in records.values()))}

    def _stale(self) -> str:
        """The first stage that is not done, and why; empty where all are."""
        state = next((state for state in self._settled().stages if state.state != "done"), None)
        return "" if state is None else f"{state.stage} is {state.state}, {stages.reason(state)}"

    def _settled(self) -> Status:
        """What ``status`` says; it hashes what changed, so its answer is kept while the record of stages is the same."""
        run, recipe = self.run, self.run.recipe()
        state = [(file.stat().st_mtime_ns, file.stat().st_size) for file in (run.recipe_file, run.stages_file) if file.exists()]
        with self._lock:
            if self._status is None or self._status[0] != state:
                self._status = (state, stages.status(run, table_of(recipe), recipe))
            return self._status[1]

    def _read(self, kind: type[F], path: Path) -> F | None:
        return kind.read(path) if path.exists() else None


def when(at: float) -> str:
    """A moment, for people."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def resident(process: int) -> str | None:
    """The memory of a process now, and the most that it held, for people; None where it cannot be read."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    sizes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if name in ("VmRSS", "VmHWM")}
    if len(sizes) < 2:
        return None
    return f"{gb(1024 * int(sizes['VmRSS']))}, {gb(1024 * int(sizes['VmHWM']))} at most"


def _facts(record: StageRecord) -> dict[str, str]:
    return {"time": duration(record.seconds), "memory": gb(record.peak_bytes)}


def _is_older(life: Life) -> bool:
    """Whether stages before the verdict were begun again since it was given."""
    names = list(life.stages)
    return "verdict" in names and any(name != "report" for name in names[names.index("verdict") + 1 :])
