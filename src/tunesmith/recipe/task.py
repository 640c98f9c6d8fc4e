"""Keys of the task: what is asked, and how an answer is scored.

Which keys a metric reads, and which it cannot do without, are tables; a key that the metric does not read is an error.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

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


# Keys that only some metrics read, and keys without which a metric cannot score.


READ_BY = {
    "json_schema": ("json", "judge"),
    "constrained": ("json", "classification", "macro_f1"),
    "labels": ("classification", "macro_f1"),
    "tolerance": ("numeric",),
    "pattern": ("regex", "judge"),
    "tests": ("code",),
    "allow_code": ("code",),
    "function": ("python",),
    "judge": ("judge",),
}


NEEDED = {
    "classification": ("labels",),
    "macro_f1": ("labels",),
    "regex": ("pattern",),
    "code": ("tests",),
    "python": ("function",),
    "judge": ("judge.base_url", "judge.model", "judge.rubric"),
}


class Task(Section):
    """What is asked, and what counts as a right answer."""

    metric: Literal[
        "exact_match", "classification", "macro_f1", "json", "rouge", "bleu", "numeric", "regex", "code", "python", "judge"
    ] = Field(description="how an answer is scored against the reference")
    json_schema: Path | None = Field(
        default=None, description="JSON schema file that every answer should meet (metric: json, judge)"
    )
    constrained: bool = Field(
        default=False,
        description="let the engine write nothing but what meets json_schema, or one of labels, in every arm alike "
        "(metric: json, classification, macro_f1)",
    )
    labels: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None, min_length=2, description="all classes; any other answer is invalid (metric: classification, macro_f1)"
    )
    tolerance: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        default=0.0, description="largest difference from the reference's last number that is still right (metric: numeric)"
    )
    pattern: str | None = Field(
        default=None,
        description="regular expression that a right answer holds; a group named answer must also equal the reference's "
        "(metric: regex, judge)",
    )
    tests: Path | None = Field(
        default=None, description="JSONL file of {reference, tests}: Python that a right program passes (metric: code)"
    )
    allow_code: bool = Field(default=False, description="agree that programs written by a model run here (metric: code)")
    function: str | None = Field(
        default=None, description="file.py:name of (answer, reference) -> score in 0..1, or a dict with one (metric: python)"
    )
    judge: Judge = Judge()
    prompt: str | None = Field(default=None, description="the full instruction, given as system turn to the prompt arms")
    short_prompt: str | None = Field(default=None, description="the system turn that the tuned model is trained and asked with")
    min_gain: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.03, description="smallest gain over the best prompt that is worth deploying"
    )
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="answer budget; derived from the longest answer of the training part when not given"
    )

    @model_validator(mode="after")
    def _keys_of_the_metric(self) -> "Task":
        for key, metrics in READ_BY.items():
            if self.metric not in metrics and self.__dict__[key] not in (None, False, Judge()):
                raise ValueError(f"{key} is read by metric: {' or '.join(metrics)} alone; leave it out")
        for key in NEEDED.get(self.metric, ()):
            value = self
            for part in key.split("."):
                value = value.__dict__[part]
            if not value:
                raise ValueError(f"metric: {self.metric} needs task.{key}")
        if self.constrained and self.json_schema is None and self.labels is None:
            raise ValueError("constrained needs task.json_schema, which says what may be written")
        if self.function is not None and not all(self.function.rpartition(":")[::2]):
            raise ValueError("function is written file.py:name")
        return self
