"""SQuAD: a passage, a question, and the spans that answer it."""

from typing import Any

from tunesmith.data.draft import Draft
from tunesmith.data.problems import RowError

NOTE = "squad: question and context are joined by a line break, the first of the answers is learned"
READS = ("question", "context", "answers")


def matches(row: Any) -> bool:
    """Whether a row is one."""
    answers = row.get("answers")
    return isinstance(answers, dict) and "text" in answers and "question" in row and "context" in row


def draft(row: Any, said: set[str]) -> Draft:
    """Question and answer of a row.

    Raises:
        RowError: no answer (SQuAD 2 has such questions), or something that is no text.
    """
    texts = row["answers"]["text"]
    if not isinstance(texts, list) or not texts:
        hint = "write the words for 'no answer' as its text, or remove the row (--quarantine FILE sets it aside)"
        raise RowError("$.answers.text", "no-answer", "a question without an answer", hint)
    for name in ("question", "context"):
        if not isinstance(row[name], str):
            raise RowError(f"$.{name}", "not-text", f"expected text, found {type(row[name]).__name__}", "write a string")
    turns = [{"role": "user", "content": f"{row['question']}\n{row['context']}"}, {"role": "assistant", "content": texts[0]}]
    return Draft(turns, origins=[("$.question", False), ("$.answers.text[0]", False)], whole="$")
