"""What two ways to ask have in common: the same prompt, answered freely and held to a schema or to labels.

Greedy decoding under a constraint takes the likeliest of the tokens that fit. So a free answer that fits as a whole is the
constrained answer too, and a constrained one whose every token was the likeliest of all is the free one. Answers to a good
prompt are mostly both, and every prompt is tried both ways: half of the questions need not be asked.

It holds of an engine that masks and takes the likeliest, which is the one in this process. A server may do otherwise, and is
asked.

Source: llguidance 1.x, ``LLMatcher`` over bytes in place of tokens.
"""

from collections.abc import Sequence

from tunesmith.engines.constraint import fits
from tunesmith.engines.engine import Constraint
from tunesmith.rundir.records.answers import Output


def in_common(outputs: Sequence[Output], allowed: Constraint | None) -> dict[str, Output]:
    """Those of the answers to a prompt that the other way to ask it gets as well, by row.

    Args:
        outputs: free answers where ``allowed`` is something, answers constrained to anything where it is None.
        allowed: what the other way is held to; None: to nothing.
    """
    if allowed is None:
        return {output.id: output for output in outputs if output.free}
    return {output.id: output for output in outputs if output.free and output.finished and fits(allowed, output.output)}
