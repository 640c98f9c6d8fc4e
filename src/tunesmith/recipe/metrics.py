"""The metrics by name: what each is, which keys of ``task`` it reads, and which it cannot do without.

This is the half of a metric that a recipe must know, so it stands on the floor and imports nothing. The other half, how an
answer is scored, is the table ``METRICS`` of ``tunesmith.evaluate.metrics``; a test holds both to the same names. A new
metric is one file there, a line in that table, and its line here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MetricKeys:
    """What a recipe has to know of a metric.

    Attributes:
        description: one line for people.
        reads: keys of ``task`` that some metrics read and this one does too; any other such key is an error beside it.
        needs: keys without which it cannot score, ``judge.model`` for a key of a section.
        within_text: whether it finds the answer in a longer text, so that a prompt may let the model reason first.
    """

    description: str
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    within_text: bool = False


METRIC_KEYS: dict[str, MetricKeys] = {
    "exact_match": MetricKeys(description="equal on a ladder of normalisations; strict equality beside it"),
    "classification": MetricKeys(
        description="one of fixed labels; what is none of them is invalid, and wrong",
        reads=("labels", "constrained"),
        needs=("labels",),
    ),
    "macro_f1": MetricKeys(
        description="the mean of F1 over the labels that occur among the references",
        reads=("labels", "constrained"),
        needs=("labels",),
    ),
    "calibrated": MetricKeys(
        description="the likeliest label, by log-probability; macro-F1, calibration, and coverage at a precision beside it",
        reads=("labels", "target_precision"),
        needs=("labels",),
    ),
    "json": MetricKeys(
        description="the same object; parse, schema and field F1 beside it",
        reads=("json_schema", "constrained"),
        within_text=True,
    ),
    "tool_calls": MetricKeys(
        description="the same functions called with the same arguments; malformed and lost calls counted apart",
        within_text=True,
    ),
    "rouge": MetricKeys(description="F-measure of ROUGE-L; ROUGE-1 and ROUGE-2 beside it (extra metrics)"),
    "bleu": MetricKeys(description="BLEU of all rows together; chrF beside it (extra metrics)"),
    "numeric": MetricKeys(
        description="the last number or date, with its unit, within a tolerance", reads=("tolerance",), within_text=True
    ),
    "regex": MetricKeys(
        description="what a pattern finds equals what it finds in the reference",
        reads=("pattern",),
        needs=("pattern",),
        within_text=True,
    ),
    "code": MetricKeys(
        description="the reference's tests pass, in a sandbox (pass@1)",
        reads=("tests", "allow_code"),
        needs=("tests",),
        within_text=True,
    ),
    "python": MetricKeys(description="a function of the user's", reads=("function",), needs=("function",)),
    "judge": MetricKeys(
        description="a model compares the answer with the best prompt's, after deterministic checks",
        reads=("judge", "json_schema", "pattern"),
        needs=("judge.base_url", "judge.model", "judge.rubric"),
    ),
}


def readers(key: str) -> tuple[str, ...]:
    """Metrics that read a key of ``task``."""
    return tuple(name for name, keys in METRIC_KEYS.items() if key in keys.reads)
