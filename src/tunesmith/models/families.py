"""Facts per model family, as data: one frozen record a ``model_type``, no code.

What is known of a family decides what of it can be replaced by our own modules (``models/fuse.py``). A family that is not
listed is trained with its stock modules and adapters swapped in, which is right and slower.

Sources: the ``modeling_*.py`` of transformers 5.23; for the PEFT defaults
``TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`` in ``peft/utils/constants.py``. A test holds every record against
the stock model: logits, loss and every adapter gradient.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """What is known of one ``model_type``.

    Attributes:
        peft_default_targets: the linear layers that PEFT adapts when it is not told.
        norm_offset: RMS norms multiply by ``norm_offset + weight``.
        mlp_norm: the norm of a decoder layer that stands before its MLP.
        post_norms: norms of a decoder layer that stand after attention and MLP, before the residual is added.
        qk_norm: q and k are normed a head before their positions.
        window: where the length of a sliding window stands: nowhere, in the configuration (all layers), or in each
            layer's attention module.
    """

    peft_default_targets: tuple[str, ...]
    norm_offset: float = 0.0
    mlp_norm: str = "post_attention_layernorm"
    post_norms: tuple[str, ...] = ()
    qk_norm: bool = False
    window: Literal["none", "config", "layer"] = "none"


FAMILIES: dict[str, Family] = {
    "llama": Family(peft_default_targets=("q_proj", "v_proj")),
    "mistral": Family(peft_default_targets=("q_proj", "v_proj"), window="config"),
    "qwen2": Family(peft_default_targets=("q_proj", "v_proj"), window="layer"),
    "qwen3": Family(peft_default_targets=("q_proj", "v_proj"), qk_norm=True, window="layer"),
    "gemma3_text": Family(
        peft_default_targets=("q_proj", "v_proj"),
        norm_offset=1.0,
        mlp_norm="pre_feedforward_layernorm",
        post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
        qk_norm=True,
        window="layer",
    ),
}
