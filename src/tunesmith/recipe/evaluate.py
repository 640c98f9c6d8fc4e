"""Keys of the arms, of what they cost, and of the checks around them."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from tunesmith.recipe.section import ENTRY, Section
from tunesmith.recipe.tuned import TUNED_OF

PROMPT_ARMS = ("zero_shot", "instruction", "few_shot", "optimized_prompt", "retrieval")  # ask the base model
PROMPT_DEPLOYED = "prompt_deployed"
ARMS = (*PROMPT_ARMS, "tuned", "tuned_retrieval", "deployed", PROMPT_DEPLOYED)  # and external:<name>[:<prompt arm>]
EXTERNAL = "external:"
PromptArm = Literal["zero_shot", "instruction", "few_shot", "optimized_prompt", "retrieval"]


class FewShot(Section):
    """The search for the best demonstrations; it sees train and dev only."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 3, 5), min_length=1, description="numbers of examples to try"
    )
    selection: tuple[Literal["random", "bm25", "embeddings"], ...] = Field(
        default=("random", "bm25"),
        min_length=1,
        description="how examples are found: drawn once for all questions, or the nearest train rows of each, by words (bm25) "
        "or by words and meaning (embeddings, which needs evaluate.retrieval.embedder)",
    )
    draws: Annotated[int, Field(ge=1)] = Field(default=2, description="random draws of examples for each k")


class Writer(Section):
    """A model that writes instructions for the search by reading what the base model gets wrong (extra gepa)."""

    base_url: str = Field(description="address of an OpenAI-compatible endpoint, up to and with /v1; it is shown train rows")
    model: str = Field(description="the model's name there, best a strong one")
    api_key_env: str | None = Field(default=None, description="name of the environment variable that holds the key")
    answers: Annotated[int, Field(ge=8)] = Field(
        default=400, description="answers of the base model that the writing may cost, beside those of the search"
    )


class OptimizedPrompt(Section):
    """Random search over instructions and demonstrations, on dev rows."""

    calls: Annotated[int, Field(ge=8)] | None = Field(
        default=None, description="answers of the base model that the search may cost; what 16 prompts cost when not given"
    )
    instructions: tuple[str, ...] = Field(default=(), description="instructions of your own that join the search")
    writer: Writer | None = None


class TokenPrice(Section):
    """What an endpoint asks, in any one currency."""

    prompt_per_million: Annotated[float, Field(ge=0.0)] = Field(description="price of a million prompt tokens")
    output_per_million: Annotated[float, Field(ge=0.0)] = Field(description="price of a million answer tokens")


class External(Section):
    """An OpenAI-compatible endpoint that answers the same test rows, or what one has answered before."""

    base_url: str | None = Field(default=None, description="address of the endpoint, up to and with /v1")
    model: str | None = Field(default=None, description="the model's name there")
    recorded: Path | None = Field(
        default=None,
        description="answers that tunesmith record kept of a model that may be switched off by now, in the place of an "
        "address; with replace",
    )
    replace: bool = Field(
        default=False,
        description="whether it is the model that the tuned one is to take the place of: it is asked as the rows ask, need not "
        "be beaten, and the verdict says whether for certain less than task.min_gain is lost",
    )
    api_key_env: str | None = Field(default=None, description="name of the environment variable that holds the key")
    prompt: PromptArm = Field(default="few_shot", description="the prompt arm whose prompts it gets")
    rival: bool = Field(default=True, description="whether it can be the prompt to beat; else it is shown beside the verdict")
    price: TokenPrice | None = None
    body: dict[str, JsonValue] = Field(
        default={}, description="more keys of every request; null leaves one of ours out, as {max_tokens: null} for some models"
    )
    timeout: Annotated[float, Field(gt=0.0)] = Field(default=120.0, description="seconds to wait for an answer")
    concurrency: Annotated[int, Field(ge=1)] = Field(default=4, description="questions asked at a time")

    @model_validator(mode="after")
    def _one_source(self) -> "External":
        if self.recorded is not None and not self.replace:
            raise ValueError("recorded answers are of a model that is to be replaced: add replace: true")
        if self.recorded is not None and (self.base_url is not None or self.model is not None):
            raise ValueError("recorded takes the place of base_url and model: give one or the other")
        if self.recorded is None and (self.base_url is None or self.model is None):
            raise ValueError("base_url and model are needed (or recorded)")
        return self


class Retrieval(Section):
    """How passages are found for the retrieval arms."""

    k: Annotated[int, Field(ge=1, le=100)] = Field(default=5, description="passages shown with a question")
    embedder: str | None = Field(
        default=None,
        description="sentence encoder that ranks beside BM25: all-MiniLM-L6-v2 (extra rag), a directory or a hub id; words "
        "alone when not given",
    )
    qdrant: str | None = Field(
        default=None, description="URL of a Qdrant server (extra qdrant) in the place of the SQLite file; needs an embedder"
    )

    @model_validator(mode="after")
    def _server_needs_vectors(self) -> "Retrieval":
        if self.qdrant is not None and self.embedder is None:
            raise ValueError("qdrant searches by vectors, so evaluate.retrieval.embedder is needed")
        return self


class Forgetting(Section):
    """What the tuned model must still be able to do as well as its base."""

    margin: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.02,
        description="largest loss that does not matter: of a probability or accuracy, or as a share of bits per byte",
    )
    required: bool = Field(
        default=False, description="whether deploying needs the verdict no regression; else only a regression is in its way"
    )
    texts: Path | None = Field(
        default=None, description="passages that take the place of ours: a .jsonl file of {text: ...}, or text with blank lines"
    )
    tasks: tuple[str, ...] = Field(
        default=(), description="tasks of lm-evaluation-harness to run on base and tuned model (extra lm-eval)"
    )
    tasks_path: Path | None = Field(default=None, description="folder of YAML files that define tasks of your own")
    limit: Annotated[int, Field(ge=2)] | None = Field(default=None, description="documents of each task; all when not given")

    @model_validator(mode="after")
    def _needs_tasks(self) -> "Forgetting":
        if not self.tasks and (self.tasks_path is not None or self.limit is not None):
            raise ValueError("tasks_path and limit are read with tasks; name the tasks to run")
        return self


class Evaluate(Section):
    """The arms that are scored on the sealed test part."""

    arms: tuple[str, ...] = Field(
        default=("instruction", "few_shot", "tuned", "deployed"),
        description="zero_shot (the base model asked as the tuned one is) | instruction (task.prompt) | few_shot | "
        "optimized_prompt | retrieval | tuned | tuned_retrieval | deployed | prompt_deployed (the best prompt of dev on the "
        "base model's own GGUF, to compare what calls take) | external:NAME or external:NAME:PROMPT_ARM; with several models "
        "in the section tuned, tuned stands for tuned:NAME of each, and deployed for the file of the best of them",
    )
    finalists: Annotated[int, Field(ge=1, le=20)] | None = Field(
        default=None,
        description="the best prompts of dev that answer the test part and that the tuned model has to beat, each; 3 to 20 "
        "when not given, more with more test rows, fewer dev rows and more prompts",
    )
    few_shot: FewShot = FewShot()
    optimized_prompt: OptimizedPrompt = OptimizedPrompt()
    retrieval: Retrieval = Retrieval()
    external: dict[Annotated[str, Field(pattern=ENTRY)], External] = Field(
        default={}, description="endpoints by name, for the arms external:NAME"
    )
    price_per_hour: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None, description="what an hour of this machine costs, in the currency of the endpoints' prices"
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(default=32, description="conversations that an engine answers at a time")
    forgetting: Forgetting = Forgetting()
    seeds: Annotated[int, Field(ge=1, le=20)] = Field(
        default=1, description="adapters to train, with seed, seed + 1 ...; the spread of their test scores is reported"
    )
    learning_curve: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        default=(),
        description="shares of the train part to train on, at least three and 1.0 among them; scored on dev, and carried on "
        "to twice and four times the rows",
    )

    @field_validator("learning_curve")
    @classmethod
    def _a_curve(cls, shares: tuple[float, ...]) -> tuple[float, ...]:
        if shares and (len(set(shares)) < 3 or max(shares) < 1.0):
            raise ValueError("a curve needs three shares or more, and 1.0 (the run's own adapter) among them")
        return tuple(sorted(set(shares)))

    @model_validator(mode="after")
    def _seeds_score_tuned(self) -> "Evaluate":
        if self.seeds > 1 and "tuned" not in self.arms:
            raise ValueError("seeds compares adapters in the arm tuned, which evaluate.arms leaves out")
        return self

    @field_validator("arms")
    @classmethod
    def _in_order(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(arms)) != len(arms):
            raise ValueError("an arm is named twice")
        last_prompt = len(PROMPT_ARMS) - 0.5  # where the endpoints stand; sorting is stable
        last_tuned = ARMS.index("tuned")

        def place(arm: str) -> float:
            return ARMS.index(arm) if arm in ARMS else last_tuned if arm.startswith(TUNED_OF) else last_prompt

        return tuple(sorted(arms, key=place))

    @model_validator(mode="after")
    def _known(self) -> "Evaluate":
        for arm in self.arms:
            if arm.startswith(TUNED_OF):  # which candidates there are, the section tuned says
                continue
            name, colon, prompt = arm.removeprefix(EXTERNAL).partition(":")
            if arm not in ARMS and not arm.startswith(EXTERNAL):
                near = difflib.get_close_matches(arm, ARMS, 1)
                raise ValueError(f"arms: {arm} is not an arm" + (f"; did you mean {near[0]}?" if near else f": {ARMS}"))
            if arm not in ARMS and name not in self.external:
                raise ValueError(f"arms: {arm} has no entry evaluate.external.{name}")
            if colon and arm not in ARMS and prompt not in PROMPT_ARMS:
                raise ValueError(f"arms: {arm}: {prompt!r} is not a prompt arm: {', '.join(PROMPT_ARMS)}")
        if unused := set(self.external) - {arm.removeprefix(EXTERNAL).partition(":")[0] for arm in self.arms}:
            raise ValueError(f"external: {min(unused)} is in no arm; add external:{min(unused)} to arms")
        if not any(arm in PROMPT_ARMS or self.is_rival(arm) for arm in self.arms):
            raise ValueError(f"arms: at least one prompt arm ({', '.join(PROMPT_ARMS)}) is needed to compare with")
        if PROMPT_DEPLOYED in self.arms and not ("deployed" in self.arms and any(arm in PROMPT_ARMS for arm in self.arms)):
            raise ValueError(f"arms: {PROMPT_DEPLOYED} compares a prompt of the base model with deployed: both have to be arms")
        return self

    def endpoint_of(self, arm: str) -> External:
        """The endpoint of an arm ``external:...``."""
        return self.external[arm.removeprefix(EXTERNAL).partition(":")[0]]

    def prompt_of(self, arm: str) -> str:
        """The prompt arm whose prompts an arm ``external:...`` gets."""
        return arm.removeprefix(EXTERNAL).partition(":")[2] or self.endpoint_of(arm).prompt

    def is_rival(self, arm: str) -> bool:
        """Whether an arm can be the prompt to beat."""
        if not arm.startswith(EXTERNAL):
            return arm in PROMPT_ARMS
        return self.endpoint_of(arm).rival and not self.endpoint_of(arm).replace

    @property
    def replaced(self) -> tuple[str, ...]:
        """The arms that the tuned model is to take the place of."""
        return tuple(arm for arm in self.arms if arm.startswith(EXTERNAL) and self.endpoint_of(arm).replace)

    @property
    def asking(self) -> tuple[str, ...]:
        """The arms whose prompts are chosen on dev, and for endpoints the prompt arm that they ask as."""
        external = [arm for arm in self.arms if arm.startswith(EXTERNAL) and arm not in self.replaced]
        return tuple(dict.fromkeys((*self.arms, *map(self.prompt_of, external))))
