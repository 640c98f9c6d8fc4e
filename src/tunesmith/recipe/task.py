"""Keys of the task: what is asked, and how an answer is scored.

Which keys a metric reads, and which it cannot do without, is a table (``metrics.py``); a key that the metric does not read
is an error.
"""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from tunesmith.recipe.metrics import METRIC_KEYS, readers
from tunesmith.recipe.section import Section


class Judge(Section):
    """The model that compares answers with those of the best prompt (metric: judge): an OpenAI-compatible endpoint."""

    base_url: str | None = Field(default=None, description="address of the endpoint, for example http://localhost:8080/v1")
    model: str | None = Field(default=None, description="the endpoint's name of a model, best of another family than ours")
    api_key_env: str | None = Field(default=None, description="name of the environment variable that holds the key")
    rubric: str | None = Field(default=None, description="what makes an answer the better one, in words")
    human_labels: Path | None = Field(
        default=None, description="JSONL file of {question, reference, a, b, label: a | b | tie}, against which it is checked"
    )


def _known_metric(name: str) -> str:
    if name not in METRIC_KEYS:
        near = difflib.get_close_matches(name, METRIC_KEYS, 1)
        raise ValueError(f"no such metric; did you mean {near[0]}?" if near else f"expected one of {', '.join(METRIC_KEYS)}")
    return name


MetricName = Annotated[str, AfterValidator(_known_metric), WithJsonSchema({"type": "string", "enum": [*METRIC_KEYS]})]
HeldTo = Literal["", "schema", "labels"]
SOME_READ = {key for keys in METRIC_KEYS.values() for key in keys.reads}


class Task(Section):
    """What is asked, and what counts as a right answer."""

    metric: MetricName = Field(description="how an answer is scored against the reference")
    json_schema: Path | None = Field(
        default=None, description="JSON schema file that every answer should meet (metric: json, judge)"
    )
    constrained: bool | Literal["auto"] = Field(
        default="auto",
        description="let the engine write nothing but what meets json_schema, or one of labels; true: in every arm alike; "
        "auto: prompts are tried on dev freely and held to it, tuned models answer freely; false: in no arm "
        "(metric: json, classification, macro_f1)",
    )
    labels: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        min_length=2,
        description="all classes; another answer is invalid (metric: classification, macro_f1, calibrated)",
    )
    target_precision: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.95, description="share of right answers among those that the model decides alone (metric: calibrated)"
    )
    tolerance: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        default=0.0,
        description="largest difference from the reference's number, in its unit, that is still right (metric: numeric)",
    )
    pattern: str | None = Field(
        default=None,
        description="regular expression: its group answer, or all of its last match, must equal what it finds in the reference "
        "(metric: regex); it must be found (metric: judge)",
    )
    tests: Path | None = Field(
        default=None, description="JSONL file of {reference, tests}: Python that a right program passes (metric: code)"
    )
    allow_code: bool | Literal["unconfined"] = Field(
        default=False,
        description="agree that programs written by a model run here; unconfined: also where this kernel cannot confine them "
        "(metric: code)",
    )
    function: str | None = Field(
        default=None, description="file.py:name of (answer, reference) -> score in 0..1, or a dict with one (metric: python)"
    )
    judge: Judge = Judge()
    prompt: str | None = Field(default=None, description="the full instruction, given as system turn to the prompt arms")
    short_prompt: str | None = Field(default=None, description="the system turn that the tuned model is trained and asked with")
    min_gain: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.03, description="smallest gain over the best prompt that is worth deploying"
    )
    certainty: Literal["better", "worth"] = Field(
        default="better",
        description="what deploying needs to be certain of: that the tuned model is better than every finalist (by min_gain is "
        "then likely), or worth it, better by min_gain",
    )
    min_score: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        default=None,
        description="smallest score that is good enough to be used, by a tuned model or a prompt; no bar when not given",
    )
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="answer budget; derived from the longest answer of the training part when not given"
    )

    @property
    def can_constrain(self) -> bool:
        """Whether the recipe says what an answer may be constrained to, and its metric lets it."""
        return "constrained" in METRIC_KEYS[self.metric].reads and not (self.json_schema is None and self.labels is None)

    @property
    def held_to(self) -> tuple[HeldTo, ...]:
        """The ways in which a prompt of the search is answered: freely, or constrained to the schema or the labels."""
        if not self.can_constrain or self.constrained is False:
            return ("",)
        kind: HeldTo = "labels" if self.json_schema is None else "schema"
        return (kind,) if self.constrained is True else ("", kind)

    @model_validator(mode="after")
    def _keys_of_the_metric(self) -> "Task":
        keys = METRIC_KEYS[self.metric]
        for key in sorted(SOME_READ - {*keys.reads}):
            if self.__dict__[key] != type(self).model_fields[key].default:
                raise ValueError(f"{key} is read by metric: {' or '.join(readers(key))} alone; leave it out")
        for key in keys.needs:
            value = self
            for part in key.split("."):
                value = value.__dict__[part]
            if not value:
                raise ValueError(f"metric: {self.metric} needs task.{key}")
        if self.constrained is True and self.json_schema is None and self.labels is None:
            raise ValueError("constrained needs task.json_schema, which says what may be written")
        if self.function is not None and not all(self.function.rpartition(":")[::2]):
            raise ValueError("function is written file.py:name")
        return self
