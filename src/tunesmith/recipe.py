"""The recipe: one YAML file that drives the whole life of a run.

Every key changes behaviour (``tests/rules/test_every_key.py`` holds one observation per key), and an unknown key is an
error that names the nearest known one: a mistyped key that is silently ignored is how a run becomes another run.
What is not written is derived or defaulted, and the resolved recipe in the run directory writes it all out.

Paths are relative to the recipe file, so that a recipe means the same wherever it is started from; the resolved recipe
holds absolute ones. ``model`` is a path if it ends in ``.gguf``, starts with ``.``, ``/`` or ``~``, or exists beside
the recipe; everything else is a hub id.
"""

import difflib
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tunesmith.errors import RecipeError

ARMS = ("zero_shot", "few_shot", "tuned", "deployed")
PROMPT_ARMS = ("zero_shot", "few_shot")
FILE_SUFFIXES = {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst"}  # no hub id ends so
GGUF_TYPES = ("F16", "Q8_0", "Q4_K_M")

Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Data(_Section):
    """The examples, how they are read, and how they are split."""

    path: str = Field(description="file, directory, or hub id (owner/name, owner/name:split)")
    format: Literal["messages", "sharegpt", "alpaca", "prompt_completion", "text"] | None = Field(
        default=None, description="format of the rows; told from the whole file when not given"
    )
    columns: dict[str, str] | None = Field(
        default=None, description="our names to the file's columns, for example {prompt: question, completion: answer}"
    )
    group_by: str | None = Field(default=None, description="column whose value holds rows together in the split")
    on_bad_row: Literal["refuse", "quarantine"] = Field(
        default="refuse", description="refuse the data, or keep bad rows aside in data/rejected.jsonl"
    )
    on_too_long: Literal["refuse", "drop", "drop_oldest_turns"] = Field(
        default="refuse",
        description="what happens to a train or dev row above train.max_length; none is ever cut",
    )
    on_leak: Literal["report", "move", "refuse"] = Field(
        default="report", description="what happens to test rows that have a near duplicate in train"
    )
    earlier_split: Path | None = Field(
        default=None, description="data/split.json of an earlier run, whose test rows stay test rows"
    )
    test_fraction: Fraction = Field(default=0.15, description="share of the rows sealed for the verdict")
    dev_fraction: Fraction = Field(default=0.10, description="share of the rows on which everything is chosen")


class Chat(_Section):
    """How conversations become text."""

    template: Path | None = Field(
        default=None,
        description="what takes the place of the model's own chat template: a Jinja file, or the name (without a suffix) of "
        "one that tunesmith brings",
    )
    enable_thinking: bool | None = Field(
        default=None,
        description="switches thinking on or off in a template that has the switch, in training, evaluation and export alike; "
        "the template's own default when not given",
    )


class Task(_Section):
    """What is asked, and what counts as a right answer."""

    metric: Literal["exact_match", "json"] = Field(description="how an answer is scored against the reference")
    json_schema: Path | None = Field(default=None, description="JSON schema file that every answer should meet (metric: json)")
    prompt: str | None = Field(default=None, description="the full instruction, given as system turn to the prompt arms")
    short_prompt: str | None = Field(default=None, description="the system turn that the tuned model is trained and asked with")
    min_gain: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.03, description="smallest gain over the best prompt that is worth deploying"
    )
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="answer budget; derived from the longest answer of the training part when not given"
    )

    @model_validator(mode="after")
    def _schema_needs_json(self) -> "Task":
        if self.json_schema is not None and self.metric != "json":
            raise ValueError("json_schema is read by metric: json alone")
        return self


class Lora(_Section):
    """The adapter. Names and meanings are PEFT's."""

    r: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0.0)] = 32
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    target_modules: str | tuple[str, ...] = Field(
        default="all-linear",
        description="all-linear | peft-default (attention only, as PEFT chooses) | a list of names | a regular expression",
    )
    use_rslora: bool = Field(
        default=False, description="scale the update by alpha / sqrt(r) instead of alpha / r (rsLoRA), for ranks above 64 or so"
    )
    use_dora: bool = Field(
        default=False, description="train the length of every row of the weight apart from its direction (DoRA); slower"
    )

    @property
    def scale(self) -> float:
        """Factor on ``B A``: ``alpha / r`` (Hu et al. 2021), or ``alpha / sqrt(r)`` (rsLoRA, arXiv 2312.03732)."""
        return self.alpha / math.sqrt(self.r) if self.use_rslora else self.alpha / self.r


class Train(_Section):
    """The optimisation. Names and meanings are TRL's where TRL has them."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 2.0e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0
    compute: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="dtype of the matrix products where base is auto or nf4; auto takes the faster of fp32 and bf16 on this "
        "machine, and fp16 on a GPU without bf16; fp16 scales each row and keeps all else in fp32, so nothing overflows",
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        default="adamw",
        description="adamw keeps 8 bytes of state a trained weight; the 8-bit ones 2 (bitsandbytes, extra bnb); paged moves it "
        "to host memory when the GPU is full",
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="decoupled decay of lora_A and lora_B; 0 pulls nowhere, more pulls towards the base model"
    )
    loraplus_lr_ratio: Annotated[float, Field(gt=0.0)] = Field(
        default=1.0, description="learning rate of lora_B over that of lora_A (LoRA+); its authors suggest about 16"
    )
    deterministic: bool = Field(
        default=False,
        description="refuse kernels whose result depends on scheduling: a GPU gives the same bytes again, as a CPU does anyway",
    )
    recompute: Literal["none", "attention", "mlp", "layer"] | Annotated[int, Field(ge=1)] = Field(
        default="none",
        description="what is computed a second time in the backward pass instead of kept: nothing, every attention, every mlp, "
        "every layer, or every n-th layer (gradient checkpointing); the result is the same",
    )
    num_train_epochs: Annotated[int, Field(ge=1)] = 2
    tokens_per_step: Annotated[int, Field(ge=1)] = Field(default=8192, description="tokens of one optimizer step, about")
    max_length: Annotated[int, Field(ge=2)] = Field(
        default=2048, description="longest row, and the tokens of one packed micro-batch"
    )
    evals_per_epoch: Annotated[int, Field(ge=1)] = Field(default=2, description="dev losses (and checkpoints) an epoch")


class FewShot(_Section):
    """The search for the best demonstrations; it sees train and dev only."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 3, 5), min_length=1, description="numbers of examples to try"
    )
    draws: Annotated[int, Field(ge=1)] = Field(default=2, description="random draws of examples for each k")
    dev_rows: Annotated[int, Field(ge=1)] = Field(default=64, description="dev rows on which a choice is scored")


class Evaluate(_Section):
    """The arms that are scored on the sealed test part."""

    arms: tuple[Literal["zero_shot", "few_shot", "tuned", "deployed"], ...] = ARMS
    few_shot: FewShot = FewShot()
    batch_size: Annotated[int, Field(ge=1)] = 32

    @field_validator("arms")
    @classmethod
    def _known_once(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(arms)) != len(arms):
            raise ValueError("an arm is named twice")
        if not set(arms) & set(PROMPT_ARMS):
            raise ValueError("at least one prompt arm (zero_shot, few_shot) is needed to compare with")
        return tuple(arm for arm in ARMS if arm in arms)


class Export(_Section):
    """The forms that are deployed."""

    merge_into: Literal["trained", "original"] = Field(
        default="trained",
        description="what the adapter is merged into with base: nf4: the weights that it was trained on, dequantised, or the "
        "16-bit original; the report says the dev loss of both",
    )
    gguf: tuple[Literal["F16", "Q8_0", "Q4_K_M"], ...] = Field(
        default=("Q8_0", "Q4_K_M"), min_length=1, description="llama.cpp file types to write; the last one is the deployed arm"
    )


class Recipe(_Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = Field(
        default=None, description="name of the run directory; the recipe's file name when not given"
    )
    model: str = Field(description="hub id, directory, or .gguf file")
    revision: str | None = Field(default=None, description="commit of a hub id")
    model_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, description="expected sha256 of a .gguf file; another file is refused"
    )
    base: Literal["auto", "fp32", "bf16", "nf4"] = Field(
        default="auto",
        description="what the frozen base weights are kept in; auto is fp32 or bf16, whichever this machine multiplies faster; "
        "nf4 is 4 bits a weight (QLoRA)",
    )
    per_layer_embeddings: Literal["auto", "cpu", "nf4", "model"] = Field(
        default="auto",
        description="where the table lies that feeds every layer, in a model that has one: cpu keeps it in host memory and "
        "copies the rows that are read, nf4 holds it in 4 bits a weight, model leaves it as is; auto is cpu when a GPU trains",
    )
    towers: Literal["drop", "keep"] = Field(
        default="drop",
        description="image and audio towers of a multimodal checkpoint, which training never loads: drop merges to a text-only "
        "model, keep copies them into the merged model under the checkpoint's names",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data
    chat: Chat = Chat()
    task: Task
    lora: Lora = Lora()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    export: Export = Export()

    @model_validator(mode="after")
    def _one_precision(self) -> "Recipe":
        if self.base in ("fp32", "bf16") and self.train.compute not in ("auto", self.base):
            raise ValueError(f"base: {self.base} computes in {self.base}; train.compute is read with base: auto or nf4")
        return self

    @model_validator(mode="after")
    def _parts_leave_room(self) -> "Recipe":
        if self.data.test_fraction + self.data.dev_fraction >= 1.0:
            raise ValueError("data.test_fraction + data.dev_fraction leave nothing to train on")
        return self


def load_recipe(path: Path) -> Recipe:
    """Read, check and resolve a recipe file.

    Returns:
        The recipe with absolute paths and a name.

    Raises:
        RecipeError: missing file, bad YAML, unknown key (with the nearest known one), value out of range.
    """
    if not path.exists():
        raise RecipeError(f"{path}: no such recipe", "give a YAML file, or a run directory made by an earlier command")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read as YAML: {error}", "see recipes/ for complete examples") from error
    if not isinstance(raw, dict):
        found = "an empty file" if raw is None else f"a {type(raw).__name__}"
        raise RecipeError(f"{path}: expected keys and values, found {found}", "see recipes/ for complete examples")
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(*_explain(path, error)) from error
    return _resolved(recipe, path)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def json_schema() -> str:
    """JSON schema of a recipe, for editors that complete and check YAML."""
    return json.dumps(Recipe.model_json_schema(), indent=2)


def _resolved(recipe: Recipe, path: Path) -> Recipe:
    base = path.resolve().parent
    source = recipe.data.path
    if source.count("/") != 1 or Path(source).suffix in FILE_SUFFIXES or _is_path(base, source):
        source = str(_absolute(base, Path(source)))
    earlier = recipe.data.earlier_split
    data = recipe.data.model_copy(update={"path": source, "earlier_split": earlier and _absolute(base, earlier)})
    template = recipe.chat.template
    if template is not None and not is_shipped_name(template):
        template = _absolute(base, template)
    chat = recipe.chat.model_copy(update={"template": template})
    task = recipe.task
    if task.json_schema is not None:
        task = task.model_copy(update={"json_schema": _absolute(base, task.json_schema)})
    model = recipe.model
    if model.endswith(".gguf") or _is_path(base, model):
        model = str(_absolute(base, Path(model)))
    return recipe.model_copy(
        update={"name": recipe.name or path.stem, "data": data, "chat": chat, "task": task, "model": model}
    )


def is_shipped_name(template: Path) -> bool:
    """Whether ``chat.template`` names a template that tunesmith brings (no suffix, no folder) rather than a file."""
    return not template.suffix and len(template.parts) == 1


def _is_path(base: Path, name: str) -> bool:
    """Whether a name that could be a hub id is a place on the disk."""
    return name[:1] in {".", "/", "~"} or (base / name).exists()


def _absolute(base: Path, path: Path) -> Path:
    path = path.expanduser()
    return path if path.is_absolute() else (base / path).resolve()


def _explain(path: Path, error: ValidationError) -> tuple[str, str]:
    """Message and hint for all problems of a recipe, each with its dotted key."""
    lines, hints = [], []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.5)
            lines.append(f"{path}: unknown key {key}")
            hints.append(f"did you mean {near[0]}?" if near else f"known keys there: {', '.join(sorted(known))}")
        elif item["type"] == "missing":
            lines.append(f"{path}: {key} is missing")
            hints.append("every recipe names model, data.path and task.metric")
        else:
            lines.append(f"{path}: {key}: {item['msg']}, found {item['input']!r:.80}")
    return "\n".join(lines), "; ".join(dict.fromkeys(hints)) or "tunesmith schema prints every key with its range"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Recipe
    for part in location:
        section = section.model_fields[str(part)].annotation
    return list(section.model_fields)
