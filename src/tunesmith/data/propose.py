"""A first recipe from a check of the rows: which metric fits the answers, what a row needs, and a comment that says why.

The metric is told from the answers, the strictest that suits them first: calls of functions, classes, JSON objects, numbers,
long texts, and equality for what is left. Whether every reference scores under a metric is not guessed here:
``pipeline/init.py`` asks the metric, and takes the first under which all do. Labels come from the rows
themselves, since a report's names of classes are excerpts.

Refused: questions to the user. What the rows do not say (the two prompts, the smallest gain worth having) stands in the file as
a comment to fill, because nothing that we could ask on a terminal is easier to answer there.
"""

from dataclasses import dataclass

from tunesmith.data.classes import MOST_CLASSES, SHORT
from tunesmith.data.read import AS_FOUND, ReadOptions
from tunesmith.recipe import yaml_line
from tunesmith.rundir.records.check import CheckReport, TokenReport
from tunesmith.rundir.records.quality import QualityReport

UNEVEN = 0.8  # share of the largest class from which accuracy flatters
LONG = 20  # words of the middle answer from which equality asks too much
STEP = 64  # max_length is a multiple of this, with as much room for task.short_prompt


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A metric for the answers.

    Attributes:
        metric: its name.
        reason: what was seen, one line.
        labels: all classes, the most frequent first; None with a metric that has none.
    """

    metric: str
    reason: str
    labels: tuple[str, ...] | None = None


def proposals(quality: QualityReport, labels: tuple[str, ...], calls: int = 0) -> list[Proposal]:
    """Metrics that suit the answers, the best first; ``exact_match``, under which any answer scores, is the last.

    Args:
        labels: different answers of the rows, the most frequent first, those that a metric cannot tell apart left out.
        calls: rows whose answer calls functions; where there are some, nothing else scores all rows.
    """
    if calls:
        reason = f"the answers of {calls:,} rows call functions: right is the same functions with the same arguments"
        return [Proposal(metric="tool_calls", reason=reason)]
    suitable: list[Proposal] = []
    classes, majority = quality.classes, quality.formats.majority
    if classes is not None and 2 <= len(labels) <= MOST_CLASSES and max(map(len, labels)) <= SHORT:
        share = classes.majority_share
        seen = f"the answers are {len(labels)} classes, the largest {share:.0%} of the rows"
        if share >= UNEVEN:
            reason = f"{seen}; always answering that one would score {share:.0%} under accuracy, so each class counts alike"
            suitable.append(Proposal(metric="macro_f1", reason=reason, labels=labels))
        else:
            suitable.append(Proposal(metric="classification", reason=seen, labels=labels))
    if majority == "JSON object" and quality.json is not None:
        keys = f"{quality.json.common_share:.0%} with the same {len(quality.json.common_keys)} keys"
        reason = f"the answers are JSON objects, {keys}; json_schema: FILE would check each answer's form as well"
        suitable.append(Proposal(metric="json", reason=reason))
    if majority == "number":
        suitable.append(Proposal(metric="numeric", reason="the answers are numbers; tolerance: 0.01 would allow a difference"))
    words = quality.lengths.answer_words.median
    if majority == "text" and words > LONG:
        reason = f"the answers are texts of {words} words in the middle, which no model repeats to the letter: overlap counts"
        suitable.append(Proposal(metric="rouge", reason=reason))
    form = majority or "of several forms"
    reason = f"the answers are {form}, {words} words in the middle: right is what equals the reference"
    return [*suitable, Proposal(metric="exact_match", reason=reason)]


def recipe_text(
    report: CheckReport,
    proposal: Proposal,
    *,
    path: str,
    model: str,
    data: str,
    options: ReadOptions = AS_FOUND,
    is_split: bool = False,
    misfits: tuple[str, ...] = (),
) -> str:
    """A commented recipe.

    Args:
        path: of the recipe, for the commands that it names.
        model, data: as the recipe names them, relative to its place.
        options: how the rows were read, where that was said.
        is_split: whether they are split already.
        misfits: metrics that suit most answers, each with the row that it cannot score.
    """
    lines = [
        f"# Proposed by tunesmith init from {report.reading.rows:,} rows (format {report.reading.format}).",
        "# Read it, fill the two prompts below, then:",
        f"#   tunesmith advise {path} --quick    # is it worth it?",
        f"#   tunesmith run {path}               # everything, from data to verdict",
        yaml_line("model", model),
        "",
        "data:",
        "  " + yaml_line("path", data),
    ]
    named = {
        "format": options.format,
        "columns": options.columns,
        "encoding": options.encoding,
        "delimiter": options.delimiter,
        "turns": None if options.turns == "refuse" else options.turns,
        "reasoning": options.reasoning,
        "take": options.take,
    }
    lines += ["  " + yaml_line(key, value) for key, value in named.items() if value is not None]
    if is_split:
        lines += ["  # The files bring their own parts; drawn would put all rows together and draw new ones.", "  split: given"]
    lines += ["", "task:", f"  # {proposal.reason}", *(f"  # not {misfit}" for misfit in misfits)]
    lines.append("  " + yaml_line("metric", proposal.metric))
    if proposal.labels is not None:
        lines.append("  " + yaml_line("labels", list(proposal.labels)))
    lines += [
        "  # The best instruction that you can write: the tuned model has to beat it.",
        "  # prompt: ...",
        "  # What the tuned model is asked with, in a few words; leave it out where the rows bring a system turn.",
        "  # short_prompt: ...",
        "  # The smallest gain over the best prompt that is worth deploying to you.",
        "  # min_gain: 0.03",
    ]
    return "\n".join([*lines, *_train_lines(report.tokens), ""])


def _train_lines(tokens: TokenReport | None) -> list[str]:
    if tokens is None or not tokens.rows:
        return []
    longest = tokens.lengths.max
    keep = f"95 % within {tokens.too_long.keep['95']:,}, 99 % within {tokens.too_long.keep['99']:,}, the longest {longest:,}"
    lines = [
        "",
        "train:",
        f"  # tokens of {tokens.rows:,} rows in the model's template: {keep}; the rest is for short_prompt",
    ]
    if tokens.refusals.count:
        lines.append(f"  # the template refuses {tokens.refusals.count:,} rows: tunesmith check DATA --model MODEL says why")
    return [*lines, "  " + yaml_line("max_length", (longest + STEP + STEP - 1) // STEP * STEP)]
