"""How many tokens of context a served model reserves, and what llama.cpp computes otherwise within them."""

from pathlib import Path

from tunesmith.checkpoints.hf import read_config
from tunesmith.errors import ExportError
from tunesmith.models.llama_cpp_limits import llama_cpp_differs

LEAST_CONTEXT = 4096  # tokens: what vLLM and Ollama's users expect of a chat, and a few MB a thousand of a small model


def served_context(base: Path, num_ctx: int | None, longest: int | None, max_new_tokens: int) -> tuple[int, str]:
    """Tokens of context, and where the number comes from.

    The recipe's ``export.num_ctx``; else the longest rendered row and an answer, at least ``LEAST_CONTEXT``, within what the
    model can take.

    Args:
        base: directory of the base model.
        num_ctx: of the recipe.
        longest: tokens of the longest rendered row; None before the rows are rendered, of which a dry run alone asks.
        max_new_tokens: of an answer.

    Raises:
        ExportError: ``num_ctx`` is more than the model takes.
    """
    config, _ = read_config(base)
    most = int(config.max_position_embeddings)
    if num_ctx is not None:
        if num_ctx > most:
            raise ExportError(f"export.num_ctx: {num_ctx}, the model takes {most} tokens at most", f"at most {most}")
        return num_ctx, "given"
    if longest is None:
        return min(LEAST_CONTEXT, most), "no row is rendered yet"
    wanted = max(LEAST_CONTEXT, longest + max_new_tokens)
    if most < wanted:
        return most, f"the model's {most}"
    return wanted, f"longest row {longest} and {max_new_tokens} of an answer, at least {LEAST_CONTEXT}"


def differences(base: Path, context: int) -> tuple[str, ...]:
    """What llama.cpp computes otherwise than the model within so many tokens, a line each."""
    return tuple(llama_cpp_differs(read_config(base)[0], context))
