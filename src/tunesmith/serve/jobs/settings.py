"""``jobs.yaml``: what may be tuned by the API, from which recipe, within which limits.

A request chooses among what stands here and names no path and no address: which base models there are, which files a metric
reads and where webhooks go is the operator's to say. The file is written at the first start.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, cast

import yaml
from pydantic import AfterValidator, Field, JsonValue, field_validator

from tunesmith import hardware
from tunesmith.errors import RecipeError
from tunesmith.recipe import yaml_line
from tunesmith.recipe.amount import AmountText, checked_amount
from tunesmith.recipe.load import model_place, section_from
from tunesmith.recipe.run import Recipe
from tunesmith.recipe.section import ENTRY, Section
from tunesmith.rundir.atomic import write_text
from tunesmith.serve.jobs.signing import is_secret

logger = logging.getLogger(__name__)

SETTINGS = "jobs.yaml"
HINT = "docs/how-to/fine-tune-by-api.md lists every key of jobs.yaml"
OF_THE_JOB = ("name", "model", "tuned")  # keys of a recipe that a job gives itself
OF_ITS_DATA = ("path", "split", "earlier_split", "trained_on")


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("expected an address that begins with https:// (or http://)")
    return text


Amount = Annotated[AmountText, AfterValidator(checked_amount)]
WebhookType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
ALL_TYPES: tuple[WebhookType, ...] = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")


class WebhookTo(Section):
    """An address that is told how jobs end."""

    url: Annotated[str, AfterValidator(_address)] = Field(description="where it is posted to; no redirect is followed")
    secret_env: str = Field(description="name of the environment variable that holds the signing secret (whsec_...)")
    types: tuple[WebhookType, ...] = Field(default=ALL_TYPES, min_length=1, description="what it is told")


class Quotas(Section):
    """What a key may have at a time."""

    jobs: Annotated[int, Field(ge=1)] = Field(default=20, description="jobs of a key that are not finished")
    file_bytes: Amount = Field(default="512MB", description="of one file")
    stored_bytes: Amount = Field(default="20GB", description="of all files of a key")
    hours: Annotated[float, Field(gt=0.0)] | None = Field(
        default=None, description="that a job may run; no limit when not given"
    )
    attempts: Annotated[int, Field(ge=1)] = Field(
        default=3, description="how often a job that crashes without getting further is started again"
    )
    keep_free: Amount = Field(default="2GB", description="of the disk, below which no file is taken")


class JobsSettings(Section):
    """The file as a whole."""

    models: dict[Annotated[str, Field(pattern=ENTRY)], str] = Field(
        description="base models by the name that a request asks for: hub id, directory or .gguf file"
    )
    recipe: dict[str, JsonValue] = Field(
        default={}, description="sections and keys of a recipe that every job begins with, such as task: {metric: json}"
    )
    serve_anyway: bool = Field(
        default=False, description="give fine_tuned_model whatever the verdict; else only where it is to deploy"
    )
    quotas: Quotas = Quotas()
    webhooks: tuple[WebhookTo, ...] = ()

    @property
    def seed(self) -> int:
        """Of a job whose request names none."""
        seed = self.recipe.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    @field_validator("models")
    @classmethod
    def _some(cls, models: dict[str, str]) -> dict[str, str]:
        if not models:
            raise ValueError("no base model is named")
        return models

    @field_validator("recipe")
    @classmethod
    def _left_to_jobs(cls, recipe: dict[str, JsonValue]) -> dict[str, JsonValue]:
        data = recipe.get("data", {})
        if not isinstance(data, dict):
            raise ValueError("data: expected keys and values")
        own = [key for key in OF_THE_JOB if key in recipe]
        own += [f"data.{key}" for key in OF_ITS_DATA if key in data]
        if own:
            raise ValueError(f"{own[0]} is what each job says for itself; leave it out")
        return recipe


def load_settings(directory: Path, models: Mapping[str, str] | None = None) -> tuple[JobsSettings, bool]:
    """The settings of a directory of jobs, written there where there are none.

    Args:
        directory: of the jobs.
        models: base models by name that a first file names; relative paths start from the working directory.

    Returns:
        The settings, and whether the file was written just now.

    Raises:
        RecipeError: the file is wrong, or names no model; or a webhook's secret is not in the environment.
    """
    path = directory / SETTINGS
    bases = {name: model_place(Path.cwd(), place) for name, place in (models or {}).items()}
    is_new = not path.exists() or path.read_text(encoding="utf-8", errors="replace") == _first({})
    if is_new:
        for name, place in bases.items():
            _refuse_missing_model(f"--base: {name}", place)
        write_text(path, _first(bases))
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}", HINT) from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected keys and values", HINT)
    if is_new and not raw.get("models"):
        raise RecipeError(
            f"{path}: was written just now, and names no base model",
            "name one under models: in that file, or give --base MODEL",
        )
    try:
        settings = section_from(JobsSettings, cast("dict[str, JsonValue]", raw), str(path))
        _refuse_unknown_keys(settings)
    except RecipeError as error:
        raise RecipeError(error.message, error.hint if "did you mean" in error.hint else HINT) from error
    for webhook in settings.webhooks:
        _refuse_secret(path, webhook.secret_env)
    places = {name: model_place(directory.resolve(), place) for name, place in settings.models.items()}
    for name, place in places.items():
        _refuse_missing_model(f"{path}: models.{name}", place)
    if unknown := [place for place in bases.values() if place not in places.values()]:
        logger.warning(f"jobs: {unknown[0]} is not among the models of {path}, and cannot be tuned; add it there")
    return settings.model_copy(update={"models": places}), is_new


def _refuse_missing_model(where: str, place: str) -> None:
    """Refuse a path where nothing is; a hub id is asked for with the first job.

    Raises:
        RecipeError: nothing is there.
    """
    if Path(place).is_absolute() and not Path(place).exists():
        raise RecipeError(f"{where}: {place} is not there", "name a hub id, a directory or a .gguf file")


def _refuse_secret(path: Path, name: str) -> None:
    """Refuse a variable that holds no secret.

    Raises:
        RecipeError: it is not set, or what it holds is no base64.
    """
    secret = hardware.secret(name)
    hint = f"export {name}=whsec_... with the secret that the receiver checks with"
    if secret is None:
        raise RecipeError(f"{path}: webhooks: the environment variable {name} is not set", hint)
    if not is_secret(secret):
        raise RecipeError(f"{path}: webhooks: what {name} holds after whsec_ is no base64", hint)


def _refuse_unknown_keys(settings: JobsSettings) -> None:
    """Refuse a key of ``recipe`` that no recipe has, and of its sections; their values are checked with every job.

    Raises:
        RecipeError: a section or key that there is none of.
    """
    unknown = [key for key in settings.recipe if key not in Recipe.model_fields]
    for name, values in settings.recipe.items():
        kind = Recipe.model_fields[name].annotation if name in Recipe.model_fields else None
        if isinstance(values, dict) and isinstance(kind, type) and issubclass(kind, Section):
            unknown += [f"{name}.{key}" for key in values if key not in kind.model_fields]
    if unknown:
        raise RecipeError(f"jobs.yaml: recipe.{unknown[0]}: no such key of a recipe", "tunesmith schema prints every key")


def _first(models: Mapping[str, str]) -> str:
    """The file of a first start."""
    lines = [
        "# What may be tuned by the API: tunesmith serve --jobs reads it when it starts.",
        "",
        "# Base models by the name that a request asks for: hub id, directory or .gguf file.",
        "models:" + ("" if models else " {}"),
        *(f"  {yaml_line(name, place)}" for name, place in models.items()),
        "",
        "# Sections and keys of a recipe that every job begins with; the metric is told from the rows unless it stands here.",
        "recipe: {}",
        "#  task: {metric: json, prompt: The best instruction that you can write.}",
        "#  export: {lora_gguf: true}  # the models of many jobs are then served as adapters of one base, in one process",
        "#  evaluate: {price_per_hour: 2.0}",
        "",
        "# fine_tuned_model is given only where the verdict is to deploy; true gives it whatever the verdict.",
        "serve_anyway: false",
        "",
        "# What a key may have at a time.",
        "quotas: {jobs: 20, file_bytes: 512MB, stored_bytes: 20GB}",
        "",
        "# Who is told how jobs end; the secret (whsec_...) is in the environment variable.",
        "webhooks: []",
        "#  - {url: https://example.com/hook, secret_env: TUNESMITH_WEBHOOK_SECRET}",
        "",
    ]
    return "\n".join(lines)
