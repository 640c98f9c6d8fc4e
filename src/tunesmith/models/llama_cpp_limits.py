"""Where llama.cpp computes a model otherwise than its configuration says.

A GGUF holds weights and a few numbers; the rest of an architecture is llama.cpp's own code, written for the published sizes.
A setting that it does not read is dropped without a word: the file loads, answers, and is another model. What is fixed there
is a record of the family (``families.LlamaCpp``); here it is held against a configuration, and what differs becomes a line.

A line is no refusal. Many of these show only beyond some length, and whether they matter is measured: parity and the deployed
arm run the file. But a window of thousands of tokens is longer than the prompts that parity has, so a line says what parity
cannot show.

Refused: reading the settings back from the GGUF. It lacks what llama.cpp does not know, which is the point.
Cost: none; a few comparisons.

Source: llama.cpp build b10605: ``src/models/*.cpp``, ``llama_model::get_rope_factors``, ``llama_hparams::set_swa_pattern``,
and the padding of ``n_ctx`` in ``src/llama-context.cpp``.
"""

from typing import Any

from transformers import PretrainedConfig

from tunesmith.families import FAMILIES, Family

CONTEXT_STEP = 256  # llama.cpp rounds the context that is asked for up to a multiple of it


def llama_cpp_differs(config: PretrainedConfig, context: int) -> list[str]:
    """What llama.cpp computes otherwise than stock transformers, a line each with the setting and its number.

    Args:
        config: of the text model.
        context: tokens that the served model reserves; a window that is at least as long changes nothing.

    Returns:
        The lines; none where nothing is known to differ, as for a family without a record.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        return []
    settings = config.to_dict()
    lines = [
        _windows(settings, family, context),
        _long_factors(settings, family, context),
        _positions(settings, family),
        _scale(settings, family),
    ]
    return [line for line in lines if line is not None]


def _windows(settings: dict[str, Any], family: Family, context: int) -> str | None:
    """A window that is left out, or that other layers have."""
    window, fixed = settings.get("sliding_window"), family.llama_cpp.windows
    layers = int(settings["num_hidden_layers"])
    kinds = settings.get("layer_types") if family.window == "layer" else None
    has_window = [window is not None and (kinds is None or kinds[i] == "sliding_attention") for i in range(layers)]
    if fixed == "as configured" or window is None:
        return None
    if fixed == "none":
        if not any(has_window) or window >= context:
            return None
        return (
            f"it has no sliding window, sliding_window is {window:,} in {sum(has_window)} of {layers} layers and {context:,} "
            f"tokens are served: what is longer than the window is answered otherwise. Parity's prompts are shorter than a "
            f"long window and show this only beyond {window:,} tokens. export.num_ctx of at most {window:,} keeps within it"
        )
    computed = [(i + 1) % fixed != 0 for i in range(layers)]
    other = [i for i in range(layers) if has_window[i] != computed[i]]
    # layers with a window may turn q and k by other frequencies; then the kind of a layer matters at every length
    if not other or (window >= context and not _has_local_frequencies(settings)):
        return None
    return (
        f"the last of every {fixed} layers has no sliding window and the others have one; layer_types says otherwise in "
        f"{len(other)} of {layers} layers, first in layer {other[0]}. Parity's prompts are shorter than a long window and "
        f"show the windows themselves only beyond {window:,} tokens"
    )


def _has_local_frequencies(settings: dict[str, Any]) -> bool:
    rope = settings.get("rope_parameters") or {}
    return "sliding_attention" in rope and rope["sliding_attention"] != rope.get("full_attention")


def _long_factors(settings: dict[str, Any], family: Family, context: int) -> str | None:
    """Frequencies chosen by the context that is reserved and not by the length of the prompt."""
    rope = settings.get("rope_parameters") or {}
    if family.llama_cpp.long_factors_at == "length" or rope.get("rope_type") != "longrope":
        return None
    first = int(rope["original_max_position_embeddings"])
    reserved = -(-context // CONTEXT_STEP) * CONTEXT_STEP
    if reserved <= first:
        return None
    most = first // CONTEXT_STEP * CONTEXT_STEP
    remedy = f". export.num_ctx of at most {most:,} keeps the short factors" if most else ""
    return (
        f"a context of {reserved:,} tokens is more than original_max_position_embeddings, {first:,}, so it takes the long "
        f"factors of longrope for every prompt, short ones too{remedy}"
    )


def _positions(settings: dict[str, Any], family: Family) -> str | None:
    """Layers without positions, elsewhere than configured."""
    every, rope_flags = family.llama_cpp.no_rope_every, settings.get("no_rope_layers")
    if every is None or rope_flags is None:
        return None
    other = [i for i, turned in enumerate(rope_flags) if bool(turned) != ((i + 1) % every != 0)]
    if not other:
        return None
    return (
        f"the last of every {every} layers has no positions and the others have them; no_rope_layers says otherwise in "
        f"{len(other)} of {len(rope_flags)} layers, first in layer {other[0]}"
    )


def _scale(settings: dict[str, Any], family: Family) -> str | None:
    """Scores scaled by another number than configured."""
    wide = family.llama_cpp.wide_scale_at
    if wide is None:
        return None
    scalar, layers = settings["query_pre_attn_scalar"], int(settings["num_hidden_layers"])
    is_wide = layers == wide
    computed = settings["hidden_size"] // settings["num_attention_heads"] if is_wide else settings["head_dim"]
    if scalar == computed:
        return None
    source = "hidden_size / num_attention_heads" if is_wide else "head_dim"
    return (
        f"scores are divided by the square root of {computed}, {source} with {layers} layers; query_pre_attn_scalar is {scalar}"
    )
