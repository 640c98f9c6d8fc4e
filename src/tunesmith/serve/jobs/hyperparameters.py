"""What a request for a job asks, and what that is in a recipe.

``n_epochs``, ``batch_size`` and ``learning_rate_multiplier`` have counterparts; ``auto`` is ours, derived from rows and model
(``recipe/derive.py``). A key that has none is refused by name: a request that was obeyed in part would train something else
than was asked for.
"""

import difflib
import re
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from tunesmith.recipe.task import MetricName
from tunesmith.serve.api_error import ApiError

M = TypeVar("M", bound=BaseModel)
SUFFIX = r"^[A-Za-z0-9._-]{1,64}$"
MEMBER = re.compile(r"[\[(]|^(constrained-)?(literal|int|float|str)$")
OTHER_METHODS = ("dpo", "reinforcement")


class Asked(BaseModel):
    """What all parts of a request are: an unknown key is an error, and no text becomes a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Hyperparameters(Asked):
    """OpenAI's, for supervised tuning."""

    n_epochs: Literal["auto"] | Annotated[int, Field(ge=1, le=50)] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0.0, le=100.0)] = "auto"


class Supervised(Asked):
    """``method.supervised``."""

    hyperparameters: Hyperparameters | None = None


class Method(Asked):
    """``method``."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class Options(Asked):
    """Ours, in ``extra_body={"tunesmith": {...}}``: the keys of a recipe that name no path and no address."""

    metric: MetricName | None = None
    labels: list[Annotated[str, Field(min_length=1)]] | None = Field(default=None, min_length=2)
    prompt: str | None = None
    short_prompt: str | None = None
    min_gain: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    min_score: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None


class JobRequest(Asked):
    """The body of ``POST /v1/fine_tuning/jobs``."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: Annotated[str, Field(pattern=SUFFIX)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: list[JsonValue] | None = None
    tunesmith: Options | None = None

    @property
    def asked(self) -> Hyperparameters:
        """The hyperparameters, wherever they stand."""
        supervised = None if self.method is None else self.method.supervised
        return (None if supervised is None else supervised.hyperparameters) or self.hyperparameters or Hyperparameters()

    @property
    def options(self) -> Options:
        """Ours; the metric may also stand in the metadata, which every client can send."""
        options = self.tunesmith or Options()
        metric = (self.metadata or {}).get("metric")
        return options if metric is None or options.metric is not None else options.model_copy(update={"metric": metric})


class SampleRequest(Asked):
    """The body of ``POST /v1/fine_tuning/preview``: the first rows as they would be trained."""

    model: str
    training_file: str
    rows: Annotated[int, Field(ge=1, le=100)] = 3


def job_request(body: JsonValue) -> JobRequest:
    """Read a request for a job, or for its estimate.

    Raises:
        ApiError: 400, with the key that is wrong.
    """
    method = body.get("method") if isinstance(body, dict) else None
    kind = method.get("type") if isinstance(method, dict) else None
    if kind in OTHER_METHODS:
        raise ApiError(
            400, f"method.type: {kind} is not offered here; supervised is", "unsupported_method", param="method.type"
        )
    request = read(JobRequest, body)
    if request.integrations:
        raise ApiError(
            400,
            "integrations are the operator's to set: report_to in the recipe of jobs.yaml",
            "unsupported_parameter",
            param="integrations",
        )
    supervised = None if request.method is None else request.method.supervised
    if request.hyperparameters is not None and supervised is not None and supervised.hyperparameters is not None:
        raise ApiError(
            400, "hyperparameters stand in method as well; give one of them", "invalid_value", param="hyperparameters"
        )
    metric = (request.metadata or {}).get("metric")
    if metric is not None:
        read(Options, {"metric": metric}, where="metadata.")
    return request


def read(kind: type[M], body: JsonValue, where: str = "") -> M:
    """Read a body.

    Args:
        where: what goes before the name of a key in an error.

    Raises:
        ApiError: 400, with the key that is wrong.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problems = [(_path(item["loc"]), item["type"], item["msg"].removeprefix("Value error, ")) for item in error.errors()]
    path, code, _ = problems[0]
    param = where + ".".join(path)
    if code == "extra_forbidden":
        known = _keys_at(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known there: {', '.join(known)}"
        raise ApiError(400, f"Unrecognized request argument supplied: {param}; {hint}", "unknown_parameter", param=param)
    if code == "missing":
        raise ApiError(400, f"Missing required parameter: '{param}'", "missing_required_parameter", param=param)
    reasons = dict.fromkeys(message for other, _, message in problems if other == path)
    raise ApiError(400, f"{param or 'the body'}: {'; '.join(reasons)}", "invalid_value", param=param or None)


def _path(location: tuple[int | str, ...]) -> list[str]:
    """Where a problem is, without what pydantic says of members of a union."""
    return [str(part) for part in location if not MEMBER.search(str(part))]


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The keys of a part of a request."""
    for name in path:
        members = (kind.model_fields[name].annotation, *get_args(kind.model_fields[name].annotation))
        kind = next(member for member in members if isinstance(member, type) and issubclass(member, BaseModel))
    return list(kind.model_fields)
