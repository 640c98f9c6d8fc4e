"""Answers that were cut off: a model ran out of tokens or was stopped, and the end that is missing would be trained as an end.

Programs that keep answers keep why they ended, each under its own name. A row whose answer did not end by itself is no example,
whatever its format; nothing but its owner can complete it.
"""

from collections.abc import Collection, Mapping
from typing import Any

from tunesmith.data.problems import RowError

KEYS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason")
_CUT = frozenset(
    (
        *("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "model_context_window_exceeded"),
        *("content_filter", "safety", "recitation", "blocklist", "prohibited_content", "spii"),
    )
)
HINT = "complete the answer and say so, or remove the row (--quarantine FILE sets it aside)"


def refuse_cut_off(holder: Mapping[str, Any], path: str, named: Collection[str] = ()) -> None:
    """Refuse an answer whose end is known to be missing.

    Args:
        holder: the object that says why the answer ended: a row, or a part of one.
        path: of it.
        named: columns that their owner reads as something else.

    Raises:
        RowError: it was cut off, ``cut-off-answer``.
    """
    for key in KEYS:
        reason = holder.get(key)
        if isinstance(reason, str) and reason.lower() in _CUT and key not in named:
            message = f"the answer was cut off ({key} {reason}), and its end would be trained"
            raise RowError(f"{path}.{key}", "cut-off-answer", message, HINT)
