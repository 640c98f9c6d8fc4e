"""The recipe as a whole, and its small sections."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from tunesmith.formatting import repeated
from tunesmith.recipe.amount import AmountText
from tunesmith.recipe.budget import checked_budget
from tunesmith.recipe.data import Chat, Data
from tunesmith.recipe.evaluate import EXTERNAL, Evaluate
from tunesmith.recipe.section import NAME, SHA256, Section
from tunesmith.recipe.task import Task
from tunesmith.recipe.train import Lora, Train
from tunesmith.recipe.tuned import Kind, Tuned, arms_with


class Advise(Section):
    """What the calls cost that a tuned model would answer; read with evaluate.price_per_hour by the verb advise, and by the
    verdict where evaluate.arms holds prompt_deployed."""

    calls_per_month: Annotated[float, Field(ge=0.0)] | None = Field(default=None, description="calls in a month")
    price_per_million_prompt_tokens: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None, description="price of a million prompt tokens where the prompt is sent today"
    )
    price_per_million_cached_tokens: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None, description="price of a million prompt tokens that are cached there, as those that tuning saves would be"
    )
    price_per_million_output_tokens: Annotated[float, Field(ge=0.0)] | None = Field(
        default=None, description="price of a million answer tokens there"
    )
    hosting_per_month: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="what a month of hosting the tuned model costs more than the prompt does today"
    )


PlainType = Literal["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "MXFP4_MOE"]
GgufType = Literal[PlainType, "dynamic-Q4_K_M", "dynamic-Q3_K_M"]  # a type for each tensor, at the size of the plain one
DYNAMIC = "dynamic-"


def plain_type(kind: str) -> str:
    """llama.cpp's file type that a type of a recipe is as large as: of a dynamic one the plain one, else itself."""
    return kind.removeprefix(DYNAMIC)


class Export(Section):
    """The forms that are deployed."""

    merge_into: Literal["trained", "original"] = Field(
        default="trained",
        description="what the adapter is merged into with base: nf4: the weights that it was trained on, dequantised, or the "
        "16-bit original; the report says the dev loss of both",
    )
    gguf: tuple[GgufType, ...] = Field(
        default=("Q8_0", "Q4_K_M"),
        min_length=1,
        description="llama.cpp file types to write; the last one is the deployed arm; MXFP4_MOE keeps the experts of a mixture "
        "in MXFP4 and all else in Q8_0; dynamic-TYPE gives each tensor a type by what the training prompts show of it, in no "
        "more bytes than TYPE",
    )
    imatrix: bool = Field(
        default=False, description="weigh each column of a quantised weight by what the training prompts send through it"
    )
    lora_gguf: bool = Field(
        default=False, description="also write the adapter as a GGUF, and the base beside it in the deployed file type"
    )
    num_ctx: Annotated[int, Field(ge=64)] | None = Field(
        default=None,
        description="tokens of context that the Ollama and vLLM commands reserve; when not given the longest rendered row and "
        "an answer, at least 4,096, within what the model can take",
    )


BLOCK_BASES = ("gguf", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")  # of ``base``: blocks of a GGUF
TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Recipe(Section):
    """A whole run."""

    name: Annotated[str, Field(pattern=NAME)] | None = Field(
        default=None, description="name of the run directory; the recipe's file name when not given"
    )
    model: str = Field(description="hub id, directory, or .gguf file")
    revision: str | None = Field(default=None, description="commit of a hub id")
    model_sha256: Annotated[str, Field(pattern=SHA256)] | None = Field(
        default=None, description="expected sha256 of a .gguf file; another file is refused"
    )
    max_position_embeddings: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="positions that the model gets in the place of its own, for rows that are longer than it was trained for; "
        "they go with rope_theta into the merged model and its GGUF; the model's own when not given",
    )
    rope_theta: Literal["auto"] | Annotated[float, Field(gt=1.0)] = Field(
        default="auto",
        description="base of the rotary positions with max_position_embeddings; auto raises the model's own so far that its "
        "slowest pair turns no further over the new length than over the old one (NTK-aware)",
    )
    base: Literal["auto", "fp32", "bf16", "nf4", "gguf", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"] = Field(
        default="auto",
        description="what the frozen base weights are kept in; auto is fp32 or bf16, whichever this machine multiplies faster; "
        "nf4 is 4 bits a weight (QLoRA); a llama.cpp type trains on the very blocks of the GGUF that is deployed with the "
        "adapter beside it, and gguf on those of a model that is such a file",
    )
    base_budget: Annotated[AmountText, AfterValidator(checked_budget)] | None = Field(
        default=None,
        description="bytes that a base in NF4 may take, as an amount of the whole frozen base (6.5GB), a share on top of NF4 "
        "(+10%) or auto, what the plan leaves over: the linear layers that matter most to the rows get 8 or 16 bits, the rest "
        "NF4 with searched scales; none for NF4 as bitsandbytes has it",
    )
    per_layer_embeddings: Literal["auto", "cpu", "nf4", "model"] = Field(
        default="auto",
        description="where the table lies that feeds every layer, in a model that has one: cpu keeps it in host memory and "
        "copies the rows that are read, nf4 holds it in 4 bits a weight, model leaves it as is; auto is cpu when a GPU trains",
    )
    base_head: Literal["auto", "int8"] = Field(
        default="auto",
        description="what the frozen output head is kept in: auto is the dtype of the products; int8 is 8 bits a weight, one "
        "scale a row, half the memory; an embedding that shares the head's table is then read from it as well",
    )
    towers: Literal["drop", "keep"] = Field(
        default="drop",
        description="image and audio towers of a multimodal checkpoint, which training never loads: drop merges to a text-only "
        "model, keep copies them into the merged model under the checkpoint's names",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, description="of the split, the order of rows, the adapter's first weights and dropout"
    )
    report_to: tuple[TrackerName, ...] = Field(
        default=(),
        description="trackers that see the run while it runs, each an extra of its name; what they need to know (address, "
        "project, key) stands in the variables that their own libraries read; tunesmith track RUN --to NAME does it afterwards",
    )
    data: Data
    chat: Chat = Chat()
    task: Task
    tuned: tuple[Tuned, ...] = Field(
        default=(),
        description="a tuned model that is there already and takes the place of training, or a list of candidates: each "
        "{name, adapter | merged | gguf | endpoint with model and api_key_env}; lora and most of train then mean nothing",
    )
    lora: Lora = Lora()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    advise: Advise = Advise()
    export: Export = Export()

    @field_validator("tuned", mode="before")
    @classmethod
    def _one_or_several(cls, raw: JsonValue) -> JsonValue:
        return [raw] if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _what_is_brought(self) -> "Recipe":
        if not self.tuned:
            return self
        evaluate = self.evaluate
        if self.export.lora_gguf and self.tuned_kind != "adapter":
            raise ValueError("export.lora_gguf writes an adapter, and the tuned model that is brought is none")
        if evaluate.forgetting.tasks and self.tuned_kind != "adapter":
            raise ValueError("evaluate.forgetting.tasks are run with an adapter on and off; what is brought is no adapter")
        if twice := repeated(one.label for one in self.tuned):
            raise ValueError(f"tuned: two candidates are called {twice[0]}; give each a name")
        if evaluate.seeds > 1 or evaluate.learning_curve:
            raise ValueError("evaluate.seeds and evaluate.learning_curve train, and with tuned nothing is trained")
        arms = arms_with(self.tuned, evaluate.arms, "arms" in evaluate.model_fields_set, self.task.metric)
        tuned = tuple([one.model_copy(update={"name": one.label}) for one in self.tuned])
        return self.model_copy(update={"tuned": tuned, "evaluate": evaluate.model_copy(update={"arms": arms})})

    @property
    def tuned_kind(self) -> Literal["trained", "several"] | Kind:
        """Where the tuned model comes from: the run's own training, the form of the one that is brought, or several."""
        kinds: list[Kind] = [one.kind for one in self.tuned]
        return "several" if len(kinds) > 1 else kinds[0] if kinds else "trained"

    @property
    def chooses(self) -> bool:
        """Whether one of several tuned models is chosen, exported, and judged as it is deployed."""
        return self.tuned_kind == "several" and "deployed" in self.evaluate.arms

    @model_validator(mode="after")
    def _scored_alone(self) -> "Recipe":
        if self.task.metric == "judge" and (self.evaluate.seeds > 1 or self.evaluate.learning_curve):
            raise ValueError("evaluate.seeds and evaluate.learning_curve need a metric that scores an answer by itself")
        if self.task.metric == "judge" and self.evaluate.optimized_prompt.writer is not None:
            raise ValueError("evaluate.optimized_prompt.writer needs a metric that scores an answer by itself")
        elsewhere = any(arm.startswith(EXTERNAL) for arm in self.evaluate.arms) or any(one.endpoint for one in self.tuned)
        if self.task.metric == "calibrated" and elsewhere:
            raise ValueError("metric: calibrated needs log-probabilities of the labels, which no external arm gives")
        return self

    @model_validator(mode="after")
    def _theta_of_more_positions(self) -> "Recipe":
        if self.rope_theta != "auto" and self.max_position_embeddings is None:
            raise ValueError(
                f"rope_theta: {self.rope_theta:g} is read with max_position_embeddings, the tokens that the model shall take"
            )
        if self.max_position_embeddings is not None and self.export.lora_gguf and self.model.endswith(".gguf"):
            raise ValueError(
                f"export.lora_gguf: the base of the adapter is the file {self.model}, which has no max_position_embeddings "
                f"{self.max_position_embeddings}; set export.lora_gguf: false and serve the merged GGUF"
            )
        return self

    @model_validator(mode="after")
    def _one_precision(self) -> "Recipe":
        if self.base in ("fp32", "bf16") and self.train.compute not in ("auto", self.base):
            raise ValueError(f"base: {self.base} computes in {self.base}; train.compute is read with base: auto or nf4")
        return self

    @model_validator(mode="before")
    @classmethod
    def _adapter_on_blocks(cls, raw: JsonValue) -> JsonValue:
        """What is trained on the blocks of a file is deployed beside it."""
        if not isinstance(raw, dict) or raw.get("base") not in BLOCK_BASES:
            return raw
        export = raw.get("export") or {}
        return {**raw, "export": {"lora_gguf": True, **export}} if isinstance(export, dict) else raw

    @model_validator(mode="after")
    def _blocks_are_deployed(self) -> "Recipe":
        if not self.deploys_adapter:
            return self
        if self.base == "gguf" and not self.model.endswith(".gguf"):
            raise ValueError("base: gguf trains on the blocks of a .gguf file, and model names none; name a type, as Q4_K_M")
        refused = {
            "export.lora_gguf: false": not self.export.lora_gguf,
            "lora.use_dora: true": self.lora.use_dora,
            "chat.new_tokens": bool(self.chat.new_tokens),
            "lora.modules_to_save": bool(self.lora.modules_to_save),
            "max_position_embeddings": self.max_position_embeddings is not None,
            "towers: keep": self.towers == "keep",
            "base_head: int8": self.base_head == "int8",
        }
        for words in (words for words, is_set in refused.items() if is_set):
            raise ValueError(
                f"base: {self.base} deploys the file it trains on with the adapter beside it, which excludes {words}"
            )
        return self

    @model_validator(mode="after")
    def _qat_on_a_dense_base(self) -> "Recipe":
        if not self.train.qat:
            return self
        refused = {
            f"base: {self.base}": self.base not in ("auto", "fp32", "bf16"),
            f"export.gguf that ends with {self.export.gguf[-1]}": self.export.gguf[-1] not in BLOCK_BASES,
            "lora.use_dora: true": self.lora.use_dora,
            "chat.new_tokens": bool(self.chat.new_tokens),
            "lora.modules_to_save": bool(self.lora.modules_to_save),
            "base_head: int8": self.base_head == "int8",
            "train.compute: fp16": self.train.compute == "fp16",
            "train.shard: true": self.train.shard,
            "tuned": bool(self.tuned),
        }
        for words in (words for words, is_set in refused.items() if is_set):
            raise ValueError(
                f"train.qat rounds a dense base onto the grid of one of {', '.join(BLOCK_BASES[1:])}; not with {words}"
            )
        return self

    @property
    def grid_is_weighed(self) -> bool:
        """Whether the grid that is trained onto is chosen with the importance of the base's columns, measured before."""
        return self.train.qat and self.export.imatrix

    @property
    def deploys_adapter(self) -> bool:
        """Whether the deployed form is the adapter beside the GGUF that it was trained on; else a merged GGUF."""
        return self.base in BLOCK_BASES

    @property
    def serves_own_file(self) -> bool:
        """Whether an adapter's GGUF is applied to the recipe's own model: a GGUF that holds the template of the run."""
        return self.model.endswith(".gguf") and self.chat.template is None and self.chat.enable_thinking is None

    @property
    def base_type(self) -> str:
        """llama.cpp's file type of the base that lies beside an adapter, where it is made and not the model itself."""
        return self.base if self.deploys_adapter else plain_type(self.export.gguf[-1])

    @model_validator(mode="after")
    def _streamed_in_nf4(self) -> "Recipe":
        if self.train.resident_layers != "all" and self.base != "nf4":
            raise ValueError(
                f"train.resident_layers: {self.train.resident_layers} streams layers in NF4, and base is {self.base}; "
                "write base: nf4, or train.resident_layers: all"
            )
        if self.train.shard and self.base != "nf4":
            raise ValueError(f"train.shard: true shares layers in NF4 out, and base is {self.base}; write base: nf4")
        return self

    @model_validator(mode="after")
    def _budget_of_nf4(self) -> "Recipe":
        if self.base_budget is None:
            return self
        if self.base != "nf4":
            raise ValueError(
                f"base_budget: {self.base_budget} gives some layers of a base in NF4 more bits, and base is {self.base}; "
                "write base: nf4, or leave base_budget out"
            )
        refused = {
            f"train.resident_layers: {self.train.resident_layers}": self.train.resident_layers != "all",
            "train.shard: true": self.train.shard,
            "tuned": bool(self.tuned),
        }
        for words in (words for words, is_set in refused.items() if is_set):
            raise ValueError(
                f"base_budget: {self.base_budget} chooses a base that is trained on here, whole on every GPU; not with {words}"
            )
        return self

    @model_validator(mode="after")
    def _tables_in_whole_models(self) -> "Recipe":
        if self.lora.modules_to_save and self.export.lora_gguf and not self.tuned:
            raise ValueError(
                "export.lora_gguf: llama.cpp's adapters hold no whole tables (lora.modules_to_save); the merged GGUF does: "
                "export.gguf with lora_gguf: false"
            )
        if self.chat.new_tokens and self.export.lora_gguf:
            raise ValueError(
                "export.lora_gguf: llama.cpp's adapters hold no rows of new tokens (chat.new_tokens); the merged GGUF does: "
                "export.gguf with lora_gguf: false"
            )
        return self

    @model_validator(mode="after")
    def _parts_leave_room(self) -> "Recipe":
        if self.data.test_fraction + self.data.dev_fraction >= 1.0:
            raise ValueError("data.test_fraction + data.dev_fraction leave nothing to train on")
        return self
