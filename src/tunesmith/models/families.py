"""Facts per model family, as data: one frozen record a ``model_type``, no code.

So far one fact is needed: which linear layers PEFT adapts when it is not told (attention projections only), so that a
recipe can compare with it. Source: ``TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`` in
``peft/utils/constants.py``; a test holds every entry against the installed PEFT.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What is known of one ``model_type``."""

    peft_default_targets: tuple[str, ...]


FAMILIES: dict[str, Family] = {
    "llama": Family(peft_default_targets=("q_proj", "v_proj")),
    "mistral": Family(peft_default_targets=("q_proj", "v_proj")),
    "qwen2": Family(peft_default_targets=("q_proj", "v_proj")),
    "qwen3": Family(peft_default_targets=("q_proj", "v_proj")),
}
