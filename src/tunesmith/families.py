"""Facts per model family, as data: one frozen record a ``model_type``, no code.

What is known of a family decides what is adapted and quantised, which of its modules are computed by ours
(``models/fuse.py``), how its checkpoint is read and what an export has to heed. A family that is not listed is trained with
its stock modules and adapters swapped in, which is right and slower, and the run says so.

A multimodal checkpoint holds a text model and towers; ``WRAPPERS`` says where its text model is, and the text model's own
record holds for all else.

Sources: the ``modeling_*.py`` of transformers 5.23; for the PEFT defaults
``TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`` in ``peft/utils/constants.py``. Tests hold every record against the
stock model: logits, loss, every adapter gradient, saving and merging; ``docs/reference/families.md`` is made of both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Support:
    """How far a feature holds for a family, and why not further."""

    level: Literal["supported", "experimental", "unsupported"]
    why: str = ""


SUPPORTED = Support("supported")


@dataclass(frozen=True)
class Experts:
    """The experts of a mixture.

    Attributes:
        module: their module, from the decoder layer.
        router: the module that chooses among them; never adapted, never quantised.
        layout: of the 3-D weights: ``EOI`` as linear layers have it (y = x W^T), ``EIO`` the other way (y = x W).
        interleaved: gate and up take turns in the columns; else all gates come first.
    """

    module: str
    router: str
    layout: Literal["EOI", "EIO"] = "EOI"
    interleaved: bool = False


@dataclass(frozen=True)
class LlamaCpp:
    """What llama.cpp has in its code for a family and reads from no file; ``models/llama_cpp_limits.py`` compares.

    Source: ``src/models/*.cpp`` of build b10605, each held on a tiny model by a test.

    Attributes:
        windows: ``as configured`` where the file decides; ``none`` where no window is computed; else a number n: every n-th
            layer has none and all others have it (``set_swa_pattern``).
        no_rope_every: n where every n-th layer, and no other, leaves q and k without positions (``n_no_rope_layer_step``).
        wide_scale_at: number of layers at which scores are scaled by ``hidden_size / heads``, with any other by the head
            dimension (``f_attention_scale``); None where the family has no scale of its own.
        long_factors_at: the factors of longrope are chosen ``length`` by the length of the prompt, or ``context`` by the
            context that is reserved (``get_rope_factors``).
    """

    windows: Literal["as configured", "none"] | int = "as configured"
    no_rope_every: int | None = None
    wide_scale_at: int | None = None
    long_factors_at: Literal["length", "context"] = "length"


@dataclass(frozen=True)
class Family:
    """What is known of one ``model_type``.

    Attributes:
        title: how people call the models.
        peft_default_targets: the linear layers that PEFT adapts when it is not told; none where it has no default.
        never_adapted: names, or runs of name parts, that ``all-linear`` leaves out.
        never_quantized: names, or runs of name parts, that stay in 16 bits.
        norm_offset: RMS norms multiply by ``norm_offset + weight``.
        mlp_norm: the norm of a decoder layer that stands before its MLP.
        post_norms: norms of a decoder layer that stand after attention and MLP, before the residual is added.
        other_norms: further norms of a decoder layer, in the layers that have them.
        qk_norm: q and k are normed a head before their positions.
        v_norm: v is normed a head, without a weight.
        window: where the length of a sliding window stands: nowhere, in the configuration (all layers), or in each
            layer's attention module.
        rotary: all layers turn q and k by their positions, or each layer's attention module says whether it does.
        half_cosines: the rotary module returns cosines and sines once for both halves of a head, not twice.
        score_softcap: key of the configuration that holds the soft-cap of attention scores.
        sinks: parameter of the attention module that holds a score a head beside those of the keys.
        fused_qkv: name of the one layer that makes q, k and v, where there is one.
        fused_gate_up: name of the one layer that makes gate and up, where there is one.
        shared_kv: the last layers read keys and values of earlier ones.
        keys_are_values: some layers have no v_proj and use what k_proj makes.
        per_layer_embeddings: name of the embedding table that feeds every layer.
        experts: of a mixture.
        turn_ends: the tokens that end a turn in its official templates.
        system_role: its official templates know a system turn; else its text is put before the first user's.
        half_hazard: why plain float16 fails on it, as far as known.
        export: what an export has to heed.
        llama_cpp: what llama.cpp computes without asking the file.
        features: feature -> how far it holds; a feature that is not named is supported.
    """

    title: str
    peft_default_targets: tuple[str, ...]
    never_adapted: tuple[str, ...] = ()
    never_quantized: tuple[str, ...] = ()
    norm_offset: float = 0.0
    mlp_norm: str = "post_attention_layernorm"
    post_norms: tuple[str, ...] = ()
    other_norms: tuple[str, ...] = ()
    qk_norm: bool = False
    v_norm: bool = False
    window: Literal["none", "config", "layer"] = "none"
    rotary: Literal["all", "layer"] = "all"
    half_cosines: bool = False
    score_softcap: str | None = None
    sinks: str | None = None
    fused_qkv: str | None = None
    fused_gate_up: str | None = None
    shared_kv: bool = False
    keys_are_values: bool = False
    per_layer_embeddings: str | None = None
    experts: Experts | None = None
    turn_ends: tuple[str, ...] = ()
    system_role: bool = True
    half_hazard: str = ""
    export: tuple[str, ...] = ()
    llama_cpp: LlamaCpp = LlamaCpp()
    features: Mapping[str, Support] = field(default_factory=dict)


@dataclass(frozen=True)
class Wrapper:
    """A multimodal model around a text model; its configuration holds the text model's as ``text_config``.

    Attributes:
        family: ``model_type`` of its text model, the key of its record.
        towers: beginnings of the names of everything else in the checkpoint, after ``model.``.
    """

    family: str
    towers: tuple[str, ...]


@dataclass(frozen=True)
class GgufArchitecture:
    """What a GGUF file of an architecture says beyond what all say.

    Attributes:
        keys: keys of its metadata without the architecture's name, and the setting of the configuration that each is; None
            for what is always the same or follows from the others.
        wide_scale_at: number of layers of the one size whose attention is scaled by ``hidden_size / heads`` instead of the
            head dimension (llama.cpp ``src/llama-model.cpp``, ``f_attention_scale``); None where no size differs.
    """

    keys: Mapping[str, str | None] = field(default_factory=dict)
    wide_scale_at: int | None = None


GEMMA_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
QV = ("q_proj", "v_proj")
NO_WINDOW = {
    "gguf": Support("experimental", "llama.cpp has no window there: longer contexts than the window are answered otherwise")
}
WINDOWLESS = LlamaCpp(windows="none")
GEMMA4 = Family(
    "Gemma 4 E2B, E4B, 26B-A4B, 31B",
    (),
    mlp_norm="pre_feedforward_layernorm",
    post_norms=GEMMA_NORMS,
    other_norms=(
        "post_per_layer_input_norm",
        "post_feedforward_layernorm_1",
        "pre_feedforward_layernorm_2",
        "post_feedforward_layernorm_2",
    ),
    qk_norm=True,
    v_norm=True,
    window="layer",
    shared_kv=True,
    keys_are_values=True,
    turn_ends=("<turn|>",),
    half_hazard="the product of gate and up passes 65,504, and so does the backward pass",
    export=(
        "vLLM gives an adapter on k_proj to the keys alone where the values are the keys; its form repeats it under v_proj",
        "logits in F16 differ from those of transformers by 0.06 to 0.15",
    ),
)

FAMILIES: dict[str, Family] = {
    "llama": Family("Llama 3.x, SmolLM2", QV, turn_ends=("<|eot_id|>", "<|eom_id|>", "<|im_end|>")),
    "mistral": Family("Mistral", QV, window="config", turn_ends=("</s>",), llama_cpp=WINDOWLESS, features=NO_WINDOW),
    "qwen2": Family("Qwen2, Qwen2.5", QV, window="layer", turn_ends=("<|im_end|>",), llama_cpp=WINDOWLESS, features=NO_WINDOW),
    "qwen3": Family(
        "Qwen3",
        QV,
        qk_norm=True,
        window="layer",
        turn_ends=("<|im_end|>",),
        export=("in llama.cpp no layer has a window",),
        llama_cpp=WINDOWLESS,
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        (),
        qk_norm=True,
        window="layer",
        experts=Experts("mlp.experts", "mlp.gate"),
        turn_ends=("<|im_end|>",),
        export=(
            "a checkpoint holds the experts one by one where the model stacks them; the merge writes what it read",
            "in llama.cpp no layer has a window",
        ),
        llama_cpp=WINDOWLESS,
    ),
    "gpt_oss": Family(
        "gpt-oss",
        (),
        window="layer",
        half_cosines=True,
        sinks="sinks",
        experts=Experts("mlp.experts", "mlp.router", layout="EIO", interleaved=True),
        turn_ends=("<|return|>", "<|call|>"),
        export=("in llama.cpp every other layer has a window, whatever layer_types says",),
        llama_cpp=LlamaCpp(windows=2),
    ),
    "smollm3": Family(
        "SmolLM3",
        (),
        window="layer",
        rotary="layer",
        turn_ends=("<|im_end|>",),
        export=("in llama.cpp every fourth layer has no positions, whatever no_rope_layers says, and no layer has a window",),
        llama_cpp=LlamaCpp(windows="none", no_rope_every=4),
    ),
    "phi3": Family(
        "Phi-3, Phi-4-mini",
        (),
        window="config",
        fused_qkv="qkv_proj",
        fused_gate_up="gate_up_proj",
        turn_ends=("<|end|>",),
        export=(
            "an adapter on the one layer of q, k and v has one A for all three, as PEFT has it",
            "llama.cpp takes the long factors of longrope whenever its context is longer than the first, for short prompts too",
        ),
        llama_cpp=LlamaCpp(windows="none", long_factors_at="context"),
        features=NO_WINDOW
        | {
            "long contexts (longrope)": Support(
                "experimental", "one document beyond the first context changes the frequencies of all in its pack"
            )
        },
    ),
    "gemma2": Family(
        "Gemma 2",
        QV,
        norm_offset=1.0,
        mlp_norm="pre_feedforward_layernorm",
        post_norms=GEMMA_NORMS,
        window="layer",
        score_softcap="attn_logit_softcapping",
        turn_ends=("<end_of_turn>",),
        system_role=False,
        export=(
            "norm weights are 1 + w in a GGUF; llama.cpp's converter adds the one",
            "llama.cpp scales scores by head_dim, with 46 layers by hidden_size / heads, whatever query_pre_attn_scalar says",
            "in llama.cpp every other layer has a window, whatever layer_types says",
        ),
        llama_cpp=LlamaCpp(windows=2, wide_scale_at=46),
    ),
    "gemma3_text": Family(
        "Gemma 3",
        QV,
        norm_offset=1.0,
        mlp_norm="pre_feedforward_layernorm",
        post_norms=GEMMA_NORMS,
        qk_norm=True,
        window="layer",
        turn_ends=("<end_of_turn>",),
        system_role=False,
        half_hazard="the residual stream passes 65,504",
        export=(
            "norm weights are 1 + w in a GGUF; llama.cpp's converter adds the one",
            "llama.cpp scales scores by head_dim, with 62 layers by hidden_size / heads, whatever query_pre_attn_scalar says",
            "in llama.cpp every sixth layer has no window, whatever layer_types says",
        ),
        llama_cpp=LlamaCpp(windows=6, wide_scale_at=62),
    ),
    "gemma4_text": replace(
        GEMMA4,
        never_adapted=("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"),
        never_quantized=("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"),
        per_layer_embeddings="embed_tokens_per_layer",
        experts=Experts("experts", "router"),
        export=(
            *GEMMA4.export,
            "llama.cpp's adapters do nothing on per_layer_model_projection, so none is put there unless it is named",
        ),
    ),
    "gemma4_unified_text": replace(
        GEMMA4,
        title="Gemma 4 12B",
        features={
            "gguf": Support(
                "unsupported", "llama.cpp's converter knows the multimodal directory alone: export it with towers: keep"
            )
        },
    ),
}

WRAPPERS: dict[str, Wrapper] = {
    "gemma3": Wrapper("gemma3_text", ("vision_tower.", "multi_modal_projector.")),
    "gemma4": Wrapper("gemma4_text", ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")),
    "gemma4_unified": Wrapper("gemma4_unified_text", ("embed_vision.", "vision_embedder.", "embed_audio.")),
    "mistral3": Wrapper("mistral", ("vision_tower.", "multi_modal_projector.")),
}

# Model types whose projections are transformers' Conv1D: weights of shape (inputs, outputs), which get no adapter here.
CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}

WINDOW = {"attention.sliding_window": "sliding_window"}
HEAD = {"attention.key_length": "head_dim"}
EXPERT_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
# Layers of the size whose values llama.cpp gives more bits, and whether it must share a key among queries to be that size
# (llama.cpp LLM_TYPE_70B in src/models); and the architecture whose matrices it mixes in its own way.
GGUF_70B = {
    "llama": (80, True),
    "llama-embed": (80, True),
    "qwen2": (80, False),
    "deci": (80, False),
    "olmo": (80, False),
    "jais2": (68, False),
}
GGUF_OWN_MIXTURE = "falcon"
# Values of tokenizer.ggml.pre whose vocabularies split text as GPT-2 does, and the same after every digit was cut off
# (``llm_tokenizer_bpe`` in llama.cpp's src/llama-vocab.cpp).
GGUF_GPT2_SPLIT = {"gpt-2", "phi-2", "mpt", "olmo", "gigachat", "mellum", "modern-bert", "a.x-4.0"}
GGUF_SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
SCALED_ROTARY = "llama3"  # rope_type of the rule whose frequencies a GGUF holds as rope_freqs.weight
GGUF: dict[str, GgufArchitecture] = {
    "llama": GgufArchitecture(),
    "qwen2": GgufArchitecture(),
    "qwen3": GgufArchitecture(HEAD),
    "qwen3moe": GgufArchitecture(HEAD | EXPERT_KEYS),
    "gemma3": GgufArchitecture(HEAD | WINDOW | {"rope.freq_base_swa": None}, wide_scale_at=62),
}
